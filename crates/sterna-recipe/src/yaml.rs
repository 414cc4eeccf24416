//! YAML as a tree that remembers where everything stands and how it was written.
//!
//! The reference reads recipes with `PyYAML`, which is YAML 1.1, and its number rules then look at the strings that are left;
//! so a scalar must be kept as text with its style until somebody asks what it means ([`scalar`]). The parser is
//! granit-parser, the one inside serde-saphyr: through serde neither style nor column nor a second duplicate key would arrive.

pub(crate) mod scalar;

use std::collections::{BTreeMap, HashMap};

use granit_parser::{Event, Parser, ScalarStyle, ScanError};
use serde_json::{Map, Number, Value};

use crate::{
    diagnostic::{Diagnostic, Kind},
    source::{Origin, Span},
};

use self::scalar::Meaning;

/// Longest recipe, in bytes. Real ones have a few thousand.
const MAX_BYTES: usize = 1 << 18;
/// Most values in a recipe, those that aliases repeat counted each time: ten lines of aliases can stand for a billion.
const MAX_NODES: usize = 20_000;
/// Deepest value. Real recipes go to six.
const MAX_DEPTH: usize = 32;
/// Duplicate keys after which a text is no recipe with a mistake.
const MAX_DUPLICATES: usize = 100;

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) span: Span,
    pub(crate) content: Content,
}

/// What a node holds.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    Scalar(Meaning),
    Sequence(Vec<Node>),
    Mapping(Vec<Entry>),
}

/// A key with its value.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_span: Span,
    pub(crate) value: Node,
}

impl Node {
    /// A short phrase for messages: the value in backticks, or what sort of thing it is.
    pub(crate) fn describe(&self) -> String {
        match &self.content {
            Content::Scalar(meaning) => meaning.describe(),
            Content::Sequence(items) if items.is_empty() => "an empty list".to_owned(),
            Content::Sequence(_) => "a list".to_owned(),
            Content::Mapping(_) => "a mapping".to_owned(),
        }
    }

    pub(crate) fn is_null(&self) -> bool {
        matches!(self.content, Content::Scalar(Meaning::Null))
    }

    /// The value as JSON, for keys whose content is somebody else's: numbers and booleans by the rules of YAML 1.1.
    pub(crate) fn to_json(&self) -> Value {
        match &self.content {
            Content::Scalar(meaning) => match meaning {
                Meaning::Null => Value::Null,
                Meaning::Bool(x) => Value::Bool(*x),
                Meaning::Int(x) => {
                    i64::try_from(*x).map_or_else(|_| Value::from(*x as f64), Value::from)
                }
                Meaning::Float(x) => Number::from_f64(*x).map_or(Value::Null, Value::Number),
                Meaning::Text(x) | Meaning::Date(x) => Value::String(x.clone()),
            },
            Content::Sequence(items) => items.iter().map(Node::to_json).collect(),
            Content::Mapping(entries) => Value::Object(
                entries.iter().map(|e| (e.key.clone(), e.value.to_json())).collect::<Map<_, _>>(),
            ),
        }
    }
}

/// Parses one YAML document.
///
/// Duplicate keys are added to `errors` and the first of each is kept, so that one mistake does not hide the others.
///
/// # Errors
///
/// The syntax error, after which nothing more can be known.
pub(crate) fn parse(
    text: &str,
    origin: Origin,
    errors: &mut Vec<Diagnostic>,
) -> Result<Node, Box<Diagnostic>> {
    let mut builder =
        Builder { origin, errors, anchors: HashMap::new(), text, num_nodes: 0, depth: 0 };
    if text.len() > MAX_BYTES {
        let found = format!("a text of `{}` bytes", text.len());
        return Err(builder.syntax(1, 0, found, format!("a recipe has at most {MAX_BYTES} bytes")));
    }
    builder.document()
}

struct Builder<'a> {
    origin: Origin,
    errors: &'a mut Vec<Diagnostic>,
    /// Values with an anchor, and how many values each holds.
    anchors: HashMap<usize, (Node, usize)>,
    text: &'a str,
    /// Values made so far.
    num_nodes: usize,
    /// Lists and mappings around the next value.
    depth: usize,
}

type Events<'a> = Parser<'a, granit_parser::StrInput<'a>>;

impl Builder<'_> {
    fn document(&mut self) -> Result<Node, Box<Diagnostic>> {
        let text = self.text;
        let mut events = Parser::new_from_str(text);
        let mut root = None;
        loop {
            let (event, span) = self.next(&mut events)?;
            match event {
                Event::StreamEnd => break,
                Event::DocumentStart(..) if root.is_some() => {
                    return Err(self.syntax(
                        span.start.line(),
                        span.start.col(),
                        "a second document starts here".to_owned(),
                        "a recipe is one document: remove the `---`",
                    ));
                }
                Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd => {}
                event => root = Some(self.node(&mut events, event, span, "")?),
            }
        }
        Ok(root.unwrap_or_else(|| {
            let span = Span { origin: self.origin, line: 1, col: 1, len: 1 };
            Node { span, content: Content::Scalar(Meaning::Null) }
        }))
    }

    fn next<'t>(
        &self,
        events: &mut Events<'t>,
    ) -> Result<(Event<'t>, granit_parser::Span), Box<Diagnostic>> {
        loop {
            match events.next() {
                Some(Ok((Event::Comment(..), _))) => {}
                Some(Ok(pair)) => return Ok(pair),
                Some(Err(error)) => return Err(self.scan_error(&error)),
                None => return Ok((Event::StreamEnd, granit_parser::Span::default())),
            }
        }
    }

    fn node(
        &mut self,
        events: &mut Events<'_>,
        event: Event<'_>,
        span: granit_parser::Span,
        path: &str,
    ) -> Result<Node, Box<Diagnostic>> {
        let place = self.place(&span);
        let before = self.num_nodes;
        self.count(1, place)?;
        let (anchor, content) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let is_plain = style == ScalarStyle::Plain;
                let tag = tag.map(|tag| format!("{}{}", tag.handle(), tag.suffix()));
                let meaning = scalar::resolve_tagged(&text, is_plain, tag.as_deref()).map_err(
                    |required| {
                        let tag = tag.unwrap_or_default();
                        self.syntax(
                            place.line,
                            place.col - 1,
                            format!("`{text}` has the tag `{tag}`"),
                            required,
                        )
                    },
                )?;
                (anchor, Content::Scalar(meaning))
            }
            Event::SequenceStart(_, anchor, _) => {
                self.descend(place)?;
                let items = self.sequence(events, path)?;
                self.depth -= 1;
                (anchor, Content::Sequence(items))
            }
            Event::MappingStart(_, anchor, _) => {
                self.descend(place)?;
                let entries = self.mapping(events, path)?;
                self.depth -= 1;
                (anchor, Content::Mapping(entries))
            }
            Event::Alias(anchor) => {
                // The parser resolved the name, so the anchor exists; it is unfinished only when it contains itself.
                let Some((_, num_nodes)) = self.anchors.get(&anchor) else {
                    let hint = "an alias cannot stand inside its own anchor";
                    return Err(self.syntax(
                        place.line,
                        place.col - 1,
                        "a value contains itself".to_owned(),
                        hint,
                    ));
                };
                self.count(*num_nodes, place)?;
                let content = self.anchors[&anchor].0.content.clone();
                return Ok(Node { span: place, content });
            }
            other => {
                let found = format!("unexpected {other:?}");
                return Err(self.syntax(
                    place.line,
                    place.col - 1,
                    found,
                    "the recipe has to be a mapping of keys",
                ));
            }
        };
        let node = Node { span: place, content };
        if anchor > 0 {
            self.anchors.insert(anchor, (node.clone(), self.num_nodes - before));
        }
        Ok(node)
    }

    /// Counts values that are about to be made.
    fn count(&mut self, num_nodes: usize, place: Span) -> Result<(), Box<Diagnostic>> {
        self.num_nodes += num_nodes;
        if self.num_nodes <= MAX_NODES {
            return Ok(());
        }
        let hint =
            format!("a recipe has at most {MAX_NODES} values, those that aliases repeat included");
        Err(self.syntax(place.line, place.col - 1, "the values are too many".to_owned(), hint))
    }

    /// Enters a list or a mapping.
    fn descend(&mut self, place: Span) -> Result<(), Box<Diagnostic>> {
        self.depth += 1;
        if self.depth <= MAX_DEPTH {
            return Ok(());
        }
        let hint = format!("lists and mappings of a recipe are at most {MAX_DEPTH} deep");
        Err(self.syntax(place.line, place.col - 1, "the value is too deep".to_owned(), hint))
    }

    fn sequence(
        &mut self,
        events: &mut Events<'_>,
        path: &str,
    ) -> Result<Vec<Node>, Box<Diagnostic>> {
        let mut items = Vec::new();
        loop {
            match self.next(events)? {
                (Event::SequenceEnd, _) => return Ok(items),
                (event, span) => items.push(self.node(
                    events,
                    event,
                    span,
                    &format!("{path}[{}]", items.len()),
                )?),
            }
        }
    }

    fn mapping(
        &mut self,
        events: &mut Events<'_>,
        path: &str,
    ) -> Result<Vec<Entry>, Box<Diagnostic>> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut first_lines: BTreeMap<String, usize> = BTreeMap::new();
        loop {
            let (event, span) = self.next(events)?;
            let key_span = self.place(&span);
            let (key, is_plain) = match event {
                Event::MappingEnd => return Ok(entries),
                Event::Scalar(text, style, ..) => (text.into_owned(), style == ScalarStyle::Plain),
                _ => {
                    let found = "a key that is not a word".to_owned();
                    return Err(self.syntax(
                        key_span.line,
                        key_span.col - 1,
                        found,
                        "keys are words followed by `:`",
                    ));
                }
            };
            if is_plain && key == "<<" {
                let hint = "copy the keys instead; aliases of single values (`*name`) do work";
                let found = "merge keys (`<<`) are not part of recipes".to_owned();
                return Err(self.syntax(key_span.line, key_span.col - 1, found, hint));
            }
            let key_path = join(path, &key);
            let (event, span) = self.next(events)?;
            let value = self.node(events, event, span, &key_path)?;
            if let Some(first) = first_lines.get(&key) {
                if self.errors.len() >= MAX_DUPLICATES {
                    let found = format!("more than {MAX_DUPLICATES} keys are given twice");
                    let hint = "this file is no recipe, or two are in one file";
                    return Err(self.syntax(key_span.line, key_span.col - 1, found, hint));
                }
                self.errors.push(Diagnostic {
                    kind: Kind::DuplicateKey,
                    key_path,
                    span: Some(key_span),
                    found: format!("first on line {first}"),
                    required: "each key once".to_owned(),
                    hint: Some("remove one of the two".to_owned()),
                });
                continue;
            }
            first_lines.insert(key.clone(), key_span.line);
            entries.push(Entry { key, key_span, value });
        }
    }

    /// The part of `span` that is on its first line.
    fn place(&self, span: &granit_parser::Span) -> Span {
        let (start, end) = (&span.start, &span.end);
        let len = if end.line() == start.line() {
            end.col().saturating_sub(start.col())
        } else {
            let line = self.text.lines().nth(start.line().saturating_sub(1)).unwrap_or("");
            line.trim_end().chars().count().saturating_sub(start.col())
        };
        Span {
            origin: self.origin,
            line: start.line().max(1),
            col: start.col() + 1,
            len: len.max(1),
        }
    }

    fn scan_error(&self, error: &ScanError) -> Box<Diagnostic> {
        let marker = error.marker();
        let line = self.text.lines().nth(marker.line().saturating_sub(1)).unwrap_or("");
        let hint = if line.starts_with('\t') || line.trim_start_matches(' ').starts_with('\t') {
            "indent with spaces: YAML does not allow tabs there"
        } else {
            "look at the indentation and at the `:` of this line and the one above"
        };
        self.syntax(marker.line(), marker.col(), error.info(), hint)
    }

    /// `col` counts from 0, as the parser does.
    fn syntax(
        &self,
        line: usize,
        col: usize,
        found: String,
        hint: impl Into<String>,
    ) -> Box<Diagnostic> {
        Box::new(Diagnostic {
            kind: Kind::Syntax,
            key_path: String::new(),
            span: Some(Span { origin: self.origin, line: line.max(1), col: col + 1, len: 1 }),
            found,
            required: "YAML".to_owned(),
            hint: Some(hint.into()),
        })
    }
}

/// The path of `key` under `parent`.
pub(crate) fn join(parent: &str, key: &str) -> String {
    if parent.is_empty() { key.to_owned() } else { format!("{parent}.{key}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(text: &str) -> Vec<String> {
        let mut errors = Vec::new();
        let syntax = parse(text, Origin::File, &mut errors).err();
        errors
            .iter()
            .chain(syntax.as_deref())
            .map(|e| format!("{}:{}", e.span.unwrap().line, e.message()))
            .collect()
    }

    #[test]
    fn every_duplicate_key_is_reported_with_both_lines() {
        let text = "a: 1\nb:\n  c: 1\n  c: 2\na: 3\n";
        assert_eq!(
            errors(text),
            [
                "4:key `b.c` is given twice, first on line 3",
                "5:key `a` is given twice, first on line 1"
            ]
        );
    }

    #[test]
    fn an_alias_means_its_anchor() {
        let node = parse("a: &x [1, yes]\nb: *x\n", Origin::File, &mut Vec::new()).unwrap();
        assert_eq!(node.to_json(), serde_json::json!({"a": [1, true], "b": [1, true]}));
    }

    #[test]
    fn published_recipes_are_what_pyyaml_reads() {
        let golden: Value =
            serde_json::from_str(include_str!("../tests/fixtures/recipes_pyyaml.json")).unwrap();
        let folder =
            std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/recipes");
        let golden = golden.as_object().unwrap();
        assert_eq!(golden.len(), 24);
        for (name, expected) in golden {
            let text = std::fs::read_to_string(folder.join(name)).unwrap();
            let read = parse(&text, Origin::File, &mut Vec::new()).unwrap().to_json();
            assert_eq!(read, *expected, "{name}");
        }
    }

    #[test]
    fn merge_keys_and_second_documents_are_syntax_errors() {
        assert_eq!(
            errors("a: &x {b: 1}\nc:\n  <<: *x\n"),
            ["3:not valid YAML: merge keys (`<<`) are not part of recipes"]
        );
        assert_eq!(
            errors("a: 1\n---\nb: 2\n"),
            ["2:not valid YAML: a second document starts here"]
        );
    }
}
