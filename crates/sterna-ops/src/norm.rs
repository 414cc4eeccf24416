//! Norms over the last dimension, of every kind that a layer may have.
//!
//! [`NormKind::Rms`] with a weight is [`crate::rms_norm`], which has kernels of its own on a GPU; the others are libtorch's ops over
//! blocks of rows on any device.

use std::ops::Range;

use sterna_arch::NormKind;
use tch::{Kind, Tensor};

use crate::tile::tiles;
use crate::{rms_norm, upcast};

/// What a norm computes, with its weights.
#[derive(Debug, Clone, Copy)]
pub struct Norm<'a> {
    /// The formula.
    pub kind: NormKind,
    /// Added to the mean square.
    pub eps: f64,
    /// `[d]`, or as many of the last dimensions as the weight has: `[n, h]` is a weight for each head.
    pub weight: Option<&'a Tensor>,
    /// As the weight.
    pub bias: Option<&'a Tensor>,
}

impl Norm<'_> {
    /// The norm of `x`.
    ///
    /// # Shapes
    ///
    /// `x` `[.., d]`; returns the same in the dtype of `x`.
    ///
    /// # Numerics
    ///
    /// Single precision (double for double) within; [`NormKind`] says where it is rounded.
    ///
    /// # Panics
    ///
    /// If the weight is not as the last dimensions of `x`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        if let (NormKind::Rms, Some(weight), 1) = (self.kind, self.weight, self.num_dims()) {
            return rms_norm::forward(x, weight, self.eps);
        }
        let rows = self.rows(x);
        let y = rows.empty_like();
        let factor = self.factor();
        for block in blocks(&rows) {
            let (start, len) = (block.start, block.end - block.start);
            let (mut z, _) = self.normalise(&rows.narrow(0, start, len));
            if self.kind == NormKind::Rms {
                z = z.to_kind(x.kind());
            }
            if let Some(factor) = &factor {
                let _ = z.g_mul_(factor);
            }
            if let Some(bias) = self.bias {
                let _ = z.g_add_(bias);
            }
            y.narrow(0, start, len).copy_(&z);
        }
        y.view_as(x)
    }

    /// The gradient of `x`; those of weight and bias are added to `d_weight` and `d_bias`.
    ///
    /// With `c` the input, less its mean in a layer norm, `r = 1 / sqrt(mean(c^2) + eps)`, `z = c * r` and `g = d_y * factor`:
    /// `dL/dx = r * (g - z * mean(g * z))`, less the mean of that in a layer norm, `dL/dweight = sum over rows of d_y * z`.
    ///
    /// # Shapes
    ///
    /// `d_y` and `x` `[.., d]`; gradients of weights as the weights. Returns as `x`.
    ///
    /// # Numerics
    ///
    /// Single precision (double for double) throughout, rounded to the dtype of `x` at the end; sums over rows are rounded once to the
    /// dtype that they are added to.
    ///
    /// # Panics
    ///
    /// As [`Norm::forward`].
    pub fn backward(
        &self,
        d_y: &Tensor,
        x: &Tensor,
        d_weight: Option<&mut Tensor>,
        d_bias: Option<&mut Tensor>,
    ) -> Tensor {
        if let (NormKind::Rms, Some(weight), 1) = (self.kind, self.weight, self.num_dims()) {
            return rms_norm::backward(d_y, x, weight, self.eps, d_weight);
        }
        let (rows, d_y) = (self.rows(x), self.rows(d_y));
        let d_x = rows.empty_like();
        let factor = self.factor();
        let zeros = |is_wanted: bool| {
            let zeros = || factor.as_ref().map(Tensor::zeros_like);
            if is_wanted { zeros() } else { None }
        };
        let mut sums = [zeros(d_weight.is_some()), zeros(d_bias.is_some())];
        for block in blocks(&rows) {
            let (start, len) = (block.start, block.end - block.start);
            let (z, r) = self.normalise(&rows.narrow(0, start, len));
            let d_y = upcast(&d_y.narrow(0, start, len));
            if let [Some(sum), _] = &mut sums {
                let _ = sum.g_add_(&(&d_y * &z).sum_dim_intlist(0_i64, false, sum.kind()));
            }
            if let [_, Some(sum)] = &mut sums {
                let _ = sum.g_add_(&d_y.sum_dim_intlist(0_i64, false, sum.kind()));
            }
            let g = match &factor {
                Some(factor) => d_y * factor,
                None => d_y,
            };
            let along = (&g * &z).mean_dim(-1_i64, true, None::<Kind>);
            // Without a factor `g` is the caller's `d_y`: this tensor is the first that is not.
            let mut of_block = &g - z * along;
            if self.is_centred() {
                let _ = of_block.g_sub_(&g.mean_dim(-1_i64, true, None::<Kind>));
            }
            let _ = of_block.g_mul_(&r);
            d_x.narrow(0, start, len).copy_(&of_block);
        }
        let [of_weight, of_bias] = sums;
        for (grad, sum) in [(d_weight, of_weight), (d_bias, of_bias)] {
            if let (Some(grad), Some(sum)) = (grad, sum) {
                let _ = grad.g_add_(&sum);
            }
        }
        d_x.view_as(x)
    }

    fn num_dims(&self) -> usize {
        self.weight.map_or(0, Tensor::dim)
    }

    /// `z` and `r`, both in single precision or better.
    fn normalise(&self, x: &Tensor) -> (Tensor, Tensor) {
        let mut x = upcast(x);
        if self.is_centred() {
            // Not in place: this may be the caller's tensor.
            x = &x - x.mean_dim(-1_i64, true, None::<Kind>);
        }
        let mean_square = x.square().mean_dim(-1_i64, true, None::<Kind>);
        let r = (mean_square + self.eps).rsqrt();
        (x * &r, r)
    }

    fn is_centred(&self) -> bool {
        matches!(self.kind, NormKind::Layer | NormKind::LayerOnePlus)
    }

    /// What multiplies the normalised values, in single precision or better.
    fn factor(&self) -> Option<Tensor> {
        let weight = self.weight?;
        Some(match self.kind {
            NormKind::Rms | NormKind::RmsRoundedOnce | NormKind::Layer => upcast(weight),
            NormKind::RmsOnePlus => upcast(weight) + 1.0,
            // Transformers' `LayerNorm1P` adds in the dtype of the weight.
            NormKind::LayerOnePlus => upcast(&(weight + 1.0)),
        })
    }

    /// `x` as rows of what one weight covers.
    fn rows(&self, x: &Tensor) -> Tensor {
        let size = x.size();
        let num_dims = self.weight.map_or(1, Tensor::dim);
        let of_weight = &size[size.len() - num_dims..];
        if let Some(weight) = self.weight {
            assert!(
                weight.size() == of_weight,
                "norm: x is {size:?} and the weight {:?}, which must be its last dimensions",
                weight.size()
            );
        }
        x.reshape([&[-1], of_weight].concat())
    }
}

/// Rows that are single precision at one time, as [`rms_norm`] has them.
fn blocks(rows: &Tensor) -> impl Iterator<Item = Range<i64>> + use<> {
    let size = rows.size();
    let width: i64 = size[1..].iter().product();
    tiles(size[0], ((1 << 18) / width.max(1)).max(1))
}
