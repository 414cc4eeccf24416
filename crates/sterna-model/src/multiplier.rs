//! Constants that some families multiply by and the others leave out: exactly 1 is no pass over memory.

use tch::Tensor;

/// `x` times `multiplier`, in place.
pub(crate) fn multiplied(mut x: Tensor, multiplier: f64) -> Tensor {
    if is_one(multiplier) { x } else { x.g_mul_scalar_(multiplier) }
}

/// `x` times `multiplier`, in a tensor of its own.
pub(crate) fn product(x: &Tensor, multiplier: f64) -> Tensor {
    if is_one(multiplier) { x.shallow_clone() } else { x * multiplier }
}

fn is_one(multiplier: f64) -> bool {
    multiplier.to_bits() == 1.0_f64.to_bits()
}
