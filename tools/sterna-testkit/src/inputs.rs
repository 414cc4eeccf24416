//! The real model and the real chats that some tests read.

use std::{env, path::PathBuf};

/// The folder with `SmolLM2-135M-Instruct/` and `dialogues-english/train.jsonl`.
///
/// It is the one named by `STERNA_REAL_INPUTS`, else `.sterna/inputs` in the workspace.
///
/// # Panics
///
/// If the model or the chats are not there.
pub fn real_inputs() -> PathBuf {
    let folder = env::var_os("STERNA_REAL_INPUTS").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../.sterna/inputs")),
        PathBuf::from,
    );
    for file in ["SmolLM2-135M-Instruct/config.json", "dialogues-english/train.jsonl"] {
        let path = folder.join(file);
        assert!(
            path.is_file(),
            "`{}` is missing: run `cargo xtask inputs`, or set STERNA_REAL_INPUTS to the folder it made",
            path.display()
        );
    }
    folder
}
