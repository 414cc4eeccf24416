//! What can be wrong with a config, and what to do about it.

use std::path::PathBuf;

use crate::adapters;
use crate::families::Family;
use crate::wrappers::Wrapper;

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that this crate can refuse, with the values that the message needs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The system refused to read a config.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A model folder has no config.
    #[error("`{}` not found", path.display())]
    MissingFile {
        /// The file that is missing.
        path: PathBuf,
    },
    /// A config does not parse.
    #[error("`{}` is not valid JSON", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where the parser stopped and why.
        #[source]
        source: serde_json::Error,
    },
    /// A key has a value that cannot be used, or none.
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
    /// `model_type` names a class that Sterna does not have.
    #[error("`{}`: model_type `{found}` is not supported, required: one of {}, or around one of these {}", path.display(), Family::names(), Wrapper::all_names())]
    UnsupportedModelType {
        /// The file.
        path: PathBuf,
        /// The `model_type` found.
        found: String,
    },
    /// An adapter does not fit the model.
    #[error("`model.peft_config.{key}` is {found}, required: {required}")]
    Adapter {
        /// The key of `peft_config`.
        key: &'static str,
        /// What it names.
        found: String,
        /// What it has to be.
        required: String,
    },
    /// There are more sequence-parallel ranks than query heads to share out.
    #[error(
        "sequence_parallel_size `{sp_size}` is larger than num_attention_heads `{num_attention_heads}`"
    )]
    MoreRanksThanHeads {
        /// Ranks in the sequence-parallel group.
        sp_size: usize,
        /// Query heads of the layer that has the fewest.
        num_attention_heads: usize,
    },
}

impl Error {
    /// What the user can do about it, when that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::MissingFile { path } if path.ends_with(adapters::CONFIG_FILE) => {
                Some("a folder of PEFT needs it: it says what its adapters are".to_owned())
            }
            Self::MissingFile { .. } => {
                Some("a model folder needs it: it is the shape of the model".to_owned())
            }
            Self::UnsupportedModelType { .. } => {
                Some(format!("choose a checkpoint of one of these families: {}", Family::names()))
            }
            Self::MoreRanksThanHeads { num_attention_heads, .. } => Some(format!(
                "set `sequence_parallel_size` to at most {num_attention_heads}, and use the other ranks for data parallelism"
            )),
            Self::Read { .. } | Self::Json { .. } | Self::Value { .. } | Self::Adapter { .. } => {
                None
            }
        }
    }
}
