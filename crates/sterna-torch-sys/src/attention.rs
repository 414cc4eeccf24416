//! A kernel for causal attention in bf16 on processors with bf16 dot products of 512 bits.
//!
//! libtorch's own CPU kernel sums the gradients of keys, values and queries in bf16, and reaches a fraction of what its matrix
//! products do. This one is made of products of 128 by 128 scores and sums in single precision.

use tch::{Kind, Tensor};

use crate::bridge::ffi;
use crate::error::Error;
use crate::tensor::{borrow, own};

/// Which keys a query of a call sees: key `j` is visible from query `i` if `0 <= i + keys_before - j < window`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VisibleKeys {
    /// How far the first query stands behind the first key. Not negative, at most 2^60.
    pub keys_before: i64,
    /// How many keys a query sees. Positive, at most [`VisibleKeys::NO_WINDOW`].
    pub window: i64,
}

impl VisibleKeys {
    /// A window that is longer than any sequence.
    pub const NO_WINDOW: i64 = 1 << 60;
}

/// Whether [`forward`] and [`backward`] work for tensors like `q`: bf16 on a CPU with the instructions, `h` a multiple of 32.
pub fn is_supported(q: &Tensor) -> bool {
    q.kind() == Kind::BFloat16
        && q.device() == tch::Device::Cpu
        && q.size().last().is_some_and(|h| *h > 0 && h % 32 == 0)
        && ffi::has_attention_kernel()
}

/// Writes the output of attention and the log-sum-exp of the scores.
///
/// `o_i = sum over visible j of p_ij * v_j`, `p_ij = exp(scale * q_i . k_j - lse_i)`. A query that sees no key has an output of
/// zero and a log-sum-exp of minus infinity.
///
/// # Shapes
///
/// `q` and `o` `[kv, group, queries, h]`, `k` and `v` `[kv, keys, h]`, `lse` `[kv, group, queries]` in single precision. Any
/// strides, if the last of all but `lse` is 1.
///
/// # Memory
///
/// Keys and values once more, and under 1 MB for each thread.
///
/// # Errors
///
/// [`Error::Torch`] if a shape, dtype, stride or device is another, or if this processor has no kernel.
pub fn forward(
    [q, k, v]: [&Tensor; 3],
    o: &Tensor,
    lse: &Tensor,
    visible: VisibleKeys,
    scale: f64,
) -> Result<(), Error> {
    let VisibleKeys { keys_before, window } = visible;
    let visible = ffi::VisibleKeys { keys_before, window };
    let [q, k, v, o, lse] = [q, k, v, o, lse].map(borrow);
    Ok(ffi::attention_forward(q, k, v, o, lse, &visible, scale)?)
}

/// Writes the gradient of the queries, and returns those of keys and values for each query head.
///
/// `o` and `lse` may be those of more keys than `k` has: then the gradients are the shares of these keys.
///
/// # Shapes
///
/// As [`forward`]; `d_o` and `d_q` like `q`. A `d_q` in single precision is added to, one in bf16 overwritten. Returns `d_k` and
/// `d_v` `[kv, group, keys, h]` in single precision.
///
/// # Memory
///
/// Keys twice and values once more; gradients of keys and values in single precision for each query head; for each thread under
/// 1 MB and one head's gradient of queries in single precision.
///
/// # Numerics
///
/// Probabilities and their gradients are rounded to bf16 for the products, whose sums are single precision.
///
/// # Errors
///
/// As [`forward`].
pub fn backward(
    [d_o, q, k, v, o, lse]: [&Tensor; 6],
    d_q: &Tensor,
    visible: VisibleKeys,
    scale: f64,
) -> Result<(Tensor, Tensor), Error> {
    let VisibleKeys { keys_before, window } = visible;
    let visible = ffi::VisibleKeys { keys_before, window };
    let [d_o, q, k, v, o, lse, d_q] = [d_o, q, k, v, o, lse, d_q].map(borrow);
    let ffi::KeyGradients { d_k, d_v } =
        ffi::attention_backward(d_o, q, k, v, o, lse, d_q, &visible, scale)?;
    Ok((own(d_k)?, own(d_v)?))
}
