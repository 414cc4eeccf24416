//! Rounding that libtorch lacks.

use tch::{Device, Kind, Tensor};

use crate::{bridge::ffi, error::Error, kernels, tensor::borrow};

/// Rounds `source` to `target`, up or down at random, so that the expected value is the value itself.
///
/// The random bits of an element are a function of `key` and its position alone, counted from `position` for the first
/// one: cutting the tensor elsewhere, or using other threads, changes nothing.
///
/// # Shapes
///
/// `source` is flat, fp32; `target` as long, bf16. Both contiguous, and both on the CPU or on one CUDA device.
///
/// # Numerics
///
/// A value between two neighbours of bf16 goes to the larger one with the probability of its distance from the smaller
/// one over their gap, in steps of 2^-16. Values of bf16, infinities and NaN stay.
///
/// # Errors
///
/// [`Error::Operand`] if shape, dtype or device differ from the above.
pub fn round_stochastically(
    source: &Tensor,
    target: &mut Tensor,
    key: u64,
    position: u64,
) -> Result<(), Error> {
    let device = source.device();
    for (operand, tensor, kind, required) in [
        ("source", source, Kind::Float, "fp32, flat, contiguous, on the CPU or a CUDA device"),
        (
            "target",
            &*target,
            Kind::BFloat16,
            "bf16, contiguous, and of shape and device of `source`",
        ),
    ] {
        let is_right = tensor.kind() == kind
            && tensor.dim() == 1
            && tensor.size() == source.size()
            && tensor.is_contiguous()
            && tensor.device() == device
            && matches!(device, Device::Cpu | Device::Cuda(_));
        if !is_right {
            return Err(Error::operand(operand, tensor, required));
        }
    }
    if let Device::Cuda(index) = device {
        return kernels::round_stochastically(source, target, key, position, index);
    }
    Ok(ffi::round_stochastically(borrow(source), borrow(target), key, position)?)
}
