//! A gated activation with clamps: `(up' + 1) * gate' * sigmoid(alpha * gate')`.
//!
//! `gate'` is the gate and at most `limit`, `up'` is `up` between `-limit` and `limit`. The sigmoid with an `alpha` of 1.702 is near to a
//! gelu; one more than `up` lets what the gate gives through where `up` is zero.

use tch::Tensor;

use crate::upcast;

/// The constants of the activation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Clamp {
    /// What the gate is multiplied by inside the sigmoid.
    pub alpha: f64,
    /// What both are clamped to: the gate from above, `up` both ways.
    pub limit: f64,
}

/// `(up' + 1) * gate' * sigmoid(alpha * gate')`.
///
/// # Shapes
///
/// `gate` and `up` `[s, f]`; returns `[s, f]` in their dtype.
///
/// # Numerics
///
/// Single precision (double for double), rounded once.
///
/// # Panics
///
/// If the shapes differ.
pub fn forward(gate: &Tensor, up: &Tensor, clamp: Clamp) -> Tensor {
    assert_fits(gate, up);
    let (wide_gate, wide_up) = clamped(gate, up, clamp);
    let glu = (&wide_gate * clamp.alpha).sigmoid_().g_mul_(&wide_gate);
    ((wide_up + 1.0) * glu).to_kind(gate.kind())
}

/// The gradients of `gate` and `up`.
///
/// With `s = sigmoid(alpha * gate')`: `dL/dup = d_y * gate' * s` and `dL/dgate = d_y * (up' + 1) * s * (1 + alpha * gate' * (1 - s))`, both
/// zero where a clamp holds.
///
/// # Shapes
///
/// All `[s, f]`.
///
/// # Numerics
///
/// As [`forward`]. At the limit itself a gradient passes, as autograd has it.
///
/// # Panics
///
/// If the shapes differ.
pub fn backward(d_y: &Tensor, gate: &Tensor, up: &Tensor, clamp: Clamp) -> (Tensor, Tensor) {
    assert_fits(gate, up);
    assert_fits(d_y, up);
    let Clamp { alpha, limit } = clamp;
    let (wide_gate, wide_up) = clamped(gate, up, clamp);
    let s = (&wide_gate * alpha).sigmoid_();
    let d_y = upcast(d_y);
    let d_up = &d_y * &wide_gate * &s * up.abs().le(limit);
    let slope = (s.ones_like() - &s) * &wide_gate * alpha + 1.0;
    let d_gate = d_y * (wide_up + 1.0) * s * slope * gate.le(limit);
    (d_gate.to_kind(gate.kind()), d_up.to_kind(up.kind()))
}

fn clamped(gate: &Tensor, up: &Tensor, Clamp { limit, .. }: Clamp) -> (Tensor, Tensor) {
    (upcast(gate).clamp_max(limit), upcast(up).clamp(-limit, limit))
}

fn assert_fits(gate: &Tensor, up: &Tensor) {
    let (gate, up) = (gate.size(), up.size());
    assert!(
        gate == up,
        "clamped swiglu: one tensor is {gate:?} and the other {up:?}, which must be equal"
    );
}
