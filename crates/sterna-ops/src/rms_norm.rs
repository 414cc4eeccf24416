//! Root-mean-square normalisation as transformers' `LlamaRMSNorm` computes it.

use tch::{Kind, Tensor};

use crate::{accumulate_kind, upcast};

/// `weight * (x / sqrt(mean(x^2) + eps))` over the last dimension.
///
/// # Shapes
///
/// `x` `[.., d]`, `weight` `[d]`; returns `[.., d]` in the dtype of `x`.
///
/// # Numerics
///
/// The normalised value is computed in single precision and rounded to the dtype of `x` before the weight multiplies it.
///
/// # Panics
///
/// If the last dimensions differ.
pub fn forward(x: &Tensor, weight: &Tensor, eps: f64) -> Tensor {
    assert_fits(x, weight);
    normalise(x, eps).0.to_kind(x.kind()) * weight
}

/// The gradient of `x`; that of the weight is added to `d_weight`.
///
/// With `r = 1 / sqrt(mean(x^2) + eps)`, `z = x * r` and `g = d_y * weight`:
/// `dL/dx = r * (g - z * mean(g * z))` and `dL/dweight = sum over rows of d_y * z`.
///
/// # Shapes
///
/// `d_y` and `x` `[.., d]`, `weight` and `d_weight` `[d]`; returns `[.., d]` in the dtype of `x`.
///
/// # Numerics
///
/// Single precision throughout, rounded to the dtype of `x` at the end.
///
/// # Panics
///
/// If the shapes do not fit.
pub fn backward(
    d_y: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    eps: f64,
    d_weight: Option<&mut Tensor>,
) -> Tensor {
    assert_fits(x, weight);
    let kind = accumulate_kind(x.kind());
    let d_y = d_y.to_kind(kind);
    let (mut z, r) = normalise(x, eps);
    let d_y_z = &d_y * &z;
    if let Some(d_weight) = d_weight {
        let rows = d_y_z.view([-1, weight.size()[0]]);
        let _ = d_weight.g_add_(&rows.sum_dim_intlist(0_i64, false, d_weight.kind()));
    }
    // mean(g * z), with g = d_y * weight: one matrix-vector product.
    let mean = d_y_z.matmul(&weight.to_kind(kind)).unsqueeze(-1) / weight.size()[0] as f64;
    drop(d_y_z);
    // In place from here: `z` and `d_y * weight` belong to this call.
    let mut g = d_y * weight;
    let _ = z.g_mul_(&mean);
    let _ = g.g_sub_(&z);
    let _ = g.g_mul_(&r);
    g.to_kind(x.kind())
}

/// `x * r` `[.., d]` and `r` `[.., 1]`, both in single precision or better.
fn normalise(x: &Tensor, eps: f64) -> (Tensor, Tensor) {
    let x = upcast(x);
    let mean_square = x.square().mean_dim(-1_i64, true, None::<Kind>);
    let r = (mean_square + eps).rsqrt();
    (x * &r, r)
}

fn assert_fits(x: &Tensor, weight: &Tensor) {
    let (x, weight) = (x.size(), weight.size());
    assert!(
        weight.len() == 1 && x.last() == weight.last(),
        "rms_norm: x is {x:?} and the weight {weight:?}, which must be [.., d] and [d]"
    );
}
