//! The embedding of token ids, forward and backward.

use sterna_hf::ModelConfig;
use tch::Tensor;

use crate::error::{ModelError, check_shape};

/// The embedding rows of a rank's tokens.
///
/// # Shapes
///
/// `weight` `[v, d]`, `input_ids` `b * s/p` long; returns `[b * s/p, d]` in the dtype of the weight.
///
/// # Errors
///
/// [`ModelError::Shape`] or [`ModelError::OutOfVocabulary`].
pub fn forward(
    config: &ModelConfig,
    weight: &Tensor,
    input_ids: &[i64],
) -> Result<Tensor, ModelError> {
    check_shape(
        "embed_tokens.weight",
        &weight.size(),
        &[config.vocab_size as i64, config.hidden_size as i64],
    )?;
    check_vocabulary("input_ids", input_ids.iter().copied().enumerate(), config)?;
    Ok(weight.index_select(0, &Tensor::from_slice(input_ids).to_device(weight.device())))
}

/// Adds the gradient of the embedding: `d_weight[input_ids[i]] += d_x[i]`.
///
/// Rows looked up for `pad_token_id` get none, as transformers' `padding_idx` has it.
///
/// # Shapes
///
/// `d_weight` `[v, d]`, `input_ids` `b * s/p` long, `d_x` `[b * s/p, d]`.
///
/// # Numerics
///
/// Sums in the dtype of `d_weight`.
///
/// # Errors
///
/// [`ModelError::Shape`], [`ModelError::Length`] or [`ModelError::OutOfVocabulary`].
pub fn backward(
    config: &ModelConfig,
    d_weight: &mut Tensor,
    input_ids: &[i64],
    d_x: &Tensor,
) -> Result<(), ModelError> {
    let d = config.hidden_size as i64;
    check_shape(
        "the gradient of embed_tokens.weight",
        &d_weight.size(),
        &[config.vocab_size as i64, d],
    )?;
    check_shape("d_x", &d_x.size(), &[input_ids.len() as i64, d])?;
    check_vocabulary("input_ids", input_ids.iter().copied().enumerate(), config)?;
    let d_x = d_x.to_kind(d_weight.kind());
    let ids = Tensor::from_slice(input_ids).to_device(d_x.device());
    let d_x = match config.pad_token_id {
        Some(pad) => d_x * ids.not_equal(i64::from(pad)).to_kind(d_weight.kind()).unsqueeze(1),
        None => d_x,
    };
    let _ = d_weight.index_add_(0, &ids, &d_x);
    Ok(())
}

/// Checks that ids, given with their positions, have a row.
pub(crate) fn check_vocabulary(
    name: &'static str,
    ids: impl IntoIterator<Item = (usize, i64)>,
    config: &ModelConfig,
) -> Result<(), ModelError> {
    let vocab_size = config.vocab_size;
    match ids.into_iter().find(|(_, id)| !(0..vocab_size as i64).contains(id)) {
        Some((position, found)) => {
            Err(ModelError::OutOfVocabulary { name, position, found, vocab_size })
        }
        None => Ok(()),
    }
}
