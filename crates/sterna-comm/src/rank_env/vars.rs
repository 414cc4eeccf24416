//! Reading a launcher's variables, with errors that name them.

use std::str::FromStr;

use super::Launcher;
use crate::error::CommError;

/// The environment as one launcher's variables.
pub(super) struct Vars<'a> {
    pub(super) launcher: Launcher,
    pub(super) lookup: &'a dyn Fn(&str) -> Option<String>,
}

impl Vars<'_> {
    /// The value of a variable, without blanks around it. An empty one is as good as none.
    pub(super) fn get(&self, name: &str) -> Option<String> {
        (self.lookup)(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    pub(super) fn text(&self, name: &'static str) -> Result<String, CommError> {
        self.get(name).ok_or(CommError::MissingVariable { launcher: self.launcher, name })
    }

    pub(super) fn number<T: FromStr>(
        &self,
        name: &'static str,
        required: &str,
    ) -> Result<T, CommError> {
        let found = self.text(name)?;
        found.parse().map_err(|_| self.invalid(name, found, required))
    }

    pub(super) fn number_or<T: FromStr>(
        &self,
        name: &'static str,
        required: &str,
        default: T,
    ) -> Result<T, CommError> {
        if self.has(name) { self.number(name, required) } else { Ok(default) }
    }

    pub(super) fn positive(&self, name: &'static str) -> Result<usize, CommError> {
        let required = "a positive number";
        match self.number(name, required)? {
            0 => Err(self.invalid(name, "0", required)),
            value => Ok(value),
        }
    }

    pub(super) fn below(&self, name: &'static str, limit: usize) -> Result<usize, CommError> {
        let value: usize = self.number(name, "a number")?;
        if value < limit {
            return Ok(value);
        }
        Err(self.invalid(name, value.to_string(), &format!("a number below `{limit}`")))
    }

    pub(super) fn invalid(
        &self,
        name: &'static str,
        found: impl Into<String>,
        required: &str,
    ) -> CommError {
        CommError::InvalidVariable {
            launcher: self.launcher,
            name,
            found: found.into(),
            required: required.to_owned(),
        }
    }

    /// Refuses `name` of this launcher if it is set to another value than `required`, which `other_name` of `other` says.
    pub(super) fn agrees(
        &self,
        name: &'static str,
        other: Launcher,
        other_name: &'static str,
        required: usize,
    ) -> Result<(), CommError> {
        match self.get(name) {
            Some(found) if found.parse() != Ok(required) => {
                Err(CommError::ConflictingVariables { name, found, other, other_name, required })
            }
            _ => Ok(()),
        }
    }
}
