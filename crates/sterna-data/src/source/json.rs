//! JSON Lines, and JSON files that hold one list of objects.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// What some editors put before the first character of a UTF-8 file.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A JSON file in memory. Lines are parsed when their row is read, so that a slice of a large file costs little.
#[derive(Debug)]
pub(super) enum JsonFile {
    /// One object a line.
    Lines { text: Vec<u8>, lines: Vec<Line> },
    /// The elements of one list, with the line each starts on unknown.
    List(Vec<Map<String, Value>>),
}

/// A line that is not blank.
#[derive(Debug)]
pub(super) struct Line {
    start: usize,
    end: usize,
    /// From 1.
    number: usize,
}

impl JsonFile {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let mut text = std::fs::read(path)
            .map_err(|source| Error::Read { path: path.to_path_buf(), source })?;
        if text.starts_with(BYTE_ORDER_MARK) {
            text.drain(..BYTE_ORDER_MARK.len());
        }
        let is_list = text.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[');
        if is_list { read_list(path, &text) } else { Ok(split_lines(text)) }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Lines { lines, .. } => lines.len(),
            Self::List(rows) => rows.len(),
        }
    }

    pub(super) fn row(&self, path: &Path, index: usize) -> Result<Map<String, Value>> {
        match self {
            Self::Lines { text, lines } => {
                let Line { start, end, number } = lines[index];
                let value: Value = serde_json::from_slice(&text[start..end]).map_err(|source| {
                    Error::Json { path: path.to_path_buf(), line: number, source }
                })?;
                match value {
                    Value::Object(row) => Ok(row),
                    other => Err(Error::JsonShape {
                        path: path.to_path_buf(),
                        line: number,
                        found: kind(&other),
                        required: "one object on each line",
                    }),
                }
            }
            Self::List(rows) => Ok(rows[index].clone()),
        }
    }

    pub(super) fn line(&self, index: usize) -> Option<usize> {
        match self {
            Self::Lines { lines, .. } => Some(lines[index].number),
            Self::List(_) => None,
        }
    }
}

fn split_lines(text: Vec<u8>) -> JsonFile {
    let mut lines = Vec::new();
    let mut start = 0;
    for (i, line) in text.split(|&byte| byte == b'\n').enumerate() {
        if !line.trim_ascii().is_empty() {
            lines.push(Line { start, end: start + line.len(), number: i + 1 });
        }
        start += line.len() + 1;
    }
    JsonFile::Lines { text, lines }
}

fn read_list(path: &Path, text: &[u8]) -> Result<JsonFile> {
    let values: Vec<Value> = serde_json::from_slice(text).map_err(|source| Error::Json {
        path: path.to_path_buf(),
        line: source.line(),
        source,
    })?;
    let rows = values.into_iter().map(|value| match value {
        Value::Object(row) => Ok(row),
        other => Err(Error::JsonShape {
            path: path.to_path_buf(),
            line: 1,
            found: kind(&other),
            required: "a list of objects",
        }),
    });
    Ok(JsonFile::List(rows.collect::<Result<_>>()?))
}

/// What a message calls a value of this kind.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
