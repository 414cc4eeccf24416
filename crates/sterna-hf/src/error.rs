//! What can be wrong with a model folder, a hub answer or an export, and what to do about it.

use std::path::PathBuf;

use crate::config::Family;

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything this crate can refuse, with the values that the message needs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The system refused to read a file or folder.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// What was being read.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A folder lacks a file that it must have.
    #[error("`{}` not found", path.display())]
    MissingFile {
        /// The file that is missing.
        path: PathBuf,
        /// What it is needed for, as a noun phrase.
        purpose: &'static str,
    },
    /// A JSON file does not parse.
    #[error("`{}` is not valid JSON", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where the parser stopped and why.
        #[source]
        source: serde_json::Error,
    },
    /// A key of a JSON file has a value that cannot be used, or none.
    #[error("`{}`: key `{key}` is {found}, required: {required}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The key, dotted from the root of the file.
        key: String,
        /// The value as JSON in backticks, or `missing`.
        found: String,
        /// What it has to be.
        required: String,
    },
    /// `model_type` names an architecture that Sterna does not have.
    #[error("`{}`: model_type `{found}` is not supported, required: one of {}", path.display(), Family::names())]
    UnsupportedModelType {
        /// The config file.
        path: PathBuf,
        /// The `model_type` found.
        found: String,
    },
}

impl Error {
    /// What the user can do about it, when that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::MissingFile { purpose, .. } => {
                Some(format!("a model folder needs it: it is {purpose}"))
            }
            Error::UnsupportedModelType { .. } => {
                Some(format!("choose a checkpoint of one of these families: {}", Family::names()))
            }
            Error::Read { .. } | Error::Json { .. } | Error::Value { .. } => None,
        }
    }
}
