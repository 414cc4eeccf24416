//! Random weights, distributed as transformers' `_init_weights` draws them.
//!
//! Each element is a function of the seed, the tensor's name and the element's index, so that a rank draws just the elements it
//! owns and any number of ranks gets the same model.

use std::ops::Range;

use sterna_arch::{Init, ParamSpec};
use sterna_torch_sys::{Error, random};
use tch::{Kind, Tensor};

/// Fills `target` with elements `range` of a flattened tensor, without drawing the rest.
///
/// [`Init`] says with what. A GPU draws what lies on it, the same bits as the host ([`random::fill_normal`]).
///
/// # Shapes
///
/// `target` is `[range.len()]`, contiguous, fp32 or bf16.
///
/// # Errors
///
/// [`Error::Operand`] for a `target` of another dtype or layout; [`Error::Kernels`] if a GPU's kernels cannot be had.
///
/// # Panics
///
/// If the range reaches beyond the tensor, or `target` is not as long.
pub fn fill(
    target: &mut Tensor,
    spec: &ParamSpec,
    seed: u64,
    range: &Range<usize>,
) -> Result<(), Error> {
    assert!(
        range.end <= spec.numel() && target.numel() == range.len(),
        "elements {range:?} of `{}`, which has {}, for {}",
        spec.name,
        spec.numel(),
        target.numel()
    );
    let (std, zero_row) = match spec.init {
        Init::Constant(value) => {
            let _ = target.fill_(value);
            return Ok(());
        }
        Init::LogUniform { low, high } => {
            let stream = random::stream(seed, &spec.name);
            random::fill_normal(target, stream, range.start as u64, 1.0)?;
            // What is below a normal number is uniform between 0 and 1.
            let below = (target.to_kind(Kind::Float) * -std::f64::consts::FRAC_1_SQRT_2).erfc() / 2;
            target.copy_(&(below * (high - low) + low).log());
            return Ok(());
        }
        Init::Uniform { bound } => {
            let stream = random::stream(seed, &spec.name);
            random::fill_normal(target, stream, range.start as u64, 1.0)?;
            let uniform = (target.to_kind(Kind::Float) * std::f64::consts::FRAC_1_SQRT_2).erf();
            target.copy_(&(uniform * bound));
            return Ok(());
        }
        Init::RowNorms { .. } => panic!("`{}` begins with norms of another weight", spec.name),
        Init::Normal { std, zero_row } => (std, zero_row),
    };
    random::fill_normal(target, random::stream(seed, &spec.name), range.start as u64, std)?;
    if let Some(row) = zero_row {
        let row_len = spec.numel() / spec.shape[0];
        let clip = |index: usize| (index.clamp(range.start, range.end) - range.start) as i64;
        let (start, end) = (clip(row * row_len), clip((row + 1) * row_len));
        let _ = target.narrow(0, start, end - start).zero_();
    }
    Ok(())
}
