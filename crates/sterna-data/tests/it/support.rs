//! Where inputs come from, and recipes out of JSON.

use std::path::{Path, PathBuf};

use serde_json::Value;
use sterna_recipe::Recipe;

/// The folder with `SmolLM2-135M-Instruct/` and `dialogues-english/`.
pub(crate) fn real_inputs() -> PathBuf {
    let folder = std::env::var_os("STERNA_REAL_INPUTS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.sterna/inputs"),
        PathBuf::from,
    );
    assert!(
        folder.join("SmolLM2-135M-Instruct/tokenizer.json").is_file()
            && folder.join("dialogues-english").is_dir(),
        "`{}` lacks the real model or chats that this test reads: run `cargo xtask inputs`, or set STERNA_REAL_INPUTS",
        folder.display()
    );
    folder
}

/// A recipe from JSON, which is YAML too.
pub(crate) fn recipe_from_json(recipe: &Value) -> Recipe {
    match sterna_recipe::parse(Path::new("test.yaml"), &recipe.to_string(), &[]) {
        Ok(recipe) => recipe,
        Err(errors) => panic!("{errors}"),
    }
}

/// A file that `golden/make_data_*.py` wrote.
pub(crate) fn fixture_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// A JSON file that `golden/make_data_*.py` wrote.
pub(crate) fn fixture(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(fixture_path(name)).unwrap()).unwrap()
}
