//! Products of bf16 tensors in single precision: operands are widened as they come, results rounded once.
//!
//! Tokens are taken in tiles and outputs in pieces, so that neither a long sequence, nor the weight of a head, nor its logits exist
//! in single precision as a whole.

use std::ops::Range;

use tch::{Kind, Tensor};

use crate::tile::tiles;

/// At most so many tokens are widened at once: enough that widening a weight costs little beside multiplying by it.
const MOST_TOKENS: i64 = 2048;

/// At most so many elements of a weight, and of the outputs of a tile of tokens, are widened at once: 16 MiB.
const MOST_ELEMENTS: i64 = 1 << 22;

/// See [`super::forward`].
pub(super) fn forward(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
    let (tiles, pieces) = cut(x.size()[0], weight);
    let of = |x: &Tensor, outputs: &Range<i64>| {
        let weight = wide(&rows(weight, outputs));
        match bias {
            Some(bias) => wide(&rows(bias, outputs)).addmm(x, &weight.tr()),
            None => x.mm(&weight.tr()),
        }
    };
    if let ([_], [all]) = (&tiles[..], &pieces[..]) {
        return of(&wide(x), all).to_kind(x.kind());
    }
    let y = Tensor::empty([x.size()[0], weight.size()[0]], (x.kind(), x.device()));
    for tokens in &tiles {
        let (x, y) = (wide(&rows(x, tokens)), rows(&y, tokens));
        for outputs in &pieces {
            columns(&y, outputs).copy_(&of(&x, outputs));
        }
    }
    y
}

/// See [`super::backward_input`].
pub(super) fn backward_input(d_y: &Tensor, weight: &Tensor) -> Tensor {
    let (tiles, pieces) = cut(d_y.size()[0], weight);
    let (first, others) = pieces.split_first().expect("a weight has outputs");
    let of = |tokens: &Range<i64>| {
        let d_y = rows(d_y, tokens);
        let operands = |outputs| (wide(&columns(&d_y, outputs)), wide(&rows(weight, outputs)));
        let (d_y_first, weight_first) = operands(first);
        let mut d_x = d_y_first.mm(&weight_first);
        for outputs in others {
            let (d_y, weight) = operands(outputs);
            let _ = d_x.addmm_(&d_y, &weight);
        }
        d_x.to_kind(d_y.kind())
    };
    if let [all] = &tiles[..] {
        return of(all);
    }
    let d_x = Tensor::empty([d_y.size()[0], weight.size()[1]], (d_y.kind(), d_y.device()));
    for tokens in &tiles {
        rows(&d_x, tokens).copy_(&of(tokens));
    }
    d_x
}

/// Adds to `d_weight` in its own precision.
pub(super) fn backward_weight(d_y: &Tensor, x: &Tensor, d_weight: &Tensor) {
    let (tiles, pieces) = cut(d_y.size()[0], d_weight);
    for tokens in &tiles {
        let (d_y, x) = (rows(d_y, tokens), wide(&rows(x, tokens)));
        for outputs in &pieces {
            let mut d_weight = rows(d_weight, outputs);
            let d_y = wide(&columns(&d_y, outputs));
            let _ = if d_weight.kind() == Kind::Float {
                d_weight.addmm_(&d_y.tr(), &x)
            } else {
                d_weight.g_add_(&d_y.tr().mm(&x))
            };
        }
    }
}

/// The tiles of tokens, and the pieces of the outputs of a weight `[o, i]`, that are computed one after the other.
fn cut(num_tokens: i64, weight: &Tensor) -> (Vec<Range<i64>>, Vec<Range<i64>>) {
    let (num_outputs, num_inputs) = (weight.size()[0], weight.size()[1]);
    let tokens_at_once = num_tokens.clamp(1, MOST_TOKENS);
    // The caller has widened a weight in single precision for all its tiles.
    let is_wide = weight.kind() == Kind::Float;
    let elements_each = if is_wide { tokens_at_once } else { tokens_at_once.max(num_inputs) };
    let outputs_at_once = (MOST_ELEMENTS / elements_each).max(1);
    (tiles(num_tokens, MOST_TOKENS).collect(), tiles(num_outputs, outputs_at_once).collect())
}

fn wide(x: &Tensor) -> Tensor {
    x.to_kind(Kind::Float)
}

fn rows(x: &Tensor, outputs: &Range<i64>) -> Tensor {
    x.narrow(0, outputs.start, outputs.end - outputs.start)
}

fn columns(x: &Tensor, outputs: &Range<i64>) -> Tensor {
    x.narrow(1, outputs.start, outputs.end - outputs.start)
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    fn bf16(shape: [i64; 2]) -> Tensor {
        Tensor::randn(shape, (Kind::BFloat16, Device::Cpu))
    }

    fn exact(x: &Tensor) -> Tensor {
        x.to_kind(Kind::Double)
    }

    /// Rounding a sum to bf16 once moves it by 2^-8 of itself at most; the sum itself is off by what single precision loses over its
    /// terms, all below `scale`.
    fn assert_rounded_once(actual: &Tensor, expected: &Tensor, scale: f64) {
        assert_eq!(actual.kind(), Kind::BFloat16);
        let excess = (exact(actual) - expected).abs() - expected.abs() / 256.0;
        let excess = excess.max().double_value(&[]);
        assert!(excess < scale * 1e-6, "{excess:e} of {scale}");
    }

    /// `[tokens, inputs, outputs]`: one piece; a weight of several; logits of several; several tiles of tokens.
    const SHAPES: [[i64; 3]; 4] = [[33, 48, 80], [3, 3000, 3100], [2048, 5, 3100], [4097, 7, 9]];

    #[test]
    fn a_product_is_rounded_once_however_many_pieces_it_has() {
        for [s, i, o] in SHAPES {
            let (x, weight, bias) = (bf16([s, i]), bf16([o, i]), bf16([1, o]).squeeze_dim(0));
            let expected = exact(&x).mm(&exact(&weight).tr());
            let scale = expected.abs().max().double_value(&[]);
            assert_rounded_once(&forward(&x, &weight, None), &expected, scale);
            let with_bias = forward(&x, &weight, Some(&bias));
            assert_rounded_once(&with_bias, &(&expected + exact(&bias)), scale);
            // From a weight that was widened before.
            let from_wide = forward(&x, &wide(&weight), Some(&wide(&bias)));
            assert_rounded_once(&from_wide, &(expected + exact(&bias)), scale);
        }
    }

    #[test]
    fn no_tokens_have_no_outputs_and_no_gradients() {
        let (x, weight, d_y) = (bf16([0, 48]), bf16([80, 48]), bf16([0, 80]));
        assert_eq!(forward(&x, &weight, None).size(), [0, 80]);
        assert_eq!(backward_input(&d_y, &weight).size(), [0, 48]);
        let d_weight = Tensor::ones([80, 48], (Kind::Float, Device::Cpu));
        backward_weight(&d_y, &x, &d_weight);
        assert!(d_weight.equal(&d_weight.ones_like()));
    }

    #[test]
    fn gradients_of_pieces_add_up() {
        for [s, i, o] in SHAPES {
            let (x, weight, d_y) = (bf16([s, i]), bf16([o, i]), bf16([s, o]));
            let expected = exact(&d_y).mm(&exact(&weight));
            let scale = expected.abs().max().double_value(&[]);
            assert_rounded_once(&backward_input(&d_y, &weight), &expected, scale);
            assert_rounded_once(&backward_input(&d_y, &wide(&weight)), &expected, scale);

            let d_weight = Tensor::ones([o, i], (Kind::Float, Device::Cpu));
            backward_weight(&d_y, &x, &d_weight);
            let expected = exact(&d_y).tr().mm(&exact(&x)) + 1.0;
            let error = (exact(&d_weight) - &expected).abs().max().double_value(&[]);
            // 2^-9 of a bf16 gradient would be 200 times as much; sums of 3,000 terms in single precision lose this.
            let scale = expected.abs().max().double_value(&[]);
            assert!(error < scale * 1e-5, "a weight gradient is not rounded to bf16: {error:e}");

            // A bf16 sum is rounded once for each tile of tokens.
            let d_weight = Tensor::ones([o, i], (Kind::BFloat16, Device::Cpu));
            backward_weight(&d_y, &x, &d_weight);
            if s <= MOST_TOKENS {
                assert_rounded_once(&d_weight, &expected, scale);
            }
        }
    }

    #[test]
    fn tiles_and_pieces_hold_a_bounded_part_of_a_weight_and_of_logits() {
        let weight = Tensor::empty([100_000, 512], (Kind::BFloat16, Device::Cpu));
        for num_tokens in [1, 512, 2048, 40_000, 1 << 40] {
            let (tiles, pieces) = cut(num_tokens.min(100_000), &weight);
            assert!(tiles.iter().all(|tile| tile.end - tile.start <= MOST_TOKENS));
            for outputs in pieces {
                let len = outputs.end - outputs.start;
                let tokens = num_tokens.min(MOST_TOKENS);
                assert!(len * tokens.max(512) <= MOST_ELEMENTS, "{outputs:?}");
            }
        }
        let (tiles, pieces) = cut(0, &weight);
        assert_eq!((tiles.len(), pieces.len()), (0, 13));
    }
}
