//! Random numbers that do not depend on who draws them.

use tch::{Device, Kind, Tensor};

use crate::{bridge::ffi, error::Error, kernels, tensor::borrow};

/// Stream `seed` of normal numbers, for a tensor of this name.
pub fn stream(seed: u64, name: &str) -> u64 {
    name.bytes().fold(mix(seed), |stream, byte| mix(stream ^ u64::from(byte)))
}

/// Fills `target` with normal numbers, mean 0 and standard deviation `std`: number `first` of the stream and those that follow it.
///
/// A number is a function of the stream and its index alone. A GPU draws the same bits as the host, so the parts of a tensor may be
/// drawn anywhere.
///
/// # Shapes
///
/// `target` is contiguous, fp32 or bf16, on the CPU or a CUDA device.
///
/// # Numerics
///
/// Box and Muller's transform of two uniform numbers of 52 bits, in double precision, rounded to fp32 and from there to bf16.
///
/// # Errors
///
/// [`Error::Operand`] if dtype, device or layout differ from the above; [`Error::Kernels`] if the GPU's kernels cannot be had.
pub fn fill_normal(target: &mut Tensor, stream: u64, first: u64, std: f64) -> Result<(), Error> {
    let is_right = matches!(target.kind(), Kind::Float | Kind::BFloat16) && target.is_contiguous();
    match target.device() {
        Device::Cuda(index) if is_right => kernels::fill_normal(target, stream, first, std, index),
        Device::Cpu if is_right => Ok(ffi::fill_normal(borrow(target), stream, first, std)?),
        _ => Err(Error::operand(
            "target",
            target,
            "fp32 or bf16, contiguous, on the CPU or a CUDA device",
        )),
    }
}

/// As in kernels/normal.cuh.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
