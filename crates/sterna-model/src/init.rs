//! Random weights, distributed as transformers' `_init_weights` draws them.
//!
//! Each element is a function of the seed, the tensor's name and the element's index, so that a rank draws just the elements it
//! owns and any number of ranks gets the same model.

use std::ops::Range;

use sterna_hf::{ModelConfig, ParamSpec};
use sterna_torch_sys::{Error, random};
use tch::Tensor;

/// Fills `target` with elements `range` of a flattened tensor, without drawing the rest.
///
/// Norm weights are ones, biases zeros, everything else is normal with standard deviation `initializer_range`; the embedding's row
/// of `pad_token_id` is zeros. A GPU draws what lies on it, the same bits as the host ([`random::fill_normal`]).
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
    config: &ModelConfig,
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
    if spec.name.ends_with("norm.weight") {
        let _ = target.fill_(1.0);
        return Ok(());
    }
    if spec.name.rsplit('.').next() == Some("bias") {
        let _ = target.zero_();
        return Ok(());
    }
    let stream = random::stream(seed, &spec.name);
    random::fill_normal(target, stream, range.start as u64, config.initializer_range)?;
    if let (true, Some(pad)) = (spec.name.ends_with("embed_tokens.weight"), config.pad_token_id) {
        let row = pad as usize * config.hidden_size..(pad as usize + 1) * config.hidden_size;
        let clip = |index: usize| (index.clamp(range.start, range.end) - range.start) as i64;
        let (start, end) = (clip(row.start), clip(row.end));
        let _ = target.narrow(0, start, end - start).zero_();
    }
    Ok(())
}
