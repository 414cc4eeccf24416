//! Exact attention on a CUDA device by libtorch's own kernels, with the log-sum-exp of the scores.
//!
//! [`flash_forward`] is FlashAttention 2 over all documents of a pack at once, with windows; [`cudnn_forward`] is cuDNN's kernel for
//! one document. Both read keys and values as they are, for any number of query heads on each kv head, hold no scores in memory, and
//! take half precisions only. The functions need libtorch's CUDA library to be loaded, and link nothing of it.
//!
//! # What is relied on
//!
//! Signatures are those of the headers of libtorch 2.11.0, shapes those of its `torch/_meta_registrations.py`, and what is refused is
//! what its `libtorch_cuda.so` has messages for. The rest was read in the sources of versions before and after it, under
//! `aten/src/ATen/native`. `sterna-fake-cuda/cpp/attention_ops.cc` holds callers to all of this; none of it has run on a GPU.
//!
//! - `transformers/cuda/flash_attn/flash_api.cpp`, `mha_varlen_fwd` and `mha_varlen_bwd`: `cu_seqlens` are int32, contiguous and
//!   on the device; heads are multiples of 8 up to 256; the last stride of `q`, `k` and `v` is 1 and the others are free, but the
//!   kernels load 16 bytes at a time, which nobody checks; `max_q` and `max_k` are upper bounds that size the grid; a side of the
//!   window that is not below `max_k` counts as open. The log-sum-exp is `[n, tokens]`, the natural logarithm, in single precision.
//!   With `max_q` of 1 the forward regroups the heads and assumes a query in each document: [`PackedLengths::max_q`] is raised to
//!   2. `rng_state` is read with dropout only. The backward allocates `d_k` and `d_v` once for each query head, and `d_q` in single
//!   precision with 128 rows more for each document.
//! - `flash_attn/flash.h`: offsets are 64 bits (`index_t`). `flash_attn/mask.h`: query `i` of `q` sees key `j` of `k` if
//!   `-left <= j - (i + num_keys - num_queries) <= right`, so the last query stands at the last key. Documents and heads are the
//!   second and third dimension of the grids, which end at 65,535.
//! - `transformers/cuda/attention_backward.cu`: the backward makes `d_o` and `o` contiguous itself, but not the log-sum-exp.
//! - `cudnn/MHA.cpp`, `run_cudnn_SDP_fprop` and `run_cudnn_SDP_bprop`: causal lets query `i` see keys `0 ..= i`, which for
//!   as many keys as queries is the same; fewer kv heads than query heads are cuDNN's own business. A plan is compiled for each new
//!   shape and set of strides of `q`, `k` and `v` in each thread, and found again by these alone in older versions, so the strides of
//!   `o`, `d_o` and the log-sum-exp must follow from them: all are contiguous here. The plan of its packed backward was once looked
//!   up among those of the forward, which is why packs never go to cuDNN. The log-sum-exp is `[1, n, tokens, 1]`, natural
//!   (`torch/_meta_registrations.py`, and the merging of shares in `torch/distributed/tensor/experimental/_context_parallel`). The
//!   seed is converted on compute capability 10.0, dropout or not, so it must be a tensor.
//! - `transformers/cuda/sdp_utils.cpp`, `check_cudnn_tensor_shapes`, which the operators themselves do not call: heads are multiples of
//!   8, up to 128 (more on some processors), and a single key is not supported.

use tch::Tensor;

use crate::bridge::ffi;
use crate::error::Error;
use crate::tensor::{borrow, own};

/// The documents of a pack, and what a query sees of the keys of its own document.
///
/// With `at = i + num_keys - num_queries`, query `i` of a document sees key `j` of it if `at - left <= j <= at + right`.
#[derive(Debug)]
pub struct PackedLengths {
    /// Where each document's queries start, and the end: int32 `[documents + 1]` on the device.
    pub cu_seqlens_q: Tensor,
    /// Where each document's keys start, and the end: int32 `[documents + 1]` on the device.
    pub cu_seqlens_k: Tensor,
    /// At least the queries of the longest document.
    pub max_q: i64,
    /// At least the keys of the longest document, and more than `left` and `right` if these are to count.
    pub max_k: i64,
    /// Keys before a query's own place that it sees; all if `None`.
    pub left: Option<i64>,
    /// Keys after a query's own place that it sees, 0 for causal attention; all if `None`.
    pub right: Option<i64>,
}

impl PackedLengths {
    fn to_ffi(&self) -> ffi::PackedLengths<'_> {
        ffi::PackedLengths {
            cu_seqlens_q: borrow(&self.cu_seqlens_q),
            cu_seqlens_k: borrow(&self.cu_seqlens_k),
            max_q: self.max_q.max(2),
            max_k: self.max_k,
            left: self.left.unwrap_or(-1),
            right: self.right.unwrap_or(-1),
        }
    }
}

/// The output `[tokens, n, h]` and the log-sum-exp `[n, tokens]` of all documents of a pack.
///
/// # Shapes
///
/// `q` `[tokens, n, h]`, `k` and `v` `[keys, k, h]` with `n` a multiple of `k`, in bf16 or fp16, any strides whose last is 1.
///
/// # Errors
///
/// [`Error::OutOfMemory`]; [`Error::Torch`] if the kernel refuses a shape, a dtype or the processor.
pub fn flash_forward(
    [q, k, v]: [&Tensor; 3],
    lengths: &PackedLengths,
    scale: f64,
) -> Result<(Tensor, Tensor), Error> {
    let [q, k, v] = [q, k, v].map(borrow);
    output(ffi::flash_forward(q, k, v, &lengths.to_ffi(), scale)?)
}

/// The gradients of `q`, `k` and `v`. `o` and `lse` may be those of more keys than `k` has: then these are the shares of `k`.
///
/// # Shapes
///
/// As [`flash_forward`]; `d_o` and `o` like `q`, `lse` `[n, tokens]` in single precision; the gradients like what they are of.
///
/// # Memory
///
/// `q` in single precision, and `d_k` and `d_v` for each query head if several read one kv head.
///
/// # Numerics
///
/// Sums over queries and keys are single precision; those over the query heads of a kv head are of rounded shares. The order of
/// the sums of `d_q` is not fixed.
///
/// # Errors
///
/// As [`flash_forward`].
pub fn flash_backward(
    [d_o, q, k, v, o, lse]: [&Tensor; 6],
    lengths: &PackedLengths,
    scale: f64,
) -> Result<[Tensor; 3], Error> {
    let [d_o, q, k, v, o, lse] = [d_o, q, k, v, o, lse].map(borrow);
    gradients(ffi::flash_backward(d_o, q, k, v, o, lse, &lengths.to_ffi(), scale)?)
}

/// The output `[tokens, n, h]` and the log-sum-exp `[n, tokens]` of one document.
///
/// With `is_causal`, which needs as many keys as queries, a query sees the keys up to its own; without it, all.
///
/// # Shapes
///
/// As [`flash_forward`]; fewer than 2^31 elements from the first to the last of a tensor.
///
/// # Errors
///
/// As [`flash_forward`].
pub fn cudnn_forward(
    [q, k, v]: [&Tensor; 3],
    is_causal: bool,
    scale: f64,
) -> Result<(Tensor, Tensor), Error> {
    let [q, k, v] = [q, k, v].map(borrow);
    output(ffi::cudnn_forward(q, k, v, is_causal, scale)?)
}

/// The gradients of `q`, `k` and `v`. `o` and `lse` may be those of more keys than `k` has: then these are the shares of `k`.
///
/// # Shapes
///
/// As [`cudnn_forward`]; `d_o` and `o` like `q`, `lse` `[n, tokens]` in single precision; the gradients like what they are of.
///
/// # Errors
///
/// As [`flash_forward`].
pub fn cudnn_backward(
    [d_o, q, k, v, o, lse]: [&Tensor; 6],
    is_causal: bool,
    scale: f64,
) -> Result<[Tensor; 3], Error> {
    let [d_o, q, k, v, o, lse] = [d_o, q, k, v, o, lse].map(borrow);
    gradients(ffi::cudnn_backward(d_o, q, k, v, o, lse, is_causal, scale)?)
}

fn output(
    ffi::AttentionOutput { o, lse }: ffi::AttentionOutput,
) -> Result<(Tensor, Tensor), Error> {
    Ok((own(o)?, own(lse)?))
}

fn gradients(
    ffi::AttentionGradients { d_q, d_k, d_v }: ffi::AttentionGradients,
) -> Result<[Tensor; 3], Error> {
    Ok([own(d_q)?, own(d_k)?, own(d_v)?])
}
