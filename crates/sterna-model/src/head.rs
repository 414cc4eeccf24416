//! Final norm, language-model head and loss: tile by tile, loss and gradient in one pass.
//!
//! Only tokens that have a label pass through the head. Their weights are known before the backward starts, so each tile of
//! logits becomes its own gradient in place and is gone before the next is computed: at no time do more than `tile_len` rows of
//! logits exist, or twice as many where they are softcapped. Where weights depend on what the model says of all tokens,
//! [`loss`] says it first, by one more forward.

use std::ops::Range;

use sterna_arch::Architecture;
use sterna_ops::cross_entropy::{self, Losses};
use sterna_ops::tile::tiles;
use sterna_ops::{linear, softcap};
use sterna_torch_sys::copies::upload;
use tch::{Device, Kind, Tensor};

use crate::IGNORE_INDEX;
use crate::embed::check_vocabulary;
use crate::error::{ModelError, check_shape};
use crate::multiplier::multiplied;
use crate::params::{norm_backward, norm_of};
use crate::stage::Stage;

/// The weights of the head.
#[derive(Debug)]
pub struct HeadParams {
    /// The tensors of [`sterna_arch::Head::params`].
    pub own: Vec<Tensor>,
    /// The embedding `[v, d]`, when the head is it.
    pub embedding: Option<Tensor>,
}

/// The gradients of the head's weights, to which a backward adds: single precision; `None` if not wanted.
#[derive(Debug)]
pub struct HeadGrads {
    /// Of [`HeadParams::own`].
    pub own: Vec<Option<Tensor>>,
    /// Of [`HeadParams::embedding`].
    pub embedding: Option<Tensor>,
}

impl HeadParams {
    /// `[v, d]`.
    fn lm_head<'a>(&'a self, arch: &Architecture) -> Result<&'a Tensor, ModelError> {
        let is_tied = arch.head.lm_head.is_none();
        let found = self.own.len() + usize::from(self.embedding.is_some());
        let required = arch.head.params.len() + usize::from(is_tied);
        let lm_head = match arch.head.lm_head {
            Some(idx) => self.own.get(idx),
            None => self.embedding.as_ref(),
        };
        match lm_head {
            Some(lm_head) if found == required => Ok(lm_head),
            _ => Err(ModelError::ParamCount { found, required }),
        }
    }
}

/// The losses of a rank's labels, not yet averaged, on the device that computed them.
#[derive(Debug)]
pub struct LabelLosses {
    /// `[labels]`: `-ln p` of each in the order of tokens, in nats; double precision.
    pub of_labels: Tensor,
    /// Their sum, added tile by tile: a double-precision scalar.
    pub sum: Tensor,
}

/// The logits of every token.
///
/// # Shapes
///
/// `x` `[s, d]`; returns `[s, v]` in the dtype of `x`.
///
/// # Errors
///
/// [`ModelError::ParamCount`] if `params` are not those of this head.
///
/// # Panics
///
/// If the shapes do not fit.
pub fn logits(arch: &Architecture, params: &HeadParams, x: &Tensor) -> Result<Tensor, ModelError> {
    Ok(logits_of(arch, params.lm_head(arch)?, &normed(arch, params, x)))
}

/// What the head multiplies: the norm of `x`, times what logits are multiplied by.
fn normed(arch: &Architecture, params: &HeadParams, x: &Tensor) -> Tensor {
    let h = norm_of(&arch.head.norm, |idx| &params.own[idx]).forward(x);
    multiplied(h, arch.head.logits_multiplier)
}

fn logits_of(arch: &Architecture, lm_head: &Tensor, h: &Tensor) -> Tensor {
    let logits = linear::forward(h, lm_head, None);
    match arch.head.softcap {
        Some(cap) => softcap::forward_(logits, cap),
        None => logits,
    }
}

/// The losses of a rank's tokens, without gradients.
///
/// # Shapes
///
/// `x` `[b * s/p, d]`, `shift_labels` as long; [`IGNORE_INDEX`] where a token has no label.
///
/// # Errors
///
/// [`ModelError::Shape`], [`ModelError::Length`] or [`ModelError::OutOfVocabulary`].
pub fn loss(
    arch: &Architecture,
    params: &HeadParams,
    x: &Tensor,
    shift_labels: &[i64],
    tile_len: i64,
) -> Result<LabelLosses, ModelError> {
    let _stage = Stage::Loss.enter();
    let labelled = Labelled::new(arch, params, x, shift_labels)?;
    let mut losses = LabelLosses::empty(labelled.len(), x.device());
    for tile in tiles(labelled.len(), tile_len) {
        let (_, x, labels) = labelled.tile(x, tile.start, tile.end - tile.start);
        losses.put(&tile, &cross_entropy::forward(&logits(arch, params, &x)?, &labels));
    }
    Ok(losses)
}

/// The losses of a rank's tokens and, in the same pass, the gradients of the sum of their losses times `weights`.
///
/// A weight is what the whole step multiplies a token's loss by (such as one over the number of labels averaged over), so that nothing
/// is rescaled afterwards. A rank whose tokens have no label returns no losses and a gradient of zeros. Returns the losses without
/// weights and the gradient of `x`; gradients of the head's weights are added to `grads`.
///
/// # Shapes
///
/// `x` `[b * s/p, d]`, `shift_labels` as long; [`IGNORE_INDEX`] where a token has no label. `weights` `[labels]`, double precision, in the
/// order of tokens. Returns `[b * s/p, d]`.
///
/// # Memory
///
/// One tile of logits `[tile_len, v]` in the dtype of `x`, rounded up to 64 rows, two where logits are softcapped, and what
/// [`linear::backward_params`] takes.
///
/// # Numerics
///
/// The loss is single precision within a token, double across tokens. Weight gradients are summed in the dtype of `grads`; what
/// a tile adds is rounded first only where [`linear::backward_params`] says so.
///
/// # Errors
///
/// [`ModelError::Shape`], [`ModelError::Length`] or [`ModelError::OutOfVocabulary`].
pub fn loss_and_backward(
    arch: &Architecture,
    params: &HeadParams,
    grads: &mut HeadGrads,
    x: &Tensor,
    shift_labels: &[i64],
    weights: &Tensor,
    tile_len: i64,
) -> Result<(LabelLosses, Tensor), ModelError> {
    let lm_head = params.lm_head(arch)?;
    let labelled = Labelled::new(arch, params, x, shift_labels)?;
    check_shape("weights", &weights.size(), &[labelled.len()])?;
    let mut d_x = x.zeros_like();
    let _stage = Stage::Loss.enter();
    let mut losses = LabelLosses::empty(labelled.len(), x.device());
    for tile in tiles(labelled.len(), tile_len) {
        let (start, len) = (tile.start, tile.end - tile.start);
        let (rows, x, labels) = labelled.tile(x, start, len);
        let weights = weights.narrow(0, start, len);
        let weights = weights.constant_pad_nd([0, labels.size()[0] - len]);
        let h = normed(arch, params, &x);
        let logits = logits_of(arch, lm_head, &h);
        let capped = arch.head.softcap.map(|cap| (cap, logits.copy()));
        losses.put(&tile, &cross_entropy::forward_backward(&logits, &labels, &weights));
        let d_logits = match capped {
            Some((cap, capped)) => softcap::backward_(logits, capped, cap),
            None => logits,
        };
        let of_lm_head = match arch.head.lm_head {
            Some(idx) => grads.own[idx].as_mut(),
            None => grads.embedding.as_mut(),
        };
        linear::backward_params(&d_logits, &h, of_lm_head, None);
        let d_h = linear::backward_input(&d_logits, lm_head);
        let d_h = multiplied(d_h, arch.head.logits_multiplier);
        // The largest tensor of the whole head; the norm's backward does not need it.
        drop(d_logits);
        let norm = norm_of(&arch.head.norm, |idx| &params.own[idx]);
        let d_x_tile = norm_backward(&arch.head.norm, norm, &grads.own, &x, &d_h);
        let _ = d_x.index_copy_(0, &rows, &d_x_tile.narrow(0, 0, rows.size()[0]));
    }
    Ok((losses, d_x))
}

impl LabelLosses {
    fn empty(num_labels: i64, device: Device) -> LabelLosses {
        LabelLosses {
            of_labels: Tensor::empty([num_labels], (Kind::Double, device)),
            sum: Tensor::zeros([], (Kind::Double, device)),
        }
    }

    /// Takes the losses of a tile of labels, which has more rows than those.
    fn put(&mut self, tile: &Range<i64>, losses: &Losses) {
        let len = tile.end - tile.start;
        self.of_labels.narrow(0, tile.start, len).copy_(&losses.of_rows.narrow(0, 0, len));
        let _ = self.sum.g_add_(&losses.sum);
    }
}

/// Rows of a tile are a multiple of this.
///
/// Every step has another number of labelled tokens, and every shape of a matrix product is another program that oneDNN compiles and
/// keeps, at about 1.4 MB each: resident memory would grow for hundreds of steps.
const ROW_STEP: u64 = 64;

/// The tokens that have a label.
struct Labelled {
    /// `[valid]`, their positions in the shard.
    rows: Tensor,
    /// `[valid]`.
    labels: Tensor,
}

impl Labelled {
    /// Finds them, on the host, so that no device has to be waited for.
    fn new(
        arch: &Architecture,
        params: &HeadParams,
        x: &Tensor,
        shift_labels: &[i64],
    ) -> Result<Labelled, ModelError> {
        let (v, d) = (arch.vocab_size as i64, arch.hidden_size as i64);
        check_shape("lm_head.weight", &params.lm_head(arch)?.size(), &[v, d])?;
        check_shape("x", &x.size(), &[shift_labels.len() as i64, d])?;
        let is_valid = |(_, label): &(usize, i64)| *label != IGNORE_INDEX;
        let valid = || shift_labels.iter().copied().enumerate().filter(is_valid);
        check_vocabulary("shift_labels", valid(), arch)?;
        let rows: Vec<i64> = valid().map(|(row, _)| row as i64).collect();
        let labels: Vec<i64> = valid().map(|(_, label)| label).collect();
        Ok(Labelled {
            rows: upload(Tensor::from_slice(&rows), x.device()),
            labels: upload(Tensor::from_slice(&labels), x.device()),
        })
    }

    fn len(&self) -> i64 {
        self.rows.size()[0]
    }

    /// Positions of `len` of them; activations and labels of these, filled up with rows without a label to a multiple of
    /// [`ROW_STEP`].
    fn tile(&self, x: &Tensor, start: i64, len: i64) -> (Tensor, Tensor, Tensor) {
        let rows = self.rows.narrow(0, start, len);
        let num_more = (len as u64).next_multiple_of(ROW_STEP) as i64 - len;
        let x = x.index_select(0, &rows).constant_pad_nd([0, 0, 0, num_more]);
        let labels = self.labels.narrow(0, start, len);
        let labels = labels.pad([0, num_more], "constant", Some(IGNORE_INDEX as f64));
        (rows, x, labels)
    }
}
