//! One module for each command, and what they share.

pub(crate) mod check;
pub(crate) mod checkpoint;
pub(crate) mod data;
pub(crate) mod launch;
mod paths;
pub(crate) mod train;

use std::io::{self, Write as _};
use std::path::Path;

use sterna_arch::ModelConfig;
use sterna_recipe::{Diagnostics, Recipe};

use crate::cli::Overrides;
use crate::report::{Exit, Failure};

/// Reads a recipe with the changes of the command line, and makes sure that the files it names are there.
fn load(path: &Path, overrides: &Overrides) -> Result<Recipe, Diagnostics> {
    let recipe = sterna_recipe::load(path, &overrides.set)?;
    let missing = paths::missing(&recipe);
    if missing.is_empty() { Ok(recipe) } else { Err(Diagnostics::new(recipe.source, missing)) }
}

/// Writes `text` to stdout.
fn print(text: &str) -> Result<(), Failure> {
    match writeln!(io::stdout().lock(), "{}", text.trim_end()) {
        // The reader has seen enough.
        Err(err) if err.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written
            .map_err(|err| Failure::new(Exit::Failed, format!("cannot write to stdout: {err}"))),
    }
}

/// All errors of a recipe, with the lines they stand on.
fn wrong_recipe(errors: &Diagnostics) -> Failure {
    Failure::from_text(Exit::Usage, errors.to_string())
}

/// The configuration of the model that `recipe` trains, with the recipe's changes to it.
fn model_config(recipe: &Recipe) -> Result<ModelConfig, Failure> {
    sterna_train::model_config(recipe)
        .map_err(|err| Failure::from_error(Exit::Usage, &err).with_hint(err.hint()))
}
