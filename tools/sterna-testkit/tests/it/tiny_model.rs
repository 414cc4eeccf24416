use std::{collections::HashMap, fs};

use serde_json::json;
use sterna_testkit::{tiny_config, tiny_model};
use tch::{Kind, Tensor};

#[test]
fn weights_are_a_function_of_the_seed_and_readable_by_libtorch() {
    let folder = tempfile::tempdir().unwrap();
    let config = tiny_config("qwen3");
    let [a, again, b] = [("a", 1), ("again", 1), ("b", 2)].map(|(name, seed)| {
        tiny_model(&folder.path().join(name), &config, seed);
        fs::read(folder.path().join(name).join("model.safetensors")).unwrap()
    });
    assert!(a == again && a != b);
    let weights: HashMap<String, Tensor> =
        Tensor::read_safetensors(folder.path().join("a/model.safetensors"))
            .unwrap()
            .into_iter()
            .collect();
    // Two layers of 11 tensors and qwen3's q_norm is among them; embedding, final norm and head besides.
    assert_eq!(weights.len(), 2 * 11 + 3);
    assert_eq!(weights["model.layers.1.self_attn.q_norm.weight"].size(), [8]);
    let head = &weights["lm_head.weight"];
    assert_eq!((head.size(), head.kind()), (vec![128, 32], Kind::Float));
    let deviation = head.std(true).double_value(&[]);
    assert!((deviation - 0.1).abs() < 0.005, "{deviation}");
}

#[test]
fn the_config_decides_biases_head_and_dtype() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = tiny_config("qwen2");
    config["tie_word_embeddings"] = json!(true);
    config["torch_dtype"] = json!("bfloat16");
    tiny_model(folder.path(), &config, 0);
    let weights: HashMap<String, Tensor> =
        Tensor::read_safetensors(folder.path().join("model.safetensors"))
            .unwrap()
            .into_iter()
            .collect();
    assert!(!weights.contains_key("lm_head.weight"));
    assert!(weights.contains_key("model.layers.0.self_attn.k_proj.bias"));
    assert!(!weights.contains_key("model.layers.0.self_attn.o_proj.bias"));
    assert!(weights.values().all(|weight| weight.kind() == Kind::BFloat16));
}
