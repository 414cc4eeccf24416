//! The activation `xIELU`, whose two curvatures are trained.
//!
//! # Source
//!
//! Huang and Schlag 2024, <https://arxiv.org/abs/2411.13010>; transformers `activations.py`, `XIELUActivation`.

use tch::Tensor;

use crate::tile::tiles;
use crate::upcast;

/// Its parameters.
#[derive(Debug, Clone, Copy)]
pub struct Xielu<'a> {
    /// `[1]`; its softplus is the curvature above zero.
    pub alpha_p: &'a Tensor,
    /// `[1]`; its softplus and `beta` are the curvature below.
    pub alpha_n: &'a Tensor,
    /// `[]`, the slope at zero.
    pub beta: &'a Tensor,
    /// `[]`, below zero: the exponential sees nothing larger.
    pub eps: &'a Tensor,
}

impl Xielu<'_> {
    /// `a_p`, `a_n`, `b` and `eps`.
    fn constants(&self) -> [Tensor; 4] {
        let [alpha_p, alpha_n, beta, eps] =
            [self.alpha_p, self.alpha_n, self.beta, self.eps].map(upcast);
        [alpha_p.softplus(), alpha_n.softplus() + &beta, beta, eps]
    }
}

/// `a_p x^2 + b x` above zero, `a_n (exp(min(x, eps)) - 1 - x) + b x` below.
///
/// # Shapes
///
/// `x` `[s, f]`; returns the same in the dtype of `x`.
///
/// # Numerics
///
/// Single precision (double for double), rounded once.
pub fn forward(x: &Tensor, xielu: &Xielu<'_>) -> Tensor {
    let [a_p, a_n, beta, eps] = xielu.constants();
    let y = x.empty_like();
    for rows in blocks(x) {
        let x = upcast(&x.narrow(0, rows.start, rows.end - rows.start));
        let below = (x.clamp_max_tensor(&eps).expm1() - &x) * &a_n;
        let above = x.square() * &a_p;
        let curved = above.where_self(&x.gt(0.0), &below);
        y.narrow(0, rows.start, rows.end - rows.start).copy_(&(curved + x * &beta));
    }
    y
}

/// The gradient of `x`; those of the alphas are added to `d_alpha_p` and `d_alpha_n`.
///
/// # Shapes
///
/// `d_y` and `x` `[s, f]`; returns the same.
///
/// # Numerics
///
/// Single precision (double for double); sums over all elements are rounded once to the dtype of the accumulators.
pub fn backward(
    d_y: &Tensor,
    x: &Tensor,
    xielu: &Xielu<'_>,
    d_alpha_p: Option<&mut Tensor>,
    d_alpha_n: Option<&mut Tensor>,
) -> Tensor {
    let [a_p, a_n, beta, eps] = xielu.constants();
    let d_x = x.empty_like();
    let mut sums = [a_p.zeros_like(), a_n.zeros_like()];
    for rows in blocks(x) {
        let part = |x: &Tensor| upcast(&x.narrow(0, rows.start, rows.end - rows.start));
        let (x, d_y) = (part(x), part(d_y));
        let is_above = x.gt(0.0);
        let clamped = x.clamp_max_tensor(&eps);
        let below = clamped.expm1() - &x;
        let zero = x.zeros_like();
        let shares = [x.square().where_self(&is_above, &zero), zero.where_self(&is_above, &below)];
        for (sum, share) in sums.iter_mut().zip(shares) {
            let _ = sum.g_add_(&(share * &d_y).sum(None::<tch::Kind>));
        }
        // A clamp passes the gradient of what it leaves as it is.
        let slope = clamped.exp() * x.le_tensor(&eps) - 1.0;
        let curved = (&x * 2.0 * &a_p).where_self(&is_above, &(slope * &a_n));
        d_x.narrow(0, rows.start, rows.end - rows.start).copy_(&((curved + &beta) * d_y));
    }
    let alphas = [(d_alpha_p, xielu.alpha_p), (d_alpha_n, xielu.alpha_n)];
    for ((grad, alpha), sum) in alphas.into_iter().zip(sums) {
        if let Some(grad) = grad {
            // The slope of a softplus is a sigmoid.
            let _ = grad.g_add_(&(sum * upcast(alpha).sigmoid()));
        }
    }
    d_x
}

/// Rows that are single precision at one time: 1 MB of them.
fn blocks(x: &Tensor) -> impl Iterator<Item = std::ops::Range<i64>> + use<> {
    let size = x.size();
    tiles(size[0], ((1 << 18) / size[1].max(1)).max(1))
}
