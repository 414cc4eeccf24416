//! Tests of the crate against what real transformers models hold (`golden/make_hf_config.py`, `golden/make_hf_rope.py`).

#![expect(clippy::unwrap_used, reason = "a test that finds nothing to unwrap has failed")]
#![expect(clippy::float_cmp, reason = "numbers of a file are read exactly")]

mod config;
mod rope;

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
