//! What a step of the 8B shape should take on one card, by what its parts compute and move: a figure to hold a measurement against.
//!
//! A bound from below, since nothing here overlaps and nothing waits: products and attention at the rates of their kernels, and at the rate
//! of a copy every byte that gradients of tiles, pointwise ops and the optimizer read and write. Transfers to and from the host are
//! taken to be hidden.

use sterna_arch::ModelConfig;

/// What the parts of a step run at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// bf16 products, FLOP/s.
    pub products: f64,
    /// Attention forward, FLOP/s.
    pub attention_forward: f64,
    /// Attention backward, FLOP/s.
    pub attention_backward: f64,
    /// Memory of the card, bytes read and written a second.
    pub memory: f64,
}

/// An H200's, as far as they were seen: 769 to 798 TFLOP/s of the largest products, a tenth less for those of a step, and 4.3 TB/s of
/// copies were measured; the rates of cuDNN's attention are those of its publications for an H100 at head size 128.
pub const H200: Rates = Rates {
    products: 700e12,
    attention_forward: 620e12,
    attention_backward: 530e12,
    memory: 4.3e12,
};

/// How a step is cut, from the plan of `sterna check`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Tokens of a tile of norm and projections.
    pub qkv: usize,
    /// Of output projection and MLP.
    pub mlp: usize,
    /// Of the head.
    pub head: usize,
    /// Whether attention outputs are kept, so that the backward runs no attention forward.
    pub keeps_attention: bool,
}

/// Seconds of the parts of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// Of projections, MLP and head: forward, once more for the blocks, and twice that for the backward.
    pub products: f64,
    /// Of attention.
    pub attention: f64,
    /// Of reading and writing fp32 gradients once a tile.
    pub gradients: f64,
    /// Of norms, rotary, SwiGLU, residuals and the loss.
    pub pointwise: f64,
    /// Of the optimizer on the card.
    pub optimizer: f64,
}

impl Estimate {
    /// Of one document of `len` tokens.
    pub fn of(config: &ModelConfig, len: usize, cut: Cut, rates: Rates) -> Self {
        let (arch, layer) = (&config.arch, &config.arch.layers[0]);
        let (d, f) = (arch.hidden_size as f64, layer.ffn.width() as f64);
        let attention = arch.first_attention();
        let (q, kv) = (attention.q_width() as f64, attention.k_width() as f64);
        let (layers, vocab) = (arch.layers.len() as f64, arch.vocab_size as f64);
        let (qkv, mlp, head) = (d * (q + 2.0 * kv), q * d + 3.0 * d * f, vocab * d);
        let tokens = len as f64;
        let blocks = layers * (qkv + mlp);
        let products = 2.0 * tokens * (4.0 * blocks + 3.0 * head);
        let forward = layers * 2.0 * q * tokens * tokens;
        let num_forwards = if cut.keeps_attention { 1.0 } else { 2.0 };
        let attention = num_forwards * forward / rates.attention_forward
            + 2.5 * forward / rates.attention_backward;
        let tiles = |tile: usize| len.div_ceil(tile.max(1)) as f64;
        let rewritten =
            layers * (tiles(cut.qkv) * qkv + tiles(cut.mlp) * mlp) + tiles(cut.head) * head;
        // bf16 values that ops read and write: a block's forward twice and its backward, and the logits.
        let of_block = 32.0 * d + 6.0 * (q + kv) + 11.0 * f;
        let pointwise = 2.0 * tokens * (layers * of_block + 5.0 * vocab);
        // Gradient in fp32 read, master in fp32 and two moments in bf16 read and written, the weight written.
        let optimizer = 22.0 * (blocks + 2.0 * head);
        Self {
            products: products / rates.products,
            attention,
            gradients: 8.0 * rewritten / rates.memory,
            pointwise: pointwise / rates.memory,
            optimizer: optimizer / rates.memory,
        }
    }

    /// All of them.
    pub fn total(&self) -> f64 {
        self.products + self.attention + self.gradients + self.pointwise + self.optimizer
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// By hand for Llama-3.1-8B: 6.98e9 parameters of blocks and 0.525e9 of the head.
    #[test]
    fn an_8b_step_is_made_of_what_it_computes_and_moves() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("inputs/llama-3.1-8b");
        let config = ModelConfig::from_dir(&folder).unwrap();
        let cut = |mlp| Cut { qkv: 26_112, mlp, head: 4096, keeps_attention: true };
        let long = Estimate::of(&config, 32_768, cut(6656), H200);
        let close = |actual: f64, expected: f64| {
            assert!((actual - expected).abs() < 0.01 * expected, "{actual} and not {expected}");
        };
        close(long.products, (8.0 * 6.979e9 + 6.0 * 0.5254e9) * 32_768.0 / 700e12);
        close(long.attention, 2.814e14 / 620e12 + 2.5 * 2.814e14 / 530e12);
        // Five tiles of 193e6 parameters and two of 25e6 in each block, eight of the head.
        close(
            long.gradients,
            8.0 * (32.0 * (5.0 * 1.929e8 + 2.0 * 2.517e7) + 8.0 * 5.254e8) / 4.3e12,
        );
        assert!((4.5..5.2).contains(&long.total()), "{long:?}");
        // Tiles of 832 tokens rewrite the same gradients eight times as often.
        let short = Estimate::of(&config, 32_768, cut(832), H200);
        close(short.gradients - long.gradients, 8.0 * 32.0 * 35.0 * 1.929e8 / 4.3e12);
        let again = Cut { keeps_attention: false, ..cut(6656) };
        let again = Estimate::of(&config, 32_768, again, H200);
        close(again.attention - long.attention, 2.814e14 / 620e12);
    }
}
