//! What the ops are measured against: plain tensor expressions under autograd, and differences of the function itself.

use sterna_torch_sys::vjp;
use tch::{Kind, Tensor};

/// Numbers between -1 and 1 that depend on `seed` only, in double precision.
pub(crate) fn random(shape: &[i64], seed: u64) -> Tensor {
    let numel: i64 = shape.iter().product();
    let noise = (Tensor::arange(numel, (Kind::Double, tch::Device::Cpu)) + 1.0) * 12.9898
        + seed as f64 * 78.233;
    let noise: Tensor = noise.sin() * 43_758.545_3;
    (noise.frac() * 0.9 + 0.05 * (seed as f64).sin()).view(shape)
}

/// The gradients of `inputs` by autograd through `f`.
pub(crate) fn autograd(
    f: impl Fn(&[Tensor]) -> Tensor,
    inputs: &[&Tensor],
    d_output: &Tensor,
) -> Vec<Tensor> {
    let leaves: Vec<Tensor> = inputs.iter().map(|x| x.detach().set_requires_grad(true)).collect();
    let output = f(&leaves);
    let grads = vjp(&[&output], &[d_output], &leaves.iter().collect::<Vec<_>>(), false).unwrap();
    grads.into_iter().map(|grad| grad.expect("the output depends on every input")).collect()
}

/// The gradients of `inputs` by central differences of `sum(f * d_output)`.
pub(crate) fn differences(
    f: impl Fn(&[Tensor]) -> Tensor,
    inputs: &[&Tensor],
    d_output: &Tensor,
) -> Vec<Tensor> {
    // The error is step^2 from the third derivative and 1e-16 / step from rounding, so about 1e-10.
    let step = 1e-5;
    let value = |inputs: &[Tensor]| (f(inputs) * d_output).sum(Kind::Double).double_value(&[]);
    (0..inputs.len())
        .map(|input_idx| {
            let slopes: Vec<f64> = (0..inputs[input_idx].numel() as i64)
                .map(|element| {
                    let moved = |by: f64| {
                        let moved: Vec<Tensor> = inputs.iter().map(|x| x.copy()).collect();
                        let _ = moved[input_idx].view(-1).get(element).g_add_scalar_(by);
                        value(&moved)
                    };
                    (moved(step) - moved(-step)) / (2.0 * step)
                })
                .collect();
            Tensor::from_slice(&slopes).view(inputs[input_idx].size().as_slice())
        })
        .collect()
}

/// Asserts that the largest difference is at most `tolerance`.
#[track_caller]
pub(crate) fn assert_close(name: &str, actual: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(actual.size(), expected.size(), "{name}: shape");
    let difference = (actual.to_kind(Kind::Double) - expected.to_kind(Kind::Double))
        .abs()
        .max()
        .double_value(&[]);
    assert!(difference <= tolerance, "{name}: differs by {difference:e}, more than {tolerance:e}");
}

/// Rounding of double-precision sums in another order.
pub(crate) const AUTOGRAD: f64 = 1e-12;
/// Central differences with a step of 1e-5.
pub(crate) const DIFFERENCES: f64 = 1e-8;
