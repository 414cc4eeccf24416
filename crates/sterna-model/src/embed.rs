//! The embedding of token ids, forward and backward.

use sterna_arch::{Architecture, Embed, Norm};
use sterna_ops::{norm, tile::tiles};
use sterna_torch_sys::copies::upload;
use tch::{Device, Kind, Tensor};

use crate::error::{ModelError, check_shape};
use crate::multiplier::multiplied;
use crate::stage::Stage;

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
    arch: &Architecture,
    weight: &Tensor,
    input_ids: &[i64],
) -> Result<Tensor, ModelError> {
    check_shape(
        "embed_tokens.weight",
        &weight.size(),
        &[arch.vocab_size as i64, arch.hidden_size as i64],
    )?;
    check_vocabulary("input_ids", input_ids.iter().copied().enumerate(), arch)?;
    let _stage = Stage::Embed.enter();
    let rows = weight.index_select(0, &upload(Tensor::from_slice(input_ids), weight.device()));
    let rows = multiplied(rows, multiplier(&arch.embed, weight.kind()));
    Ok(match &arch.embed.norm {
        Some(norm) => plain(norm).forward(&rows),
        None => rows,
    })
}

/// Adds the gradient of the embedding: `d_weight[input_ids[i]] += d_x[i]`.
///
/// Rows looked up for `pad_token_id` get none, as transformers' `padding_idx` has it. `weight` is read if looked-up rows are normalised.
///
/// # Shapes
///
/// `weight` and `d_weight` `[v, d]`, `input_ids` `b * s/p` long, `d_x` `[b * s/p, d]`.
///
/// # Memory
///
/// One tile of rows at a time, 4 MB of them in single precision; never a copy of `d_x`.
///
/// # Numerics
///
/// Sums in the dtype of `d_weight`.
///
/// # Errors
///
/// [`ModelError::Shape`], [`ModelError::Length`] or [`ModelError::OutOfVocabulary`].
///
/// # Panics
///
/// If looked-up rows are normalised and there is no `weight`.
pub fn backward(
    arch: &Architecture,
    weight: Option<&Tensor>,
    d_weight: &mut Tensor,
    input_ids: &[i64],
    d_x: &Tensor,
) -> Result<(), ModelError> {
    let d = arch.hidden_size as i64;
    check_shape(
        "the gradient of embed_tokens.weight",
        &d_weight.size(),
        &[arch.vocab_size as i64, d],
    )?;
    check_shape("d_x", &d_x.size(), &[input_ids.len() as i64, d])?;
    check_vocabulary("input_ids", input_ids.iter().copied().enumerate(), arch)?;
    let _stage = Stage::Embed.enter();
    let multiplier = multiplier(&arch.embed, d_x.kind());
    let pad = arch.embed.pad_token_id.map(i64::from);
    // What a processor's cache holds; a GPU needs more to be busy.
    let tile_numel = if d_x.device() == Device::Cpu { 1 << 20 } else { 1 << 26 };
    for tile in tiles(input_ids.len() as i64, (tile_numel / d.max(1)).max(1)) {
        // Rows of padding are left out rather than multiplied by zero, which would keep a NaN.
        let (rows, ids): (Vec<i64>, Vec<i64>) = tile
            .map(|row| (row, input_ids[row as usize]))
            .filter(|(_, id)| Some(*id) != pad)
            .unzip();
        let [rows, ids] = [rows, ids].map(|x| upload(Tensor::from_slice(&x), d_x.device()));
        let mut of_rows = d_x.index_select(0, &rows);
        if let Some(norm) = &arch.embed.norm {
            let weight = weight.expect("a norm on looked-up rows reads them again");
            let read = multiplied(weight.index_select(0, &ids), multiplier);
            of_rows = plain(norm).backward(&of_rows, &read, None, None);
        }
        let of_rows = multiplied(of_rows.to_kind(d_weight.kind()), multiplier);
        let _ = if d_x.device() == Device::Cpu {
            d_weight.index_add_(0, &ids, &of_rows)
        } else {
            // It sorts the ids: a GPU's `index_add_` adds in another order each time.
            d_weight.index_put_(&[Some(&ids)], &of_rows, true)
        };
    }
    Ok(())
}

/// What rows of this dtype are multiplied by.
fn multiplier(embed: &Embed, kind: Kind) -> f64 {
    if embed.rounds_multiplier {
        Tensor::from(embed.multiplier).to_kind(kind).double_value(&[])
    } else {
        embed.multiplier
    }
}

/// The norm on looked-up rows.
fn plain(norm: &Norm) -> norm::Norm<'static> {
    norm::Norm { kind: norm.kind, eps: norm.eps, weight: None, bias: None }
}

/// Checks that ids, given with their positions, have a row.
pub(crate) fn check_vocabulary(
    name: &'static str,
    ids: impl IntoIterator<Item = (usize, i64)>,
    arch: &Architecture,
) -> Result<(), ModelError> {
    let vocab_size = arch.vocab_size;
    match ids.into_iter().find(|(_, id)| !(0..vocab_size as i64).contains(id)) {
        Some((position, found)) => {
            Err(ModelError::OutOfVocabulary { name, position, found, vocab_size })
        }
        None => Ok(()),
    }
}
