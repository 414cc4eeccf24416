//! The gated activation of the MLP: `silu(gate) * up`.

use sterna_torch_sys::kernels;
use tch::Tensor;

use crate::KERNEL;

/// `silu(gate) * up`, where `silu(x) = x * sigmoid(x)`.
///
/// # Shapes
///
/// `gate` and `up` `[s, f]`; returns `[s, f]`.
///
/// # Panics
///
/// If the shapes differ.
pub fn forward(gate: &Tensor, up: &Tensor) -> Tensor {
    assert_fits(gate, up);
    if kernels::supports(&[gate, up]) {
        return kernels::swiglu_forward(&gate.contiguous(), &up.contiguous()).expect(KERNEL);
    }
    gate.silu().g_mul_(up)
}

/// The gradients of `gate` and `up`.
///
/// `dL/dup = d_y * silu(gate)` and `dL/dgate = d_y * up * silu'(gate)`.
///
/// # Shapes
///
/// All `[s, f]`.
///
/// # Panics
///
/// If the shapes differ.
pub fn backward(d_y: &Tensor, gate: &Tensor, up: &Tensor) -> (Tensor, Tensor) {
    assert_fits(gate, up);
    assert_fits(d_y, up);
    if kernels::supports(&[d_y, gate, up]) {
        let gradients =
            kernels::swiglu_backward(&d_y.contiguous(), &gate.contiguous(), &up.contiguous());
        return gradients.expect(KERNEL);
    }
    let d_gate = gate.silu_backward(&(d_y * up));
    let d_up = gate.silu().g_mul_(d_y);
    (d_gate, d_up)
}

fn assert_fits(gate: &Tensor, up: &Tensor) {
    let (gate, up) = (gate.size(), up.size());
    assert!(gate == up, "swiglu: one tensor is {gate:?} and the other {up:?}, which must be equal");
}
