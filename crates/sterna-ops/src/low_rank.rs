//! Low-rank adapters beside the product with a weight, and their backward.
//!
//! Source: Hu et al. 2021, <https://arxiv.org/abs/2106.09685>, section 4.1; Liu et al. 2024, <https://arxiv.org/abs/2402.09353>, equation 5.

use tch::{Kind, Tensor};

use crate::linear;

/// `scale * B A`, which is added to a weight.
#[derive(Debug, Clone, Copy)]
pub struct LowRank<'a> {
    /// A `[r, i]`.
    pub a: &'a Tensor,
    /// B `[o, r]`.
    pub b: &'a Tensor,
    /// What multiplies their product.
    pub scale: f64,
}

impl LowRank<'_> {
    /// `y += scale * x A^T B^T`.
    ///
    /// # Shapes
    ///
    /// `x` `[s, i]`, `y` `[s, o]`.
    ///
    /// # Numerics
    ///
    /// `x A^T` is rounded to the dtype of `x`, and the sum to that of `y`; where products are widened ([`crate::is_widened`]), the second
    /// product is rounded before it is added.
    ///
    /// # Panics
    ///
    /// If the shapes do not fit.
    pub fn add_forward(&self, y: &mut Tensor, x: &Tensor) {
        linear::add_backward_input(y, &self.down(x), &self.b.tr());
    }

    /// Adds the gradient of `x` to `d_x`, and those of A and B to their accumulators.
    ///
    /// # Shapes
    ///
    /// `d_y` `[s, o]`, `x` and `d_x` `[s, i]`; `d_a` and `d_b` as A and B.
    ///
    /// # Numerics
    ///
    /// As [`LowRank::add_forward`]; those of A and B as [`linear::backward_params`].
    ///
    /// # Panics
    ///
    /// If the shapes do not fit.
    pub fn add_backward(
        &self,
        d_x: &mut Tensor,
        d_y: &Tensor,
        x: &Tensor,
        d_a: Option<&mut Tensor>,
        d_b: Option<&mut Tensor>,
    ) {
        linear::backward_params(d_y, &self.down(x), d_b, None);
        let d_down = linear::backward_input(d_y, self.b).g_mul_scalar_(self.scale);
        linear::backward_params(&d_down, x, d_a, None);
        linear::add_backward_input(d_x, &d_down, self.a);
    }

    /// The l2 norms of the rows of `weight + scale * B A`, which DoRA divides by.
    ///
    /// # Shapes
    ///
    /// `weight` `[o, i]`; returns `[o]`, single precision (double for double).
    ///
    /// # Memory
    ///
    /// A weight in single precision.
    pub fn row_norms(&self, weight: &Tensor) -> Tensor {
        let kind = crate::accumulate_kind(weight.kind());
        let [a, b] = [self.a, self.b].map(|x| x.to_kind(kind));
        let sum = (b * self.scale).mm(&a).g_add_(weight);
        sum.norm_scalaropt_dim(2, [-1_i64].as_slice(), false)
    }

    /// `scale * x A^T`.
    fn down(&self, x: &Tensor) -> Tensor {
        linear::forward(x, self.a, None).g_mul_scalar_(self.scale)
    }
}

/// The magnitudes of DoRA: `y = z * m / n`, where `n`, the norms of the rows that gave `z`, counts as a constant.
#[derive(Debug)]
pub struct Magnitude {
    /// `m` `[o]`.
    pub magnitude: Tensor,
    /// `n` `[o]`, single or double precision.
    pub norms: Tensor,
}

impl Magnitude {
    /// `z` becomes `y`, rounded once.
    ///
    /// # Shapes
    ///
    /// `z` `[s, o]`.
    pub fn forward_(&self, z: &mut Tensor) {
        let _ = z.g_mul_(&self.factors());
    }

    /// The gradient of `z`; that of `m` is added to its accumulator.
    ///
    /// # Shapes
    ///
    /// `d_y` and `z` `[s, o]`, `d_magnitude` `[o]`.
    pub fn backward(&self, d_y: &Tensor, z: &Tensor, d_magnitude: Option<&mut Tensor>) -> Tensor {
        if let Some(d_magnitude) = d_magnitude {
            let kind: Kind = d_magnitude.kind();
            let sum = (d_y.to_kind(kind) * z).sum_dim_intlist(0_i64, false, kind);
            let _ = d_magnitude.g_add_(&(sum / &self.norms));
        }
        // What is wider than `d_y` is rounded once.
        (d_y * self.factors()).to_kind(d_y.kind())
    }

    fn factors(&self) -> Tensor {
        self.magnitude.to_kind(self.norms.kind()) / &self.norms
    }
}
