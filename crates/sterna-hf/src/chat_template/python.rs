//! What a template expects of Python: operators, filters and tests by Python's rules, methods, `json.dumps`, `strftime`.

mod args;
mod checks;
mod filters;
mod format;
mod json;
mod objects;
mod ops;
mod strings;
mod text;

use std::fmt::Write;

use minijinja::value::{Kwargs, Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, Value};

use super::invalid;

use self::args::{bind, plain, required, split};
use self::objects::{Cycler, DictView, Missing, OpenMacro, Part, Range};

pub(super) use self::json::from_json;
pub(super) use self::ops::is_method;

/// Most spaces of a level of JSON.
const MAX_INDENT: usize = 64;

/// The cause of an error that the template raised itself, with its message.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Raised(pub(super) String);

/// Makes `environment` offer what transformers' does.
pub(super) fn install(environment: &mut Environment<'static>) {
    environment.set_unknown_method_callback(call_method);
    environment.set_formatter(|out, _, value| {
        match value.as_str() {
            Some(text) => out.write_str(text)?,
            None => out.write_str(&text::str_of(value)?)?,
        }
        Ok(())
    });
    filters::install(environment);
    checks::install(environment);
    environment.add_filter("tojson", tojson);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment.add_function("cycler", |items: Rest<Value>| Cycler::of(items.to_vec()));
    environment.add_function("joiner", minijinja_contrib::globals::joiner);
    environment.add_function("range", |args: Rest<Value>| range(&args));
    environment.add_function("dict", |args: Rest<ValueOrKwargs>| dict(&plain(&args)));
    environment.remove_global("debug");
    // What `dialect` writes.
    environment.add_function("__py_fold", |args: Rest<Value>| ops::fold(&args));
    environment.add_function("__py_concat", |args: Rest<Value>| ops::concat(&args));
    environment.add_function("__py_sign", |sign: &str, value: &Value| ops::signed(sign, value));
    environment.add_function("__py_compare", |args: Rest<Value>| ops::compare_all(&args));
    environment.add_function(
        "__py_slice",
        |value: &Value, start: &Value, stop: &Value, step: &Value| {
            ops::slice(value, [start, stop, step])
        },
    );
    environment.add_function("__py_attr", |value: &Value, name: &str| ops::attribute(value, name));
    environment.add_function("__py_item", |value: &Value, key: &Value| ops::item(value, key));
    environment.add_function("__py_iter", |value: &Value| ops::iterable(value));
    environment.add_global("__py_missing", Value::from_object(Missing));
    environment.add_function("__py_is_missing", |value: &Value| {
        value.downcast_object_ref::<Missing>().is_some()
    });
    environment.add_function("__py_macro", |value: Value| OpenMacro::around(value));
}

/// `value.name(*args)` of texts, lists and dictionaries.
fn call_method(
    _state: &mut State,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let unknown = || Error::from(ErrorKind::UnknownMethod);
    match value.kind() {
        ValueKind::String => strings::method(value.as_str().unwrap_or_default(), name, args),
        ValueKind::Map if objects::is_dict(value) => match name {
            "keys" => Ok(DictView::of(value.clone(), Part::Keys)),
            "values" => Ok(DictView::of(value.clone(), Part::Values)),
            "items" => Ok(DictView::of(value.clone(), Part::Items)),
            "copy" => Ok(value.clone()),
            "get" => {
                let [key, default] = bind(name, ["key", "default"], args)?;
                let key = required(name, "key", key)?;
                let found = value.as_object().and_then(|dict| dict.get_value(&key));
                Ok(found.or(default).unwrap_or_else(|| Value::from(())))
            }
            "update" | "pop" | "popitem" | "clear" | "setdefault" => Err(changes(name)),
            _ => Err(unknown()),
        },
        ValueKind::Seq | ValueKind::Iterable => {
            match name {
                "copy" if !objects::is_tuple(value) => Ok(value.clone()),
                "count" => {
                    let [item] = bind(name, ["value"], args)?;
                    let item = required(name, "value", item)?;
                    Ok(Value::from(value.try_iter()?.filter(|found| *found == item).count()))
                }
                "index" => {
                    let [item, start, stop] = bind(name, ["value", "start", "stop"], args)?;
                    let item = required(name, "value", item)?;
                    let len = value.len().unwrap_or(0) as i64;
                    let place = |at: Option<Value>, default: i64| match at {
                        Some(at) => {
                            strings::int(&at).map(|at| if at < 0 { (at + len).max(0) } else { at })
                        }
                        None => Ok(default),
                    };
                    let (start, stop) = (place(start, 0)?, place(stop, len)?);
                    let found = value.try_iter()?.enumerate().position(|(at, found)| {
                        (start..stop).contains(&(at as i64)) && found == item
                    });
                    found.map(Value::from).ok_or_else(|| invalid("the list has no such item"))
                }
                "append" | "clear" | "extend" | "insert" | "pop" | "remove" | "reverse"
                | "sort" => Err(changes(name)),
                _ => Err(unknown()),
            }
        }
        _ => Err(unknown()),
    }
}

/// The immutable sandbox refuses these too.
fn changes(name: &str) -> Error {
    invalid(format!("`{name}` would change a value, which templates may not"))
}

/// Python's `len(value)` and indexing work: on strings, lists, mappings and Jinja's undefined.
fn is_sized(value: &Value) -> bool {
    use ValueKind::{Iterable, Map, Seq, String, Undefined};
    match value.kind() {
        Map => objects::is_dict(value),
        kind => matches!(kind, String | Seq | Iterable | Undefined),
    }
}

/// `range(stop)` and `range(start, stop, step)`.
fn range(args: &[Value]) -> Result<Value, Error> {
    match args {
        [stop] => Range::between(0, strings::int(stop)?, 1),
        [start, stop] => Range::between(strings::int(start)?, strings::int(stop)?, 1),
        [start, stop, step] => {
            Range::between(strings::int(start)?, strings::int(stop)?, strings::int(step)?)
        }
        _ => Err(invalid("`range` takes one to three numbers")),
    }
}

/// `dict(pairs, **named)`, where the pairs may be a dictionary.
fn dict(args: &[Value]) -> Result<Value, Error> {
    let (positional, named) = split(args)?;
    let mut pairs = Vec::new();
    match positional {
        [] => {}
        [given] if objects::is_dict(given) => {
            for key in given.try_iter()? {
                let value = given.get_item(&key)?;
                pairs.push((key, value));
            }
        }
        [given] => {
            for pair in ops::items(given)? {
                let pair: Vec<Value> = ops::items(&pair)?.collect();
                let [key, value] = &pair[..] else {
                    return Err(invalid("`dict` takes pairs"));
                };
                pairs.push((key.clone(), value.clone()));
            }
        }
        _ => return Err(invalid("`dict` takes one value and named ones")),
    }
    if let Some(named) = named {
        for name in named.args() {
            pairs.push((Value::from(name), named.get(name)?));
        }
    }
    Ok(Value::from_pairs(pairs))
}

fn raise_exception(message: &Value) -> Result<Value, Error> {
    let message = message.to_string();
    Err(invalid(message.clone()).with_source(Raised(message)))
}

/// The local time by a `strftime` format.
fn strftime_now(format: &str) -> Result<String, Error> {
    let mut out = String::new();
    // An unknown directive is an error of the formatter, not a panic of `to_string`.
    write!(out, "{}", chrono::Local::now().format(format))
        .map_err(|_| invalid(format!("`{format}` is not a strftime format")))?;
    Ok(out)
}

#[expect(clippy::needless_pass_by_value, reason = "minijinja calls filters with owned arguments")]
/// `json.dumps(value, ensure_ascii, indent, separators, sort_keys)` with transformers' defaults.
fn tojson(
    value: &Value,
    positional: minijinja::value::Rest<Value>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let argument = |position: usize, name: &str| -> Result<Value, Error> {
        Ok(match positional.get(position) {
            Some(value) => value.clone(),
            None => kwargs.get::<Option<Value>>(name)?.unwrap_or_default(),
        })
    };
    let ensure_ascii = argument(0, "ensure_ascii")?.is_true();
    let indent = argument(1, "indent")?;
    let separators = argument(2, "separators")?;
    let sort_keys = argument(3, "sort_keys")?.is_true();
    kwargs.assert_all_used()?;

    let indent = match indent.kind() {
        ValueKind::None | ValueKind::Undefined => None,
        ValueKind::String => indent.as_str().map(str::to_owned),
        _ => match usize::try_from(indent)? {
            spaces @ 0..=MAX_INDENT => Some(" ".repeat(spaces)),
            spaces => {
                return Err(invalid(format!("an indent of `{spaces}` is above {MAX_INDENT}")));
            }
        },
    };
    let (item, key) = match separators.kind() {
        ValueKind::None | ValueKind::Undefined if indent.is_some() => {
            (",".to_owned(), ": ".to_owned())
        }
        ValueKind::None | ValueKind::Undefined => (", ".to_owned(), ": ".to_owned()),
        _ => (
            separators.get_item_by_index(0)?.to_string(),
            separators.get_item_by_index(1)?.to_string(),
        ),
    };
    let style = json::Style { ensure_ascii, indent, item, key, sort_keys };
    let text = json::dumps(value, &style).map_err(|what| {
        Error::new(ErrorKind::BadSerialization, format!("{what} cannot be written as JSON"))
    })?;
    Ok(Value::from(text))
}
