//! Jinja's filters, where minijinja's differ or are missing.

use std::cmp::Ordering;

use minijinja::value::{Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, State, Value};

use super::args::{bind, plain, required, split};
use super::objects::{self, DictView, Generator, Group, Part, pair};
use super::ops::{self, Number};
use super::strings::{self, Side, int, size};
use super::text::str_of;
use super::{format, is_sized};
use crate::chat_template::invalid;

/// Largest power of ten that rounding is asked for.
const MAX_PLACES: i64 = 300;

type Filter = fn(&mut State, &Value, &[Value]) -> Result<Value, Error>;

const FILTERS: &[(&str, Filter)] = &[
    ("abs", |_, value, _| match Number::of(value) {
        Some(Number::Int(x)) => x.checked_abs().map(ops::int).ok_or_else(ops::too_large),
        Some(Number::Float(x)) => Ok(Value::from(x.abs())),
        None => Err(kind_error("abs", value)),
    }),
    ("attr", |_, value, args| {
        let [name] = bind("attr", ["name"], args)?;
        let name = required("attr", "name", name)?;
        // Jinja's filter finds attributes only, and a dictionary's keys are none.
        match ops::attribute(value, name.as_str().unwrap_or_default())? {
            _ if value.is_undefined() => Err(kind_error("attr", value)),
            found if found.downcast_object_ref::<objects::Method>().is_some() => Ok(found),
            _ if objects::is_dict(value) => Ok(Value::UNDEFINED),
            found => Ok(found),
        }
    }),
    ("batch", batch),
    ("capitalize", |_, value, _| Ok(Value::from(strings::capitalize(&str_of(value)?)))),
    ("center", |_, value, args| {
        let [width] = bind("center", ["width"], args)?;
        let width = width.map_or(Ok(80), |width| size(&width))?;
        Ok(Value::from(strings::center(&str_of(value)?, ' ', format::limited(width)?)))
    }),
    ("count", length),
    ("d", default),
    ("default", default),
    ("dictsort", dictsort),
    ("e", escape),
    ("escape", escape),
    ("first", |_, value, _| Ok(items(value)?.next().unwrap_or_default())),
    ("float", to_float),
    ("forceescape", escape),
    ("format", |_, value, args| {
        let (positional, named) = split(args)?;
        let values = match named {
            Some(named) if positional.is_empty() => {
                let mut pairs = Vec::new();
                for name in named.args() {
                    pairs.push((name.to_owned(), named.get::<Value>(name)?));
                }
                Value::from_pairs(pairs)
            }
            Some(_) => {
                return Err(invalid("`format` takes values by position or by name, not both"));
            }
            None => Value::from(minijinja::value::Tuple::from(positional)),
        };
        format::percent(&str_of(value)?, &values).map(Value::from)
    }),
    ("groupby", groupby),
    ("indent", indent),
    ("int", to_int),
    ("items", |_, value, _| match value.kind() {
        ValueKind::Undefined => Ok(Generator::of(Vec::new())),
        _ if objects::is_dict(value) => {
            let view = DictView::of(value.clone(), Part::Items);
            Ok(Generator::of(items(&view)?.collect()))
        }
        _ => Err(kind_error("items", value)),
    }),
    ("join", join),
    ("last", |_, value, _| {
        if value.downcast_object_ref::<Generator>().is_some() {
            return Err(invalid("what a filter gives cannot be read from its end"));
        }
        Ok(items(value)?.last().unwrap_or_default())
    }),
    ("length", length),
    ("list", |_, value, _| Ok(Value::from(items(value)?.collect::<Vec<_>>()))),
    ("lower", |_, value, _| Ok(Value::from(str_of(value)?.to_lowercase()))),
    ("map", map),
    ("max", |_, value, args| extreme("max", value, args, Ordering::Greater)),
    ("min", |_, value, args| extreme("min", value, args, Ordering::Less)),
    ("reject", |state, value, args| select(state, value, args, false, false)),
    ("rejectattr", |state, value, args| select(state, value, args, true, false)),
    ("replace", |_, value, args| {
        let [old, new, count] = bind("replace", ["old", "new", "count"], args)?;
        let old = str_of(&required("replace", "old", old)?)?;
        let new = str_of(&required("replace", "new", new)?)?;
        strings::replace(&str_of(value)?, &old, &new, count.as_ref())
    }),
    ("reverse", |_, value, _| {
        if let Some(text) = value.as_str() {
            return Ok(Value::from(text.chars().rev().collect::<String>()));
        }
        let mut reversed: Vec<Value> = items(value)?.collect();
        reversed.reverse();
        Ok(Generator::of(reversed))
    }),
    ("round", round),
    ("select", |state, value, args| select(state, value, args, false, true)),
    ("selectattr", |state, value, args| select(state, value, args, true, true)),
    ("slice", slice),
    ("sort", sort),
    ("string", |_, value, _| Ok(Value::from(str_of(value)?))),
    ("sum", |_, value, args| {
        let [attribute, start] = bind("sum", ["attribute", "start"], args)?;
        let mut sum = start.unwrap_or_else(|| Value::from(0));
        for item in items(value)? {
            sum = ops::binary("+", &sum, &attribute_of(&item, attribute.as_ref())?)?;
        }
        Ok(sum)
    }),
    ("title", |_, value, _| Ok(Value::from(title(&str_of(value)?)))),
    ("trim", |_, value, args| {
        let [chars] = bind("trim", ["chars"], args)?;
        let chars =
            chars.filter(|chars| !chars.is_none()).map(|chars| str_of(&chars)).transpose()?;
        Ok(Value::from(strings::strip(&str_of(value)?, chars.as_deref(), Side::Both)))
    }),
    ("truncate", truncate),
    ("unique", unique),
    ("upper", |_, value, _| Ok(Value::from(str_of(value)?.to_uppercase()))),
    ("wordcount", |_, value, _| {
        let text = str_of(value)?;
        let words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
        Ok(Value::from(words.filter(|word| !word.is_empty()).count()))
    }),
];

/// Puts the filters into `environment`.
pub(super) fn install(environment: &mut Environment<'static>) {
    for (name, filter) in FILTERS {
        let filter = move |state: &mut State, value: &Value, args: Rest<ValueOrKwargs>| {
            filter(state, value, &plain(&args))
        };
        environment.add_filter(*name, filter);
    }
}

fn kind_error(what: &str, value: &Value) -> Error {
    invalid(format!("`{what}` has no meaning for a value of kind `{}`", value.kind()))
}

fn items(value: &Value) -> Result<impl Iterator<Item = Value> + use<>, Error> {
    ops::items(value)
}

/// `len(value)`.
fn length(_: &mut State, value: &Value, _: &[Value]) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::Undefined => Ok(Value::from(0)),
        _ if is_sized(value) || value.downcast_object_ref::<DictView>().is_some() => {
            Ok(Value::from(value.len().unwrap_or(0)))
        }
        _ => Err(kind_error("length", value)),
    }
}

fn default(_: &mut State, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [default, boolean] = bind("default", ["default_value", "boolean"], args)?;
    let is_missing = value.is_undefined()
        || boolean.is_some_and(|boolean| boolean.is_true()) && !value.is_true();
    Ok(if is_missing { default.unwrap_or_else(|| Value::from("")) } else { value.clone() })
}

fn escape(_: &mut State, value: &Value, _: &[Value]) -> Result<Value, Error> {
    let text = str_of(value)?.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    Ok(Value::from_safe_string(text.replace('\'', "&#39;").replace('"', "&#34;")))
}

/// Large letters at the beginning of words, where a word begins behind a space, a hyphen or an opening bracket.
fn title(text: &str) -> String {
    let mut out = String::new();
    let mut begins = true;
    for c in text.chars() {
        if begins {
            out.extend(c.to_uppercase());
        } else {
            out.extend(c.to_lowercase());
        }
        begins = c.is_whitespace() || "-({[<".contains(c);
    }
    out
}

fn to_int(_: &mut State, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [default, base] = bind("int", ["default", "base"], args)?;
    let default = default.unwrap_or_else(|| Value::from(0));
    if let Some(text) = value.as_str() {
        let base = base.map_or(Ok(10), |base| int(&base))?;
        if let Some(x) = parse_int(text, base) {
            return Ok(ops::int(x));
        }
        return match parse_float(text).filter(|x| x.is_finite()) {
            Some(x) => ops::whole(x).map(ops::int),
            None => Ok(default),
        };
    }
    match Number::of(value) {
        Some(Number::Int(x)) => Ok(ops::int(x)),
        Some(Number::Float(x)) if x.is_nan() => Ok(default),
        Some(Number::Float(x)) => ops::whole(x).map(ops::int),
        None if value.is_undefined() => Err(kind_error("int", value)),
        None => Ok(default),
    }
}

fn to_float(_: &mut State, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [default] = bind("float", ["default"], args)?;
    let default = default.unwrap_or_else(|| Value::from(0.0));
    if let Some(text) = value.as_str() {
        return Ok(parse_float(text).map_or(default, Value::from));
    }
    match Number::of(value) {
        Some(number) => Ok(Value::from(number.float())),
        None if value.is_undefined() => Err(kind_error("float", value)),
        None => Ok(default),
    }
}

/// The digits of a number, which underscores may separate.
fn separated(digits: &str) -> Option<String> {
    let is_right = !digits.starts_with('_') && !digits.ends_with('_') && !digits.contains("__");
    is_right.then(|| digits.replace('_', ""))
}

/// `int(text, base)`.
fn parse_int(text: &str, base: i64) -> Option<i128> {
    let text = strings::strip(text, None, Side::Both);
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let prefixed = |prefix: &str| {
        let found = digits.get(..2).filter(|found| found.eq_ignore_ascii_case(prefix));
        found.map(|_| digits[2..].strip_prefix('_').unwrap_or(&digits[2..]))
    };
    let (radix, digits) = match base {
        16 => (16, prefixed("0x").unwrap_or(digits)),
        8 => (8, prefixed("0o").unwrap_or(digits)),
        2 => (2, prefixed("0b").unwrap_or(digits)),
        0 => {
            let found = [(16, "0x"), (8, "0o"), (2, "0b")]
                .into_iter()
                .find_map(|(radix, prefix)| Some((radix, prefixed(prefix)?)));
            found.unwrap_or((10, digits))
        }
        3..=36 => (base as u32, digits),
        _ => return None,
    };
    if digits.starts_with(['+', '-']) {
        return None;
    }
    i128::from_str_radix(&format!("{sign}{}", separated(digits)?), radix).ok()
}

/// `float(text)`.
fn parse_float(text: &str) -> Option<f64> {
    let text = strings::strip(text, None, Side::Both);
    separated(text)?.parse().ok()
}

fn round(_: &mut State, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [precision, method] = bind("round", ["precision", "method"], args)?;
    let places = precision.map_or(Ok(0), |places| int(&places))?.clamp(-MAX_PLACES, MAX_PLACES);
    let number = Number::of(value).ok_or_else(|| kind_error("round", value))?;
    let factor = 10_f64.powi(places as i32);
    let method = method.unwrap_or_else(|| Value::from("common"));
    match (method.as_str(), number) {
        (Some("common"), Number::Int(x)) => {
            let tens = u32::try_from(-places).ok().and_then(|places| 10_i128.checked_pow(places));
            let Some(tens) = tens.filter(|tens| *tens > 1) else { return Ok(ops::int(x)) };
            let (down, rest) = (x.div_euclid(tens), x.rem_euclid(tens));
            let is_up = rest > tens - rest || rest == tens - rest && down % 2 != 0;
            let rounded = (down + i128::from(is_up)).checked_mul(tens);
            rounded.map(ops::int).ok_or_else(ops::too_large)
        }
        (Some("common"), Number::Float(x)) if places < 0 => {
            Ok(Value::from((x * factor).round_ties_even() / factor))
        }
        // Formatting rounds the exact value of the float, as Python does.
        (Some("common"), Number::Float(x)) => {
            let rounded = format!("{x:.*}", places as usize).parse();
            Ok(Value::from(rounded.unwrap_or(x)))
        }
        (Some("ceil"), x) => Ok(Value::from((x.float() * factor).ceil() / factor)),
        (Some("floor"), x) => Ok(Value::from((x.float() * factor).floor() / factor)),
        _ => Err(invalid("`round` rounds `common`, `ceil` or `floor`")),
    }
}

/// `item.a.b` for `attribute` "a.b", an index where a part is a number; `item` without an attribute.
fn attribute_of(item: &Value, attribute: Option<&Value>) -> Result<Value, Error> {
    attribute_or(item, attribute, None)
}

/// The same, where `default` stands for each part that is missing.
fn attribute_or(
    item: &Value,
    attribute: Option<&Value>,
    default: Option<&Value>,
) -> Result<Value, Error> {
    let Some(attribute) = attribute.filter(|attribute| !attribute.is_none()) else {
        return Ok(item.clone());
    };
    let keys = match attribute.as_str() {
        Some(path) => path
            .split('.')
            .map(|part| part.parse::<i64>().map_or_else(|_| Value::from(part), Value::from))
            .collect(),
        None => vec![attribute.clone()],
    };
    let mut found = item.clone();
    for key in keys {
        found = ops::item(&found, &key)?;
        if let (true, Some(default)) = (found.is_undefined(), default) {
            found = default.clone();
        }
    }
    Ok(found)
}

/// Texts in small letters, if large ones make no difference.
fn without_case(value: Value, is_case_sensitive: bool) -> Value {
    match value.as_str() {
        Some(text) if !is_case_sensitive => Value::from(text.to_lowercase()),
        _ => value,
    }
}

fn is_given(flag: Option<&Value>) -> bool {
    flag.is_some_and(Value::is_true)
}

fn sort(_: &mut State, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [reverse, case_sensitive, attribute] =
        bind("sort", ["reverse", "case_sensitive", "attribute"], args)?;
    let is_case_sensitive = is_given(case_sensitive.as_ref());
    let mut keyed = Vec::new();
    for item in items(value)? {
        // In a list, equal keys need no order.
        let mut keys = Vec::new();
        let names = attribute.as_ref().and_then(Value::as_str).map(|names| names.split(','));
        let paths = match names {
            Some(names) => names.map(|name| Some(Value::from(name))).collect(),
            None => vec![attribute.clone()],
        };
        for path in paths {
            let key = attribute_of(&item, path.as_ref())?;
            keys.push(without_case(key, is_case_sensitive));
        }
        let key = Value::from(keys);
        keyed.push((key, item));
    }
    ops::sort(&mut keyed, is_given(reverse.as_ref()), |(key, _)| key)?;
    Ok(keyed.into_iter().map(|(_, item)| item).collect())
}

fn dictsort(_: &mut State, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [case_sensitive, by, reverse] =
        bind("dictsort", ["case_sensitive", "by", "reverse"], args)?;
    if !objects::is_dict(value) {
        return Err(kind_error("dictsort", value));
    }
    let by = by.unwrap_or_else(|| Value::from("key"));
    let by_value = match by.as_str() {
        Some("key") => false,
        Some("value") => true,
        _ => return Err(invalid("`dictsort` sorts by `key` or `value`")),
    };
    let mut keyed = Vec::new();
    for key in items(value)? {
        let item = value.get_item(&key)?;
        let sorted_by = if by_value { item.clone() } else { key.clone() };
        let sorted_by = without_case(sorted_by, is_given(case_sensitive.as_ref()));
        keyed.push((sorted_by, pair(key, item)));
    }
    ops::sort(&mut keyed, is_given(reverse.as_ref()), |(key, _)| key)?;
    Ok(keyed.into_iter().map(|(_, item)| item).collect())
}

fn groupby(_: &mut State, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [attribute, default, case_sensitive] =
        bind("groupby", ["attribute", "default", "case_sensitive"], args)?;
    let attribute = required("groupby", "attribute", attribute)?;
    let is_case_sensitive = is_given(case_sensitive.as_ref());
    let mut keyed = Vec::new();
    for item in items(value)? {
        let key = attribute_or(&item, Some(&attribute), default.as_ref())?;
        keyed.push((without_case(key, is_case_sensitive), item));
    }
    ops::sort(&mut keyed, false, |(key, _)| key)?;
    let mut groups: Vec<(Value, Vec<Value>)> = Vec::new();
    for (key, item) in keyed {
        match groups.last_mut() {
            Some((last, group)) if *last == key => group.push(item),
            _ => groups.push((key, vec![item])),
        }
    }
    let mut out = Vec::new();
    for (_, group) in groups {
        // Its name is as the first of the group has it.
        let grouper = attribute_or(&group[0], Some(&attribute), default.as_ref())?;
        out.push(Value::from_object(Group { grouper, list: Value::from(group) }));
    }
    Ok(Value::from(out))
}

fn extreme(what: &str, value: &Value, args: &[Value], wanted: Ordering) -> Result<Value, Error> {
    let [case_sensitive, attribute] = bind(what, ["case_sensitive", "attribute"], args)?;
    let is_case_sensitive = is_given(case_sensitive.as_ref());
    let mut best: Option<(Value, Value)> = None;
    for item in items(value)? {
        let key = without_case(attribute_of(&item, attribute.as_ref())?, is_case_sensitive);
        let is_better = match &best {
            Some((best, _)) => ops::order(what, &key, best)? == Some(wanted),
            None => true,
        };
        if is_better {
            best = Some((key, item));
        }
    }
    Ok(best.map(|(_, item)| item).unwrap_or_default())
}

fn unique(_: &mut State, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [case_sensitive, attribute] = bind("unique", ["case_sensitive", "attribute"], args)?;
    let is_case_sensitive = is_given(case_sensitive.as_ref());
    let mut seen = Vec::new();
    let mut out = Vec::new();
    for item in items(value)? {
        let key = without_case(attribute_of(&item, attribute.as_ref())?, is_case_sensitive);
        if matches!(key.kind(), ValueKind::Seq | ValueKind::Map) && !objects::is_tuple(&key) {
            return Err(kind_error("unique", &key));
        }
        if !seen.contains(&key) {
            seen.push(key);
            out.push(item);
        }
    }
    Ok(Generator::of(out))
}

fn join(_: &mut State, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [separator, attribute] = bind("join", ["d", "attribute"], args)?;
    let separator = separator.map_or(Ok(String::new()), |separator| str_of(&separator))?;
    let mut out = String::new();
    for (index, item) in items(value)?.enumerate() {
        if index > 0 {
            out.push_str(&separator);
        }
        out.push_str(&str_of(&attribute_of(&item, attribute.as_ref())?)?);
    }
    Ok(Value::from(out))
}

fn map(state: &mut State, value: &Value, args: &[Value]) -> Result<Value, Error> {
    // Jinja looks at the arguments when there is something to map.
    if !value.is_true() {
        return Ok(Generator::of(Vec::new()));
    }
    let (positional, named) = split(args)?;
    let mut out = Vec::new();
    if let (true, Some(named)) = (positional.is_empty(), &named)
        && named.has("attribute")
    {
        let attribute: Value = named.get("attribute")?;
        let default: Option<Value> = named.get("default")?;
        let default = default.filter(|default| !default.is_none());
        named.assert_all_used()?;
        for item in items(value)? {
            out.push(attribute_or(&item, Some(&attribute), default.as_ref())?);
        }
    } else {
        let [name, ..] = positional else { return Err(invalid("`map` needs a filter")) };
        let name = str_of(name)?;
        for item in items(value)? {
            let mut call = vec![item];
            call.extend_from_slice(&args[1..]);
            out.push(state.apply_filter(&name, &call)?);
        }
    }
    Ok(Generator::of(out))
}

/// `select`, `reject`, and the same `of_attribute`.
fn select(
    state: &mut State,
    value: &Value,
    args: &[Value],
    of_attribute: bool,
    keeps: bool,
) -> Result<Value, Error> {
    if !value.is_true() {
        return Ok(Generator::of(Vec::new()));
    }
    let (attribute, args) = match args {
        [attribute, rest @ ..] if of_attribute => (Some(attribute), rest),
        [] if of_attribute => return Err(invalid("an attribute is missing")),
        _ => (None, args),
    };
    let mut out = Vec::new();
    for item in items(value)? {
        let tested = attribute_of(&item, attribute)?;
        let holds = match args {
            [] => tested.is_true(),
            [name, rest @ ..] => {
                let mut call = vec![tested];
                call.extend_from_slice(rest);
                state.perform_test(&str_of(name)?, &call)?
            }
        };
        if holds == keeps {
            out.push(item);
        }
    }
    Ok(Generator::of(out))
}

fn batch(_: &mut State, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [len, fill] = bind("batch", ["linecount", "fill_with"], args)?;
    let len = size(&required("batch", "linecount", len)?)?;
    if len == 0 {
        return Err(invalid("`batch` makes no batches of nothing"));
    }
    let all: Vec<Value> = items(value)?.collect();
    let batches = all.chunks(len).map(|batch| {
        let mut batch = batch.to_vec();
        if let Some(fill) = fill.as_ref().filter(|fill| !fill.is_none()) {
            let missing = format::limited(len - batch.len())?;
            batch.extend(std::iter::repeat_n(fill.clone(), missing));
        }
        Ok(Value::from(batch))
    });
    Ok(Generator::of(batches.collect::<Result<_, Error>>()?))
}

fn slice(_: &mut State, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [num_slices, fill] = bind("slice", ["slices", "fill_with"], args)?;
    let num_slices = format::limited(size(&required("slice", "slices", num_slices)?)?)?;
    if num_slices == 0 {
        return Err(invalid("`slice` makes no slices"));
    }
    let all: Vec<Value> = items(value)?.collect();
    let (len, num_longer) = (all.len() / num_slices, all.len() % num_slices);
    let mut rest = &all[..];
    let mut out = Vec::new();
    for index in 0..num_slices {
        let is_longer = index < num_longer;
        let (slice, others) = rest.split_at(len + usize::from(is_longer));
        rest = others;
        let mut slice = slice.to_vec();
        if let Some(fill) = fill.as_ref().filter(|fill| !fill.is_none() && !is_longer) {
            slice.push(fill.clone());
        }
        out.push(Value::from(slice));
    }
    Ok(Generator::of(out))
}

fn indent(_: &mut State, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [width, first, blank] = bind("indent", ["width", "first", "blank"], args)?;
    let Some(text) = value.as_str() else { return Err(kind_error("indent", value)) };
    let indention = match &width {
        Some(width) if width.as_str().is_some() => str_of(width)?,
        Some(width) => " ".repeat(format::limited(size(width)?)?),
        None => " ".repeat(4),
    };
    let text = format!("{text}\n");
    let mut out = String::new();
    for (index, line) in strings::lines(&text, false).into_iter().enumerate() {
        let is_indented = if index == 0 {
            is_given(first.as_ref())
        } else {
            !line.is_empty() || is_given(blank.as_ref())
        };
        if index > 0 {
            out.push('\n');
        }
        if is_indented {
            out.push_str(&indention);
        }
        out.push_str(line);
    }
    Ok(Value::from(out))
}

fn truncate(_: &mut State, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [length, kill_words, end, leeway] =
        bind("truncate", ["length", "killwords", "end", "leeway"], args)?;
    let length = length.map_or(Ok(255), |length| size(&length))?;
    let end = end.map_or(Ok("...".to_owned()), |end| str_of(&end))?;
    let leeway = leeway.filter(|leeway| !leeway.is_none()).map_or(Ok(5), |leeway| size(&leeway))?;
    let Some(kept) = length.checked_sub(end.chars().count()) else {
        return Err(invalid("`truncate` leaves no room for its end"));
    };
    let len = if value.is_undefined() { Some(0) } else { value.len() };
    if len.is_some_and(|len| len <= length.saturating_add(leeway)) {
        return Ok(value.clone());
    }
    let Some(text) = value.as_str() else { return Err(kind_error("truncate", value)) };
    let cut: String = text.chars().take(kept).collect();
    let cut = match cut.rsplit_once(' ') {
        Some((before, _)) if !is_given(kill_words.as_ref()) => before,
        _ => &cut,
    };
    Ok(Value::from(format!("{cut}{end}")))
}
