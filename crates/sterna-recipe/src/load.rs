//! From a file and overrides to a checked recipe.

use std::{path::Path, sync::Arc};

use crate::{
    diagnostic::{Diagnostic, Diagnostics, Kind},
    edit::{self, Override},
    file::{Read, Reader, RecipeFile},
    recipe::Recipe,
    resolve,
    source::{Origin, RecipeSource},
    yaml,
};

/// Reads a recipe, applies the overrides in order, fills in the defaults and checks every rule that needs no model.
///
/// # Errors
///
/// Everything that is wrong, at once. Only a syntax error or an unreadable file hides other errors.
pub fn load(path: &Path, overrides: &[Override]) -> Result<Recipe, Diagnostics> {
    match std::fs::read_to_string(path) {
        Ok(text) => parse(path, &text, overrides),
        Err(error) => {
            let hint = match error.kind() {
                std::io::ErrorKind::NotFound => {
                    "the recipe is the first argument: a path to a YAML file"
                }
                std::io::ErrorKind::InvalidData => "a recipe is UTF-8 text",
                _ => "look at its permissions",
            };
            let error = Diagnostic {
                kind: Kind::Unreadable,
                key_path: String::new(),
                span: None,
                found: format!("cannot read `{}`: {error}", path.display()),
                required: "a YAML file".to_owned(),
                hint: Some(hint.to_owned()),
            };
            Err(Diagnostics::new(source(path, "", overrides, Reader::default()).0, vec![error]))
        }
    }
}

/// As [`load`], from a text; `path` is for messages.
///
/// # Errors
///
/// As [`load`].
pub fn parse(path: &Path, text: &str, overrides: &[Override]) -> Result<Recipe, Diagnostics> {
    let mut reader = Reader::default();
    let mut root = match yaml::parse(text, Origin::File, &mut reader.errors) {
        Ok(root) => root,
        Err(error) => {
            reader.error(*error);
            let (source, errors) = source(path, text, overrides, reader);
            return Err(Diagnostics::new(source, errors));
        }
    };
    edit::apply(&mut root, overrides, &mut reader.errors);
    let recipe = RecipeFile::read(&root, "", &mut reader)
        .and_then(|file| resolve::resolve(&file, &mut reader));
    let notes = std::mem::take(&mut reader.notes);
    let (source, errors) = source(path, text, overrides, reader);
    match recipe {
        Some(recipe) if errors.is_empty() => Ok(Recipe { source, notes, ..recipe }),
        _ => Err(Diagnostics::new(source, errors)),
    }
}

fn source(
    path: &Path,
    text: &str,
    overrides: &[Override],
    reader: Reader,
) -> (RecipeSource, Vec<Diagnostic>) {
    let source = RecipeSource {
        path: path.to_owned(),
        text: text.into(),
        overrides: overrides.iter().map(|change| change.as_str().to_owned()).collect(),
        places: Arc::new(reader.places),
    };
    (source, reader.errors)
}
