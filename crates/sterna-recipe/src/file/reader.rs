//! Reading a located YAML tree into typed sections, collecting every error on the way.

use std::collections::BTreeMap;

use crate::{
    diagnostic::{Diagnostic, Kind, Note},
    keys::{Affects, Key, keys},
    source::Span,
    yaml::{Content, Entry, Node, join},
};

/// A value, the key it was given for and its place.
#[derive(Clone, Debug)]
pub(crate) struct At<T> {
    pub(crate) value: T,
    pub(crate) path: String,
    pub(crate) span: Span,
}

/// A type of value that a key can have.
pub(crate) trait Read {
    /// What the value becomes.
    type Value;

    /// Reads the value of `path`; reports what is wrong with it and returns nothing then.
    fn read(node: &Node, path: &str, reader: &mut Reader) -> Option<Self::Value>;

    /// Appends the key at `path` and all keys below it, lists written as `[]`.
    fn keys(path: &str, affects: Option<Affects>, out: &mut Vec<Key>) {
        out.push(Key { path: path.to_owned(), affects });
    }
}

/// Second names of keys, and their first.
const ALIASES: [(&str, &str); 3] = [
    ("lr", "learning_rate"),
    ("bfloat16", "bf16"),
    ("seq_parallel_comm_data_type", "seq_parallel_communication_data_type"),
];

/// The first name of a key.
pub(crate) fn canonical(key: &str) -> &str {
    ALIASES.iter().find(|(alias, _)| *alias == key).map_or(key, |(_, name)| name)
}

/// Where errors, notes and places are collected.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    pub(crate) errors: Vec<Diagnostic>,
    pub(crate) notes: Vec<Note>,
    pub(crate) places: BTreeMap<String, Span>,
}

impl Reader {
    pub(crate) fn error(&mut self, error: Diagnostic) {
        self.errors.push(error);
    }

    /// Reports that the value at `path` cannot be used.
    pub(crate) fn wrong<T>(
        &mut self,
        node: &Node,
        path: &str,
        required: impl Into<String>,
    ) -> Option<T> {
        let mut error = Diagnostic::value(path, node.span, node.describe(), required);
        if node.is_null() {
            error.hint = Some("give it a value or remove the key".to_owned());
        }
        self.error(error);
        None
    }

    pub(crate) fn note(&mut self, path: &str, text: impl Into<String>) {
        self.notes.push(Note { key_path: path.to_owned(), text: text.into() });
    }

    /// Reports a value that the reference can do and that cannot be done here.
    pub(crate) fn refuse(&mut self, path: &str, span: Span, found: String, why: &str) {
        self.error(Diagnostic {
            kind: Kind::Unsupported,
            key_path: path.to_owned(),
            span: Some(span),
            found,
            required: why.to_owned(),
            hint: None,
        });
    }

    /// Whether `path` was typed, with a right or a wrong value.
    pub(crate) fn is_set(&self, path: &str) -> bool {
        self.places.contains_key(path)
    }

    /// Opens a mapping: reports keys that it does not have and keys that are given under two names.
    pub(crate) fn section<'n>(
        &mut self,
        node: &'n Node,
        path: &str,
        keys: &[&'static str],
    ) -> Option<Section<'n>> {
        let Content::Mapping(entries) = &node.content else {
            return self.wrong(node, path, "a mapping of keys");
        };
        let mut found: BTreeMap<&'static str, &Entry> = BTreeMap::new();
        for entry in entries {
            let Some(key) = keys.iter().find(|key| **key == canonical(&entry.key)) else {
                self.unknown(entry, path, keys);
                continue;
            };
            if let Some(first) = found.get(key) {
                self.error(Diagnostic {
                    kind: Kind::Conflict,
                    key_path: join(path, key),
                    span: Some(entry.key_span),
                    found: format!("`{}` and `{}` are two names of one key", first.key, entry.key),
                    required: "one of them".to_owned(),
                    hint: None,
                });
            } else {
                found.insert(key, entry);
            }
        }
        Some(Section { path: path.to_owned(), found })
    }

    fn unknown(&mut self, entry: &Entry, path: &str, keys: &[&'static str]) {
        let elsewhere = |known: &&Key| known.path.rsplit('.').next() == Some(&entry.key);
        let hint = if let Some(name) = nearest(&entry.key, keys.iter().copied()) {
            format!("did you mean `{name}`?")
        } else if let Some(known) = self::keys().iter().find(elsewhere) {
            format!("there is a key `{}`", known.path)
        } else if path.is_empty() {
            "docs/reference/recipe.md lists all keys".to_owned()
        } else {
            let mut keys = keys.to_vec();
            keys.sort_unstable();
            format!("`{path}` has the keys {}", keys.join(", "))
        };
        self.error(Diagnostic {
            kind: Kind::UnknownKey,
            key_path: join(path, &entry.key),
            span: Some(entry.key_span),
            found: format!("`{}`", entry.key),
            required: "a key of the recipe reference (docs/reference/recipe.md)".to_owned(),
            hint: Some(hint),
        });
    }
}

/// An open mapping whose keys are all known.
pub(crate) struct Section<'n> {
    path: String,
    found: BTreeMap<&'static str, &'n Entry>,
}

impl Section<'_> {
    /// Reads the value of a key, if it is there.
    pub(crate) fn get<T: Read>(
        &self,
        key: &'static str,
        reader: &mut Reader,
    ) -> Option<At<T::Value>> {
        let node = &self.found.get(key)?.value;
        let path = join(&self.path, key);
        reader.places.insert(path.clone(), node.span);
        let value = T::read(node, &path, reader)?;
        Some(At { value, path, span: node.span })
    }

    /// Reads a key that changes nothing here, and says why.
    pub(crate) fn inert<T: Read>(&self, key: &'static str, why: &str, reader: &mut Reader) {
        if let Some(at) = self.get::<T>(key, reader) {
            reader.note(&at.path, why);
        }
    }

    /// Refuses a key unless its value is one of `off`, or a mapping that says `enabled: false`.
    pub(crate) fn refused(&self, key: &'static str, off: &[&str], why: &str, reader: &mut Reader) {
        let Some(entry) = self.found.get(key) else { return };
        let node = &entry.value;
        let path = join(&self.path, key);
        reader.places.insert(path.clone(), node.span);
        if !is_off(node, off) {
            let found = match &node.content {
                Content::Scalar(meaning) => {
                    format!("= `{}`", meaning.plain_text().unwrap_or_default())
                }
                _ => "is set, which".to_owned(),
            };
            reader.refuse(&path, node.span, found, why);
        }
    }
}

/// Whether a value switches its feature off.
fn is_off(node: &Node, off: &[&str]) -> bool {
    match &node.content {
        Content::Scalar(meaning) => {
            meaning.plain_text().is_some_and(|text| off.contains(&text.as_str()))
        }
        Content::Sequence(items) => items.is_empty(),
        Content::Mapping(entries) => {
            let enabled = entries.iter().find(|entry| entry.key == "enabled");
            entries.is_empty() || enabled.is_some_and(|entry| is_off(&entry.value, &["false"]))
        }
    }
}

/// The name that `typed` was probably meant to be.
pub(crate) fn nearest<'a>(typed: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let typed = typed.to_lowercase().replace('-', "_");
    let len = typed.chars().count();
    let limit = (len / 3).max(1);
    names
        // No distance is less than this. A key may be as long as its recipe, and there are hundreds of names.
        .filter(|name| name.chars().count().abs_diff(len) <= limit)
        .map(|name| (distance(&typed, name), name))
        .filter(|(d, _)| *d <= limit)
        .min_by_key(|(d, _)| *d)
        .map(|(_, name)| name)
}

/// Levenshtein distance in characters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// Declares a section; see the module docs of [`crate::file`].
macro_rules! section {
    (
        $(#[$doc:meta])*
        $name:ident {
            $($key:literal => $field:ident: $type:ty => $affects:ident,)*
        }
        inert { $($inert_key:literal: $inert_type:ty => $inert_why:expr,)* }
        refused { $($refused_key:literal unless $off:expr => $refused_why:expr,)* }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub(crate) struct $name {
            $(pub(crate) $field: Option<At<<$type as Read>::Value>>,)*
        }

        impl Read for $name {
            type Value = Self;

            fn read(node: &Node, path: &str, reader: &mut Reader) -> Option<Self> {
                const KEYS: &[&str] = &[$($key,)* $($inert_key,)* $($refused_key,)*];
                let section = reader.section(node, path, KEYS)?;
                $(section.inert::<$inert_type>($inert_key, $inert_why, reader);)*
                $(section.refused($refused_key, &$off, $refused_why, reader);)*
                Some(Self { $($field: section.get::<$type>($key, reader),)* })
            }

            fn keys(path: &str, affects: Option<Affects>, out: &mut Vec<Key>) {
                if !path.is_empty() {
                    out.push(Key { path: path.to_owned(), affects });
                }
                $(<$type as Read>::keys(&join(path, $key), Some(Affects::$affects), out);)*
                $(<$inert_type as Read>::keys(&join(path, $inert_key), None, out);)*
                $(out.push(Key { path: join(path, $refused_key), affects: None });)*
            }
        }
    };
}
pub(super) use section;

#[cfg(test)]
mod tests {
    use super::{distance, nearest};

    #[test]
    fn distance_counts_edits() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", "abc"), 0);
    }

    /// By tables of distances, this would take hours.
    #[test]
    fn a_key_as_long_as_a_recipe_is_not_compared_with_short_names() {
        let names = std::iter::repeat_n("micro_batch_size", 200_000);
        assert_eq!(nearest(&"{% if a %}".repeat(20_000), names), None);
    }

    #[test]
    fn a_typo_finds_its_key_and_nonsense_finds_none() {
        let names = ["micro_batch_size", "max_length", "lr"];
        assert_eq!(nearest("micro-batchsize", names.into_iter()), Some("micro_batch_size"));
        assert_eq!(nearest("max_len", names.into_iter()), None);
        assert_eq!(nearest("max_lenght", names.into_iter()), Some("max_length"));
        assert_eq!(nearest("zebra", names.into_iter()), None);
    }
}
