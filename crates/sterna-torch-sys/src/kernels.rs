//! CUDA kernels of ours, for what libtorch does in several passes over the same memory.
//!
//! The sources are under `kernels/` and part of the program. NVRTC compiles them for the GPU at hand when the first one is
//! called, and [`set_cache_dir`] keeps what it made. A kernel runs on libtorch's current stream of the tensors' device, so it
//! is ordered with libtorch's own, and returns before it has run.
//!
//! Each function has a definition in libtorch's operations, in the file of `sterna-ops` of the same name, and rounds where that
//! one does. Tensors are bf16 or fp32, all of one dtype and device: see [`supports`].

mod cache;
mod compile;
mod error;
mod launch;

pub use compile::{Compiled, Compiler};
pub use error::Error;
pub use launch::{set_cache_dir, set_nvrtc_dir};

use tch::{Device, Kind, Tensor};

use crate::Error as TorchError;
use launch::{Argument, Work, launch};

/// Threads of a block that has a row of the vocabulary: enough to keep a multiprocessor's loads in flight.
const VOCAB_THREADS: u32 = 512;
/// Packs of 16 bytes that a thread of a norm keeps of its row (`kernels/rms_norm.cu`).
const PACKS: u32 = 4;

/// Whether the kernels take these tensors: all on one CUDA device, and all bf16 or all fp32.
pub fn supports(tensors: &[&Tensor]) -> bool {
    let Some(first) = tensors.first() else { return false };
    first.device().is_cuda()
        && matches!(first.kind(), Kind::BFloat16 | Kind::Float)
        && tensors.iter().all(|x| x.device() == first.device() && x.kind() == first.kind())
}

/// The loss of each row of `logits`, fp32, 0 where its label is -100.
///
/// # Shapes
///
/// `logits` `[s, v]`, whose rows are contiguous; `labels` `[s]` of 64 bits; returns `[s]`.
///
/// # Errors
///
/// [`crate::Error::Operand`], or [`Error`] in [`crate::Error::Kernels`]. A label outside of `0..v` other than -100 ends the
/// CUDA context, as libtorch's own kernels do: the next call that waits for the device says so.
pub fn cross_entropy_forward(logits: &Tensor, labels: &Tensor) -> Result<Tensor, TorchError> {
    cross_entropy(logits, labels, None)
}

/// As [`cross_entropy_forward`]; the logits become `weight * (softmax(logits) - onehot(label))`, or 0 where the label is -100. `weights`
/// is `[s]`, single precision.
///
/// # Errors
///
/// As [`cross_entropy_forward`].
pub fn cross_entropy_forward_backward_(
    logits: &mut Tensor,
    labels: &Tensor,
    weights: &Tensor,
) -> Result<Tensor, TorchError> {
    cross_entropy(logits, labels, Some(weights))
}

fn cross_entropy(
    logits: &Tensor,
    labels: &Tensor,
    weights: Option<&Tensor>,
) -> Result<Tensor, TorchError> {
    let required = "[s, v], bf16 or fp32, on a CUDA device, with contiguous rows";
    let device = device_of("logits", logits, logits.dim() == 2, required)?;
    let (size, stride) = (logits.size(), logits.stride());
    ensure("logits", logits, stride[1] == 1 || size[1] == 1, required)?;
    let fits = labels.kind() == Kind::Int64
        && labels.size() == [size[0]]
        && labels.is_contiguous()
        && labels.device() == logits.device();
    ensure(
        "labels",
        labels,
        fits,
        "[s] of 64-bit integers, contiguous, on the device of the logits",
    )?;
    if let Some(weights) = weights {
        let fits = weights.kind() == Kind::Float
            && weights.size() == [size[0]]
            && weights.is_contiguous()
            && weights.device() == logits.device();
        ensure(
            "weights",
            weights,
            fits,
            "[s], single precision, contiguous, on the device of the logits",
        )?;
    }
    let losses = Tensor::empty([size[0]], (Kind::Float, logits.device()));
    let mut arguments = vec![
        Argument::of(logits),
        Argument::Int64(stride[0]),
        Argument::of(labels),
        Argument::of(&losses),
        Argument::Int64(size[0]),
        Argument::Int64(size[1]),
    ];
    arguments.extend(weights.map(Argument::of));
    let name =
        if weights.is_some() { "cross_entropy_forward_backward" } else { "cross_entropy_forward" };
    let work = Work::Rows { rows: size[0], threads: VOCAB_THREADS };
    // SAFETY: the arguments are those of kernels/cross_entropy.cu; shapes, dtypes and strides are checked above.
    unsafe { launch(&named(name, logits), device, work, &mut arguments) }?;
    Ok(losses)
}

/// Turns every head of `x` by the angles of `cos` and `sin`, or back.
///
/// # Shapes
///
/// `x` `[s, n, h]` whose heads are contiguous, wherever tokens and heads lie; `cos` and `sin` `[s, 1, h]`, contiguous; returns
/// `[s, n, h]`, contiguous.
///
/// # Errors
///
/// [`crate::Error::Operand`], or [`Error`] in [`crate::Error::Kernels`].
pub fn rope(
    x: &Tensor,
    cos: &Tensor,
    sin: &Tensor,
    is_backward: bool,
) -> Result<Tensor, TorchError> {
    let required = "[s, n, h], h even, bf16 or fp32, on a CUDA device, with contiguous heads";
    let device = device_of("x", x, x.dim() == 3, required)?;
    let (size, stride) = (x.size(), x.stride());
    ensure("x", x, size[2] % 2 == 0 && stride[2] == 1, required)?;
    for (operand, table) in [("cos", cos), ("sin", sin)] {
        let fits = table.size() == [size[0], 1, size[2]];
        ensure_like(operand, table, x, fits, "[s, 1, h], contiguous, of dtype and device of `x`")?;
    }
    let y = Tensor::empty(&size, (x.kind(), x.device()));
    let mut arguments = [
        Argument::of(x),
        Argument::Int64(stride[0]),
        Argument::Int64(stride[1]),
        Argument::of(cos),
        Argument::of(sin),
        Argument::of(&y),
        Argument::Int64(size[0]),
        Argument::Int64(size[1]),
        Argument::Int64(size[2]),
        Argument::Float(if is_backward { -1.0 } else { 1.0 }),
    ];
    // A warp per head.
    let work = Work::Threads(size[0] * size[1] * 32);
    // SAFETY: the arguments are those of kernels/rope.cu; shapes, dtypes and strides are checked above.
    unsafe { launch(&named("rope", x), device, work, &mut arguments) }?;
    Ok(y)
}

/// `silu(gate) * up`.
///
/// # Shapes
///
/// Of any shape, both the same and contiguous; returns the same.
///
/// # Errors
///
/// [`crate::Error::Operand`], or [`Error`] in [`crate::Error::Kernels`].
pub fn swiglu_forward(gate: &Tensor, up: &Tensor) -> Result<Tensor, TorchError> {
    let device = device_of("gate", gate, gate.is_contiguous(), ELEMENTWISE)?;
    ensure_like("up", up, gate, up.size() == gate.size(), LIKE_GATE)?;
    let y = gate.empty_like();
    let len = gate.numel() as i64;
    let mut arguments =
        [Argument::of(gate), Argument::of(up), Argument::of(&y), Argument::Int64(len)];
    // SAFETY: the arguments are those of kernels/swiglu.cu; shapes, dtypes and contiguity are checked above.
    unsafe { launch(&named("swiglu_forward", gate), device, packs(gate), &mut arguments) }?;
    Ok(y)
}

/// The gradients of `gate` and `up`.
///
/// # Shapes
///
/// As [`swiglu_forward`].
///
/// # Errors
///
/// As [`swiglu_forward`].
pub fn swiglu_backward(
    d_y: &Tensor,
    gate: &Tensor,
    up: &Tensor,
) -> Result<(Tensor, Tensor), TorchError> {
    let device = device_of("gate", gate, gate.is_contiguous(), ELEMENTWISE)?;
    ensure_like("up", up, gate, up.size() == gate.size(), LIKE_GATE)?;
    ensure_like("d_y", d_y, gate, d_y.size() == gate.size(), LIKE_GATE)?;
    let (d_gate, d_up) = (gate.empty_like(), up.empty_like());
    let mut arguments = [
        Argument::of(d_y),
        Argument::of(gate),
        Argument::of(up),
        Argument::of(&d_gate),
        Argument::of(&d_up),
        Argument::Int64(gate.numel() as i64),
    ];
    // SAFETY: as in swiglu_forward.
    unsafe { launch(&named("swiglu_backward", gate), device, packs(gate), &mut arguments) }?;
    Ok((d_gate, d_up))
}

const ELEMENTWISE: &str = "bf16 or fp32, contiguous, on a CUDA device";
const LIKE_GATE: &str = "contiguous, of shape, dtype and device of `gate`";

/// `weight * (x / sqrt(mean(x^2) + eps))` over the last dimension.
///
/// # Shapes
///
/// `x` `[s, d]`, `weight` `[d]`, contiguous; returns `[s, d]`.
///
/// # Errors
///
/// [`crate::Error::Operand`], or [`Error`] in [`crate::Error::Kernels`].
pub fn rms_norm_forward(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor, TorchError> {
    let (device, num_rows, dim) = rms_norm_operands(x, weight)?;
    let y = x.empty_like();
    let mut arguments = [
        Argument::of(x),
        Argument::of(weight),
        Argument::of(&y),
        Argument::Int64(num_rows),
        Argument::Int64(dim),
        Argument::Float(eps as f32),
    ];
    let work = Work::Rows { rows: num_rows, threads: hidden_threads(x, dim) };
    // SAFETY: the arguments are those of kernels/rms_norm.cu; shapes, dtypes and contiguity are checked.
    unsafe { launch(&named("rms_norm_forward", x), device, work, &mut arguments) }?;
    Ok(y)
}

/// The gradient of `x`, and that of the weight, fp32, if it is wanted.
///
/// # Shapes
///
/// `d_y` and `x` `[s, d]`, `weight` `[d]`, contiguous; returns `[s, d]` and `[d]`.
///
/// # Numerics
///
/// The gradient of the weight is summed over a quarter of a multiprocessor's rows at a time, then over those sums: the same
/// result each time on one kind of GPU.
///
/// # Errors
///
/// As [`rms_norm_forward`].
pub fn rms_norm_backward(
    d_y: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    eps: f64,
    wants_d_weight: bool,
) -> Result<(Tensor, Option<Tensor>), TorchError> {
    let (device, num_rows, dim) = rms_norm_operands(x, weight)?;
    ensure_like(
        "d_y",
        d_y,
        x,
        d_y.size() == x.size(),
        "contiguous, of shape, dtype and device of `x`",
    )?;
    let d_x = x.empty_like();
    let mut arguments =
        vec![Argument::of(d_y), Argument::of(x), Argument::of(weight), Argument::of(&d_x)];
    let mut rows = num_rows;
    let partial = if wants_d_weight {
        rows = rows.min(4 * i64::from(launch::num_multiprocessors(device)?));
        Some(Tensor::empty([rows, dim], (Kind::Float, x.device())))
    } else {
        None
    };
    arguments.extend(partial.as_ref().map(Argument::of));
    arguments.extend([
        Argument::Int64(num_rows),
        Argument::Int64(dim),
        Argument::Float(eps as f32),
    ]);
    let name = if wants_d_weight { "rms_norm_backward_weight" } else { "rms_norm_backward" };
    let work = Work::Rows { rows, threads: hidden_threads(x, dim) };
    // SAFETY: as in rms_norm_forward; `partial` has a row for each block, which writes all of it.
    unsafe { launch(&named(name, x), device, work, &mut arguments) }?;
    Ok((d_x, partial.map(|partial| partial.sum_dim_intlist(0_i64, false, Kind::Float))))
}

/// Threads of a block that has a row of hidden size: whole warps, no more than there are packs of 16 bytes, and few enough that each
/// has several loads in flight.
fn hidden_threads(x: &Tensor, dim: i64) -> u32 {
    const USUAL: u32 = 256;
    const MOST: u32 = 512;
    let packs = (dim as u64).div_ceil(16 / x.kind().elt_size_in_bytes() as u64);
    if packs <= u64::from(USUAL * PACKS) {
        (packs as u32).next_multiple_of(32).clamp(32, USUAL)
    } else {
        MOST
    }
}

/// The device, rows and columns of `x`.
fn rms_norm_operands(x: &Tensor, weight: &Tensor) -> Result<(usize, i64, i64), TorchError> {
    let is_right = x.dim() == 2 && x.is_contiguous();
    let device = device_of("x", x, is_right, "[s, d], bf16 or fp32, contiguous, on a CUDA device")?;
    let (num_rows, dim) = x.size2().unwrap_or_default();
    let fits = weight.size() == [dim];
    ensure_like("weight", weight, x, fits, "[d], contiguous, of dtype and device of `x`")?;
    Ok((device, num_rows, dim))
}

/// The half of [`crate::random::fill_normal`] for tensors on a CUDA device, which that one has checked.
pub(crate) fn fill_normal(
    target: &Tensor,
    stream: u64,
    first: u64,
    std: f64,
    device: usize,
) -> Result<(), TorchError> {
    let len = target.numel() as i64;
    let mut arguments = [
        Argument::of(target),
        Argument::Int64(len),
        Argument::Uint64(stream),
        Argument::Uint64(first),
        Argument::Double(std),
    ];
    // SAFETY: the arguments are those of kernels/random.cu; the caller has checked dtype and contiguity.
    unsafe { launch(&named("fill_normal", target), device, Work::Threads(len), &mut arguments) }
}

/// The half of [`crate::round_stochastically`] for tensors on a CUDA device, which that one has checked.
pub(crate) fn round_stochastically(
    source: &Tensor,
    target: &Tensor,
    key: u64,
    position: u64,
    device: usize,
) -> Result<(), TorchError> {
    let len = source.numel() as i64;
    let mut arguments = [
        Argument::of(source),
        Argument::of(target),
        Argument::Int64(len),
        Argument::Uint64(key),
        Argument::Uint64(position),
    ];
    // SAFETY: the arguments are those of kernels/rounding.cu; the caller has checked shapes, dtypes and contiguity.
    unsafe { launch("round_stochastically", device, Work::Threads(len), &mut arguments) }
}

/// A kernel's name with the dtype that it is compiled for.
fn named(kernel: &str, tensor: &Tensor) -> String {
    let dtype = if tensor.kind() == Kind::BFloat16 { "bf16" } else { "f32" };
    format!("{kernel}_{dtype}")
}

/// A thread for each 16 bytes.
fn packs(tensor: &Tensor) -> Work {
    let len = 16 / tensor.kind().elt_size_in_bytes();
    Work::Threads(tensor.numel().div_ceil(len) as i64)
}

/// The index of the tensor's device, if the kernels support it and it is otherwise right too.
fn device_of(
    operand: &'static str,
    tensor: &Tensor,
    is_right: bool,
    required: &'static str,
) -> Result<usize, TorchError> {
    match tensor.device() {
        Device::Cuda(index) if is_right && supports(&[tensor]) => Ok(index),
        _ => Err(TorchError::operand(operand, tensor, required)),
    }
}

fn ensure(
    operand: &'static str,
    tensor: &Tensor,
    is_right: bool,
    required: &'static str,
) -> Result<(), TorchError> {
    if is_right { Ok(()) } else { Err(TorchError::operand(operand, tensor, required)) }
}

/// [`ensure`], and of the other's dtype and device, and contiguous.
fn ensure_like(
    operand: &'static str,
    tensor: &Tensor,
    other: &Tensor,
    is_right: bool,
    required: &'static str,
) -> Result<(), TorchError> {
    let alike = tensor.kind() == other.kind() && tensor.device() == other.device();
    ensure(operand, tensor, is_right && alike && tensor.is_contiguous(), required)
}
