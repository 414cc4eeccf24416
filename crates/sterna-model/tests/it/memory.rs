//! What is alive at once, as the operating system counts it. Each test has a process of its own.

use std::path::Path;

use serde_json::json;
use sterna_arch::{ModelConfig, ParamSpec};
use sterna_model::{
    AttentionContext, BlockContext, BlockGrads, BlockParams, Documents, HeadGroup, Implementation,
    Keep, block, embed, rotary,
};
use sterna_testkit::spawn_ranks;
use sterna_torch_sys::memory::{self, MemoryKind};
use tch::{Device, Kind, Tensor};

use crate::tiny::alone;

const MIB: u64 = 1 << 20;

/// By how many bytes the resident set of this process grew at most while `f` ran.
fn peak_growth<T>(f: impl FnOnce() -> T) -> u64 {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = status("VmRSS:");
    let _alive = f();
    status("VmHWM:").saturating_sub(before)
}

/// A field of `/proc/self/status` in bytes.
fn status(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

fn config(hidden_size: u32) -> ModelConfig {
    let config = json!({
        "model_type": "llama", "hidden_size": hidden_size, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 8, "pad_token_id": 7,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 100.0, "hidden_act": "silu",
        "tie_word_embeddings": true,
    });
    ModelConfig::from_json(&config.to_string(), Path::new("config.json")).unwrap()
}

#[test]
fn the_backward_of_the_embedding_copies_a_tile() {
    spawn_ranks(1, |_| {
        let (config, num_tokens) = (config(1024), 1 << 15);
        let ids: Vec<i64> = (0..num_tokens).map(|token| token % 8).collect();
        // 64 MiB; one copy in single precision is 128.
        let d_x = Tensor::ones([num_tokens, 1024], (Kind::BFloat16, Device::Cpu));
        let mut d_weight = Tensor::zeros([8, 1024], (Kind::Float, Device::Cpu));
        let mut run = |len: i64| {
            embed::backward(
                &config.arch,
                None,
                &mut d_weight,
                &ids[..len as usize],
                &d_x.narrow(0, 0, len),
            )
        };
        // Once for what the process allocates only once.
        run(8).unwrap();
        let growth = peak_growth(|| run(num_tokens).unwrap());
        assert!(growth < 24 * MIB, "{} MiB", growth / MIB);
    });
}

/// `q`, `k`, `v` and `o` are 16 MiB each and the output of the block is 64: 80 MiB with `o` alone beside it, 128 with all four.
#[test]
fn the_inputs_of_attention_are_gone_when_the_block_writes_its_output() {
    spawn_ranks(1, |_| {
        let growth = growth_of_forward(1024, 1);
        assert!(growth < 104 * MIB, "{} MiB", growth / MIB);
    });
}

/// Of a narrow block, `q`, `k`, `v` and `o` are most: 64 MiB; of one head in four they are 16, beside what `o` there is of the others.
#[test]
fn a_group_of_heads_holds_its_share() {
    spawn_ranks(1, |_| {
        memory::install();
        let mut attended = [1, 4].map(|num_groups| {
            memory::reset_peak();
            growth_of_forward(64, num_groups);
            memory::usage().peak[MemoryKind::Attention]
        });
        attended.reverse();
        let [grouped, whole] = attended;
        assert!(whole >= 64 * MIB, "{} MiB", whole / MIB);
        assert!(grouped <= 36 * MIB, "{} MiB", grouped / MIB);
    });
}

/// What grows with the tokens is what docs/concepts/engine.md says. The tensors of the rule in single
/// precision do not grow.
#[test]
fn a_delta_net_grows_by_what_the_page_says() {
    spawn_ranks(1, |_| {
        memory::install();
        let config = json!({
            "model_type": "qwen3_5_text", "hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 8,
            "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2, "linear_num_value_heads": 4,
            "linear_key_head_dim": 32, "linear_value_head_dim": 32,
        });
        let config = ModelConfig::from_json(&config.to_string(), Path::new("config.json")).unwrap();
        let peaks = [8, 24].map(|documents| {
            memory::reset_peak();
            both_ways(&config, 1024 * documents);
            memory::usage().peak[MemoryKind::Attention]
        });
        let per_token = (peaks[1] - peaks[0]) / (16 << 10);
        // `k` 2, `n` 4, `h_k` and `h_v` 32, `e` 4: `W`, the output, and its states, of which 2,048 tokens have one here.
        let (of_heads, output) = ((6 * 2 * 32 + 4 * 4 * 32 + 6 * 4) * 4 + 8 * 4, 4 * 32 * 4);
        let expected = of_heads + output + 4 * 4 * 32 * 32 / 2048;
        let error = per_token as f64 / f64::from(expected) - 1.0;
        assert!(error.abs() < 0.05, "{per_token} bytes for {expected}");
    });
}

/// Forward and backward of the first block on documents of 2,048 tokens, keeping what its mixer gives.
fn both_ways(config: &ModelConfig, num_tokens: i64) {
    let (comm, layer) = (alone(), &config.arch.layers[0]);
    let groups = HeadGroup::of_all_ranks(&layer.mixer, 1, 1).unwrap();
    let tensor = |spec: &ParamSpec| {
        let shape: Vec<i64> = spec.shape.iter().map(|size| *size as i64).collect();
        Tensor::ones(shape.as_slice(), (Kind::Float, Device::Cpu)) * 0.1
    };
    let all: Vec<usize> = (0..layer.params.len()).collect();
    let params = BlockParams::new(layer, &all, layer.params.iter().map(tensor).collect()).unwrap();
    let grads = layer.params.iter().map(|spec| Some(tensor(spec))).collect();
    let mut grads = BlockGrads::new(layer, &all, grads).unwrap();
    let documents = (0..num_tokens).step_by(2048).map(|start| start..start + 2048).collect();
    let documents = Documents::new(documents);
    let ctx = BlockContext {
        layer,
        layer_idx: 0,
        attention: AttentionContext {
            sp: comm.sp(),
            groups: &groups,
            documents: &documents,
            rope: None,
            num_rows: 1,
            streaming: None,
            implementation: Implementation::Automatic,
            qkv_tile_len: 256,
        },
        routing: None,
        route: None,
        mlp_tile_len: 256,
    };
    let x = Tensor::ones([num_tokens, 32], (Kind::Float, Device::Cpu));
    let keep = Keep { attention: true, graph: false };
    let (y, kept) = block::forward(&ctx, &params, None, &x, keep).unwrap();
    let _ = block::backward(&ctx, &params, &mut grads, None, kept, &y).unwrap();
}

/// By how much the resident set grows in the forward of a block with heads in so many groups.
fn growth_of_forward(hidden_size: u32, num_groups: usize) -> u64 {
    let (config, num_tokens) = (config(hidden_size), 1 << 14);
    let (comm, layer) = (alone(), &config.arch.layers[0]);
    let groups = HeadGroup::of_all_ranks(&layer.mixer, 1, num_groups).unwrap();
    let tensors: Vec<Tensor> = layer
        .params
        .iter()
        .map(|spec| {
            let shape: Vec<i64> = spec.shape.iter().map(|size| *size as i64).collect();
            Tensor::ones(shape.as_slice(), (Kind::Float, Device::Cpu))
        })
        .collect();
    let all: Vec<usize> = (0..layer.params.len()).collect();
    let params = BlockParams::new(layer, &all, tensors).unwrap();
    let run = |num_tokens: i64| {
        let documents: Vec<_> =
            (0..num_tokens / 64).map(|document| 64 * document..64 * (document + 1)).collect();
        let position_ids: Vec<i64> = (0..num_tokens).map(|token| token % 64).collect();
        let documents = Documents::new(documents);
        let rope = rotary::tables(&config.arch, &position_ids, 64, Kind::Float, Device::Cpu);
        let ctx = BlockContext {
            layer,
            layer_idx: 0,
            attention: AttentionContext {
                sp: comm.sp(),
                groups: &groups,
                documents: &documents,
                rope: Some(&rope[0]),
                num_rows: 1,
                streaming: None,
                implementation: Implementation::Automatic,
                qkv_tile_len: 256,
            },
            routing: None,
            route: None,
            mlp_tile_len: 256,
        };
        let x = Tensor::ones([num_tokens, i64::from(hidden_size)], (Kind::Float, Device::Cpu));
        let keep = Keep { attention: false, graph: false };
        peak_growth(|| block::forward(&ctx, &params, None, &x, keep).unwrap())
    };
    // Once for what the process allocates only once.
    run(256);
    run(num_tokens)
}
