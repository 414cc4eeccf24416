//! PyTorch's `randperm` on the CPU.

use super::mt19937::Mt19937;

/// `torch.randperm(len, generator=torch.Generator().manual_seed(seed))`.
///
/// # Source
///
/// `aten/src/ATen/native/TensorFactories.cpp` (`randperm_cpu`). It takes one 32-bit draw modulo the remaining length a step,
/// and 64-bit draws (high word first) once that modulo would be noticeably uneven.
pub fn torch_randperm(seed: u64, len: usize) -> Vec<usize> {
    let mut rng = Mt19937::from_word(seed as u32);
    let mut order: Vec<usize> = (0..len).collect();
    let narrow = len < u32::MAX as usize / 20;
    for i in 0..len.saturating_sub(1) {
        let mut draw = u64::from(rng.next_u32());
        if !narrow {
            draw = (draw << 32) | u64::from(rng.next_u32());
        }
        order.swap(i, i + (draw % (len - i) as u64) as usize);
    }
    order
}
