//! The text of a recipe and where each key stands in it.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

/// A place in the text, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub col: usize,
    /// Characters that the key or value takes on that line, at least 1.
    pub len: usize,
}

/// A recipe file as read, and the places of its keys. Cheap to clone.
#[derive(Clone, Debug)]
pub struct RecipeSource {
    /// The file, as the user named it.
    pub path: PathBuf,
    /// Its text.
    pub text: Arc<str>,
    /// Where the value of each key path is, as `data.sources[0].split`.
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

    /// Whether the recipe (or an override) sets `key_path` itself.
    pub fn is_set(&self, key_path: &str) -> bool {
        self.places.contains_key(key_path)
    }
}
