//! What a plain scalar means in YAML 1.1, as `PyYAML` resolves it.
//!
//! Not YAML 1.2 and not quite the letter of 1.1: `1_200_000` is an integer, `010` is 8, `1:30` is 90, `yes` and `off` are
//! booleans, while `1e-5` and `5e8` are strings, because a float needs a point and its exponent a sign. The tests compare
//! with what `PyYAML` itself said (`tests/fixtures/pyyaml_scalars.json`).

/// What a scalar is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Meaning {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(String),
    /// A date or time, which no key takes; as typed.
    Date(String),
}

impl Meaning {
    /// The scalar as a lower-case word or digits, whatever its type; nothing for a date.
    pub(crate) fn plain_text(&self) -> Option<String> {
        match self {
            Self::Null => Some("null".to_owned()),
            Self::Bool(x) => Some(x.to_string()),
            Self::Int(x) => Some(x.to_string()),
            Self::Float(x) => Some(x.to_string()),
            Self::Text(x) => Some(x.clone()),
            Self::Date(_) => None,
        }
    }

    /// A phrase for messages.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Null => "empty".to_owned(),
            Self::Bool(x) => format!("the boolean `{x}`"),
            Self::Int(x) => format!("`{x}`"),
            Self::Float(x) => format!("`{x}`"),
            Self::Text(x) => format!("`{x}`"),
            Self::Date(x) => format!("the date `{x}`"),
        }
    }
}

/// What `text` means, given how it was written and the tag in front of it.
///
/// # Errors
///
/// What the tag would have needed.
pub(crate) fn resolve_tagged(
    text: &str,
    is_plain: bool,
    tag: Option<&str>,
) -> Result<Meaning, String> {
    let implied = if is_plain { resolve(text) } else { Meaning::Text(text.to_owned()) };
    let Some(tag) = tag else { return Ok(implied) };
    match tag.strip_prefix("tag:yaml.org,2002:") {
        Some("str") => Ok(Meaning::Text(text.to_owned())),
        Some(name @ ("int" | "float" | "bool" | "null")) => match (name, resolve(text)) {
            ("float", Meaning::Int(x)) => Ok(Meaning::Float(x as f64)),
            ("int", x @ Meaning::Int(_))
            | ("float", x @ Meaning::Float(_))
            | ("bool", x @ Meaning::Bool(_))
            | ("null", x @ Meaning::Null) => Ok(x),
            _ => Err(format!("the tag asks for {name}")),
        },
        _ if tag == "!" => Ok(Meaning::Text(text.to_owned())),
        _ => Err("recipes need no tags: remove it".to_owned()),
    }
}

/// What a plain scalar means.
pub(crate) fn resolve(text: &str) -> Meaning {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Meaning::Null,
        "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Meaning::Bool(true);
        }
        "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Meaning::Bool(false);
        }
        _ => {}
    }
    if is_date(text) {
        return Meaning::Date(text.to_owned());
    }
    let (is_negative, digits) = match text.as_bytes()[0] {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let has_sign = digits.len() < text.len();
    let meaning =
        float(digits, has_sign).map(Meaning::Float).or_else(|| int(digits).map(Meaning::Int));
    match meaning {
        Some(Meaning::Float(x)) => Meaning::Float(if is_negative { -x } else { x }),
        Some(Meaning::Int(x)) => Meaning::Int(if is_negative { -x } else { x }),
        _ => Meaning::Text(text.to_owned()),
    }
}

fn is_all(text: &str, allowed: impl Fn(u8) -> bool) -> bool {
    !text.is_empty() && text.bytes().all(allowed)
}

fn is_digit_or_underscore(byte: u8) -> bool {
    byte.is_ascii_digit() || byte == b'_'
}

/// The forms `0b10`, `010`, `10`, `0x1f`, `1:30`, all with underscores; the sign is off already.
fn int(digits: &str) -> Option<i128> {
    let radix = |digits: &str, radix| i128::from_str_radix(&digits.replace('_', ""), radix).ok();
    if let Some(binary) = digits.strip_prefix("0b") {
        return is_all(binary, |b| matches!(b, b'0' | b'1' | b'_')).then(|| radix(binary, 2))?;
    }
    if let Some(hex) = digits.strip_prefix("0x") {
        return is_all(hex, |b| b.is_ascii_hexdigit() || b == b'_').then(|| radix(hex, 16))?;
    }
    if digits == "0" {
        return Some(0);
    }
    if let Some(octal) = digits.strip_prefix('0') {
        return is_all(octal, |b| matches!(b, b'0'..=b'7' | b'_')).then(|| radix(digits, 8))?;
    }
    let mut parts = digits.split(':');
    let first = parts.next()?;
    if !first.starts_with(|c: char| c.is_ascii_digit()) || !is_all(first, is_digit_or_underscore) {
        return None;
    }
    parts.try_fold(radix(first, 10)?, |total, part| {
        let is_sixtieth = sixtieth(part);
        total.checked_mul(60)?.checked_add(i128::from(is_sixtieth?))
    })
}

/// One part after a colon: `0` to `59`, one or two digits.
fn sixtieth(part: &str) -> Option<u8> {
    let is_valid = is_all(part, |b| b.is_ascii_digit())
        && (part.len() == 1 || (part.len() == 2 && part.as_bytes()[0] <= b'5'));
    is_valid.then(|| part.parse().ok())?
}

/// The forms `1.5`, `1.`, `.5`, `1.5e+8`, `1:30.5`, `.inf`, `.nan`; the sign is off already.
fn float(digits: &str, has_sign: bool) -> Option<f64> {
    match digits {
        ".inf" | ".Inf" | ".INF" => return Some(f64::INFINITY),
        ".nan" | ".NaN" | ".NAN" if !has_sign => return Some(f64::NAN),
        _ => {}
    }
    let (whole, rest) = digits.split_once('.')?;
    if whole.contains(':') {
        let total = int(whole)? as f64;
        let is_valid = whole.starts_with(|c: char| c.is_ascii_digit())
            && rest.bytes().all(is_digit_or_underscore);
        let last: f64 = format!("0.{}0", rest.replace('_', "")).parse().ok()?;
        return is_valid.then_some(total + last);
    }
    let (fraction, exponent) = match rest.find(['e', 'E']) {
        Some(at) => (&rest[..at], Some(&rest[at + 1..])),
        None => (rest, None),
    };
    let whole_ok = if whole.is_empty() {
        // Without digits in front there is no sign, and a digit comes first.
        !has_sign && fraction.starts_with(|c: char| c.is_ascii_digit())
    } else {
        whole.starts_with(|c: char| c.is_ascii_digit()) && whole.bytes().all(is_digit_or_underscore)
    };
    let exponent_ok = exponent
        .is_none_or(|e| e.starts_with(['+', '-']) && is_all(&e[1..], |b| b.is_ascii_digit()));
    if !whole_ok || !fraction.bytes().all(is_digit_or_underscore) || !exponent_ok {
        return None;
    }
    digits.replace('_', "").parse().ok()
}

/// `2001-12-14`, alone or with a time after `T` or blanks.
fn is_date(text: &str) -> bool {
    let mut parts = text.splitn(3, '-');
    let (Some(year), Some(month), Some(rest)) = (parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    if year.len() != 4 || !is_all(year, |b| b.is_ascii_digit()) {
        return false;
    }
    let day_len = rest.bytes().take_while(u8::is_ascii_digit).count();
    let (day, time) = rest.split_at(day_len);
    let is_number = |s: &str, len: std::ops::RangeInclusive<usize>| {
        len.contains(&s.len()) && is_all(s, |b| b.is_ascii_digit())
    };
    if time.is_empty() {
        return is_number(month, 2..=2) && is_number(day, 2..=2);
    }
    is_number(month, 1..=2) && is_number(day, 1..=2) && is_time(time)
}

/// `T12:30:00.5Z` and its variants, from the separator on.
fn is_time(text: &str) -> bool {
    let blank = |c: char| c == ' ' || c == '\t';
    let clock = match text.strip_prefix(['T', 't']) {
        Some(clock) => clock,
        None if text.starts_with(blank) => text.trim_start_matches(blank),
        None => return false,
    };
    let digits = |s: &str| s.bytes().take_while(u8::is_ascii_digit).count();
    let mut rest = clock;
    for (idx, lens) in [1..=2, 2..=2, 2..=2].into_iter().enumerate() {
        if idx > 0 {
            let Some(after) = rest.strip_prefix(':') else { return false };
            rest = after;
        }
        let len = digits(rest);
        if !lens.contains(&len) {
            return false;
        }
        rest = &rest[len..];
    }
    if let Some(fraction) = rest.strip_prefix('.') {
        rest = &fraction[digits(fraction)..];
    }
    let zone = rest.trim_start_matches(blank);
    if zone.is_empty() {
        return rest.is_empty();
    }
    if zone == "Z" {
        return true;
    }
    let Some(offset) = zone.strip_prefix(['+', '-']) else { return false };
    let (hours, minutes) = offset.split_once(':').unwrap_or((offset, "00"));
    (1..=2).contains(&hours.len())
        && digits(hours) == hours.len()
        && minutes.len() == 2
        && digits(minutes) == 2
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::{Meaning, resolve, resolve_tagged};

    #[test]
    fn every_scalar_means_what_pyyaml_says() {
        let golden: Value =
            serde_json::from_str(include_str!("../../tests/fixtures/pyyaml_scalars.json")).unwrap();
        let scalars = golden["scalars"].as_object().unwrap();
        assert!(scalars.len() > 500, "the fixture is whole");
        for (text, answer) in scalars {
            let (kind, shown) = match resolve(text) {
                Meaning::Null => ("null", None),
                Meaning::Bool(x) => {
                    ("bool", Some(if x { "True".to_owned() } else { "False".to_owned() }))
                }
                Meaning::Int(x) => ("int", Some(x.to_string())),
                Meaning::Float(x) => ("float", Some(x.to_string())),
                Meaning::Text(x) => ("str", Some(x)),
                Meaning::Date(_) => ("date", None),
            };
            assert_eq!(answer[0], kind, "{text}");
            if kind == "float" {
                // Both print the shortest text that reads back, in different notations.
                let (ours, theirs): (f64, f64) =
                    (shown.unwrap().parse().unwrap(), answer[1].as_str().unwrap().parse().unwrap());
                assert!(
                    ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()),
                    "{text}: {ours} {theirs}"
                );
            } else {
                assert_eq!(answer[1].as_str(), shown.as_deref(), "{text}");
            }
        }
    }

    #[test]
    fn quotes_and_tags_decide_before_the_text_does() {
        assert_eq!(resolve_tagged("010", false, None), Ok(Meaning::Text("010".to_owned())));
        assert_eq!(
            resolve_tagged("010", true, Some("tag:yaml.org,2002:str")),
            Ok(Meaning::Text("010".to_owned()))
        );
        assert_eq!(resolve_tagged("3", false, Some("tag:yaml.org,2002:int")), Ok(Meaning::Int(3)));
        assert_eq!(
            resolve_tagged("3", true, Some("tag:yaml.org,2002:float")),
            Ok(Meaning::Float(3.0))
        );
        assert!(resolve_tagged("x", true, Some("tag:yaml.org,2002:int")).is_err());
        assert!(
            resolve_tagged("x", true, Some("tag:yaml.org,2002:python/object:os.system")).is_err()
        );
    }
}
