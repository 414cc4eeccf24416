//! `'...' % values` and `'...'.format(values)`.

use std::fmt::Write;
use std::iter::Peekable;
use std::str::Chars;

use minijinja::value::Kwargs;
use minijinja::{Error, Value};

use super::objects;
use super::ops::Number;
use super::{ops, text};
use crate::chat_template::invalid;

/// Widest field and longest fraction, in characters: less than a format of Rust's may have.
const MAX_WIDTH: usize = 1 << 15;

/// How a field is written.
#[derive(Debug, Clone, Default)]
struct Spec {
    fill: Option<char>,
    align: Option<char>,
    sign: Option<char>,
    is_alternate: bool,
    width: usize,
    grouping: Option<char>,
    precision: Option<usize>,
    kind: Option<char>,
}

/// `format % values`.
pub(super) fn percent(format: &str, values: &Value) -> Result<String, Error> {
    let is_tuple = objects::is_tuple(values);
    let positional: Vec<Value> =
        if is_tuple { values.try_iter()?.collect() } else { vec![values.clone()] };
    let mut positional = positional.into_iter();
    let mut out = String::new();
    let mut chars = format.chars().peekable();
    // A list, a dictionary and what is undefined may go unused.
    let mut may_remain = !is_tuple && (values.as_object().is_some() || values.is_undefined());
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut named = None;
        if chars.next_if_eq(&'(').is_some() {
            let mut name = String::new();
            loop {
                match chars.next() {
                    Some(')') => break,
                    Some(c) => name.push(c),
                    None => return Err(invalid("a `%(` is not closed")),
                }
            }
            if !objects::is_dict(values) {
                return Err(invalid("`%(name)` needs a dictionary"));
            }
            let value =
                values.as_object().and_then(|dict| dict.get_value(&Value::from(name.as_str())));
            named = Some(value.ok_or_else(|| invalid(format!("the dictionary has no `{name}`")))?);
            may_remain = true;
        }
        let mut next = || {
            named
                .clone()
                .or_else(|| positional.next())
                .ok_or_else(|| invalid("not enough values for the format"))
        };
        let mut spec = Spec::default();
        while let Some(flag) = chars.next_if(|c| "-+ 0#".contains(*c)) {
            match flag {
                '-' => spec.align = Some('<'),
                '0' => spec.fill = Some('0'),
                '#' => spec.is_alternate = true,
                '+' => spec.sign = Some('+'),
                _ => spec.sign = spec.sign.or(Some(' ')),
            }
        }
        spec.width = if chars.next_if_eq(&'*').is_some() {
            let Some(Number::Int(width)) = Number::of(&next()?) else {
                return Err(invalid("`*` needs a number"));
            };
            if width < 0 {
                spec.align = Some('<');
            }
            limited(usize::try_from(width.unsigned_abs()).unwrap_or(usize::MAX))?
        } else {
            number(&mut chars)?.unwrap_or(0)
        };
        if chars.next_if_eq(&'.').is_some() {
            spec.precision = Some(number(&mut chars)?.unwrap_or(0));
        }
        while chars.next_if(|c| "hlL".contains(*c)).is_some() {}
        let kind = chars.next().ok_or_else(|| invalid("a format ends with `%`"))?;
        if kind == '%' {
            out.push('%');
            continue;
        }
        let value = next()?;
        out.push_str(&percent_field(&value, kind, spec)?);
    }
    if positional.next().is_some() && !may_remain {
        return Err(invalid("not all values are used by the format"));
    }
    Ok(out)
}

fn percent_field(value: &Value, kind: char, mut spec: Spec) -> Result<String, Error> {
    let is_left = spec.align == Some('<');
    if !is_left {
        spec.align = Some(if spec.fill == Some('0') { '=' } else { '>' });
    } else if spec.fill == Some('0') {
        spec.fill = None;
    }
    let written = match kind {
        's' => text::str_of(value)?,
        'r' => text::repr(value)?,
        'a' => ascii(&text::repr(value)?),
        'c' => match value.as_str() {
            Some(text) if text.chars().count() == 1 => text.to_owned(),
            _ => return Err(invalid("`%c` needs one character")),
        },
        'd' | 'i' | 'u' | 'x' | 'X' | 'o' => {
            let x = match Number::of(value) {
                Some(Number::Int(x)) => x,
                Some(Number::Float(x)) if "diu".contains(kind) => ops::whole(x)?,
                _ => return Err(invalid(format!("`%{kind}` needs a whole number"))),
            };
            spec.kind = Some(if "diu".contains(kind) { 'd' } else { kind });
            let digits = spec.precision.take().unwrap_or(0);
            return number_field(Number::Int(x), &spec, digits);
        }
        'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
            let Some(x) = Number::of(value) else {
                return Err(invalid(format!("`%{kind}` needs a number")));
            };
            spec.kind = Some(kind);
            return number_field(Number::Float(x.float()), &spec, 0);
        }
        _ => return Err(invalid(format!("`%{kind}` is no format"))),
    };
    let written: String = match spec.precision {
        Some(precision) if "sra".contains(kind) => written.chars().take(precision).collect(),
        _ => written,
    };
    Ok(pad(&written, if is_left { '<' } else { '>' }, ' ', spec.width))
}

/// `format.format(*args, **named)`.
pub(super) fn braces(
    format: &str,
    args: &[Value],
    named: Option<&Kwargs>,
) -> Result<String, Error> {
    let mut numbering = Some(0_usize);
    fill_in(format, args, named, &mut numbering, 0)
}

fn fill_in(
    format: &str,
    args: &[Value],
    named: Option<&Kwargs>,
    numbering: &mut Option<usize>,
    depth: usize,
) -> Result<String, Error> {
    if depth > 2 {
        return Err(invalid("a format nests too deep"));
    }
    let mut out = String::new();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '{' if chars.next_if_eq(&'{').is_some() => out.push('{'),
            '}' if chars.next_if_eq(&'}').is_some() => out.push('}'),
            '}' => return Err(invalid("a `}` in a format closes nothing")),
            '{' => {
                let field = braced(&mut chars)?;
                let (name, spec) = field.split_once(':').unwrap_or((&field, ""));
                let (name, conversion) = match name.split_once('!') {
                    Some((name, conversion)) => (name, Some(conversion)),
                    None => (name, None),
                };
                let value = look_up(name, args, named, numbering)?;
                let value = match conversion {
                    None => value,
                    Some("s") => Value::from(text::str_of(&value)?),
                    Some("r") => Value::from(text::repr(&value)?),
                    Some("a") => Value::from(ascii(&text::repr(&value)?)),
                    Some(other) => return Err(invalid(format!("`!{other}` is no conversion"))),
                };
                let spec = fill_in(spec, args, named, numbering, depth + 1)?;
                out.push_str(&format_value(&value, &spec)?);
            }
            c => out.push(c),
        }
    }
    Ok(out)
}

/// Up to the brace that closes a field, which may hold others.
fn braced(chars: &mut Peekable<Chars>) -> Result<String, Error> {
    let mut field = String::new();
    let mut open = 1;
    for c in chars.by_ref() {
        match c {
            '{' => open += 1,
            '}' => open -= 1,
            _ => {}
        }
        if open == 0 {
            return Ok(field);
        }
        field.push(c);
    }
    Err(invalid("a `{` in a format is not closed"))
}

/// The value of `0.name[key]`.
fn look_up(
    path: &str,
    args: &[Value],
    named: Option<&Kwargs>,
    numbering: &mut Option<usize>,
) -> Result<Value, Error> {
    let end = path.find(['.', '[']).unwrap_or(path.len());
    let (first, mut rest) = path.split_at(end);
    let missing = || invalid(format!("the format has no value for `{path}`"));
    let mut value = if first.is_empty() {
        let index =
            numbering.as_mut().ok_or_else(|| invalid("a format numbers some fields only"))?;
        *index += 1;
        args.get(*index - 1).cloned().ok_or_else(missing)?
    } else if let Ok(index) = first.parse::<usize>() {
        if numbering.is_some_and(|given| given > 0) {
            return Err(invalid("a format numbers some fields only"));
        }
        *numbering = None;
        args.get(index).cloned().ok_or_else(missing)?
    } else {
        named.filter(|named| named.has(first)).ok_or_else(missing)?.get(first)?
    };
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('[') {
            let (key, after) = after.split_once(']').ok_or_else(missing)?;
            let key = key.parse::<i64>().map_or_else(|_| Value::from(key), Value::from);
            value = value.get_item(&key)?;
            rest = after;
        } else {
            let after = rest.strip_prefix('.').ok_or_else(missing)?;
            let end = after.find(['.', '[']).unwrap_or(after.len());
            value = ops::attribute(&value, &after[..end])?;
            rest = &after[end..];
        }
        if value.is_undefined() {
            return Err(missing());
        }
    }
    Ok(value)
}

/// `format(value, spec)`.
fn format_value(value: &Value, spec: &str) -> Result<String, Error> {
    if spec.is_empty() {
        return text::str_of(value);
    }
    let spec = parse_spec(spec)?;
    if let Some(text) = value.as_str() {
        if !matches!(spec.kind, None | Some('s')) || spec.sign.is_some() || spec.align == Some('=')
        {
            return Err(invalid("a format of numbers is applied to a text"));
        }
        let text: String = text.chars().take(spec.precision.unwrap_or(usize::MAX)).collect();
        return Ok(pad(&text, spec.align.unwrap_or('<'), spec.fill.unwrap_or(' '), spec.width));
    }
    match Number::of(value) {
        Some(number) => number_field(number, &spec, 0),
        None => Err(invalid(format!("a value of kind `{}` takes no format", value.kind()))),
    }
}

fn parse_spec(spec: &str) -> Result<Spec, Error> {
    let mut parsed = Spec::default();
    let given: Vec<char> = spec.chars().collect();
    let mut rest = spec;
    let is_align = |c: Option<&char>| c.is_some_and(|c| "<>=^".contains(*c));
    if is_align(given.get(1)) {
        (parsed.fill, parsed.align) = (Some(given[0]), Some(given[1]));
        rest = &spec[given[0].len_utf8() + 1..];
    } else if is_align(given.first()) {
        parsed.align = Some(given[0]);
        rest = &spec[1..];
    }
    let mut chars = rest.chars().peekable();
    parsed.sign = chars.next_if(|c| "+- ".contains(*c));
    parsed.is_alternate = chars.next_if_eq(&'#').is_some();
    if chars.peek() == Some(&'0') {
        parsed.fill = parsed.fill.or(Some('0'));
        parsed.align = parsed.align.or(Some('='));
    }
    parsed.width = number(&mut chars)?.unwrap_or(0);
    parsed.grouping = chars.next_if(|c| ",_".contains(*c));
    if chars.next_if_eq(&'.').is_some() {
        let precision = number(&mut chars)?;
        parsed.precision = Some(precision.ok_or_else(|| invalid("a precision is missing"))?);
    }
    parsed.kind = chars.next();
    if chars.next().is_some() {
        return Err(invalid(format!("`{spec}` is no format")));
    }
    Ok(parsed)
}

/// A number by its format, with at least `min_digits` digits if it is whole.
fn number_field(number: Number, spec: &Spec, min_digits: usize) -> Result<String, Error> {
    let (is_negative, mut digits) = match (number, spec.kind) {
        (Number::Int(x), None | Some('d' | 'n')) => (x < 0, x.unsigned_abs().to_string()),
        (Number::Int(x), Some('x')) => (x < 0, format!("{:x}", x.unsigned_abs())),
        (Number::Int(x), Some('X')) => (x < 0, format!("{:X}", x.unsigned_abs())),
        (Number::Int(x), Some('o')) => (x < 0, format!("{:o}", x.unsigned_abs())),
        (Number::Int(x), Some('b')) => (x < 0, format!("{:b}", x.unsigned_abs())),
        (Number::Int(x), Some('c')) => {
            let c = u32::try_from(x).ok().and_then(char::from_u32);
            (false, c.ok_or_else(|| invalid("`c` needs the number of a character"))?.to_string())
        }
        (number, kind @ (None | Some('e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%' | 'n'))) => {
            let x = number.float();
            (x.is_sign_negative() && !x.is_nan(), float_digits(x.abs(), kind, spec)?)
        }
        (_, Some(kind)) => return Err(invalid(format!("`{kind}` is no format of this number"))),
    };
    if digits.len() < min_digits {
        digits = "0".repeat(limited(min_digits)? - digits.len()) + &digits;
    }
    if spec.is_alternate
        && let Some(kind @ ('x' | 'X' | 'o' | 'b')) = spec.kind
    {
        digits = format!("0{kind}{digits}");
    }
    if let Some(separator) = spec.grouping {
        digits = grouped(&digits, separator);
    }
    let sign = match spec.sign {
        _ if is_negative => "-",
        Some('+') => "+",
        Some(' ') => " ",
        _ => "",
    };
    let fill = spec.fill.unwrap_or(' ');
    if spec.align == Some('=') {
        return Ok(format!(
            "{sign}{}",
            pad(&digits, '>', fill, spec.width.saturating_sub(sign.len()))
        ));
    }
    Ok(pad(&format!("{sign}{digits}"), spec.align.unwrap_or('>'), fill, spec.width))
}

/// A float without its sign.
fn float_digits(x: f64, kind: Option<char>, spec: &Spec) -> Result<String, Error> {
    let precision = limited(spec.precision.unwrap_or(6))?;
    let is_upper = kind.is_some_and(char::is_uppercase);
    let digits = match kind {
        _ if !x.is_finite() => text::float(x) + if kind == Some('%') { "%" } else { "" },
        None if spec.precision.is_none() => text::float(x),
        Some('f' | 'F') => format!("{x:.precision$}"),
        Some('%') => format!("{:.precision$}%", x * 100.0),
        Some('e' | 'E') => scientific(x, precision),
        _ => general(x, precision.max(1), kind.is_none(), spec.is_alternate),
    };
    Ok(if is_upper { digits.to_uppercase() } else { digits })
}

fn scientific(x: f64, precision: usize) -> String {
    let written = format!("{x:.precision$e}");
    let (digits, exponent) = written.split_once('e').expect("`{:e}` writes an exponent");
    let exponent: i32 = exponent.parse().expect("an exponent is a number");
    format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

/// `precision` digits that count, in whichever notation is short, without zeros at the end.
fn general(x: f64, precision: usize, keeps_point: bool, keeps_zeros: bool) -> String {
    let rounded = format!("{x:.*e}", precision - 1);
    let exponent = rounded.split_once('e').and_then(|(_, exponent)| exponent.parse().ok());
    let exponent: i32 = exponent.expect("`{:e}` writes an exponent");
    let trimmed = |digits: &str| {
        if digits.contains('.') && !keeps_zeros {
            digits.trim_end_matches('0').trim_end_matches('.').to_owned()
        } else {
            digits.to_owned()
        }
    };
    // Without a letter, a number keeps one digit behind its point.
    let highest = precision as i32 - i32::from(keeps_point);
    if (-4..highest).contains(&exponent)
        || (!keeps_point && exponent >= -4 && exponent < precision as i32)
    {
        let places = usize::try_from(precision as i32 - 1 - exponent).unwrap_or(0);
        let digits = trimmed(&format!("{x:.places$}"));
        return if keeps_point && !digits.contains('.') { digits + ".0" } else { digits };
    }
    let written = scientific(x, precision - 1);
    let (digits, exponent) = written.split_once('e').expect("written above");
    format!("{}e{exponent}", trimmed(digits))
}

fn grouped(digits: &str, separator: char) -> String {
    let whole = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    let mut out = String::new();
    for (index, c) in digits[..whole].chars().enumerate() {
        if index > 0 && (whole - index).is_multiple_of(3) {
            out.push(separator);
        }
        out.push(c);
    }
    out + &digits[whole..]
}

/// `text` in a field of `width` characters.
pub(super) fn pad(text: &str, align: char, fill: char, width: usize) -> String {
    let missing = width.saturating_sub(text.chars().count());
    let before = match align {
        '<' => 0,
        '^' => missing / 2,
        _ => missing,
    };
    let mut out = String::new();
    out.extend(std::iter::repeat_n(fill, before));
    out.push_str(text);
    out.extend(std::iter::repeat_n(fill, missing - before));
    out
}

/// A width, if it is no way to fill the memory.
pub(super) fn limited(width: usize) -> Result<usize, Error> {
    if width > MAX_WIDTH {
        return Err(invalid(format!("a field of `{width}` characters is above {MAX_WIDTH}")));
    }
    Ok(width)
}

fn number(chars: &mut Peekable<Chars>) -> Result<Option<usize>, Error> {
    let mut digits = String::new();
    while let Some(digit) = chars.next_if(char::is_ascii_digit) {
        digits.push(digit);
    }
    if digits.is_empty() {
        return Ok(None);
    }
    limited(digits.parse().unwrap_or(usize::MAX)).map(Some)
}

/// What is not ASCII, escaped.
fn ascii(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c as u32 {
            0..=0x7f => out.push(c),
            code @ 0x80..=0xff => drop(write!(out, "\\x{code:02x}")),
            code @ 0x100..=0xffff => drop(write!(out, "\\u{code:04x}")),
            code => drop(write!(out, "\\U{code:08x}")),
        }
    }
    out
}
