//! A model's `config.json`, its safetensors files and their index.

use std::path::Path;

use serde_json::{Value, json};
use sterna_arch::ModelConfig;
use sterna_hf::WeightFiles;

use super::{Target, answer, files, text, write};

pub(super) const CONFIG: Target = Target {
    name: "config",
    dictionary: &[
        "hidden_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
        "num_hidden_layers",
        "intermediate_size",
        "rope_scaling",
        "rope_theta",
        "rope_parameters",
        "yarn",
        "llama3",
        "dynamic",
        "linear",
        "factor",
        "original_max_position_embeddings",
        "layer_types",
        "sliding_attention",
        "sliding_window",
        "tie_word_embeddings",
        "model_type",
        "llama",
        "qwen2",
        "qwen3",
        "gemma3_text",
        "stablelm",
        "partial_rotary_factor",
        "attn_logit_softcapping",
        "hidden_act",
        "silu",
        "torch_dtype",
    ],
    memory: 3,
    seeds: || {
        let mut seeds = files("sterna-plan/tests/fixtures/models", ".json");
        for family in files("sterna-arch/tests/fixtures/configs", ".json") {
            let family: Value = serde_json::from_slice(&family).unwrap_or_default();
            let cases = family["cases"].as_array().into_iter().flatten();
            seeds.extend(cases.map(|case| case["config"].to_string().into_bytes()));
        }
        seeds
    },
    run: |input, folder| match ModelConfig::from_json(&text(input), &folder.join("config.json")) {
        Ok(config) => {
            // A model of a thousand layers is large enough to list.
            let num_listed = config.arch.params().take(1000).count();
            let _ = config.arch.num_parameters();
            format!("a model, {num_listed} parameters listed")
        }
        Err(err) => answer(&err),
    },
};

const HEADER_WORDS: &[&str] = &[
    "\"dtype\"",
    "\"shape\"",
    "\"data_offsets\"",
    "\"F32\"",
    "\"BF16\"",
    "\"F16\"",
    "\"I64\"",
    "\"F8_E4M3\"",
    "\"F4\"",
    "\"__metadata__\"",
    "\"format\"",
    "\"pt\"",
    "[0,0]",
    "[0,8]",
    "[8,0]",
    "[18446744073709551615,0]",
    "[4294967296,4294967296]",
    "\"model.norm.weight\"",
    "weight_map",
    "model.safetensors",
    "../a",
    "/etc/passwd",
];

pub(super) const WEIGHTS: Target = Target {
    name: "weights",
    dictionary: HEADER_WORDS,
    memory: 3,
    seeds: || {
        let tensors = safetensors(&[("a", "F32", 4), ("b.weight", "BF16", 6)]);
        let mut apart = tensors[8..].to_vec();
        let end = apart.iter().rposition(|&byte| byte == b'}').expect("a header is JSON") + 1;
        apart.insert(end, b'\n');
        vec![tensors, safetensors(&[("c", "F16", 0)]), apart]
    },
    run: |input, folder| {
        write(&folder.join("model.safetensors"), &framed(input));
        open_weights(folder)
    },
};

pub(super) const INDEX: Target = Target {
    name: "index",
    dictionary: HEADER_WORDS,
    memory: 3,
    seeds: || {
        let index = json!({"metadata": {"total_size": 28}, "weight_map": {"a": "1.safetensors", "b": "2.safetensors"}});
        vec![index.to_string().into_bytes()]
    },
    run: |input, folder| {
        write(&folder.join("model.safetensors.index.json"), input);
        write(&folder.join("1.safetensors"), &safetensors(&[("a", "F32", 4)]));
        write(&folder.join("2.safetensors"), &safetensors(&[("b", "BF16", 6)]));
        // What a path that leaves the folder would find.
        let _ = std::fs::write(folder.join("../a"), safetensors(&[("a", "F32", 1)]));
        open_weights(folder)
    },
};

/// The file that an input stands for. A file begins with the length of its header, which hardly any change of the header would
/// leave right: so an input that begins with `{` is a header and, after a line break, the bytes of its tensors.
fn framed(input: &[u8]) -> Vec<u8> {
    if !input.starts_with(b"{") {
        return input.to_vec();
    }
    let mut parts = input.splitn(2, |&byte| byte == b'\n');
    let (header, bytes) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    [&(header.len() as u64).to_le_bytes(), header, bytes].concat()
}

/// Tensors of zeros, by name, dtype and number of elements.
fn safetensors(tensors: &[(&str, &str, usize)]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, dtype, numel) in tensors {
        let start = end;
        end += numel * if *dtype == "F32" { 4 } else { 2 };
        header.insert(
            (*name).to_owned(),
            json!({"dtype": dtype, "shape": [numel], "data_offsets": [start, end]}),
        );
    }
    let header = Value::Object(header).to_string().into_bytes();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.resize(file.len() + end, 0);
    file
}

fn open_weights(folder: &Path) -> String {
    let files = match WeightFiles::open(folder) {
        Ok(files) => files,
        Err(err) => return answer(&err),
    };
    let mut num_bytes = 0_usize;
    for name in files.names() {
        match files.tensor(name) {
            Ok(view) => {
                let numel: usize = view.shape.iter().product();
                let bytes = view.bytes();
                assert_eq!(bytes.len(), numel * view.dtype.size(), "{name}");
                num_bytes +=
                    bytes.iter().map(|&byte| usize::from(byte) & 1).sum::<usize>() + bytes.len();
            }
            Err(err) => return answer(&err),
        }
    }
    format!("{num_bytes} bytes")
}
