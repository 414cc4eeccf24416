//! One micro-batch through the engine in many small tiles and in one.

use sterna_plan::TileLengths;
use sterna_train::{activations::kept::KeepPolicy, engine::EngineOptions, objective::Sft};

use crate::one_batch::OneBatch;

#[test]
fn tiles_change_neither_loss_nor_gradient() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let of = OneBatch::new(folder.path());
    let run = |tiles: TileLengths, num_attention: usize| {
        let options = of.options();
        let keep = KeepPolicy { num_attention, ..options.keep.clone() };
        let mut engine = of.engine(EngineOptions { tiles, keep, ..options });
        let loss = engine.forward_backward(&of.batch, &Sft::new(0.125)).expect("computed").loss;
        engine.zero.finish_gradients(of.comm.world()).expect("one rank");
        (loss, engine.zero.gradient_norm(of.comm.world()).expect("one rank"))
    };
    let all = of.config.num_hidden_layers();
    let whole = run(of.plan.tiles, all);
    for (tiles, num_attention) in [
        (TileLengths { qkv: 7, mlp: 5, head: 3 }, all),
        (TileLengths { qkv: 7, mlp: 96, head: 96 }, 0),
        (TileLengths { qkv: 96, mlp: 1, head: 1 }, 1),
    ] {
        let tiled = run(tiles, num_attention);
        assert!(
            (tiled.0 / whole.0 - 1.0).abs() < 1e-6,
            "{tiles:?}: loss {tiled:?} against {whole:?}"
        );
        assert!(
            (tiled.1 / whole.1 - 1.0).abs() < 1e-5,
            "{tiles:?}: norm {tiled:?} against {whole:?}"
        );
    }
}
