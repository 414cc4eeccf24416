//! Where inputs come from, tokenizers with other templates, and recipes out of JSON.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use sterna_data::{error::RowId, label_mask::MaskRule};
use sterna_hf::Tokenizer;
use sterna_recipe::{ControlTokens, LabelMask, Recipe};

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

/// The tokenizer of `SmolLM2` with another chat template, and with further tokens: special ones, then others.
pub(crate) fn tokenizer_with(template: &str, special: &[&str], others: &[&str]) -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    let from = real_inputs().join("SmolLM2-135M-Instruct");
    let read = |name: &str| -> Value {
        serde_json::from_str(&fs::read_to_string(from.join(name)).unwrap()).unwrap()
    };
    let mut tokenizer = read("tokenizer.json");
    let added = special.iter().map(|token| (token, true));
    let added = added.chain(others.iter().map(|token| (token, false)));
    for (i, (content, special)) in added.enumerate() {
        tokenizer["added_tokens"].as_array_mut().unwrap().push(json!({
            "id": 49152 + i, "content": content, "special": special,
            "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        }));
    }
    fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let mut config = read("tokenizer_config.json");
    config.as_object_mut().unwrap().remove("added_tokens_decoder");
    config["chat_template"] = template.into();
    fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    Tokenizer::from_dir(folder.path()).unwrap()
}

/// Labels on what the assistant wrote.
pub(crate) fn exact() -> MaskRule {
    MaskRule {
        mask_inputs: true,
        label_mask: LabelMask::Exact,
        ignore_empty_think: false,
        chat_template_kwargs: serde_json::Map::new(),
        control_tokens: ControlTokens::Warn,
    }
}

/// The row that errors name.
pub(crate) fn row_id() -> RowId {
    RowId { source_name: "chats".to_owned(), row: 3, path: "chats.jsonl".into(), line: Some(4) }
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
