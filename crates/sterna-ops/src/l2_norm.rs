//! Vectors divided by their length.

use tch::{Kind, Tensor};

/// What is added to the square of the length.
///
/// Source: transformers `l2norm`, as its classes call it.
const EPS: f64 = 1e-6;

/// `y = x * r` with `r = 1 / sqrt(sum(x^2) + 1e-6)`, and `r`.
///
/// # Shapes
///
/// `x` `[.., d]`; returns `y` `[.., d]` and `r` `[.., 1]`, in the dtype of `x`.
pub fn forward(x: &Tensor) -> (Tensor, Tensor) {
    let r = (x.square().sum_dim_intlist(-1_i64, true, None::<Kind>) + EPS).rsqrt();
    (x * &r, r)
}

/// The gradient of `x` from that of `y`: `dL/dx = r * (d_y - y * sum(d_y * y))`.
///
/// # Shapes
///
/// `d_y` and `y` `[.., d]`, `r` `[.., 1]`; returns `[.., d]`.
pub fn backward(d_y: &Tensor, y: &Tensor, r: &Tensor) -> Tensor {
    let along = (d_y * y).sum_dim_intlist(-1_i64, true, None::<Kind>);
    (d_y - y * along).g_mul_(r)
}
