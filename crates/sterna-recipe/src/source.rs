//! The text of a recipe, the overrides from the command line, and where each key stands in them.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

/// A place in a recipe file or in an override, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The file, or which override.
    pub origin: Origin,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub col: usize,
    /// Characters that the key or value takes on that line, at least 1.
    pub len: usize,
}

/// What a [`Span`] counts lines of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// The recipe file.
    File,
    /// The override with this index, written `key.path=value`.
    Override(usize),
}

/// A recipe file as read, the overrides, and the places of all keys. Cheap to clone.
#[derive(Clone, Debug)]
pub struct RecipeSource {
    /// The file, as the user named it.
    pub path: PathBuf,
    /// Its text.
    pub text: Arc<str>,
    /// The overrides, as typed after `--set`.
    pub overrides: Arc<[String]>,
    /// Where each key path is set, as `data.sources[0].split`: the place of its value.
    pub(crate) places: Arc<BTreeMap<String, Span>>,
}

impl RecipeSource {
    /// Where `key_path` is set, or, if it is not, the nearest key above it that is.
    pub fn locate(&self, key_path: &str) -> Option<Span> {
        let mut path = key_path;
        loop {
            if let Some(span) = self.places.get(path) {
                return Some(*span);
            }
            path = &path[..path.rfind(['.', '['])?];
        }
    }

    /// Whether the recipe, or an override, sets `key_path` itself.
    pub fn is_set(&self, key_path: &str) -> bool {
        self.places.contains_key(key_path)
    }

    /// The line that `span` is on.
    pub(crate) fn line(&self, span: Span) -> &str {
        let text = match span.origin {
            Origin::File => &self.text,
            Origin::Override(idx) => self.overrides[idx].as_str(),
        };
        text.lines().nth(span.line - 1).unwrap_or("")
    }
}
