//! JSON as Python's `json.dumps` writes it.

use std::fmt::Write;

use minijinja::Value;
use minijinja::value::ValueKind;

use super::objects::{self, Range};
use super::{ops, text};

/// The arguments of `json.dumps` that templates use.
pub(super) struct Style {
    pub(super) ensure_ascii: bool,
    /// One level of indentation, or everything on one line.
    pub(super) indent: Option<String>,
    /// Between items.
    pub(super) item: String,
    /// Between a key and its value.
    pub(super) key: String,
    pub(super) sort_keys: bool,
}

/// A JSON value as a template value.
pub(in crate::chat_template) fn from_json(value: &serde_json::Value) -> Value {
    match value {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(x) => Value::from(*x),
        serde_json::Value::Number(x) => x
            .as_i64()
            .map(Value::from)
            .or_else(|| x.as_u64().map(Value::from))
            .unwrap_or_else(|| Value::from(x.as_f64().unwrap_or(f64::NAN))),
        serde_json::Value::String(x) => Value::from(x.as_str()),
        serde_json::Value::Array(items) => items.iter().map(from_json).collect(),
        serde_json::Value::Object(map) => {
            Value::from_pairs(map.iter().map(|(key, value)| (key.clone(), from_json(value))))
        }
    }
}

/// The text, or what kind of value has none.
pub(super) fn dumps(value: &Value, style: &Style) -> Result<String, String> {
    let mut out = String::new();
    write_value(&mut out, value, style, 0)?;
    Ok(out)
}

fn write_value(out: &mut String, value: &Value, style: &Style, depth: usize) -> Result<(), String> {
    if depth > text::MAX_DEPTH {
        return Err(format!("what is nested more than `{}` deep", text::MAX_DEPTH));
    }
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&number(value)),
        ValueKind::String => {
            write_string(out, value.as_str().unwrap_or_default(), style.ensure_ascii);
        }
        ValueKind::Seq | ValueKind::Iterable if value.downcast_object_ref::<Range>().is_none() => {
            let items = value.try_iter().map_err(|error| error.to_string())?;
            write_list(out, items, ('[', ']'), style, depth, |out, item| {
                write_value(out, &item, style, depth + 1)
            })?;
        }
        ValueKind::Map if objects::is_dict(value) => {
            let keys = value.try_iter().map_err(|error| error.to_string())?;
            let mut keys: Vec<Value> = keys.collect();
            if style.sort_keys {
                ops::sort(&mut keys, false, |key| key).map_err(|error| error.to_string())?;
            }
            write_list(out, keys.into_iter(), ('{', '}'), style, depth, |out, key| {
                write_key(out, &key, style)?;
                let item = value.get_item(&key).map_err(|error| error.to_string())?;
                write_value(out, &item, style, depth + 1)
            })?;
        }
        kind => return Err(format!("a value of kind `{kind}`")),
    }
    Ok(())
}

/// JSON keys are strings; Python writes of another scalar what `json` would write of it.
fn write_key(out: &mut String, key: &Value, style: &Style) -> Result<(), String> {
    if let Some(text) = key.as_str() {
        write_string(out, text, style.ensure_ascii);
    } else if matches!(key.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Plain) {
        return Err(format!("a key of kind `{}`", key.kind()));
    } else {
        let mut text = String::new();
        write_value(&mut text, key, style, 0)?;
        write_string(out, &text, style.ensure_ascii);
    }
    out.push_str(&style.key);
    Ok(())
}

fn write_list<T>(
    out: &mut String,
    items: impl Iterator<Item = T>,
    (open, close): (char, char),
    style: &Style,
    depth: usize,
    mut write_item: impl FnMut(&mut String, T) -> Result<(), String>,
) -> Result<(), String> {
    let new_line = |out: &mut String, depth: usize| {
        if let Some(indent) = &style.indent {
            out.push('\n');
            out.push_str(&indent.repeat(depth));
        }
    };
    out.push(open);
    let mut is_empty = true;
    for item in items {
        if !is_empty {
            out.push_str(&style.item);
        }
        is_empty = false;
        new_line(out, depth + 1);
        write_item(out, item)?;
    }
    if !is_empty {
        new_line(out, depth);
    }
    out.push(close);
    Ok(())
}

fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    match f64::try_from(value.clone()) {
        Ok(x) if x.is_nan() => "NaN".to_owned(),
        Ok(x) if x.is_infinite() => if x > 0.0 { "Infinity" } else { "-Infinity" }.to_owned(),
        Ok(x) => text::float(x),
        Err(_) => value.to_string(),
    }
}

fn write_string(out: &mut String, text: &str, ensure_ascii: bool) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' || (ensure_ascii && !(' '..='~').contains(&c)) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(out, "\\u{unit:04x}").expect("a string takes all text");
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}
