//! Which experts a token takes is decided once.

use std::path::Path;

use serde_json::json;
use sterna_arch::ModelConfig;
use sterna_model::{
    AttentionContext, BlockContext, BlockGrads, BlockParams, Documents, HeadGroup, Implementation,
    Keep, Routing, block, rotary,
};
use tch::{Device, Kind, Tensor};

use crate::tiny::{Resident, alone};

const F32: (Kind, Device) = (Kind::Float, Device::Cpu);

/// Between forward and backward the router changes its mind about every token, as another rounding would about a few. What is computed
/// again still goes through the experts that the forward chose, and through no other.
#[test]
fn what_is_computed_again_takes_the_experts_of_the_forward() {
    tch::manual_seed(7);
    let config = json!({
        "model_type": "mixtral", "hidden_size": 8, "intermediate_size": 5, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": 8, "num_local_experts": 4, "num_experts_per_tok": 2,
    });
    let config = ModelConfig::from_json(&config.to_string(), Path::new("config.json")).unwrap();
    let (comm, arch) = (alone(), &config.arch);
    let layer = &arch.layers[0];
    let groups = HeadGroup::of_all_ranks(&layer.mixer, 1, 1).unwrap();
    let documents = Documents::new(vec![0..4, 4..7]);
    let ropes = rotary::tables(arch, &[0, 1, 2, 3, 0, 1, 2], 4, Kind::Float, Device::Cpu);
    let ctx = BlockContext {
        layer,
        layer_idx: 0,
        attention: AttentionContext {
            sp: comm.sp(),
            groups: &groups,
            documents: &documents,
            rope: Some(&ropes[0]),
            num_rows: 1,
            streaming: None,
            implementation: Implementation::Automatic,
            qkv_tile_len: 3,
        },
        routing: None,
        route: None,
        mlp_tile_len: 3,
    };
    let draw = |shape: &[i64]| Tensor::randn(shape, F32) * 0.1;
    let shape = |shape: &[usize]| shape.iter().map(|size| *size as i64).collect::<Vec<_>>();
    let tensors: Vec<Tensor> = layer.params.iter().map(|spec| draw(&shape(&spec.shape))).collect();
    let of = |part: &str| layer.params.iter().position(|spec| spec.name.contains(part)).unwrap();
    // All tokens are positive, and so is what the router reads: its rows alone put the experts in order.
    let x = draw(&[7, 8]).abs() + 1.0;
    let _ = tensors[of("post_attention_layernorm")].shallow_clone().fill_(1.0);
    let rows = Tensor::from_slice(&[0.4_f32, 0.1, 0.3, 0.2]).unsqueeze(-1);
    tensors[of("block_sparse_moe.gate")].shallow_clone().copy_(&rows.expand([4, 8], false));

    let units = arch.units();
    let unit = &units.all()[units.layer(0)].param_idxs;
    let of_unit = unit.iter().map(|&idx| tensors[idx].shallow_clone()).collect();
    let params = BlockParams::new(layer, unit, of_unit).unwrap();
    let d_y = draw(&[7, 8]);
    // Of what the router decides the tokens are counted, and not the two rows of padding.
    let is_token = [true, true, true, false, true, true, false];
    let routing = Routing::new(arch, &is_token, Device::Cpu).unwrap();
    let ctx = BlockContext { routing: Some(&routing), ..ctx };
    let keep = Keep { attention: false, graph: false };
    let experts = || Resident { layer, weights: &tensors, grads: &[], num_reduced: 0 };
    let (_, kept) = block::forward(&ctx, &params, Some(&mut experts()), &x, keep).unwrap();
    let again = BlockContext { route: kept.route.as_ref(), ..ctx };
    let _ = block::forward(&again, &params, Some(&mut experts()), &x, keep).unwrap();
    assert_eq!(routing.loads(), &Tensor::from_slice(&[5.0, 0.0, 5.0, 0.0]).view([1, 4]));

    let ctx = BlockContext { routing: None, ..ctx };
    for attention in [false, true] {
        let grads: Vec<Tensor> = tensors.iter().map(Tensor::zeros_like).collect();
        let wanted = unit.iter().map(|&idx| Some(grads[idx].shallow_clone())).collect();
        let mut block_grads = BlockGrads::new(layer, unit, wanted).unwrap();
        let experts = || Resident { layer, weights: &tensors, grads: &grads, num_reduced: 0 };
        let keep = Keep { attention, graph: false };
        let (_, kept) = block::forward(&ctx, &params, Some(&mut experts()), &x, keep).unwrap();
        let route = kept.route.as_ref().unwrap().copy();
        assert_eq!((route.size(), route.kind()), (vec![7, 2], Kind::Int16));
        assert_eq!(
            Vec::<i64>::try_from(route.sort(1, false).0.view(-1)).unwrap(),
            [0, 2].repeat(7)
        );

        let _ = tensors[of("block_sparse_moe.gate")].shallow_clone().neg_();
        let again = BlockContext { route: Some(&route), ..ctx };
        let decided = block::forward(&ctx, &params, Some(&mut experts()), &x, keep).unwrap().1;
        assert_ne!(decided.route, Some(route.copy()), "the router has changed its mind");
        let (y, repeated) =
            block::forward(&again, &params, Some(&mut experts()), &x, keep).unwrap();
        assert_eq!(repeated.route, Some(route.copy()));
        if let Some(mixer) = &kept.mixer {
            let recomputed = block::recompute(&again, &params, Some(&mut experts()), &x, mixer);
            assert_eq!(recomputed.unwrap(), y);
        }
        let _ = block::backward(&ctx, &params, &mut block_grads, Some(&mut experts()), kept, &d_y)
            .unwrap();
        for (spec, grad) in layer.params.iter().zip(&grads) {
            let Some((_, rest)) = spec.name.split_once("experts.") else { continue };
            let is_chosen = rest.starts_with(['0', '2']);
            assert_eq!(grad.any().int64_value(&[]) == 1, is_chosen, "{}", spec.name);
        }
        let _ = tensors[of("block_sparse_moe.gate")].shallow_clone().neg_();
    }
}
