//! The backward of a whole block against the slope of its forward, in double precision, for every element of every tensor.

use std::path::Path;

use serde_json::json;
use sterna_arch::{ModelConfig, Norm, NormKind};
use sterna_model::{
    AttentionContext, BlockContext, BlockGrads, BlockParams, Documents, HeadGroup, Implementation,
    Keep, block, rotary,
};
use tch::{Device, Kind, Tensor};

use crate::tiny::{Resident, alone};

const F64: (Kind, Device) = (Kind::Double, Device::Cpu);
/// Central differences with a step of 1e-5: 1e-10 from the third derivative, 1e-11 from rounding.
const TOLERANCE: f64 = 1e-8;

fn config(overrides: &serde_json::Value) -> ModelConfig {
    let mut config = json!({
        "hidden_size": 6, "intermediate_size": 5, "num_hidden_layers": 1, "num_attention_heads": 3,
        "num_key_value_heads": 1, "head_dim": 4, "vocab_size": 8, "max_position_embeddings": 32, "rms_norm_eps": 1e-5,
        "rope_theta": 100.0, "hidden_act": "silu", "tie_word_embeddings": true,
    });
    for (key, value) in overrides.as_object().unwrap() {
        config[key] = value.clone();
    }
    ModelConfig::from_json(&config.to_string(), Path::new("config.json")).unwrap()
}

fn check(config: &ModelConfig) {
    check_keeping(config, Keep { attention: true, graph: false });
}

fn check_keeping(config: &ModelConfig, keep: Keep) {
    tch::manual_seed(7);
    let comm = alone();
    let (arch, layer) = (&config.arch, &config.arch.layers[0]);
    let groups = HeadGroup::of_all_ranks(&layer.mixer, 1, 1).unwrap();
    let documents = Documents::new(vec![0..4, 4..7]);
    let ropes = rotary::tables(arch, &[0, 1, 2, 3, 0, 1, 2], 4, Kind::Double, Device::Cpu);
    let ctx = BlockContext {
        layer,
        layer_idx: 0,
        attention: AttentionContext {
            sp: comm.sp(),
            groups: &groups,
            documents: &documents,
            rope: layer.mixer.rope().map(|rope_idx| &ropes[rope_idx]),
            num_rows: 1,
            streaming: None,
            implementation: Implementation::Automatic,
            qkv_tile_len: 3,
        },
        routing: None,
        route: None,
        mlp_tile_len: 4,
    };
    let x = Tensor::randn([7, arch.hidden_size as i64], F64);
    let d_y = Tensor::randn(x.size(), F64);
    let tensors: Vec<Tensor> = layer
        .params
        .iter()
        .map(|spec| {
            let shape: Vec<i64> = spec.shape.iter().map(|size| *size as i64).collect();
            Tensor::randn(shape.as_slice(), F64) * 0.5
        })
        .collect();
    let units = arch.units();
    let unit = &units.all()[units.layer(0)].param_idxs;
    let of_unit = unit.iter().map(|&idx| tensors[idx].shallow_clone()).collect();
    let params = BlockParams::new(layer, unit, of_unit).unwrap();
    let grads: Vec<Tensor> = tensors.iter().map(Tensor::zeros_like).collect();
    let wanted = unit.iter().map(|&idx| Some(grads[idx].shallow_clone())).collect();
    let mut block_grads = BlockGrads::new(layer, unit, wanted).unwrap();
    let experts = || Resident { layer, weights: &tensors, grads: &grads, num_reduced: 0 };
    let (_, kept) = block::forward(&ctx, &params, Some(&mut experts()), &x, keep).unwrap();
    let d_x =
        block::backward(&ctx, &params, &mut block_grads, Some(&mut experts()), kept, &d_y).unwrap();

    // The tensors are shared with `params` and, for `x`, with the closure: moving an element moves the block.
    let value = || {
        let (y, _) = block::forward(&ctx, &params, Some(&mut experts()), &x, keep).unwrap();
        (y * &d_y).sum(Kind::Double).double_value(&[])
    };
    let names = layer.params.iter().map(|spec| spec.name.as_str()).chain(["x"]);
    for ((name, tensor), grad) in
        names.zip(tensors.iter().chain([&x])).zip(grads.iter().chain([&d_x]))
    {
        let (flat, grad) = (tensor.view(-1), grad.view(-1));
        for element in 0..flat.size()[0] {
            let moved = |by: f64| {
                let mut cell = flat.get(element);
                let original = cell.copy();
                let _ = cell.g_add_scalar_(by);
                let value = value();
                cell.copy_(&original);
                value
            };
            let slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            let actual = grad.double_value(&[element]);
            let difference = (actual - slope).abs();
            assert!(difference <= TOLERANCE, "{name}[{element}]: {actual} and the slope {slope}");
        }
    }
}

#[test]
fn of_a_block_with_every_bias() {
    check(&config(&json!({"model_type": "llama", "attention_bias": true, "mlp_bias": true})));
}

#[test]
fn of_a_block_with_a_sliding_window() {
    check(&config(&json!({"model_type": "mistral", "sliding_window": 2})));
}

#[test]
fn of_a_block_with_query_and_key_norms() {
    check(&config(&json!({"model_type": "qwen3"})));
}

/// The convolution reaches beyond the shorter document. Three value heads read one key head. What the first tokens of a document read is
/// small, and a norm of small or few numbers bends too much for differences: hence its eps, and the width of keys.
#[test]
fn of_a_block_with_a_delta_net() {
    let config = config(&json!({
        "model_type": "qwen3_5_text", "layer_types": ["linear_attention", "full_attention"], "num_hidden_layers": 2, "head_dim": 8,
        "linear_num_key_heads": 1, "linear_num_value_heads": 3, "linear_key_head_dim": 12, "linear_value_head_dim": 2,
        "rms_norm_eps": 0.1,
    }));
    check(&config);
}

#[test]
fn of_a_block_with_gates_among_its_queries() {
    check(&config(&json!({
        "model_type": "qwen3_5_text", "layer_types": ["full_attention"], "attention_bias": true,
        "partial_rotary_factor": 0.5,
    })));
}

/// Seven tokens that take two of five experts each, in groups of two and one.
#[test]
fn of_a_block_with_experts() {
    for norm_topk_prob in [true, false] {
        let mut config = config(&json!({
            "model_type": "qwen3_moe", "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 5,
            "norm_topk_prob": norm_topk_prob, "decoder_sparse_step": 1, "mlp_only_layers": [],
        }));
        config.arch.group_experts(2 * 3 * 5 * 6);
        check(&config);
    }
}

/// And one that all tokens take, behind a gate.
#[test]
fn of_a_block_with_a_shared_expert() {
    let config = config(&json!({
        "model_type": "qwen2_moe", "hidden_size": 12, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 4,
        "shared_expert_intermediate_size": 5,
    }));
    for graph in [false, true] {
        check_keeping(&config, Keep { attention: true, graph });
    }
}

/// Chosen by sigmoids, in two of three groups, with a factor on weights that add up to one or do not.
#[test]
fn of_a_block_with_a_router_of_sigmoids() {
    for norm_topk_prob in [true, false] {
        check(&config(&json!({
            "model_type": "glm4_moe", "n_routed_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 3,
            "n_group": 3, "topk_group": 2, "n_shared_experts": 1, "first_k_dense_replace": 0, "routed_scaling_factor": 1.7,
            "norm_topk_prob": norm_topk_prob, "partial_rotary_factor": 1.0,
        })));
    }
}

/// In one tensor, and by the softmax of the chosen alone.
#[test]
fn of_a_block_with_experts_in_one_tensor() {
    check(&config(&json!({
        "model_type": "granitemoe", "hidden_size": 12, "num_local_experts": 3, "num_experts_per_tok": 2, "intermediate_size": 4,
    })));
}

/// As a layer whose output goes through a norm before it joins the residual stream: what the norm reads is computed again, or kept.
#[test]
fn of_a_block_with_experts_and_a_norm_on_their_output() {
    let mut config = config(&json!({
        "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2,
    }));
    config.arch.group_experts(0);
    let layer = &mut config.arch.layers[0];
    layer.post_ffn_norm = Some(Norm { kind: NormKind::Rms, eps: 1e-5, weight: None, bias: None });
    layer.residual_multiplier = 0.7;
    for graph in [false, true] {
        check_keeping(&config, Keep { attention: true, graph });
    }
}
