//! Models small enough to be made anew by every test.
//!
//! Names and shapes are written here a second time, not taken from the crate under test.

use std::{collections::HashMap, fs, path::Path};

use half::{bf16, f16};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};

/// The config of a tiny model of a `model_type`: `llama`, `mistral`, `qwen2` or `qwen3`.
///
/// Two layers, hidden size 32, 4 query heads and 2 key-value heads of size 8, vocabulary 128, fp32, untied embeddings.
///
/// # Panics
///
/// For any other `model_type`.
pub fn tiny_config(model_type: &str) -> Value {
    let architecture = match model_type {
        "llama" => "LlamaForCausalLM",
        "mistral" => "MistralForCausalLM",
        "qwen2" => "Qwen2ForCausalLM",
        "qwen3" => "Qwen3ForCausalLM",
        _ => panic!("no tiny model of type `{model_type}`"),
    };
    json!({
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 128,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": false,
        "initializer_range": 0.02,
        "torch_dtype": "float32",
        "bos_token_id": 1,
        "eos_token_id": 2,
    })
}

/// Writes a Hugging Face folder with this config and random weights: `config.json` and `model.safetensors`.
///
/// The weights are a function of the config and `seed` alone. Matrices and biases are normal with deviation 0.1, norms
/// are near one but not one, so that a forgotten weight shows.
///
/// # Panics
///
/// If the folder cannot be written, or the config lacks a size.
pub fn tiny_model(folder: &Path, config: &Value, seed: u64) {
    let dtype = match config["torch_dtype"].as_str() {
        None | Some("float32") => Dtype::F32,
        Some("bfloat16") => Dtype::BF16,
        Some("float16") => Dtype::F16,
        Some(other) => panic!("no tiny model of dtype `{other}`"),
    };
    let mut random = Random(seed);
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = parameters(config)
        .into_iter()
        .map(|(name, shape)| {
            let mean = if name.ends_with("norm.weight") { 1.0 } else { 0.0 };
            let numel = shape.iter().product();
            let values = (0..numel).map(|_| (mean + 0.1 * random.normal()) as f32);
            let bytes = match dtype {
                Dtype::F32 => values.flat_map(f32::to_le_bytes).collect(),
                Dtype::BF16 => values.flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect(),
                _ => values.flat_map(|x| f16::from_f32(x).to_le_bytes()).collect(),
            };
            (name, shape, bytes)
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(dtype, shape.clone(), bytes).expect("the bytes fit the shape");
        (name, view)
    });
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    fs::create_dir_all(folder).expect("the model's folder can be made");
    safetensors::serialize_to_file(views, Some(metadata), &folder.join("model.safetensors"))
        .expect("the weights can be written");
    fs::write(folder.join("config.json"), format!("{config:#}"))
        .expect("the config can be written");
}

/// Names and shapes as transformers has them.
fn parameters(config: &Value) -> Vec<(String, Vec<usize>)> {
    let size = |key: &str| -> usize {
        config[key].as_u64().unwrap_or_else(|| panic!("the config has no `{key}`")) as usize
    };
    let flag = |key: &str| config[key].as_bool().unwrap_or(false);
    let model_type = config["model_type"].as_str().expect("the config has a `model_type`");
    let (hidden, ffn, vocab) = (size("hidden_size"), size("intermediate_size"), size("vocab_size"));
    let num_heads = size("num_attention_heads");
    let head_dim = config["head_dim"].as_u64().map_or(hidden / num_heads, |dim| dim as usize);
    let (q, kv) = (num_heads * head_dim, size("num_key_value_heads") * head_dim);
    let attention_bias = flag("attention_bias") && matches!(model_type, "llama" | "qwen3");
    let qkv_bias = attention_bias || model_type == "qwen2";
    let mlp_bias = flag("mlp_bias") && model_type == "llama";

    let mut result = vec![("model.embed_tokens.weight".to_owned(), vec![vocab, hidden])];
    for layer in 0..size("num_hidden_layers") {
        let mut add = |name: &str, shape: &[usize]| {
            result.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
        };
        add("input_layernorm.weight", &[hidden]);
        for (name, rows, columns, bias) in [
            ("self_attn.q_proj", q, hidden, qkv_bias),
            ("self_attn.k_proj", kv, hidden, qkv_bias),
            ("self_attn.v_proj", kv, hidden, qkv_bias),
            ("self_attn.o_proj", hidden, q, attention_bias),
            ("mlp.gate_proj", ffn, hidden, mlp_bias),
            ("mlp.up_proj", ffn, hidden, mlp_bias),
            ("mlp.down_proj", hidden, ffn, mlp_bias),
        ] {
            add(&format!("{name}.weight"), &[rows, columns]);
            if bias {
                add(&format!("{name}.bias"), &[rows]);
            }
        }
        if model_type == "qwen3" {
            add("self_attn.q_norm.weight", &[head_dim]);
            add("self_attn.k_norm.weight", &[head_dim]);
        }
        add("post_attention_layernorm.weight", &[hidden]);
    }
    result.push(("model.norm.weight".to_owned(), vec![hidden]));
    if !flag("tie_word_embeddings") {
        result.push(("lm_head.weight".to_owned(), vec![vocab, hidden]));
    }
    result
}

/// `SplitMix64` (Steele, Lea and Flood 2014): small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in `(0, 1]`.
    fn uniform(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }

    /// Standard normal, by Box and Muller's transform.
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }
}
