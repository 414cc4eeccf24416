//! The matrix product with a weight, and its backward.

mod widened;

use tch::{Kind, Tensor};

use crate::is_widened;

/// `x * weight^T + bias`.
///
/// # Shapes
///
/// `x` `[s, i]`, `weight` `[o, i]`, `bias` `[o]`; returns `[s, o]` in the dtype of `x`.
///
/// # Numerics
///
/// Where products are widened ([`is_widened`]), the operands are made single precision and the result is rounded once; `weight` and
/// `bias` may be single precision already.
///
/// # Panics
///
/// If the shapes do not fit.
pub fn forward(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
    assert_fits(x, weight);
    if is_widened(x) {
        return widened::forward(x, weight, bias);
    }
    match bias {
        Some(bias) => bias.addmm(x, &weight.tr()),
        None => x.mm(&weight.tr()),
    }
}

/// [`forward`] into `y`, which may be a part of a longer tensor.
///
/// # Shapes
///
/// As [`forward`]; `y` `[s, o]`, contiguous, of the dtype of `x`.
///
/// # Panics
///
/// If the shapes do not fit.
pub fn forward_into(y: &mut Tensor, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) {
    match bias {
        None if !is_widened(x) => {
            assert_fits(x, weight);
            let _ = x.mm_out(y, &weight.tr());
        }
        _ => y.copy_(&forward(x, weight, bias)),
    }
}

/// The gradient of `x`: `d_y * weight`.
///
/// # Shapes
///
/// `d_y` `[s, o]`, `weight` `[o, i]`; returns `[s, i]` in the dtype of `d_y`.
///
/// # Numerics
///
/// As [`forward`].
///
/// # Panics
///
/// If the shapes do not fit.
pub fn backward_input(d_y: &Tensor, weight: &Tensor) -> Tensor {
    if is_widened(d_y) { widened::backward_input(d_y, weight) } else { d_y.mm(weight) }
}

/// Adds the gradient of `x` to `d_x`: `d_x += d_y * weight`.
///
/// # Shapes
///
/// `d_y` `[s, o]`, `weight` `[o, i]`, `d_x` `[s, i]`.
///
/// # Numerics
///
/// The sum is rounded once to the dtype of `d_x`; where products are widened, the product is rounded before it.
///
/// # Panics
///
/// If the shapes do not fit.
pub fn add_backward_input(d_x: &mut Tensor, d_y: &Tensor, weight: &Tensor) {
    let _ = if is_widened(d_y) {
        d_x.g_add_(&widened::backward_input(d_y, weight))
    } else {
        d_x.addmm_(d_y, weight)
    };
}

/// Adds the gradients of weight and bias to their accumulators: `d_weight += d_y^T * x`, `d_bias += sum over s of d_y`.
///
/// # Shapes
///
/// `d_y` `[s, o]`, `x` `[s, i]`, `d_weight` `[o, i]`, `d_bias` `[o]`.
///
/// # Numerics
///
/// The product sums in single precision over the tokens given. On a CUDA device, and where products are widened, it is added as it
/// is; on another CPU it is first rounded to the dtype of `x`, once. The accumulators are single (or double) precision, so tiles
/// and micro-batches add up without losing digits.
///
/// # Memory
///
/// On a CPU with `x` in half precision the product of a call, or what is widened at once; else nothing.
///
/// # Panics
///
/// If the shapes do not fit.
pub fn backward_params(
    d_y: &Tensor,
    x: &Tensor,
    d_weight: Option<&mut Tensor>,
    d_bias: Option<&mut Tensor>,
) {
    if let Some(d_weight) = d_weight {
        let is_half = matches!(x.kind(), Kind::BFloat16 | Kind::Half);
        if is_widened(x) {
            widened::backward_weight(d_y, x, d_weight);
        } else if d_weight.kind() == x.kind() {
            // One kernel that adds while it multiplies.
            let _ = d_weight.addmm_(&d_y.tr(), x);
        } else if x.device().is_cuda() && is_half && d_weight.kind() == Kind::Float {
            // The same. libtorch has no such product on a CPU.
            let _ = d_weight.addmm_dtype_out(d_weight, &d_y.tr(), x, Kind::Float);
        } else {
            let _ = d_weight.g_add_(&d_y.tr().mm(x));
        }
    }
    if let Some(d_bias) = d_bias {
        let kind: Kind = d_bias.kind();
        let _ = d_bias.g_add_(&d_y.sum_dim_intlist(0_i64, false, kind));
    }
}

fn assert_fits(x: &Tensor, weight: &Tensor) {
    let (x, weight) = (x.size(), weight.size());
    assert!(
        x.len() == 2 && weight.len() == 2 && x[1] == weight[1],
        "linear: x is {x:?} and the weight {weight:?}, which must be [s, i] and [o, i]"
    );
}
