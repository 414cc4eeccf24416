//! PyTorch's `randperm` on the CPU.

use super::mt19937::Mt19937;

/// Longest order that [`torch_randperm`] gives. PyTorch draws in another way from there on.
pub const MAX_RANDPERM_LEN: usize = u32::MAX as usize / 20 - 1;

/// `torch.randperm(len, generator=torch.Generator().manual_seed(seed))`.
///
/// # Panics
///
/// If `len` is above [`MAX_RANDPERM_LEN`].
///
/// # Source
///
/// `aten/src/ATen/native/TensorFactories.cpp` (`randperm_cpu`): one 32-bit draw modulo the remaining length a step.
pub fn torch_randperm(seed: u64, len: usize) -> Vec<usize> {
    assert!(len <= MAX_RANDPERM_LEN, "an order of {len}");
    let mut rng = Mt19937::from_word(seed as u32);
    let mut order: Vec<usize> = (0..len).collect();
    for i in 0..len.saturating_sub(1) {
        order.swap(i, i + rng.next_u32() as usize % (len - i));
    }
    order
}
