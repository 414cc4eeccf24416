//! Token cross-entropy: the summed loss of a tile of logits and their gradient, in one pass and in place.

use sterna_torch_sys::kernels;
use tch::{Kind, Tensor};

use crate::tile::tiles;
use crate::{KERNEL, upcast};

/// The label of a token that has no loss.
pub const IGNORE_INDEX: i64 = -100;

/// Elements of logits that are single precision at one time: 4 MB, so that the passes over them stay in a core's cache.
const BLOCK_ELEMENTS: i64 = 1 << 20;

/// Sums the loss of a tile and overwrites its logits with their gradient, times `scale`.
///
/// With `p = softmax(logits)`, the loss of a row is `-ln p[label]`, and
/// `dL/dlogits = scale * (p - onehot(label))`; rows labelled [`IGNORE_INDEX`] have no loss and no gradient. The scale is the final
/// one (one over the number of labels that the step averages over), so nothing is rescaled afterwards.
/// Returns the sum of the unscaled losses as a double-precision scalar on the device of the logits.
///
/// # Shapes
///
/// `logits` `[s, v]`, overwritten; `labels` `[s]` integers.
///
/// # Numerics
///
/// Single precision as transformers (`logits.float()`), double for double logits; the gradient is rounded to the dtype of the
/// logits once. The sum of losses is double.
///
/// # Memory
///
/// Single-precision copies exist for a few rows at a time; on a GPU, one kernel makes none.
///
/// # Panics
///
/// If the shapes do not fit, or a label is neither [`IGNORE_INDEX`] nor in `0..v`. On a GPU the latter ends the CUDA context, and a
/// later call panics.
pub fn forward_backward(logits: &Tensor, labels: &Tensor, scale: f64) -> Tensor {
    assert_fits(logits, labels);
    if kernels::supports(&[logits]) {
        let mut logits = logits.shallow_clone();
        let losses =
            kernels::cross_entropy_forward_backward_(&mut logits, &labels.contiguous(), scale);
        return losses.expect(KERNEL).sum(Kind::Double);
    }
    for_each_block(logits, labels, |rows, block| {
        let loss_sum = block.loss_sum();
        let mut d_logits = block.log_p;
        let _ = d_logits.exp_();
        let _ = d_logits.scatter_add_(1, &block.index, &block.weight.neg());
        let _ = d_logits.g_mul_(&(block.weight * scale));
        rows.shallow_clone().copy_(&d_logits);
        loss_sum
    })
}

/// Sums the loss of a tile, leaving its logits as they are.
///
/// Shapes, numerics and panics are those of [`forward_backward`].
///
/// # Panics
///
/// As [`forward_backward`].
pub fn forward(logits: &Tensor, labels: &Tensor) -> Tensor {
    assert_fits(logits, labels);
    if kernels::supports(&[logits]) {
        let losses = kernels::cross_entropy_forward(logits, &labels.contiguous());
        return losses.expect(KERNEL).sum(Kind::Double);
    }
    for_each_block(logits, labels, |_, block| block.loss_sum())
}

/// A few rows of a tile in single precision.
struct Block {
    /// `[rows, v]`, the logarithm of the softmax.
    log_p: Tensor,
    /// `[rows, 1]`, the label, 0 where there is none.
    index: Tensor,
    /// `[rows, 1]`, 1 where there is a label and 0 elsewhere.
    weight: Tensor,
}

impl Block {
    fn loss_sum(&self) -> Tensor {
        let log_p = self.log_p.gather(1, &self.index, false);
        -(log_p * &self.weight).sum(Kind::Double)
    }
}

fn for_each_block(
    logits: &Tensor,
    labels: &Tensor,
    body: impl Fn(&Tensor, Block) -> Tensor,
) -> Tensor {
    let size = logits.size();
    let mut loss_sum = Tensor::zeros([], (Kind::Double, logits.device()));
    for rows in tiles(size[0], (BLOCK_ELEMENTS / size[1]).max(1)) {
        let (start, len) = (rows.start, rows.end - rows.start);
        let rows = logits.narrow(0, start, len);
        let labels = labels.narrow(0, start, len).unsqueeze(1);
        let log_p = upcast(&rows).log_softmax(-1, None::<Kind>);
        let weight = labels.not_equal(IGNORE_INDEX).to_kind(log_p.kind());
        let index = labels.where_scalarother(&labels.not_equal(IGNORE_INDEX), 0);
        let _ = loss_sum.g_add_(&body(&rows, Block { log_p, index, weight }));
    }
    loss_sum
}

fn assert_fits(logits: &Tensor, labels: &Tensor) {
    let (logits, labels) = (logits.size(), labels.size());
    assert!(
        logits.len() == 2 && labels == [logits[0]],
        "cross_entropy: logits are {logits:?} and labels {labels:?}, which must be [s, v] and [s]"
    );
}
