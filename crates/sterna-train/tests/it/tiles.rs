//! One micro-batch through the engine in many small tiles and in one.

use sterna_arch::ModelConfig;
use sterna_comm::{Comm, RankEnv};
use sterna_data::{DataMesh, MicroBatches, prepare};
use sterna_hf::{Tokenizer, WeightFiles};
use sterna_recipe::{DeviceType, Plan, TileLengths};
use sterna_train::{
    engine::{Engine, EngineOptions},
    load::WeightSource,
};
use tch::Device;

use crate::tiny;

#[test]
fn tiles_change_neither_loss_nor_gradient() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let recipe = tiny::load(folder.path(), "tiles", &tiny::recipe(folder.path()));
    let model = folder.path().join("model");
    let config = ModelConfig::from_dir(&model).expect("a config");
    let tokenizer = Tokenizer::from_dir(&model).expect("a tokenizer");
    let data = prepare(&recipe, 96, &tokenizer, 1).expect("data");
    let mesh = DataMesh { world_size: 1, sp_size: 1, dp_rank: 0 };
    let batches = MicroBatches::new(&data.train, &recipe, mesh, 96, tokenizer.pad_token_id());
    let batch = batches.get(0).expect("a micro-batch");
    let comm =
        Comm::init(&RankEnv::single(), 1, std::time::Duration::from_secs(1)).expect("one rank");
    let plan = Plan::new(&recipe, &config, 1, DeviceType::Cpu).expect("a plan");
    let files = WeightFiles::open(&model).expect("weights");

    let run = |tiles: TileLengths, num_attention: usize| {
        let options = EngineOptions {
            tiles,
            ..EngineOptions::new(&plan, Device::Cpu, num_attention, None).expect("options")
        };
        let mut engine = Engine::new(&comm, &config.arch, &recipe, options).expect("an engine");
        engine.zero.load(&WeightSource::Files(&files)).expect("weights");
        let loss = engine.forward_backward(&batch, 0.125).expect("computed");
        engine.zero.finish_gradients(comm.world()).expect("one rank");
        (loss, engine.zero.gradient_norm(comm.world()).expect("one rank"))
    };
    let all = config.num_hidden_layers();
    let whole = run(plan.tiles, all);
    for (tiles, num_attention) in [
        (TileLengths { pre: 7, post: 5, head: 3 }, all),
        (TileLengths { pre: 7, post: 96, head: 96 }, 0),
        (TileLengths { pre: 96, post: 1, head: 1 }, 1),
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
