//! Kinds of values that Python has and minijinja has not.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use minijinja::value::{DynObject, Enumerator, Kwargs, Object, ObjectRepr, Tuple, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

use super::call_method;
use crate::chat_template::invalid;

/// Whether Python would call it a `dict`, which a namespace and the variable of a loop are not.
pub(super) fn is_dict(value: &Value) -> bool {
    let is_other =
        |name: &str| ["::Namespace", "::Loop", "::Macro"].iter().any(|end| name.ends_with(end));
    value.kind() == ValueKind::Map
        && value.as_object().is_some_and(|object| !is_other(object.type_name()))
}

/// Whether Python would call it a `tuple`.
pub(super) fn is_tuple(value: &Value) -> bool {
    value.is_tuple() || value.downcast_object_ref::<Group>().is_some()
}

/// What of a dictionary a [`DictView`] shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Keys,
    Values,
    Items,
}

/// `dict.keys()`, `dict.values()` and `dict.items()`: they have a length and no index.
#[derive(Debug)]
pub(super) struct DictView {
    dict: Value,
    part: Part,
}

impl DictView {
    pub(super) fn of(dict: Value, part: Part) -> Value {
        Value::from_object(DictView { dict, part })
    }

    pub(super) fn name(&self) -> &'static str {
        match self.part {
            Part::Keys => "dict_keys",
            Part::Values => "dict_values",
            Part::Items => "dict_items",
        }
    }
}

impl Object for DictView {
    // The others of minijinja's can be indexed.
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        let Some(pairs) = self.dict.as_object().and_then(DynObject::try_iter_pairs) else {
            return Enumerator::Empty;
        };
        let part = self.part;
        let items: Vec<Value> = pairs
            .map(|(key, value)| match part {
                Part::Keys => key,
                Part::Values => value,
                Part::Items => pair(key, value),
            })
            .collect();
        Enumerator::Values(items)
    }
}

/// A tuple of two.
pub(super) fn pair(first: Value, second: Value) -> Value {
    Value::from(Tuple::from([first, second]))
}

/// What `map`, `select` and other filters give: true whatever is in it, of no length, and empty once it has been read.
#[derive(Debug)]
pub(super) struct Generator {
    rest: Mutex<std::vec::IntoIter<Value>>,
}

impl Generator {
    pub(super) fn of(items: Vec<Value>) -> Value {
        Value::from_object(Generator { rest: Mutex::new(items.into_iter()) })
    }

    pub(super) fn next(&self) -> Option<Value> {
        self.rest.lock().unwrap_or_else(PoisonError::into_inner).next()
    }

    /// What is left, taken out.
    pub(super) fn drain(&self) -> Vec<Value> {
        std::iter::from_fn(|| self.next()).collect()
    }
}

impl Object for Generator {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        let generator = Arc::clone(self);
        Enumerator::Iter(Box::new(std::iter::from_fn(move || generator.next())))
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        None
    }

    fn is_true(self: &Arc<Self>) -> bool {
        true
    }
}

/// `range(start, stop, step)`.
#[derive(Debug)]
pub(super) struct Range {
    start: i64,
    stop: i64,
    step: i64,
}

impl Range {
    /// Longest range: what the sandbox of Jinja allows.
    const MAX_LEN: usize = 100_000;

    pub(super) fn between(start: i64, stop: i64, step: i64) -> Result<Value, Error> {
        if step == 0 {
            return Err(invalid("a range steps by zero"));
        }
        let range = Range { start, stop, step };
        if range.len() > Self::MAX_LEN {
            return Err(invalid(format!("a range is longer than `{}`", Self::MAX_LEN)));
        }
        Ok(Value::from_object(range))
    }

    /// `self[start:stop:step]`, of bounds within the range.
    pub(super) fn slice(&self, start: i64, stop: i64, step: i64) -> Result<Value, Error> {
        let at = |index: i64| self.start.saturating_add(index.saturating_mul(self.step));
        Range::between(at(start), at(stop), self.step.saturating_mul(step))
    }

    fn len(&self) -> usize {
        let (start, stop, step) =
            (i128::from(self.start), i128::from(self.stop), i128::from(self.step));
        let distance = if step > 0 { stop - start } else { start - stop };
        usize::try_from((distance + step.abs() - 1) / step.abs()).unwrap_or(0)
    }
}

impl Object for Range {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let index = key.as_usize().filter(|index| *index < self.len())?;
        Some(Value::from(self.start + index as i64 * self.step))
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.len())
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "range({}, {}", self.start, self.stop)?;
        if self.step != 1 {
            write!(f, ", {}", self.step)?;
        }
        write!(f, ")")
    }
}

/// One group of `groupby`: a tuple whose items have names.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) grouper: Value,
    pub(super) list: Value,
}

impl Object for Group {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        match (key.as_usize(), key.as_str()) {
            (Some(0), _) | (_, Some("grouper")) => Some(self.grouper.clone()),
            (Some(1), _) | (_, Some("list")) => Some(self.list.clone()),
            _ => None,
        }
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(2)
    }
}

/// A method that is not called where it is named.
#[derive(Debug)]
pub(super) struct Method {
    pub(super) owner: Value,
    pub(super) name: String,
}

impl Object for Method {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, state: &mut State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        call_method(state, &self.owner, &self.name, args)
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<built-in method {}>", self.name)
    }
}

/// `cycler(*items)`.
#[derive(Debug)]
pub(super) struct Cycler {
    items: Vec<Value>,
    position: Mutex<usize>,
}

impl Cycler {
    pub(super) fn of(items: Vec<Value>) -> Result<Value, Error> {
        if items.is_empty() {
            return Err(invalid("a cycler needs an item"));
        }
        Ok(Value::from_object(Cycler { items, position: Mutex::new(0) }))
    }
}

impl Object for Cycler {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let position = self.position.lock().unwrap_or_else(PoisonError::into_inner);
        (key.as_str() == Some("current")).then(|| self.items[*position].clone())
    }

    fn call_method(
        self: &Arc<Self>,
        _state: &mut State<'_, '_>,
        name: &str,
        _args: &[Value],
    ) -> Result<Value, Error> {
        let mut position = self.position.lock().unwrap_or_else(PoisonError::into_inner);
        match name {
            "next" => {
                let item = self.items[*position].clone();
                *position = (*position + 1) % self.items.len();
                Ok(item)
            }
            "reset" => {
                *position = 0;
                Ok(Value::from(()))
            }
            _ => Err(Error::from(ErrorKind::UnknownMethod)),
        }
    }
}

/// A macro that takes any arguments: what it does not name goes to its `varargs` and `kwargs`.
#[derive(Debug)]
pub(super) struct OpenMacro {
    inner: Value,
    names: Vec<String>,
}

impl OpenMacro {
    pub(super) fn around(inner: Value) -> Result<Value, Error> {
        let mut names = Vec::new();
        for name in inner.get_attr("arguments")?.try_iter()? {
            names.push(name.to_string());
        }
        names.retain(|name| name != "varargs" && name != "kwargs");
        Ok(Value::from_object(OpenMacro { inner, names }))
    }
}

impl Object for OpenMacro {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, state: &mut State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        let (positional, named) = match args.split_last() {
            Some((last, rest)) if last.is_kwargs() => (rest, Kwargs::try_from(last.clone())?),
            _ => (args, std::iter::empty::<(String, Value)>().collect()),
        };
        let (known, surplus) = positional.split_at(positional.len().min(self.names.len()));
        let varargs = Value::from(Tuple::from(surplus));
        let mut passed = Vec::new();
        let mut others = Vec::new();
        for name in named.args() {
            let value: Value = named.get(name)?;
            if name == "caller" || self.names.iter().any(|known| known == name) {
                passed.push((name.to_owned(), value));
            } else {
                others.push((name.to_owned(), value));
            }
        }
        let kwargs = Value::from_pairs(others);
        let mut call = vec![varargs, kwargs];
        call.extend_from_slice(known);
        call.push(Value::from(passed.into_iter().collect::<Kwargs>()));
        self.inner.call(state, &call)
    }
}

/// Stands for an argument that a macro was not given.
#[derive(Debug)]
pub(super) struct Missing;

impl Object for Missing {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }
}
