//! Fused optimizer steps, which tch does not bind.

use tch::{Kind, Tensor};

use crate::{bridge::ffi, error::Error, tensor::borrow};

/// The numbers of one AdamW update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Learning rate of this update.
    pub lr: f64,
    /// Decay of the average of gradients.
    pub beta1: f64,
    /// Decay of the average of squared gradients.
    pub beta2: f64,
    /// Decoupled weight decay: `param -= lr * weight_decay * param`, before the gradient's part.
    pub weight_decay: f64,
    /// Added to the root of the averaged squared gradient.
    pub eps: f64,
}

/// Does one AdamW update in place, in one pass over the memory.
///
/// `step` counts updates from 1. `exp_avg` and `exp_avg_sq` are the optimizer's state, zero before the first update.
///
/// # Shapes
///
/// All four tensors have the same shape, here a flat one, and dtype fp32.
///
/// # Numerics
///
/// With `g` the gradient, in this order: `param *= 1 - lr * weight_decay`; `exp_avg += (1 - beta1) * (g - exp_avg)`;
/// `exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * g^2`;
/// `param -= lr / (1 - beta1^step) * exp_avg / (sqrt(exp_avg_sq) / sqrt(1 - beta2^step) + eps)`.
/// `step` is exact up to 2^24.
///
/// # Errors
///
/// [`Error::Operand`] if shapes or devices differ, if a dtype is not fp32, or if a tensor is not contiguous.
///
/// # Source
///
/// Loshchilov and Hutter 2019, <https://arxiv.org/abs/1711.05101>; `torch.optim.AdamW(fused=True)`.
pub fn fused_adamw_(
    param: &Tensor,
    grad: &Tensor,
    exp_avg: &Tensor,
    exp_avg_sq: &Tensor,
    step: i64,
    adamw: &AdamW,
) -> Result<(), Error> {
    check("param", param, param)?;
    check("grad", grad, param)?;
    check("exp_avg", exp_avg, param)?;
    check("exp_avg_sq", exp_avg_sq, param)?;
    let &AdamW { lr, beta1, beta2, weight_decay, eps } = adamw;
    let [param, grad, exp_avg, exp_avg_sq] = [param, grad, exp_avg, exp_avg_sq].map(borrow);
    let adamw = ffi::AdamW { lr, beta1, beta2, weight_decay, eps };
    Ok(ffi::fused_adamw_(param, grad, exp_avg, exp_avg_sq, step, &adamw)?)
}

/// Refuses what the kernel would read past the end of, or misread: it takes sizes and dtype from `param` alone.
fn check(operand: &'static str, tensor: &Tensor, param: &Tensor) -> Result<(), Error> {
    if tensor.kind() == Kind::Float
        && tensor.size() == param.size()
        && tensor.device() == param.device()
        && tensor.is_contiguous()
    {
        return Ok(());
    }
    Err(Error::operand(
        operand,
        tensor,
        "fp32, contiguous, and of the shape and on the device of `param`",
    ))
}
