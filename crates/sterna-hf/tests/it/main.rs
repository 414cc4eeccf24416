//! Tests of the crate against files that real transformers made (`golden/make_hf_*.py`), against
//! files broken on purpose, and against a hub on the loopback interface.

#![expect(clippy::unwrap_used, reason = "a test that finds nothing to unwrap has failed")]

mod chat;
mod export;
mod hub;
mod tokenizer;
mod weights;

use std::path::PathBuf;

use serde_json::Value;

/// A file of `tests/fixtures`.
fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// A JSON file of `tests/fixtures`.
fn golden(name: &str) -> Value {
    let path = fixture(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The folder with the real model and chats.
fn real_inputs() -> PathBuf {
    let dir = match std::env::var_os("STERNA_REAL_INPUTS") {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../.sterna/inputs"),
    };
    assert!(dir.is_dir(), "`{}` is missing: run `cargo xtask inputs`", dir.display());
    dir
}

/// A small model of two blocks.
fn tiny_config() -> sterna_arch::ModelConfig {
    let config = r#"{"model_type": "llama", "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 420}"#;
    sterna_arch::ModelConfig::from_json(config, std::path::Path::new("config.json")).unwrap()
}
