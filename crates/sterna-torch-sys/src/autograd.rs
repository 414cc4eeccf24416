//! Vector-Jacobian products, which tch cannot ask for: its backward seeds every root with ones.

use tch::Tensor;

use crate::{
    bridge::ffi,
    error::Error,
    tensor::{borrow_all, take},
};

/// Multiplies gradients of `outputs` into the Jacobian of `outputs` with respect to `inputs`.
///
/// Returns, for each input, `sum over o of d_outputs[o]^T * d outputs[o] / d inputs[i]`, or `None` for an input that no
/// output depends on. Nothing is accumulated anywhere: `grad` fields of leaves stay as they are.
/// The graph is freed unless `retain_graph`. The gradients are not themselves differentiable.
///
/// # Shapes
///
/// `d_outputs[o]` has the shape of `outputs[o]`; the result for `inputs[i]` has the shape and dtype of `inputs[i]`.
///
/// # Errors
///
/// [`Error::Torch`] if an output does not require grad, if a shape differs, or if the graph was freed before;
/// [`Error::OutOfMemory`] if a gradient cannot be allocated.
///
/// # Source
///
/// `torch::autograd::grad` with `allow_unused`.
pub fn vjp(
    outputs: &[&Tensor],
    d_outputs: &[&Tensor],
    inputs: &[&Tensor],
    retain_graph: bool,
) -> Result<Vec<Option<Tensor>>, Error> {
    let grads =
        ffi::vjp(&borrow_all(outputs), &borrow_all(d_outputs), &borrow_all(inputs), retain_graph)?;
    Ok(grads.into_iter().map(|grad| take(grad.tensor)).collect())
}
