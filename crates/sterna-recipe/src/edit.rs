//! Changes to a recipe from the command line: `--set key.path=value`.

use std::str::FromStr;

use crate::{
    diagnostic::{Diagnostic, Kind},
    file::canonical,
    source::{Origin, Span},
    yaml::{self, Content, Entry, Node},
};

/// One `key.path=value`; the value is YAML. List items are `sources[0]` or `sources.0`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    text: String,
    path: Vec<Segment>,
    /// Byte offset of the value.
    value_start: usize,
}

/// One step of a key path.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Key(String),
    Index(usize),
}

/// Why a text is not an override.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OverrideError {
    /// There is no `=`.
    #[error("`{0}` has no `=`, required: key.path=value")]
    NoValue(String),
    /// The part in front of `=` is not a key path.
    #[error(
        "`{0}` is not a key path, required: keys with points and list items, such as `data.sources[0].split`"
    )]
    BadPath(String),
}

impl FromStr for Override {
    type Err = OverrideError;

    fn from_str(text: &str) -> Result<Self, OverrideError> {
        let (path, _) =
            text.split_once('=').ok_or_else(|| OverrideError::NoValue(text.to_owned()))?;
        let segments = segments(path).ok_or_else(|| OverrideError::BadPath(path.to_owned()))?;
        Ok(Self { text: text.to_owned(), path: segments, value_start: path.len() + 1 })
    }
}

impl Override {
    /// The override as typed.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

fn segments(path: &str) -> Option<Vec<Segment>> {
    let mut segments = Vec::new();
    for part in path.trim().split('.') {
        let (key, indices) = part.split_at(part.find('[').unwrap_or(part.len()));
        match key.parse() {
            Ok(index) => segments.push(Segment::Index(index)),
            Err(_) if key.is_empty() => return None,
            Err(_) => segments.push(Segment::Key(key.to_owned())),
        }
        for index in indices.split_inclusive(']') {
            let digits = index.strip_prefix('[')?.strip_suffix(']')?;
            segments.push(Segment::Index(digits.parse().ok()?));
        }
    }
    matches!(segments.first(), Some(Segment::Key(_))).then_some(segments)
}

/// Applies all overrides to `root`, of one key the last; reports those that do not fit.
pub(crate) fn apply(root: &mut Node, overrides: &[Override], errors: &mut Vec<Diagnostic>) {
    for (idx, change) in overrides.iter().enumerate() {
        let origin = Origin::Override(idx);
        // As with any command line, the last word counts: a script's defaults come before what its caller adds.
        if overrides[idx + 1..].iter().any(|later| later.path == change.path) {
            continue;
        }
        match yaml::parse(&change.text[change.value_start..], origin, errors) {
            Ok(mut value) => {
                shift(&mut value, change.text[..change.value_start].chars().count());
                if let Err(error) = set(root, change, origin, value) {
                    errors.push(*error);
                }
            }
            Err(mut error) => {
                if let Some(span) = error.span.as_mut().filter(|span| span.line == 1) {
                    span.col += change.text[..change.value_start].chars().count();
                }
                error.hint = Some("put the value in quotes if it is a plain string".to_owned());
                errors.push(*error);
            }
        }
    }
}

/// Moves places on the first line behind `key.path=`.
fn shift(node: &mut Node, columns: usize) {
    let shift_span = |span: &mut Span| {
        if span.line == 1 {
            span.col += columns;
        }
    };
    shift_span(&mut node.span);
    match &mut node.content {
        Content::Scalar(_) => {}
        Content::Sequence(items) => items.iter_mut().for_each(|item| shift(item, columns)),
        Content::Mapping(entries) => {
            for entry in entries {
                shift_span(&mut entry.key_span);
                shift(&mut entry.value, columns);
            }
        }
    }
}

fn conflict(change: &Override, origin: Origin, found: String, required: &str) -> Box<Diagnostic> {
    let len = change.value_start - 1;
    Box::new(Diagnostic {
        kind: Kind::Conflict,
        key_path: change.text[..len].to_owned(),
        span: Some(Span {
            origin,
            line: 1,
            col: 1,
            len: change.text[..len].chars().count().max(1),
        }),
        found,
        required: required.to_owned(),
        hint: None,
    })
}

/// Puts `value` where the path of `change` leads, making mappings and the next list item as needed.
fn set(
    root: &mut Node,
    change: &Override,
    origin: Origin,
    value: Node,
) -> Result<(), Box<Diagnostic>> {
    let len = change.text[..change.value_start - 1].chars().count().max(1);
    let key_span = Span { origin, line: 1, col: 1, len };
    let mut node = root;
    for segment in &change.path {
        if node.is_null() {
            node.span = key_span;
            node.content = match segment {
                Segment::Key(_) => Content::Mapping(Vec::new()),
                Segment::Index(_) => Content::Sequence(Vec::new()),
            };
        }
        let found = node.describe();
        let next =
            || Node { span: key_span, content: Content::Scalar(yaml::scalar::Meaning::Null) };
        node = match (segment, &mut node.content) {
            (Segment::Key(key), Content::Mapping(entries)) => {
                let at = entries.iter().position(|entry| canonical(&entry.key) == canonical(key));
                let at = at.unwrap_or_else(|| {
                    entries.push(Entry { key: key.clone(), key_span, value: next() });
                    entries.len() - 1
                });
                &mut entries[at].value
            }
            (Segment::Index(index), Content::Sequence(items)) => {
                if *index > items.len() {
                    let found = format!("item {index} of a list of {}", items.len());
                    return Err(conflict(
                        change,
                        origin,
                        found,
                        "an item that exists, or the next one",
                    ));
                }
                if *index == items.len() {
                    items.push(next());
                }
                &mut items[*index]
            }
            (Segment::Key(key), _) => {
                let found = format!("`{key}` is set below {found}");
                return Err(conflict(
                    change,
                    origin,
                    found,
                    "a mapping there: set the whole value instead",
                ));
            }
            (Segment::Index(index), _) => {
                let found = format!("item {index} is set below {found}");
                return Err(conflict(
                    change,
                    origin,
                    found,
                    "a list there: set the whole value instead",
                ));
            }
        };
    }
    *node = value;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply_all(recipe: &str, overrides: &[&str]) -> (serde_json::Value, Vec<String>) {
        let mut errors = Vec::new();
        let mut root = yaml::parse(recipe, Origin::File, &mut errors).unwrap();
        let overrides: Vec<Override> = overrides.iter().map(|text| text.parse().unwrap()).collect();
        apply(&mut root, &overrides, &mut errors);
        (root.to_json(), errors.iter().map(Diagnostic::message).collect())
    }

    #[test]
    fn values_are_yaml_and_paths_are_made() {
        let overrides = ["a.b=[1, yes]", "c[0].d=1e-5", "c.1={e: 010}", "f="];
        let (json, errors) = apply_all("a: {b: 2, z: 3}\n", &overrides);
        assert_eq!(errors, [""; 0]);
        let expected = serde_json::json!({"a": {"b": [1, true], "z": 3}, "c": [{"d": "1e-5"}, {"e": 8}], "f": null});
        assert_eq!(json, expected);
    }

    #[test]
    fn an_alias_replaces_its_key() {
        let (json, _) = apply_all("optimizer: {learning_rate: 1}\n", &["optimizer.lr=2"]);
        assert_eq!(json, serde_json::json!({"optimizer": {"learning_rate": 2}}));
    }

    #[test]
    fn the_last_value_of_a_key_counts() {
        let (json, errors) = apply_all("d: 0\n", &["d=1", "d.e=*", "d=2"]);
        assert_eq!((json["d"].clone(), errors.len()), (serde_json::json!(2), 1));
        let (json, errors) = apply_all("d: 0\n", &["d=*", "d=2"]);
        assert_eq!((json, errors.len()), (serde_json::json!({"d": 2}), 0));
    }

    #[test]
    fn what_does_not_fit_is_said() {
        let overrides = ["a.b=1", "c[5]=1", "e=*"];
        let (_, errors) = apply_all("a: 1\nc: [1]\n", &overrides);
        assert_eq!(
            errors[0],
            "`b` is set below `1`, required: a mapping there: set the whole value instead"
        );
        assert_eq!(
            errors[1],
            "item 5 of a list of 1, required: an item that exists, or the next one"
        );
        assert!(errors[2].starts_with("not valid YAML"), "{errors:?}");
    }

    #[test]
    fn a_text_without_path_or_value_is_no_override() {
        assert_eq!("a".parse::<Override>(), Err(OverrideError::NoValue("a".to_owned())));
        for bad in ["=1", ".a=1", "a..b=1", "a[x]=1", "a[0=1", "[0]=1", "0=1"] {
            assert!(bad.parse::<Override>().is_err(), "{bad}");
        }
    }
}
