//! Methods of Python's `str`.

use minijinja::value::Tuple;
use minijinja::{Error, ErrorKind, Value};

use super::args::{bind, required, split as split_args};
use super::ops::{self, Number};
use super::{format, text as python_text};
use crate::chat_template::invalid;

/// All of them, with those that templates may name and not call.
pub(super) const METHODS: &[&str] = &[
    "capitalize",
    "casefold",
    "center",
    "count",
    "encode",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "translate",
    "upper",
    "zfill",
];

/// Where [`strip`] takes characters away.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Start,
    End,
    Both,
}

/// The result of `text.name(*args)`.
pub(super) fn method(text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let takes_names = ["expandtabs", "format", "rsplit", "split", "splitlines"].contains(&name);
    if !takes_names && args.last().is_some_and(Value::is_kwargs) {
        return Err(invalid(format!("`{name}` takes no arguments by name")));
    }
    match name {
        "strip" => strip_method(text, name, args, Side::Both),
        "lstrip" => strip_method(text, name, args, Side::Start),
        "rstrip" => strip_method(text, name, args, Side::End),
        "split" => split(text, args, false),
        "rsplit" => split(text, args, true),
        "splitlines" => {
            let [keep_ends] = bind(name, ["keepends"], args)?;
            let lines = lines(text, keep_ends.is_some_and(|keep| keep.is_true()));
            Ok(Value::from_iter(lines))
        }
        "removeprefix" => {
            one(name, args).map(|p| Value::from(text.strip_prefix(p.as_str()).unwrap_or(text)))
        }
        "removesuffix" => {
            one(name, args).map(|s| Value::from(text.strip_suffix(s.as_str()).unwrap_or(text)))
        }
        "partition" => {
            let separator = separator(name, args)?;
            let (before, found, after) = match text.split_once(&separator) {
                Some((before, after)) => (before, separator.as_str(), after),
                None => (text, "", ""),
            };
            Ok(Value::from(Tuple::from([before.into(), found.into(), after.into()])))
        }
        "rpartition" => {
            let separator = separator(name, args)?;
            let (before, found, after) = match text.rsplit_once(&separator) {
                Some((before, after)) => (before, separator.as_str(), after),
                None => ("", "", text),
            };
            Ok(Value::from(Tuple::from([before.into(), found.into(), after.into()])))
        }
        _ => respelled(text, name, args),
    }
}

/// The methods that give the text in other letters, another width or with parts replaced.
fn respelled(text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let mapped = |map: fn(&str) -> String| {
        let [] = bind(name, [], args)?;
        Ok(Value::from(map(text)))
    };
    match name {
        "upper" => mapped(str::to_uppercase),
        "lower" => mapped(str::to_lowercase),
        // Folding differs from lower case in few letters, of which this one is in use.
        "casefold" => mapped(|text| text.to_lowercase().replace('\u{df}', "ss")),
        "capitalize" => mapped(capitalize),
        "title" => mapped(title),
        "swapcase" => mapped(|text| {
            let swapped = text.chars().map(|c| {
                if c.is_uppercase() {
                    c.to_lowercase().to_string()
                } else {
                    c.to_uppercase().to_string()
                }
            });
            swapped.collect()
        }),
        "center" | "ljust" | "rjust" => justify(text, name, args),
        "zfill" => {
            let [width] = bind(name, ["width"], args)?;
            let width = format::limited(size(&required(name, "width", width)?)?)?;
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
            let digits = format::pad(digits, '>', '0', width.saturating_sub(sign.len()));
            Ok(Value::from(format!("{sign}{digits}")))
        }
        "expandtabs" => {
            let [size_of_tab] = bind(name, ["tabsize"], args)?;
            let size_of_tab = size_of_tab.map_or(Ok(8), |x| size(&x))?;
            Ok(Value::from(expand_tabs(text, format::limited(size_of_tab)?)))
        }
        "replace" => {
            let [old, new, count] = bind(name, ["old", "new", "count"], args)?;
            let (old, new) = (required(name, "old", old)?, required(name, "new", new)?);
            let (Some(old), Some(new)) = (old.as_str(), new.as_str()) else {
                return Err(invalid("`replace` takes texts"));
            };
            replace(text, old, new, count.as_ref())
        }
        "format" => {
            let (positional, named) = split_args(args)?;
            format::braces(text, positional, named.as_ref()).map(Value::from)
        }
        _ => found(text, name, args),
    }
}

/// The methods that look for another text.
fn found(text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    match name {
        "count" => {
            let (part, place) = searched(text, name, args)?;
            let Some((found, _)) = place else { return Ok(Value::from(0)) };
            let count = if part.is_empty() {
                found.chars().count() + 1
            } else {
                found.matches(&part).count()
            };
            Ok(Value::from(count))
        }
        "find" | "index" | "rfind" | "rindex" => {
            let (part, place) = searched(text, name, args)?;
            let found = place.and_then(|(within, before)| {
                let at =
                    if name.starts_with('r') { within.rfind(&part) } else { within.find(&part) };
                at.map(|at| before + within[..at].chars().count())
            });
            match found {
                Some(at) => Ok(Value::from(at)),
                None if name.ends_with("find") => Ok(Value::from(-1)),
                None => Err(invalid("substring not found")),
            }
        }
        "startswith" | "endswith" => {
            let [part, start, end] = bind(name, ["prefix", "start", "end"], args)?;
            let part = required(name, "prefix", part)?;
            let parts: Vec<Value> =
                if part.is_tuple() { part.try_iter()?.collect() } else { vec![part] };
            let within = slice(text, start.as_ref(), end.as_ref())?;
            let mut holds = false;
            for part in &parts {
                let Some(part) = part.as_str() else {
                    return Err(invalid(format!("`{name}` takes a text or a tuple of texts")));
                };
                holds |= within.as_ref().is_some_and(|(within, _)| {
                    if name == "startswith" {
                        within.starts_with(part)
                    } else {
                        within.ends_with(part)
                    }
                });
            }
            Ok(Value::from(holds))
        }
        "join" => {
            let [items] = bind(name, ["iterable"], args)?;
            let mut out = String::new();
            for (index, item) in ops::items(&required(name, "iterable", items)?)?.enumerate() {
                let Some(item) = item.as_str() else {
                    return Err(invalid("`join` joins texts only"));
                };
                if index > 0 {
                    out.push_str(text);
                }
                out.push_str(item);
            }
            Ok(Value::from(out))
        }
        _ => asked(text, name, args),
    }
}

/// The methods that say of what kind the characters are.
fn asked(text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let all = |holds: fn(char) -> bool| {
        let [] = bind(name, [], args)?;
        Ok(Value::from(!text.is_empty() && text.chars().all(holds)))
    };
    match name {
        "isspace" => all(is_space),
        "isalpha" => all(char::is_alphabetic),
        "isalnum" => all(char::is_alphanumeric),
        "isnumeric" => all(char::is_numeric),
        // Of what is a number to Unicode, the decimal digits come in tens; the rest is fractions, letters and superscripts.
        "isdigit" => all(|c| c.is_numeric() && (is_decimal(c) || is_superscript(c))),
        "isdecimal" => all(is_decimal),
        "isascii" => Ok(Value::from(text.is_ascii())),
        "isprintable" => Ok(Value::from(text.chars().all(python_text::is_printable))),
        "isidentifier" => Ok(Value::from(
            text.starts_with(|c: char| c.is_alphabetic() || c == '_')
                && text.chars().all(|c| c.is_alphanumeric() || c == '_'),
        )),
        "islower" => Ok(Value::from(is_lower(text))),
        "isupper" => Ok(Value::from(is_upper(text))),
        "istitle" => Ok(Value::from(title(text) == text && text.chars().any(char::is_uppercase))),
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

/// `str.islower`.
pub(super) fn is_lower(text: &str) -> bool {
    text.chars().any(char::is_lowercase) && !text.chars().any(char::is_uppercase)
}

/// `str.isupper`.
pub(super) fn is_upper(text: &str) -> bool {
    text.chars().any(char::is_uppercase) && !text.chars().any(char::is_lowercase)
}

fn is_decimal(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_digit();
    }
    matches!(c as u32,
        0x660..=0x669 | 0x6f0..=0x6f9 | 0x7c0..=0x7c9 | 0x966..=0x96f | 0x9e6..=0x9ef | 0xa66..=0xa6f
        | 0xae6..=0xaef | 0xb66..=0xb6f | 0xbe6..=0xbef | 0xc66..=0xc6f | 0xce6..=0xcef | 0xd66..=0xd6f
        | 0xe50..=0xe59 | 0xed0..=0xed9 | 0xf20..=0xf29 | 0x1040..=0x1049 | 0x17e0..=0x17e9
        | 0x1810..=0x1819 | 0xff10..=0xff19)
}

fn is_superscript(c: char) -> bool {
    matches!(c as u32, 0xb2 | 0xb3 | 0xb9 | 0x2070 | 0x2074..=0x2079 | 0x2080..=0x2089 | 0x2460..=0x2468)
}

/// A letter as a title begins: of those that become two, the second is small.
fn titled(c: char) -> String {
    let mut upper = c.to_uppercase();
    let first = upper.next().map(String::from).unwrap_or_default();
    let rest: String = upper.collect();
    if first.contains(char::is_uppercase) { first + &rest.to_lowercase() } else { first + &rest }
}

/// `str.capitalize`.
pub(super) fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(titled).unwrap_or_default() + &chars.as_str().to_lowercase()
}

/// `str.title`: large behind whatever is no letter.
fn title(text: &str) -> String {
    let mut out = String::new();
    let mut is_inside = false;
    for c in text.chars() {
        if is_inside {
            out.extend(c.to_lowercase());
        } else {
            out.push_str(&titled(c));
        }
        is_inside = c.is_lowercase() || c.is_uppercase();
    }
    out
}

fn expand_tabs(text: &str, size: usize) -> String {
    let mut out = String::new();
    let mut column = 0;
    for c in text.chars() {
        match c {
            '\t' if size > 0 => {
                let missing = size - column % size;
                out.extend(std::iter::repeat_n(' ', missing));
                column += missing;
            }
            '\t' => {}
            c => {
                column = if c == '\n' || c == '\r' { 0 } else { column + 1 };
                out.push(c);
            }
        }
    }
    out
}

/// `str.center` and its like.
fn justify(text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let [width, fill] = bind(name, ["width", "fillchar"], args)?;
    let width = format::limited(size(&required(name, "width", width)?)?)?;
    let fill = fill.unwrap_or_else(|| Value::from(" "));
    let mut fill = fill.as_str().unwrap_or_default().chars();
    let (Some(fill), None) = (fill.next(), fill.next()) else {
        return Err(invalid(format!("`{name}` fills with one character")));
    };
    Ok(Value::from(match name {
        "center" => center(text, fill, width),
        "ljust" => format::pad(text, '<', fill, width),
        _ => format::pad(text, '>', fill, width),
    }))
}

/// `str.center`: of an odd number, one more goes to the left if the width is odd.
pub(super) fn center(text: &str, fill: char, width: usize) -> String {
    let missing = width.saturating_sub(text.chars().count());
    let before = missing / 2 + (missing & width & 1);
    let left = format::pad(text, '>', fill, text.chars().count() + before);
    format::pad(&left, '<', fill, width)
}

/// `str.replace`.
pub(super) fn replace(
    text: &str,
    old: &str,
    new: &str,
    count: Option<&Value>,
) -> Result<Value, Error> {
    let count = match count {
        Some(count) if !count.is_none() => int(count)?,
        _ => -1,
    };
    Ok(Value::from(match usize::try_from(count) {
        Ok(count) => text.replacen(old, new, count),
        Err(_) => text.replace(old, new),
    }))
}

/// What is looked for, and where: a part of the text, and how many characters are before it.
type Searched = (String, Option<(String, usize)>);

fn searched(text: &str, name: &str, args: &[Value]) -> Result<Searched, Error> {
    let [part, start, end] = bind(name, ["sub", "start", "end"], args)?;
    let part = required(name, "sub", part)?;
    let Some(part) = part.as_str() else {
        return Err(invalid(format!("`{name}` looks for a text")));
    };
    Ok((part.to_owned(), slice(text, start.as_ref(), end.as_ref())?))
}

/// `text[start:end]` and how many characters are before it; `None` if it would begin behind the end.
fn slice(
    text: &str,
    start: Option<&Value>,
    end: Option<&Value>,
) -> Result<Option<(String, usize)>, Error> {
    let len = text.chars().count() as i64;
    let place = |value: Option<&Value>, default: i64| match value {
        Some(value) if !value.is_none() => {
            int(value).map(|x| if x < 0 { (x + len).max(0) } else { x })
        }
        _ => Ok(default),
    };
    let (start, end) = (place(start, 0)?, place(end, len)?.min(len));
    if start > len || start > end {
        return Ok(None);
    }
    let part = text.chars().skip(start as usize).take((end - start) as usize).collect();
    Ok(Some((part, start as usize)))
}

/// A whole number that an argument gives.
pub(super) fn int(value: &Value) -> Result<i64, Error> {
    match Number::of(value) {
        Some(Number::Int(x)) => {
            Ok(x.clamp(i128::from(i64::MIN) / 2, i128::from(i64::MAX) / 2) as i64)
        }
        _ => Err(invalid(format!(
            "a whole number is needed, not a value of kind `{}`",
            value.kind()
        ))),
    }
}

/// A size that an argument gives, none below zero.
pub(super) fn size(value: &Value) -> Result<usize, Error> {
    int(value).map(|x| usize::try_from(x).unwrap_or(0))
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

fn strip_method(text: &str, name: &str, args: &[Value], side: Side) -> Result<Value, Error> {
    let [chars] = bind(name, ["chars"], args)?;
    match chars.filter(|chars| !chars.is_none()) {
        None => Ok(Value::from(strip(text, None, side))),
        Some(chars) => match chars.as_str() {
            Some(chars) => Ok(Value::from(strip(text, Some(chars), side))),
            None => Err(invalid(format!("`{name}` takes characters"))),
        },
    }
}

fn one(name: &str, args: &[Value]) -> Result<String, Error> {
    let [text] = bind(name, ["text"], args)?;
    let text = required(name, "text", text)?;
    text.as_str().map(str::to_owned).ok_or_else(|| invalid(format!("`{name}` takes a text")))
}

fn separator(name: &str, args: &[Value]) -> Result<String, Error> {
    let text = one(name, args)?;
    if text.is_empty() { Err(invalid("empty separator")) } else { Ok(text) }
}

/// `str.split` and `str.rsplit`.
fn split(text: &str, args: &[Value], from_end: bool) -> Result<Value, Error> {
    let [separator, max] = bind("split", ["sep", "maxsplit"], args)?;
    let max = max.map_or(Ok(-1), |max| int(&max))?;
    let max = usize::try_from(max).unwrap_or(usize::MAX);
    let separator = separator.filter(|separator| !separator.is_none());
    let mut parts = match separator.as_ref().map(Value::as_str) {
        Some(None) => return Err(invalid("`split` splits at a text")),
        Some(Some("")) => return Err(invalid("empty separator")),
        Some(Some(separator)) => split_at_text(text, separator, max, from_end),
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
pub(super) fn lines(text: &str, keep_ends: bool) -> Vec<&str> {
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
        let line_len = if keep_ends { at + end_len } else { at };
        lines.push(&rest[..line_len]);
        rest = &rest[at + end_len..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}
