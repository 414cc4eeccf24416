//! Methods of Python's `str`, where Rust's idea of whitespace or lines differs or minijinja has none.

use minijinja::value::from_args;
use minijinja::{Error, Value};

use super::invalid;

/// Where [`strip`] takes characters away.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Start,
    End,
    Both,
}

/// The result of `text.name(*args)`, or `None` for a method that minijinja-contrib has right.
pub(super) fn method(text: &str, name: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    let strip_method = |side| {
        let (chars,): (Option<&str>,) = from_args(args)?;
        Ok(Value::from(strip(text, chars, side)))
    };
    Some(match name {
        "strip" => strip_method(Side::Both),
        "lstrip" => strip_method(Side::Start),
        "rstrip" => strip_method(Side::End),
        "split" => split(text, args, false),
        "rsplit" => split(text, args, true),
        "splitlines" => splitlines(text, args),
        "removeprefix" => one(args).map(|p| Value::from(text.strip_prefix(p).unwrap_or(text))),
        "removesuffix" => one(args).map(|s| Value::from(text.strip_suffix(s).unwrap_or(text))),
        "partition" => separator(args).map(|separator| match text.split_once(separator) {
            Some((before, after)) => Value::from_iter([before, separator, after]),
            None => Value::from_iter([text, "", ""]),
        }),
        "rpartition" => separator(args).map(|separator| match text.rsplit_once(separator) {
            Some((before, after)) => Value::from_iter([before, separator, after]),
            None => Value::from_iter(["", "", text]),
        }),
        "isspace" => Ok(Value::from(!text.is_empty() && text.chars().all(is_space))),
        _ => return None,
    })
}

/// `str.isspace` of one character: Unicode whitespace and the four separators of ASCII.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// `str.strip` and its one-sided forms; without `chars`, whitespace.
pub(super) fn strip<'a>(text: &'a str, chars: Option<&str>, side: Side) -> &'a str {
    let goes = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let text = if side == Side::End { text } else { text.trim_start_matches(goes) };
    if side == Side::Start { text } else { text.trim_end_matches(goes) }
}

fn one(args: &[Value]) -> Result<&str, Error> {
    let (text,): (&str,) = from_args(args)?;
    Ok(text)
}

fn separator(args: &[Value]) -> Result<&str, Error> {
    let text = one(args)?;
    if text.is_empty() { Err(invalid("empty separator")) } else { Ok(text) }
}

/// `str.split` and `str.rsplit`.
fn split(text: &str, args: &[Value], from_end: bool) -> Result<Value, Error> {
    let (separator, max): (Option<&str>, Option<i64>) = from_args(args)?;
    let max = max.and_then(|max| usize::try_from(max).ok()).unwrap_or(usize::MAX);
    let mut parts = match separator {
        Some("") => return Err(invalid("empty separator")),
        Some(separator) => split_at_text(text, separator, max, from_end),
        None => split_at_spaces(text, max, from_end),
    };
    if from_end {
        parts.reverse();
    }
    Ok(Value::from_iter(parts))
}

fn split_at_text<'a>(text: &'a str, separator: &str, max: usize, from_end: bool) -> Vec<&'a str> {
    let mut parts = Vec::new();
    let mut rest = text;
    while parts.len() < max {
        let cut = if from_end { rest.rsplit_once(separator) } else { rest.split_once(separator) };
        let Some((before, after)) = cut else { break };
        let part;
        (part, rest) = if from_end { (after, before) } else { (before, after) };
        parts.push(part);
    }
    parts.push(rest);
    parts
}

/// Runs of whitespace separate, and none stays at the ends; a piece that `max` leaves whole keeps
/// the whitespace inside it and loses that around it.
fn split_at_spaces(text: &str, max: usize, from_end: bool) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = strip(text, None, if from_end { Side::End } else { Side::Start });
    while !rest.is_empty() {
        let cut = if from_end {
            rest.char_indices().rev().find(|(_, c)| is_space(*c)).map(|(at, c)| at + c.len_utf8())
        } else {
            rest.find(is_space)
        };
        let Some(cut) = cut.filter(|_| parts.len() < max) else {
            parts.push(rest);
            break;
        };
        let (before, after) = rest.split_at(cut);
        if from_end {
            parts.push(after);
            rest = strip(before, None, Side::End);
        } else {
            parts.push(before);
            rest = strip(after, None, Side::Start);
        }
    }
    parts
}

/// `str.splitlines`: also at carriage returns, form feeds and Unicode's line separators.
fn splitlines(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (keep_ends,): (Option<bool>,) = from_args(args)?;
    let ends_line = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some((at, end)) = rest.char_indices().find(|(_, c)| ends_line(*c)) {
        let end_len = if rest[at..].starts_with("\r\n") { 2 } else { end.len_utf8() };
        let line_len = if keep_ends.unwrap_or(false) { at + end_len } else { at };
        lines.push(&rest[..line_len]);
        rest = &rest[at + end_len..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    Ok(Value::from_iter(lines))
}
