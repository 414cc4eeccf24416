//! Tensor functions and their vector-Jacobian products. An op never communicates.
//!
//! Each file holds a function of the model and, beside it, its backward: given the gradient of the result and what the function
//! read, the gradients of what it read. No autograd graph is built; autograd in double precision is the oracle of the tests.
//! Activation gradients are returned (`=`), weight gradients are accumulated into single-precision buffers (`+=`), so that a sum
//! over hundreds of tiles keeps its digits.
//!
//! Where transformers computes in single precision inside a half-precision model (norms, rotary tables, the loss), so do these.
//! Letters in shapes: `s` tokens, `d` hidden, `n` query heads, `k` kv heads, `h` head size, `f` MLP width, `v` vocabulary.
//!
//! # Panics
//!
//! Every function checks the shapes it is given and panics where they do not fit: the caller has built them from a checked
//! configuration, so a misfit is a mistake in the program. libtorch's own failures, memory included, panic as tch does.

pub mod tile;

pub mod activation;
pub mod attention;
pub mod causal_conv;
pub mod clamped_swiglu;
pub mod cross_entropy;
pub mod delta_rule;
pub mod l2_norm;
pub mod linear;
pub mod low_rank;
pub mod norm;
pub mod rms_norm;
pub mod rope;
pub mod softcap;
pub mod swiglu;
pub mod xielu;

use sterna_torch_sys::products::Bf16Products;
use tch::{Device, Kind, Tensor};

/// What a kernel of ours fails with, when its operands are right: the compiler or the driver.
const KERNEL: &str = "the CUDA kernel runs";

/// The same values in single precision, or in double if they are double already.
fn upcast(x: &Tensor) -> Tensor {
    x.to_kind(accumulate_kind(x.kind()))
}

/// What sums over values of dtype `kind` are kept in: single precision, or double for double.
pub fn accumulate_kind(kind: Kind) -> Kind {
    if kind == Kind::Double { Kind::Double } else { Kind::Float }
}

/// Whether products with `x` are computed in single precision from widened operands: bf16 on a processor without dot products of it.
///
/// Who multiplies the same weight with many tiles widens it once for all of them.
pub fn is_widened(x: &Tensor) -> bool {
    widens(x.kind(), x.device())
}

/// [`is_widened`], of tensors of this dtype on this device.
pub fn widens(kind: Kind, device: Device) -> bool {
    kind == Kind::BFloat16 && device == Device::Cpu && Bf16Products::are_widened()
}
