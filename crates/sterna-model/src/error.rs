//! What can go wrong in a model.

use sterna_comm::CommError;

/// A failure while computing a part of the model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The exchange around attention failed, mostly because another rank ended.
    #[error(transparent)]
    Comm(#[from] CommError),
    /// The model does not fit the number of ranks.
    #[error(transparent)]
    Arch(#[from] sterna_arch::Error),
    /// There are more groups of heads than query heads of the rank that has the fewest.
    #[error(
        "attention_head_groups `{num_groups}` is larger than the `{num_heads}` query heads of a rank"
    )]
    MoreGroupsThanHeads {
        /// Groups asked for.
        num_groups: usize,
        /// Query heads of that rank.
        num_heads: usize,
    },
    /// A block was given another number of tensors than it has.
    #[error("a block was given `{found}` tensors, and has `{required}`")]
    ParamCount {
        /// Tensors given.
        found: usize,
        /// Tensors of a block of this model.
        required: usize,
    },
    /// A tensor does not have the shape that the model's configuration gives it.
    #[error("`{name}` has shape `{found:?}`, and must have `{required:?}`")]
    Shape {
        /// The parameter or argument.
        name: String,
        /// Its shape.
        found: Vec<i64>,
        /// The shape it must have.
        required: Vec<i64>,
    },
    /// A list that goes with the tokens of a rank has another length than the tokens.
    #[error("`{name}` has length `{found}`, and must have `{required}`")]
    Length {
        /// The argument.
        name: &'static str,
        /// Its length.
        found: usize,
        /// The number of tokens.
        required: usize,
    },
    /// The caller could not store, gather or reduce what a block asked it to.
    #[error("what a block asked for could not be moved")]
    Caller(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A token id or label is not in the vocabulary.
    #[error(
        "`{name}` at position `{position}` of the shard is `{found}`, and must be at least 0 and below vocab_size `{vocab_size}`"
    )]
    OutOfVocabulary {
        /// `input_ids` or `shift_labels`.
        name: &'static str,
        /// Where in the rank's shard.
        position: usize,
        /// The id.
        found: i64,
        /// Rows of the embedding.
        vocab_size: usize,
    },
}

impl ModelError {
    /// What the reader can do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Comm(error) => error.hint(),
            Self::Arch(error) => error.hint(),
            Self::MoreGroupsThanHeads { num_heads, .. } => {
                Some(format!("set `memory.attention_head_groups` to at most {num_heads}"))
            }
            Self::OutOfVocabulary { .. } => {
                Some("the tokenizer has ids that the model's embedding has no row for: use the tokenizer of this model".to_owned())
            }
            Self::ParamCount { .. }
            | Self::Shape { .. }
            | Self::Length { .. }
            | Self::Caller(_) => None,
        }
    }
}

/// Checks one shape.
pub(crate) fn check_shape(name: &str, found: &[i64], required: &[i64]) -> Result<(), ModelError> {
    if found == required {
        return Ok(());
    }
    let (name, found, required) = (name.to_owned(), found.to_vec(), required.to_vec());
    Err(ModelError::Shape { name, found, required })
}
