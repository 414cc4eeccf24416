//! Activations of one argument. `SiLU` with a gate is [`crate::swiglu`].

use sterna_arch::Elementwise;
use tch::Tensor;

/// `f(x)`, elementwise, in the dtype of `x`.
pub fn forward(function: Elementwise, x: &Tensor) -> Tensor {
    match function {
        Elementwise::Silu => x.silu(),
        Elementwise::Gelu => x.gelu("none"),
        Elementwise::GeluTanh => x.gelu("tanh"),
        Elementwise::Relu2 => x.relu().square_(),
    }
}

/// The gradient of `x`: `d_y * f'(x)`.
pub fn backward(function: Elementwise, d_y: &Tensor, x: &Tensor) -> Tensor {
    match function {
        Elementwise::Silu => x.silu_backward(d_y),
        Elementwise::Gelu => x.gelu_backward(d_y, "none"),
        Elementwise::GeluTanh => x.gelu_backward(d_y, "tanh"),
        Elementwise::Relu2 => x.relu().g_mul_(d_y).g_mul_scalar_(2.0),
    }
}
