//! The soft bound on scores and logits: `y = cap * tanh(x / cap)`.

use tch::Tensor;

/// `cap * tanh(x / cap)`, in place.
pub fn forward_(mut x: Tensor, cap: f64) -> Tensor {
    let _ = x.g_div_scalar_(cap);
    let _ = x.tanh_();
    x.g_mul_scalar_(cap)
}

/// The gradient of `x`, in place of that of `y`: `d_y * (1 - (y / cap)^2)`. The slope takes the place of `y`.
pub fn backward_(mut d_y: Tensor, y: Tensor, cap: f64) -> Tensor {
    d_y.g_mul_(&slope_(y, cap))
}

/// `1 - (y / cap)^2`, in place of `y`.
pub fn slope_(mut y: Tensor, cap: f64) -> Tensor {
    let _ = y.g_div_scalar_(cap);
    let _ = y.square_();
    let _ = y.g_mul_scalar_(-1.0);
    y.g_add_scalar_(1.0)
}
