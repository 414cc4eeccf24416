//! Final norm, language-model head and loss: tile by tile, loss and gradient in one pass.
//!
//! Only tokens that have a label pass through the head. Their final scale is known before the backward starts, so each tile of
//! logits becomes its own gradient in place and is gone before the next is computed: at no time do more than `tile_len` rows of
//! logits exist.

use sterna_hf::ModelConfig;
use sterna_ops::tile::tiles;
use sterna_ops::{cross_entropy, linear, rms_norm};
use sterna_torch_sys::copies::upload;
use tch::{Kind, Tensor};

use crate::IGNORE_INDEX;
use crate::embed::check_vocabulary;
use crate::error::{ModelError, check_shape};
use crate::multiplier::multiplied;
use crate::stage::Stage;

/// The weights of the head.
#[derive(Debug)]
pub struct HeadParams {
    /// `model.norm.weight`, `[d]`.
    pub norm: Tensor,
    /// `lm_head.weight`, or the embedding when they are tied, `[v, d]`.
    pub lm_head: Tensor,
}

/// The gradients of the head's weights, to which a backward adds: single precision; `None` if not wanted.
#[derive(Debug)]
pub struct HeadGrads {
    /// `[d]`.
    pub norm: Option<Tensor>,
    /// `[v, d]`; of the embedding when they are tied.
    pub lm_head: Option<Tensor>,
}

/// The loss of this rank's tokens, not yet averaged.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossSum {
    /// The sum over tokens that have a label, in nats.
    pub loss_sum: f64,
    /// How many those are.
    pub num_valid_tokens: usize,
}

/// The logits of every token.
///
/// # Shapes
///
/// `x` `[s, d]`; returns `[s, v]` in the dtype of `x`.
///
/// # Panics
///
/// If the shapes do not fit.
pub fn logits(config: &ModelConfig, params: &HeadParams, x: &Tensor) -> Tensor {
    linear::forward(&normed(config, params, x), &params.lm_head, None)
}

/// What the head multiplies: the norm of `x`, over what logits are divided by.
fn normed(config: &ModelConfig, params: &HeadParams, x: &Tensor) -> Tensor {
    let h = rms_norm::forward(x, &params.norm, config.rms_norm_eps);
    multiplied(h, 1.0 / config.logits_scaling)
}

/// The loss of a rank's tokens, without gradients.
///
/// # Shapes
///
/// `x` `[b * s/p, d]`, `shift_labels` as long; [`IGNORE_INDEX`] where a token has no label.
///
/// # Errors
///
/// [`ModelError::Shape`], [`ModelError::Length`] or [`ModelError::OutOfVocabulary`].
pub fn loss(
    config: &ModelConfig,
    params: &HeadParams,
    x: &Tensor,
    shift_labels: &[i64],
    tile_len: i64,
) -> Result<LossSum, ModelError> {
    let _stage = Stage::Loss.enter();
    let labelled = Labelled::new(config, params, x, shift_labels)?;
    let mut loss_sum = Tensor::zeros([], (Kind::Double, x.device()));
    for tile in tiles(labelled.len(), tile_len) {
        let (_, x, labels) = labelled.tile(x, tile.start, tile.end - tile.start);
        let _ = loss_sum.g_add_(&cross_entropy::forward(&logits(config, params, &x), &labels));
    }
    Ok(labelled.sum(&loss_sum))
}

/// The loss of a rank's tokens and, in the same pass, its gradients times `scale`.
///
/// `scale` is what the whole step multiplies each token's loss by (one over the number of labels averaged over), so that nothing
/// is rescaled afterwards. A rank whose tokens have no label returns a loss of 0 and a gradient of zeros. Returns the unscaled loss
/// and the gradient of `x`; gradients of the weights are added to `grads`.
///
/// # Shapes
///
/// `x` `[b * s/p, d]`, `shift_labels` as long; [`IGNORE_INDEX`] where a token has no label. Returns `[b * s/p, d]`.
///
/// # Memory
///
/// One tile of logits `[tile_len, v]` in the dtype of `x`, rounded up to 64 rows, and what
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
    config: &ModelConfig,
    params: &HeadParams,
    grads: &mut HeadGrads,
    x: &Tensor,
    shift_labels: &[i64],
    scale: f64,
    tile_len: i64,
) -> Result<(LossSum, Tensor), ModelError> {
    let eps = config.rms_norm_eps;
    let labelled = Labelled::new(config, params, x, shift_labels)?;
    let mut loss_sum = Tensor::zeros([], (Kind::Double, x.device()));
    let mut d_x = x.zeros_like();
    let _stage = Stage::Loss.enter();
    for tile in tiles(labelled.len(), tile_len) {
        let (rows, x, labels) = labelled.tile(x, tile.start, tile.end - tile.start);
        let h = normed(config, params, &x);
        let logits = linear::forward(&h, &params.lm_head, None);
        let _ = loss_sum.g_add_(&cross_entropy::forward_backward(&logits, &labels, scale));
        let d_logits = logits;
        linear::backward_params(&d_logits, &h, grads.lm_head.as_mut(), None);
        let d_h = linear::backward_input(&d_logits, &params.lm_head);
        let d_h = multiplied(d_h, 1.0 / config.logits_scaling);
        // The largest tensor of the whole head; the norm's backward does not need it.
        drop(d_logits);
        let d_x_tile = rms_norm::backward(&d_h, &x, &params.norm, eps, grads.norm.as_mut());
        let _ = d_x.index_copy_(0, &rows, &d_x_tile.narrow(0, 0, rows.size()[0]));
    }
    Ok((labelled.sum(&loss_sum), d_x))
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
        config: &ModelConfig,
        params: &HeadParams,
        x: &Tensor,
        shift_labels: &[i64],
    ) -> Result<Labelled, ModelError> {
        let (v, d) = (config.vocab_size as i64, config.hidden_size as i64);
        check_shape("norm.weight", &params.norm.size(), &[d])?;
        check_shape("lm_head.weight", &params.lm_head.size(), &[v, d])?;
        check_shape("x", &x.size(), &[shift_labels.len() as i64, d])?;
        let is_valid = |(_, label): &(usize, i64)| *label != IGNORE_INDEX;
        let valid = || shift_labels.iter().copied().enumerate().filter(is_valid);
        check_vocabulary("shift_labels", valid(), config)?;
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

    fn sum(&self, loss_sum: &Tensor) -> LossSum {
        LossSum { loss_sum: loss_sum.double_value(&[]), num_valid_tokens: self.len() as usize }
    }
}
