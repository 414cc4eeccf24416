//! `str(value)` and `repr(value)`.

use std::fmt::Write;

use minijinja::value::{Tuple, ValueKind};
use minijinja::{Error, Value};

use super::objects::{self, DictView, Generator, Group, Range};
use crate::chat_template::invalid;

/// How deep Python prints what is nested.
pub(super) const MAX_DEPTH: usize = 1000;

/// `str(value)`.
pub(super) fn str_of(value: &Value) -> Result<String, Error> {
    Ok(match value.kind() {
        ValueKind::Undefined => String::new(),
        ValueKind::String => value.as_str().unwrap_or_default().to_owned(),
        _ => repr(value)?,
    })
}

/// `repr(value)`.
pub(super) fn repr(value: &Value) -> Result<String, Error> {
    let mut out = String::new();
    write_repr(&mut out, value, 0)?;
    Ok(out)
}

/// `repr` of a number: a float has the fewest digits that tell it from any other, and an exponent below 1e-4 and from 1e16 on.
pub(super) fn float(x: f64) -> String {
    if x.is_nan() {
        return "nan".to_owned();
    }
    if x.is_infinite() {
        return if x > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').expect("`{:e}` writes an exponent");
    let exponent: i32 = exponent.parse().expect("an exponent is a number");
    if (-4..16).contains(&exponent) {
        format!("{x:?}")
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{digits}e{sign}{:02}", exponent.abs())
    }
}

fn write_repr(out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(invalid(format!("a value nested more than `{MAX_DEPTH}` deep is not printed")));
    }
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::String => write_quoted(out, value.as_str().unwrap_or_default()),
        ValueKind::Number if !value.is_integer() => {
            out.push_str(&float(f64::try_from(value.clone())?));
        }
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Plain => {
            if let Some(range) = value.downcast_object_ref::<Range>() {
                return Ok(write!(out, "{range}")?);
            }
            if let Some(view) = value.downcast_object_ref::<DictView>() {
                out.push_str(view.name());
                out.push('(');
                write_items(out, value, ('[', ']'), depth)?;
                out.push(')');
            } else if value.downcast_object_ref::<Tuple>().is_some()
                || value.downcast_object_ref::<Group>().is_some()
            {
                write_items(out, value, ('(', ')'), depth)?;
            } else if value.downcast_object_ref::<Generator>().is_some() {
                out.push_str("<generator object>");
            } else if value.kind() == ValueKind::Plain {
                write!(out, "{value}")?;
            } else {
                write_items(out, value, ('[', ']'), depth)?;
            }
        }
        ValueKind::Map => {
            let is_dict = objects::is_dict(value);
            out.push_str(if is_dict { "{" } else { "<Namespace {" });
            for (index, key) in value.try_iter()?.enumerate() {
                if index > 0 {
                    out.push_str(", ");
                }
                write_repr(out, &key, depth + 1)?;
                out.push_str(": ");
                write_repr(out, &value.get_item(&key)?, depth + 1)?;
            }
            out.push_str(if is_dict { "}" } else { "}>" });
        }
        _ => write!(out, "{value}")?,
    }
    Ok(())
}

fn write_items(
    out: &mut String,
    items: &Value,
    (open, close): (char, char),
    depth: usize,
) -> Result<(), Error> {
    out.push(open);
    let mut num_items = 0;
    for item in items.try_iter()? {
        if num_items > 0 {
            out.push_str(", ");
        }
        num_items += 1;
        write_repr(out, &item, depth + 1)?;
    }
    if num_items == 1 && open == '(' {
        out.push(',');
    }
    out.push(close);
    Ok(())
}

/// `repr` of a string: in single quotes unless only double ones need no escape, with what cannot be printed escaped.
fn write_quoted(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if is_printable(c) => out.push(c),
            c => {
                let code = c as u32;
                let _ = match code {
                    0..=0xff => write!(out, "\\x{code:02x}"),
                    0x100..=0xffff => write!(out, "\\u{code:04x}"),
                    _ => write!(out, "\\U{code:08x}"),
                };
            }
        }
    }
    out.push(quote);
}

/// `str.isprintable` of one character: Rust's escapes for debugging and Python's keep the same characters. Behind a letter,
/// a combining character is not escaped.
pub(super) fn is_printable(c: char) -> bool {
    if matches!(c, '\'' | '"' | '\\') {
        return true;
    }
    let mut pair = String::from("a");
    pair.push(c);
    pair.escape_debug().count() == 2
}
