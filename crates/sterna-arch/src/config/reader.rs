//! Typed access to the keys of a JSON object, with errors that name the file, the key, what was found and what is required.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// The largest size accepted: far above any model.
const MAX_SIZE: u64 = 1 << 31;
/// The largest number of heads accepted.
const MAX_HEADS: u64 = 1 << 13;
/// The largest number of experts of a layer accepted.
const MAX_EXPERTS: u64 = 1 << 13;
/// The largest number of layers accepted.
const MAX_LAYERS: u64 = 1 << 16;

/// A JSON object of a file, and where in the file it is.
pub(crate) struct Reader<'a> {
    path: &'a Path,
    /// Empty at the root, else the dotted key of the object with a dot at its end.
    prefix: String,
    map: &'a Map<String, Value>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(path: &'a Path, map: &'a Map<String, Value>) -> Self {
        Reader { path, prefix: String::new(), map }
    }

    /// A reader of the object under `key`.
    pub(crate) fn section(&self, key: &str, map: &'a Map<String, Value>) -> Self {
        Reader { path: self.path, prefix: format!("{}{key}.", self.prefix), map }
    }

    pub(crate) fn path(&self) -> &Path {
        self.path
    }

    /// The value as it stands in the file, `null` included.
    pub(crate) fn entry(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key)
    }

    /// The value, unless it is missing or `null`.
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// The parsed value, or `default` when it is missing or `null`.
    pub(crate) fn or<T>(
        &self,
        key: &str,
        default: T,
        parse: impl Fn(&Self, &str, &Value) -> Result<T>,
    ) -> Result<T> {
        self.get(key).map_or(Ok(default), |value| parse(self, key, value))
    }

    /// The parsed value; `default` when it is missing, `None` when it is `null`.
    pub(crate) fn nullable<T>(
        &self,
        key: &str,
        default: Option<T>,
        parse: impl Fn(&Self, &str, &Value) -> Result<T>,
    ) -> Result<Option<T>> {
        match self.entry(key) {
            None => Ok(default),
            Some(Value::Null) => Ok(None),
            Some(value) => parse(self, key, value).map(Some),
        }
    }

    /// The parsed value, which has to be there.
    pub(crate) fn required<T>(
        &self,
        key: &str,
        parse: impl Fn(&Self, &str, &Value) -> Result<T>,
    ) -> Result<T> {
        match self.get(key) {
            Some(value) => parse(self, key, value),
            // Let the parser name what is required.
            None => parse(self, key, &Value::Null).map_err(|error| match error {
                Error::Value { path, key, required, .. } => {
                    Error::Value { path, key, found: "missing".to_owned(), required }
                }
                other => other,
            }),
        }
    }

    pub(crate) fn wrong(&self, key: &str, value: &Value, required: impl Into<String>) -> Error {
        self.refuse(key, format!("`{value}`"), required)
    }

    pub(crate) fn refuse(
        &self,
        key: &str,
        found: impl Into<String>,
        required: impl Into<String>,
    ) -> Error {
        Error::Value {
            path: self.path.to_owned(),
            key: format!("{}{key}", self.prefix),
            found: found.into(),
            required: required.into(),
        }
    }

    pub(crate) fn string(&self, key: &str, value: &Value) -> Result<String> {
        value.as_str().map(str::to_owned).ok_or_else(|| self.wrong(key, value, "a string"))
    }

    pub(crate) fn bool(&self, key: &str, value: &Value) -> Result<bool> {
        value.as_bool().ok_or_else(|| self.wrong(key, value, "`true` or `false`"))
    }

    /// A whole number above zero.
    pub(crate) fn size(&self, key: &str, value: &Value) -> Result<usize> {
        self.whole(key, value, 1, MAX_SIZE)
    }

    /// A whole number, zero included.
    pub(crate) fn count(&self, key: &str, value: &Value) -> Result<usize> {
        self.whole(key, value, 0, MAX_SIZE)
    }

    /// A number of heads.
    pub(crate) fn num_heads(&self, key: &str, value: &Value) -> Result<usize> {
        self.whole(key, value, 1, MAX_HEADS)
    }

    /// A number of experts, zero included.
    pub(crate) fn num_experts(&self, key: &str, value: &Value) -> Result<usize> {
        self.whole(key, value, 0, MAX_EXPERTS)
    }

    /// A flag, which is off where it is `null`, as Python has it.
    pub(crate) fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.entry(key) {
            None => Ok(default),
            Some(Value::Null) => Ok(false),
            Some(value) => self.bool(key, value),
        }
    }

    /// A number of layers.
    pub(crate) fn num_layers(&self, key: &str, value: &Value) -> Result<usize> {
        self.whole(key, value, 1, MAX_LAYERS)
    }

    fn whole(&self, key: &str, value: &Value, min: u64, max: u64) -> Result<usize> {
        value.as_u64().filter(|n| (min..=max).contains(n)).map(|n| n as usize).ok_or_else(|| {
            self.wrong(key, value, format!("a whole number from `{min}` to `{max}`"))
        })
    }

    pub(crate) fn positive(&self, key: &str, value: &Value) -> Result<f64> {
        value
            .as_f64()
            .filter(|x| *x > 0.0)
            .ok_or_else(|| self.wrong(key, value, "a number above `0`"))
    }

    pub(crate) fn non_negative(&self, key: &str, value: &Value) -> Result<f64> {
        value
            .as_f64()
            .filter(|x| *x >= 0.0)
            .ok_or_else(|| self.wrong(key, value, "a number of at least `0`"))
    }

    pub(crate) fn at_least_one(&self, key: &str, value: &Value) -> Result<f64> {
        value
            .as_f64()
            .filter(|x| *x >= 1.0)
            .ok_or_else(|| self.wrong(key, value, "a number of at least `1`"))
    }

    pub(crate) fn token_id(&self, key: &str, value: &Value) -> Result<u32> {
        value
            .as_u64()
            .and_then(|id| u32::try_from(id).ok())
            .ok_or_else(|| self.wrong(key, value, "a token id"))
    }

    /// One token id or a list of them.
    pub(crate) fn token_ids(&self, key: &str, value: &Value) -> Result<Vec<u32>> {
        match value {
            Value::Array(ids) => ids.iter().map(|id| self.token_id(key, id)).collect(),
            id => Ok(vec![self.token_id(key, id)?]),
        }
    }

    /// A row of the embedding; a negative number counts from the last row, as PyTorch's `padding_idx` does.
    pub(crate) fn embedding_row(&self, key: &str, value: &Value, vocab_size: usize) -> Result<u32> {
        let num_rows = vocab_size as i64;
        value
            .as_i64()
            .map(|id| if id < 0 { id + num_rows } else { id })
            .filter(|id| (0..num_rows).contains(id))
            .map(|id| id as u32)
            .ok_or_else(|| {
                self.wrong(key, value, format!("a token id below vocab_size `{vocab_size}`"))
            })
    }
}
