//! Random weights: distributed as transformers draws them, and the same however they are shared out.

use std::{ops::Range, path::Path};

use serde_json::json;
use sterna_arch::{Init, ModelConfig, ParamSpec};
use sterna_model::init;
use tch::{Device, Kind, Tensor};

fn config() -> ModelConfig {
    let config = json!({
        "model_type": "qwen2", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 500, "max_position_embeddings": 32,
        "rms_norm_eps": 1e-5, "hidden_act": "silu", "initializer_range": 0.05, "pad_token_id": 3,
        "tie_word_embeddings": false,
    });
    ModelConfig::from_json(&config.to_string(), Path::new("config.json")).unwrap()
}

/// The whole tensor.
fn random(spec: &ParamSpec, seed: u64) -> Tensor {
    let shape: Vec<i64> = spec.shape.iter().map(|size| *size as i64).collect();
    slice(spec, seed, 0..spec.numel()).view(shape.as_slice())
}

/// Some of its elements.
fn slice(spec: &ParamSpec, seed: u64, range: Range<usize>) -> Tensor {
    let mut values = Tensor::empty([range.len() as i64], (Kind::Float, Device::Cpu));
    init::fill(&mut values, spec, seed, &range).unwrap();
    values
}

#[test]
fn matrices_are_normal_norms_one_and_biases_zero() {
    let config = config();
    for spec in config.arch.params() {
        let tensor = random(spec, 42);
        assert_eq!(
            tensor.size(),
            spec.shape.iter().map(|size| *size as i64).collect::<Vec<_>>(),
            "{}",
            spec.name
        );
        if spec.name.ends_with("norm.weight") {
            assert!(tensor == tensor.ones_like(), "{}", spec.name);
        } else if spec.name.ends_with("bias") {
            assert!(tensor == tensor.zeros_like(), "{}", spec.name);
        } else {
            // Within five standard errors of the moments of a normal distribution: mean 0, deviation 1, kurtosis 3.
            let numel = spec.numel() as f64;
            let unit = tensor.to_kind(Kind::Double) / 0.05;
            let moment =
                |power: i64| unit.pow_tensor_scalar(power).mean(Kind::Double).double_value(&[]);
            assert!(moment(1).abs() < 5.0 / numel.sqrt(), "{}: mean {}", spec.name, moment(1));
            // The embedding has one row of zeros in 500.
            assert!(
                (moment(2) - 1.0).abs() < 5.0 * (2.0 / numel).sqrt() + 0.002,
                "{}: {}",
                spec.name,
                moment(2)
            );
            assert!(
                (moment(4) - 3.0).abs() < 5.0 * (96.0 / numel).sqrt() + 0.006,
                "{}: {}",
                spec.name,
                moment(4)
            );
        }
    }
}

#[test]
fn the_pad_row_of_the_embedding_is_zero_and_no_other() {
    let config = config();
    let embed = random(&config.arch.embed.weight, 42);
    let zero_rows: Vec<i64> = (0..500)
        .filter(|row| embed.get(*row).abs().sum(Kind::Double).double_value(&[]) == 0.0)
        .collect();
    assert_eq!(zero_rows, [3]);
    let lm_head = random(&config.arch.head.params[1], 42);
    assert!(
        lm_head.get(3).abs().max().double_value(&[]) > 0.0,
        "only the embedding has a padding row"
    );
}

#[test]
fn slices_of_any_size_make_up_the_whole() {
    let config = config();
    for spec in config.arch.params() {
        let whole = random(spec, 42).view(-1);
        let numel = spec.numel();
        let cuts = [0, numel / 7, numel / 7 + 1, numel / 2, numel];
        let slices: Vec<Tensor> =
            cuts.windows(2).map(|cut| slice(spec, 42, cut[0]..cut[1])).collect();
        assert!(Tensor::cat(&slices, 0) == whole, "{}", spec.name);
    }
}

/// The logarithm of what is uniform: its quantiles, and slices as of the others.
#[test]
fn logarithms_of_uniform_numbers() {
    let spec = ParamSpec::new("A_log", [4096], Init::LogUniform { low: 0.01, high: 16.0 });
    let drawn = random(&spec, 42);
    assert!(Tensor::cat(&[slice(&spec, 42, 0..99), slice(&spec, 42, 99..4096)], 0) == drawn);
    let (sorted, _) = ((drawn.exp() - 0.01) / 15.99).sort(0, false);
    let expected = (Tensor::arange(4096, (Kind::Float, Device::Cpu)) + 0.5) / 4096;
    // Kolmogorov's distance: 1.95 over the root of the number once in a thousand seeds.
    let distance = (sorted - expected).abs().max().double_value(&[]);
    assert!(distance < 1.95 / 64.0, "{distance}");
}

#[test]
fn seeds_and_names_give_different_numbers() {
    let normal = Init::Normal { std: 0.05, zero_row: None };
    let spec = |name: &str| ParamSpec::new(name, [8, 8], normal);
    let draw = |name: &str, seed: u64| random(&spec(name), seed);
    assert!(draw("a.weight", 1) == draw("a.weight", 1));
    assert!(draw("a.weight", 1) != draw("a.weight", 2));
    assert!(draw("a.weight", 1) != draw("b.weight", 1));
}
