//! Python's operators.

use std::cmp::Ordering;

use minijinja::value::{Tuple, ValueKind};
use minijinja::{Error, Value};

use super::objects::{self, Generator, Method, Range};
use super::{format, strings, text};
use crate::chat_template::invalid;

/// Longest text or list that `*` makes.
const MAX_REPEATED: usize = 100_000_000;

/// A number; a truth value is one too.
#[derive(Debug, Clone, Copy)]
pub(super) enum Number {
    Int(i128),
    Float(f64),
}

impl Number {
    pub(super) fn of(value: &Value) -> Option<Number> {
        match value.kind() {
            ValueKind::Bool => Some(Number::Int(i128::from(value.is_true()))),
            ValueKind::Number if value.is_integer() => match i128::try_from(value.clone()) {
                Ok(x) => Some(Number::Int(x)),
                Err(_) => f64::try_from(value.clone()).ok().map(Number::Float),
            },
            ValueKind::Number => f64::try_from(value.clone()).ok().map(Number::Float),
            _ => None,
        }
    }

    pub(super) fn float(self) -> f64 {
        match self {
            Number::Int(x) => x as f64,
            Number::Float(x) => x,
        }
    }

    fn cmp(self, other: Number) -> Option<Ordering> {
        match (self, other) {
            (Number::Int(a), Number::Int(b)) => Some(a.cmp(&b)),
            _ => self.float().partial_cmp(&other.float()),
        }
    }
}

/// A whole number as a value.
pub(super) fn int(x: i128) -> Value {
    i64::try_from(x).map_or_else(|_| Value::from(x), Value::from)
}

/// `int(x)`: towards zero.
pub(super) fn whole(x: f64) -> Result<i128, Error> {
    // 2^127, which is no i128.
    let limit = -(i128::MIN as f64);
    if x.is_finite() && x.abs() < limit {
        Ok(x.trunc() as i128)
    } else {
        Err(invalid(format!("`{}` is no whole number of 127 bits", text::float(x))))
    }
}

/// Applies operators of one rank from left to right: `a, '+', b, '-', c`.
pub(super) fn fold(args: &[Value]) -> Result<Value, Error> {
    let [first, rest @ ..] = args else { return Err(invalid("an operator needs operands")) };
    // A sum of texts is made in one go: most of what a template prints is one, and each sum of two is a text of its own.
    let texts: Vec<&str> = match first.as_str() {
        Some(text) => [text].into_iter().chain(rest.chunks(2).map_while(plus_text)).collect(),
        None => Vec::new(),
    };
    let num_added = texts.len().saturating_sub(1);
    let rest = &rest[2 * num_added..];
    let mut result = if num_added == 0 { first.clone() } else { Value::from(texts.concat()) };
    for step in rest.chunks(2) {
        let [sign, operand] = step else { return Err(invalid("an operator needs operands")) };
        result = binary(sign.as_str().unwrap_or_default(), &result, operand)?;
    }
    Ok(result)
}

/// The text that a step of [`fold`] adds, if it adds one.
fn plus_text(step: &[Value]) -> Option<&str> {
    match step {
        [sign, operand] if sign.as_str() == Some("+") => operand.as_str(),
        _ => None,
    }
}

/// `a sign b`.
pub(super) fn binary(sign: &str, a: &Value, b: &Value) -> Result<Value, Error> {
    if sign == "%"
        && let Some(text) = a.as_str()
    {
        return format::percent(text, b).map(Value::from);
    }
    if sign == "+" {
        if let (Some(a), Some(b)) = (a.as_str(), b.as_str()) {
            return Ok(Value::from([a, b].concat()));
        }
        if is_list(a) && is_list(b) || objects::is_tuple(a) && objects::is_tuple(b) {
            let items: Vec<Value> = a.try_iter()?.chain(b.try_iter()?).collect();
            return Ok(list_like(a, items));
        }
    }
    if sign == "*"
        && let Some((repeated, times)) = repetition(a, b)
    {
        return repeat(repeated, times);
    }
    match (Number::of(a), Number::of(b)) {
        (Some(a), Some(b)) => arithmetic(sign, a, b),
        _ => Err(unsupported(sign, &[a, b])),
    }
}

/// `-a` and `+a`.
pub(super) fn signed(sign: &str, a: &Value) -> Result<Value, Error> {
    match Number::of(a) {
        Some(Number::Int(x)) if sign == "-" => x.checked_neg().map(int).ok_or_else(too_large),
        Some(Number::Int(x)) => Ok(int(x)),
        Some(Number::Float(x)) => Ok(Value::from(if sign == "-" { -x } else { x })),
        None => Err(unsupported(sign, &[a])),
    }
}

/// `a < b == c` and so on: each holds of its two neighbours.
pub(super) fn compare_all(args: &[Value]) -> Result<bool, Error> {
    let mut rest = args;
    while let [a, sign, b, ..] = rest {
        if !compare(a, sign.as_str().unwrap_or_default(), b)? {
            return Ok(false);
        }
        rest = &rest[2..];
    }
    Ok(true)
}

/// `a < b` and its like, `a in b` and `a not in b`.
pub(super) fn compare(a: &Value, sign: &str, b: &Value) -> Result<bool, Error> {
    let order = || order(sign, a, b);
    Ok(match sign {
        "<" => order()? == Some(Ordering::Less),
        "<=" => matches!(order()?, Some(Ordering::Less | Ordering::Equal)),
        ">" => order()? == Some(Ordering::Greater),
        ">=" => matches!(order()?, Some(Ordering::Greater | Ordering::Equal)),
        "==" => a == b,
        "!=" => a != b,
        "in" => contains(b, a)?,
        "not in" => !contains(b, a)?,
        _ => return Err(unsupported(sign, &[a, b])),
    })
}

/// How two values are ordered, `None` of a NaN; an error for kinds that Python does not compare.
pub(super) fn order(sign: &str, a: &Value, b: &Value) -> Result<Option<Ordering>, Error> {
    if let (Some(a), Some(b)) = (a.as_str(), b.as_str()) {
        return Ok(Some(a.cmp(b)));
    }
    if let (Some(a), Some(b)) = (Number::of(a), Number::of(b)) {
        return Ok(a.cmp(b));
    }
    if is_list(a) && is_list(b) || objects::is_tuple(a) && objects::is_tuple(b) {
        let (mut a, mut b) = (a.try_iter()?, b.try_iter()?);
        loop {
            return match (a.next(), b.next()) {
                (Some(a), Some(b)) if a == b => continue,
                (Some(a), Some(b)) => order(sign, &a, &b),
                (None, Some(_)) => Ok(Some(Ordering::Less)),
                (Some(_), None) => Ok(Some(Ordering::Greater)),
                (None, None) => Ok(Some(Ordering::Equal)),
            };
        }
    }
    Err(unsupported(sign, &[a, b]))
}

/// Puts `items` in the order of their keys, or its reverse; those of equal keys stay as they are.
pub(super) fn sort<T>(
    items: &mut [T],
    is_reversed: bool,
    key: impl Fn(&T) -> &Value,
) -> Result<(), Error> {
    let mut failed = None;
    items.sort_by(|a, b| {
        let order = order("<", key(a), key(b)).unwrap_or_else(|error| {
            failed.get_or_insert(error);
            None
        });
        let order = order.unwrap_or(Ordering::Equal);
        if is_reversed { order.reverse() } else { order }
    });
    failed.map_or(Ok(()), Err)
}

fn contains(container: &Value, item: &Value) -> Result<bool, Error> {
    if let Some(text) = container.as_str() {
        return match item.as_str() {
            Some(part) => Ok(text.contains(part)),
            None => Err(unsupported("in", &[item, container])),
        };
    }
    match container.kind() {
        ValueKind::Undefined => Ok(false),
        ValueKind::Map => {
            if matches!(item.kind(), ValueKind::Map | ValueKind::Seq) && !objects::is_tuple(item) {
                return Err(invalid("a list or dictionary is no key of a dictionary"));
            }
            Ok(container.as_object().is_some_and(|dict| dict.get_value(item).is_some()))
        }
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Plain => {
            Ok(container.try_iter()?.any(|found| found == *item))
        }
        _ => Err(unsupported("in", &[item, container])),
    }
}

/// `a ~ b ~ c`.
pub(super) fn concat(args: &[Value]) -> Result<Value, Error> {
    let mut out = String::new();
    for arg in args {
        out.push_str(&text::str_of(arg)?);
    }
    Ok(Value::from(out))
}

/// Methods of `list` that leave it as it is.
const LIST_METHODS: &[&str] = &["copy", "count", "index"];
/// Methods of `list` that change it.
const LIST_CHANGES: &[&str] =
    &["append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"];
/// Methods of `dict` that leave it as it is.
const DICT_METHODS: &[&str] = &["copy", "get", "items", "keys", "values"];
/// Methods of `dict` that change it.
const DICT_CHANGES: &[&str] = &["clear", "pop", "popitem", "setdefault", "update"];

/// Whether `name` is a method of Python's `str`, `list` or `dict`, so that an attribute of that name may be one.
pub(in crate::chat_template) fn is_method(name: &str) -> bool {
    let all = [strings::METHODS, LIST_METHODS, LIST_CHANGES, DICT_METHODS, DICT_CHANGES];
    // `fromkeys` is one of the class.
    all.iter().any(|methods| methods.contains(&name)) || name == "fromkeys"
}

/// `value.name`, where `name` may be a method. What would change the value is undefined, as in the immutable sandbox.
pub(super) fn attribute(value: &Value, name: &str) -> Result<Value, Error> {
    let (methods, changing): (&[&str], &[&str]) = match value.kind() {
        ValueKind::String => (strings::METHODS, &[]),
        ValueKind::Seq if objects::is_tuple(value) => (&["count", "index"], &[]),
        ValueKind::Seq | ValueKind::Iterable => (LIST_METHODS, LIST_CHANGES),
        ValueKind::Map if objects::is_dict(value) => (DICT_METHODS, DICT_CHANGES),
        _ => (&[], &[]),
    };
    if changing.contains(&name) {
        return Ok(Value::UNDEFINED);
    }
    if methods.contains(&name) {
        return Ok(Value::from_object(Method { owner: value.clone(), name: name.to_owned() }));
    }
    value.get_attr(name)
}

/// `value[key]`: an item, or the attribute of that name where there is none.
pub(super) fn item(value: &Value, key: &Value) -> Result<Value, Error> {
    let is_text_or_list = matches!(value.kind(), ValueKind::String | ValueKind::Seq);
    if is_text_or_list && key.kind() == ValueKind::Number && !key.is_integer() {
        return Ok(Value::UNDEFINED);
    }
    let found = value.get_item(key)?;
    match key.as_str() {
        Some(name) if found.is_undefined() => attribute(value, name),
        _ => Ok(found),
    }
}

/// `value[start:stop:step]`.
pub(super) fn slice(value: &Value, bounds: [&Value; 3]) -> Result<Value, Error> {
    let [start, stop, step] = bounds.map(|bound| match Number::of(bound) {
        Some(Number::Int(x)) => Ok(Some(x.clamp(i128::from(i64::MIN), i128::from(i64::MAX)))),
        _ if bound.is_none() => Ok(None),
        _ => Err(unsupported("[:]", &[bound])),
    });
    let (start, stop, step) = (start?, stop?, step?);
    let step = step.unwrap_or(1);
    let is_range = value.downcast_object_ref::<Range>();
    let items: Vec<Value> = match value.kind() {
        ValueKind::String | ValueKind::Seq | ValueKind::Iterable if step != 0 => {
            value.try_iter()?.collect()
        }
        _ => return Err(unsupported("[:]", &[value])),
    };
    let len = items.len() as i128;
    // Backwards, it begins at the last and may end before the first.
    let (lowest, highest) = if step < 0 { (-1, len - 1) } else { (0, len) };
    let place = |bound: Option<i128>, default: i128| match bound {
        Some(bound) => (if bound < 0 { bound + len } else { bound }).clamp(lowest, highest),
        None => default,
    };
    let (first, last) = if step < 0 { (highest, lowest) } else { (lowest, highest) };
    let (start, stop) = (place(start, first), place(stop, last));
    if let Some(range) = is_range {
        return range.slice(start as i64, stop as i64, step as i64);
    }
    let mut taken = Vec::new();
    let mut at = start;
    while if step < 0 { at > stop } else { at < stop } {
        taken.push(items[at as usize].clone());
        at += step;
    }
    if value.as_str().is_some() {
        return Ok(Value::from(taken.iter().filter_map(Value::as_str).collect::<String>()));
    }
    Ok(list_like(value, taken))
}

/// What a loop goes through: Python has nothing to go through in `none` or a number.
pub(super) fn iterable(value: &Value) -> Result<Value, Error> {
    if let Some(generator) = value.downcast_object_ref::<Generator>() {
        return Ok(Value::from(generator.drain()));
    }
    drop(items(value)?);
    Ok(value.clone())
}

/// The items of a value, none of what is undefined.
pub(super) fn items(value: &Value) -> Result<impl Iterator<Item = Value> + use<>, Error> {
    if value.is_none() {
        return Err(invalid("`none` is not iterable"));
    }
    value.try_iter()
}

fn is_list(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable)
        && !objects::is_tuple(value)
        && value.downcast_object_ref::<Range>().is_none()
}

fn list_like(pattern: &Value, items: Vec<Value>) -> Value {
    if objects::is_tuple(pattern) { Value::from(Tuple::from(items)) } else { Value::from(items) }
}

/// A text or list and how often it is to be repeated, in either order.
fn repetition<'a>(a: &'a Value, b: &'a Value) -> Option<(&'a Value, i128)> {
    let can_repeat = |value: &Value| {
        value.kind() == ValueKind::String || is_list(value) || objects::is_tuple(value)
    };
    let (repeated, times) = if can_repeat(a) { (a, b) } else { (b, a) };
    match Number::of(times) {
        Some(Number::Int(times)) if can_repeat(repeated) => Some((repeated, times)),
        _ => None,
    }
}

fn repeat(repeated: &Value, times: i128) -> Result<Value, Error> {
    let times = usize::try_from(times.max(0)).unwrap_or(usize::MAX);
    let len = repeated.as_str().map_or_else(|| repeated.len().unwrap_or(0), str::len);
    if len.checked_mul(times).is_none_or(|len| len > MAX_REPEATED) {
        return Err(invalid(format!("`*` makes nothing longer than `{MAX_REPEATED}`")));
    }
    if let Some(text) = repeated.as_str() {
        return Ok(Value::from(text.repeat(times)));
    }
    let items: Vec<Value> = repeated.try_iter()?.collect();
    let repeated_items = items.iter().cycle().take(items.len() * times).cloned();
    Ok(list_like(repeated, repeated_items.collect()))
}

fn arithmetic(sign: &str, a: Number, b: Number) -> Result<Value, Error> {
    if matches!(sign, "/" | "//" | "%") && b.float() == 0.0 {
        return Err(invalid("division by zero"));
    }
    let (Number::Int(a), Number::Int(b)) = (a, b) else {
        return of_floats(sign, a.float(), b.float());
    };
    let result = match sign {
        "+" => a.checked_add(b),
        "-" => a.checked_sub(b),
        "*" => a.checked_mul(b),
        "/" => return Ok(Value::from(a as f64 / b as f64)),
        // Rounded down, not towards zero.
        "//" => a.checked_div(b).map(|x| if a % b != 0 && (a < 0) != (b < 0) { x - 1 } else { x }),
        "%" => a.checked_rem(b).map(|x| if x != 0 && (x < 0) != (b < 0) { x + b } else { x }),
        _ if b < 0 => return power(a as f64, b as f64),
        _ => u32::try_from(b).ok().and_then(|b| a.checked_pow(b)),
    };
    result.map(int).ok_or_else(too_large)
}

fn of_floats(sign: &str, a: f64, b: f64) -> Result<Value, Error> {
    Ok(Value::from(match sign {
        "+" => a + b,
        "-" => a - b,
        "*" => a * b,
        "/" => a / b,
        "//" => floor_div(a, b),
        "%" => modulo(a, b),
        _ => return power(a, b),
    }))
}

fn power(a: f64, b: f64) -> Result<Value, Error> {
    if a == 0.0 && b < 0.0 || a < 0.0 && b.fract() != 0.0 {
        return Err(invalid("a power that is no real number"));
    }
    let result = a.powf(b);
    if result.is_infinite() && a.is_finite() && b.is_finite() {
        return Err(invalid("a power that is too large"));
    }
    Ok(Value::from(result))
}

/// The remainder with the sign of the divisor.
fn modulo(a: f64, b: f64) -> f64 {
    let remainder = a % b;
    if remainder == 0.0 {
        0.0_f64.copysign(b)
    } else if (remainder < 0.0) == (b < 0.0) {
        remainder
    } else {
        remainder + b
    }
}

fn floor_div(a: f64, b: f64) -> f64 {
    let quotient = (a - modulo(a, b)) / b;
    let floor = quotient.floor();
    if quotient - floor > 0.5 { floor + 1.0 } else { floor }
}

pub(super) fn too_large() -> Error {
    invalid("a whole number of more than 127 bits")
}

fn unsupported(sign: &str, operands: &[&Value]) -> Error {
    let kinds: Vec<String> = operands.iter().map(|x| format!("`{}`", x.kind())).collect();
    invalid(format!("`{sign}` has no meaning for {}", kinds.join(" and ")))
}
