//! What a template expects of Python: methods of strings, `json.dumps`, `strftime`, and the tests
//! that Jinja answers by Python's rules.

mod json;
mod strings;

use std::fmt::Write;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value};

use super::invalid;

pub(super) use self::json::from_json;

/// Most spaces of a level of JSON.
const MAX_INDENT: usize = 64;

/// The cause of an error that the template raised itself, with its message.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Raised(pub(super) String);

/// Makes `environment` offer what transformers' does.
pub(super) fn install(environment: &mut Environment<'static>) {
    environment.set_unknown_method_callback(call_method);
    environment.add_filter("tojson", tojson);
    environment.add_filter("trim", |text: &Value, chars: Option<String>| {
        // Jinja's filter takes anything and makes it a string first.
        strings::strip(&text.to_string(), chars.as_deref(), strings::Side::Both).to_owned()
    });
    environment.add_test("sequence", is_sized);
    environment.add_test("iterable", |value: &Value| is_sized(value) || value.try_iter().is_ok());
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment.add_function("cycler", minijinja_contrib::globals::cycler);
    environment.add_function("joiner", minijinja_contrib::globals::joiner);
}

/// Python methods: those of strings where Python differs from Rust, then minijinja's own list.
fn call_method(
    state: &mut State,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    if let Some(text) = value.as_str()
        && let Some(result) = strings::method(text, name, args)
    {
        return result;
    }
    if matches!((value.kind(), name), (ValueKind::Map, "update" | "pop" | "clear" | "setdefault"))
        || matches!((value.kind(), name), (ValueKind::Seq, "append" | "extend" | "insert" | "pop"))
    {
        // The immutable sandbox refuses these too.
        return Err(invalid(format!("`{name}` would change a value, which templates may not")));
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

/// Python's `len(value)` and indexing work: on strings, lists, mappings and Jinja's undefined.
fn is_sized(value: &Value) -> bool {
    use ValueKind::{Map, Seq, String, Undefined};
    matches!(value.kind(), String | Seq | Map | Undefined)
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
