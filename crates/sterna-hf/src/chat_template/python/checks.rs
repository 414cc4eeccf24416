//! Jinja's tests, where minijinja's differ or are missing.

use minijinja::value::ValueKind;
use minijinja::{Environment, Error, Value};

use super::objects::{self, DictView, Generator, Method, OpenMacro};
use super::ops::{self, Number};
use super::{is_sized, strings, text};
use crate::chat_template::invalid;

/// Puts the tests into `environment`.
pub(super) fn install(environment: &mut Environment<'static>) {
    environment.add_test("sequence", is_sized);
    environment.add_test("iterable", |value: &Value| {
        !value.is_none() && (is_sized(value) || value.try_iter().is_ok())
    });
    environment.add_test("mapping", objects::is_dict);
    environment.add_test("callable", is_callable);
    // A truth value is a whole number to Python, and none to these tests.
    environment.add_test("number", |value: &Value| Number::of(value).is_some());
    environment
        .add_test("even", |value: &Value| remainder(value, &Value::from(2)).map(|x| !x.is_true()));
    environment.add_test("odd", |value: &Value| {
        remainder(value, &Value::from(2)).map(|x| x == Value::from(1))
    });
    environment.add_test("divisibleby", |value: &Value, by: &Value| {
        remainder(value, by).map(|x| !x.is_true())
    });
    environment
        .add_test("lower", |value: &Value| text::str_of(value).map(|x| strings::is_lower(&x)));
    environment
        .add_test("upper", |value: &Value| text::str_of(value).map(|x| strings::is_upper(&x)));
    environment.add_test("in", |value: &Value, within: &Value| ops::compare(value, "in", within));
    for (sign, names) in [
        ("<", ["<", "lt", "lessthan"]),
        ("<=", ["<=", "le", "le"]),
        (">", [">", "gt", "greaterthan"]),
        (">=", [">=", "ge", "ge"]),
    ] {
        for name in names {
            environment.add_test(name, move |a: &Value, b: &Value| ops::compare(a, sign, b));
        }
    }
}

fn remainder(value: &Value, by: &Value) -> Result<Value, Error> {
    match (Number::of(value), Number::of(by)) {
        (Some(_), Some(_)) => ops::binary("%", value, by),
        _ => Err(invalid("only a number divides a number")),
    }
}

/// Functions, macros and methods. Minijinja's own are known by being nothing else. What is undefined can be called too, if in vain.
fn is_callable(value: &Value) -> bool {
    let Some(object) = value.as_object() else { return value.is_undefined() };
    value.downcast_object_ref::<Method>().is_some()
        || value.downcast_object_ref::<OpenMacro>().is_some()
        || object.type_name().ends_with("::Macro")
        || value.kind() == ValueKind::Plain
            && value.downcast_object_ref::<DictView>().is_none()
            && value.downcast_object_ref::<Generator>().is_none()
}
