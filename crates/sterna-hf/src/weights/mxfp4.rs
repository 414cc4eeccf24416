//! Weights of four bits with a scale for every 32 of them, widened to bf16 where they are read.
//!
//! A checkpoint has such a weight as two tensors of bytes, `NAME_blocks` `[experts, out, in / 32, 16]` and `NAME_scales`
//! `[experts, out, in / 32]`. A byte has two values, the lower four bits first; each is one of 16 numbers, times two to the power of the
//! scale less 127. The weight that a model has is `[experts, in, out]`.
//!
//! Source: OCP Microscaling Formats (MX) Specification 1.0, sections 5.3.3 and 5.4.1; the order and the transposition are those of
//! transformers' `integrations/mxfp4.py`.

use std::ops::Range;

use sterna_arch::DType;

/// Values that share a scale.
const BLOCK_LEN: usize = 32;
/// Bytes of these.
const BLOCK_BYTES: usize = BLOCK_LEN / 2;
/// What three bits of a value say; the fourth is the sign.
const MAGNITUDES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
/// The scale that stands for one.
const BIAS: i32 = 127;

/// One such weight, where its two tensors lie in mapped files.
#[derive(Debug, Clone)]
pub(super) struct Mxfp4<'a> {
    blocks: &'a [u8],
    scales: &'a [u8],
    /// Experts, outputs of each, and blocks of each output.
    sizes: [usize; 3],
}

impl<'a> Mxfp4<'a> {
    /// Takes both tensors with their shapes; `None` if these do not fit each other, or have no elements.
    pub(super) fn new(
        (blocks, blocks_shape): (&'a [u8], &[usize]),
        (scales, scales_shape): (&'a [u8], &[usize]),
    ) -> Option<Self> {
        let [experts, out, num_blocks, BLOCK_BYTES] = *blocks_shape else { return None };
        let sizes = [experts, out, num_blocks];
        (scales_shape == sizes && !sizes.contains(&0)).then_some(Self { blocks, scales, sizes })
    }

    /// `[experts, in, out]`.
    pub(super) fn shape(&self) -> Vec<usize> {
        let [experts, out, num_blocks] = self.sizes;
        vec![experts, num_blocks * BLOCK_LEN, out]
    }

    /// The number of elements.
    pub(super) fn numel(&self) -> usize {
        self.blocks.len() * 2
    }

    /// Elements `range` of the flattened weight as bf16, little-endian. Products that bf16 cannot hold are rounded to the nearest, ties to
    /// even.
    pub(super) fn widened(&self, range: &Range<usize>) -> Vec<u8> {
        let [_, out, num_blocks] = self.sizes;
        let values = Self::values();
        let values = values.as_chunks::<2>().0;
        let mut bytes = vec![0; range.len() * 2];
        // The outputs of 32 inputs follow each other in the weight, and each block has one output of all 32.
        let stripe = BLOCK_LEN * out;
        let stripes = range.start / stripe..range.end.div_ceil(stripe);
        for (stripe_idx, output) in stripes.flat_map(|idx| (0..out).map(move |o| (idx, o))) {
            let (expert, block) = (stripe_idx / num_blocks, stripe_idx % num_blocks);
            let block_idx = (expert * out + output) * num_blocks + block;
            let of_scale = &values[usize::from(self.scales[block_idx]) * 16..][..16];
            let codes = &self.blocks[block_idx * BLOCK_BYTES..][..BLOCK_BYTES];
            for (input, code) in codes.iter().flat_map(|byte| [byte & 15, byte >> 4]).enumerate() {
                let element = stripe_idx * stripe + input * out + output;
                if range.contains(&element) {
                    let at = (element - range.start) * 2;
                    bytes[at..at + 2].copy_from_slice(&of_scale[usize::from(code)]);
                }
            }
        }
        bytes
    }

    /// For every scale the 16 values, as bf16.
    fn values() -> Vec<u8> {
        let of = |scale: i32| {
            let magnitudes = MAGNITUDES.map(|magnitude| magnitude * 2_f32.powi(scale - BIAS));
            magnitudes.into_iter().chain(magnitudes.map(|magnitude| -magnitude))
        };
        let wide: Vec<u8> = (0..=255).flat_map(of).flat_map(f32::to_le_bytes).collect();
        DType::convert(&wide, DType::F32, DType::BF16).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every code and several scales, against the formula element by element, in pieces that end anywhere.
    #[test]
    fn values_are_where_the_transposed_weight_has_them() {
        let (experts, out, num_blocks) = (2, 3, 2);
        let sizes = [experts, out, num_blocks];
        let num_scales: usize = sizes.iter().product();
        let scales: Vec<u8> = (0..num_scales).map(|idx| 120 + idx as u8).collect();
        let blocks: Vec<u8> =
            (0..num_scales * BLOCK_BYTES).map(|idx| (idx * 37 % 256) as u8).collect();
        let shape = [experts, out, num_blocks, BLOCK_BYTES];
        let packed = Mxfp4::new((&blocks, &shape), (&scales, &sizes)).unwrap();
        assert_eq!(packed.shape(), [2, 64, 3]);
        let mut expected = Vec::new();
        for expert in 0..experts {
            for input in 0..64 {
                for output in 0..out {
                    let block_idx = (expert * out + output) * num_blocks + input / 32;
                    let byte = blocks[block_idx * 16 + input % 32 / 2];
                    let code = if input % 2 == 0 { byte & 15 } else { byte >> 4 };
                    let sign = if code & 8 == 0 { 1.0 } else { -1.0 };
                    let value = sign
                        * MAGNITUDES[usize::from(code & 7)]
                        * 2_f32.powi(i32::from(scales[block_idx]) - 127);
                    // All of them are exact in bf16, the upper half of single precision.
                    expected.extend_from_slice(&value.to_le_bytes()[2..]);
                }
            }
        }
        let len = expected.len() / 2;
        assert_eq!(packed.widened(&(0..len)), expected);
        for range in [0..0, 5..6, 1..100, 95..97, 190..len, 3..len - 1] {
            assert_eq!(packed.widened(&range), expected[range.start * 2..range.end * 2]);
        }
    }

    #[test]
    fn tensors_that_do_not_fit_each_other_are_none() {
        let bytes = [0; 64];
        let shapes: [(&[usize], &[usize]); 4] = [
            (&[1, 2, 2, 16], &[1, 2, 1]),
            (&[1, 2, 2, 8], &[1, 2, 2]),
            (&[2, 2, 16], &[2, 2]),
            (&[1, 0, usize::MAX, 16], &[1, 0, usize::MAX]),
        ];
        for (blocks, scales) in shapes {
            assert!(Mxfp4::new((&bytes, blocks), (&bytes, scales)).is_none());
        }
    }
}
