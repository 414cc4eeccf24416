//! Rotary frequencies equal those that transformers' modules hold.

use std::path::Path;

use serde_json::{Value, json};
use sterna_arch::{ModelConfig, Rope};

use crate::golden;

fn parse(config: &Value) -> Rope {
    ModelConfig::from_json(&config.to_string(), Path::new("config.json"))
        .unwrap()
        .arch
        .ropes
        .remove(0)
}

/// Asserts that every frequency is within `ulps` steps of single precision.
pub(crate) fn assert_close(found: &[f32], required: &[f32], ulps: u32, name: &str) {
    assert_eq!(found.len(), required.len(), "{name}");
    for (i, (a, b)) in found.iter().zip(required).enumerate() {
        let distance = a.to_bits().abs_diff(b.to_bits());
        assert!(distance <= ulps, "{name}: frequency {i} is {a:e}, transformers has {b:e}");
    }
}

#[test]
fn frequencies_and_attention_factor_equal_transformers() {
    for case in golden("rope.json")["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let config =
            ModelConfig::from_json(&case["config"].to_string(), Path::new("config.json")).unwrap();
        let seq_len = case["seq_len"].as_u64().unwrap() as usize;
        let (inv_freq, attention_factor) = config.arch.ropes[0].inverse_frequencies(seq_len);
        let required: Vec<f32> = case["inv_freq"]
            .as_array()
            .unwrap()
            .iter()
            .map(|x| x.as_f64().unwrap() as f32)
            .collect();
        // The last digit is torch's `pow`. Dynamic takes its base to a power in single precision
        // first, which moves all frequencies; blended ones add two roundings.
        let ulps = if name.starts_with("dynamic") { 16 } else { 4 };
        assert_close(&inv_freq, &required, ulps, name);
        let required = case["attention_factor"].as_f64().unwrap();
        assert!(
            (attention_factor - required).abs() < 1e-12,
            "{name}: {attention_factor} {required}"
        );
    }
}

#[test]
fn scaling_changes_frequencies_at_all() {
    // A comparison within a tolerance proves nothing if the cases were all alike.
    let cases = golden("rope.json")["cases"].clone();
    let of = |name: &str| {
        let cases = cases.as_array().unwrap();
        cases.iter().find(|case| case["name"] == name).unwrap()["inv_freq"].clone()
    };
    assert_eq!(of("dynamic, short"), of("dynamic, at the limit"));
    assert_ne!(of("dynamic, at the limit"), of("dynamic, long"));
    assert_ne!(of("llama 3.1"), of("llama 3.2"));
    assert_ne!(of("yarn, not truncated"), of("yarn, betas"));
}

#[test]
fn transformers_5_writes_the_same_in_one_object() {
    let base = json!({
        "model_type": "llama", "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
        "num_attention_heads": 4, "vocab_size": 128, "max_position_embeddings": 131_072,
    });
    let scaling = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    });
    let mut old = base.clone();
    old["rope_theta"] = json!(500_000.0);
    old["rope_scaling"] = scaling.clone();
    let mut new = base;
    new["rope_parameters"] = scaling;
    new["rope_parameters"]["rope_theta"] = json!(500_000.0);
    assert_eq!(parse(&old), parse(&new));
    new["rope_parameters"] = json!({"rope_type": "default", "rope_theta": 7.0});
    assert_eq!(parse(&new).theta.to_bits(), 7.0_f64.to_bits());
}
