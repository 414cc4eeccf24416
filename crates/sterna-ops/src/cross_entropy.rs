//! Token cross-entropy: the loss of each row of a tile of logits and their gradient, in one pass and in place.

use std::ops::Range;

use sterna_torch_sys::kernels;
use tch::{Kind, Tensor};

use crate::tile::tiles;
use crate::{KERNEL, accumulate_kind, upcast};

/// The label of a token that has no loss.
pub const IGNORE_INDEX: i64 = -100;

/// Elements of logits that are single precision at one time: 4 MB, so that the passes over them stay in a core's cache.
const BLOCK_ELEMENTS: i64 = 1 << 20;

/// The losses of a tile, on the device of its logits.
#[derive(Debug)]
pub struct Losses {
    /// `[s]`: `-ln softmax(logits)[label]`, 0 in rows labelled [`IGNORE_INDEX`]; single precision (double for double logits).
    pub of_rows: Tensor,
    /// Their sum, a double-precision scalar.
    pub sum: Tensor,
}

/// The losses of a tile, whose logits are overwritten with the gradient of their weighted sum.
///
/// With `p = softmax(logits)`, the loss of a row is `-ln p[label]`, and
/// `dL/dlogits = weight * (p - onehot(label))`; rows labelled [`IGNORE_INDEX`] have no loss and no gradient. A weight is the final
/// one (such as one over the number of labels that the step averages over), so nothing is rescaled afterwards. The losses returned
/// are not weighted.
///
/// # Shapes
///
/// `logits` `[s, v]`, overwritten; `labels` `[s]` integers; `weights` `[s]`, double precision.
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
pub fn forward_backward(logits: &Tensor, labels: &Tensor, weights: &Tensor) -> Losses {
    assert_fits(logits, labels);
    let (found, required) = (weights.size(), labels.size());
    assert_eq!(found, required, "cross_entropy: weights must be as long as labels");
    if kernels::supports(&[logits]) {
        let mut logits = logits.shallow_clone();
        let weights = weights.to_kind(Kind::Float).contiguous();
        let labels = labels.contiguous();
        let losses = kernels::cross_entropy_forward_backward_(&mut logits, &labels, &weights);
        return Losses::new(losses.expect(KERNEL));
    }
    for_each_block(logits, labels, |range, block| {
        let losses = block.losses();
        let mut d_logits = block.log_p;
        let _ = d_logits.exp_();
        let _ = d_logits.scatter_add_(1, &block.index, &block.weight.neg());
        let weights = weights.narrow(0, range.start, range.end - range.start).unsqueeze(1);
        let _ = d_logits.g_mul_(&(block.weight * weights.to_kind(d_logits.kind())));
        logits.narrow(0, range.start, range.end - range.start).copy_(&d_logits);
        losses
    })
}

/// The losses of a tile, whose logits are left as they are.
///
/// Shapes, numerics and panics are those of [`forward_backward`].
///
/// # Panics
///
/// As [`forward_backward`].
pub fn forward(logits: &Tensor, labels: &Tensor) -> Losses {
    assert_fits(logits, labels);
    if kernels::supports(&[logits]) {
        let losses = kernels::cross_entropy_forward(logits, &labels.contiguous());
        return Losses::new(losses.expect(KERNEL));
    }
    for_each_block(logits, labels, |_, block| block.losses())
}

impl Losses {
    fn new(of_rows: Tensor) -> Losses {
        let sum = of_rows.sum(Kind::Double);
        Losses { of_rows, sum }
    }
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
    /// `[rows]`.
    fn losses(&self) -> Tensor {
        let log_p = self.log_p.gather(1, &self.index, false);
        -(log_p * &self.weight).squeeze_dim(1)
    }
}

fn for_each_block(
    logits: &Tensor,
    labels: &Tensor,
    losses_of: impl Fn(&Range<i64>, Block) -> Tensor,
) -> Losses {
    let size = logits.size();
    let mut sum = Tensor::zeros([], (Kind::Double, logits.device()));
    let of_rows = Tensor::zeros(&size[..1], (accumulate_kind(logits.kind()), logits.device()));
    for range in tiles(size[0], (BLOCK_ELEMENTS / size[1]).max(1)) {
        let (start, len) = (range.start, range.end - range.start);
        let rows = logits.narrow(0, start, len);
        let labels = labels.narrow(0, start, len).unsqueeze(1);
        let log_p = upcast(&rows).log_softmax(-1, None::<Kind>);
        let weight = labels.not_equal(IGNORE_INDEX).to_kind(log_p.kind());
        let index = labels.where_scalarother(&labels.not_equal(IGNORE_INDEX), 0);
        let losses = losses_of(&range, Block { log_p, index, weight });
        let _ = sum.g_add_(&losses.sum(Kind::Double));
        of_rows.narrow(0, start, len).copy_(&losses);
    }
    Losses { of_rows, sum }
}

fn assert_fits(logits: &Tensor, labels: &Tensor) {
    let (logits, labels) = (logits.size(), labels.size());
    assert!(
        logits.len() == 2 && labels == [logits[0]],
        "cross_entropy: logits are {logits:?} and labels {labels:?}, which must be [s, v] and [s]"
    );
}
