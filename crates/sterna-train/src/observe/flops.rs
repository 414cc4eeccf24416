//! Floating-point operations of a step: by the reference's formula, and honestly.
//!
//! The reference reports `8 N sum(s) + 16 d n L sum(s^2)` with activation checkpointing: it counts a recompute that
//! need not happen and all of the attention matrix although half of it is masked. We report it under its names, so
//! that curves compare, and beside it the model FLOPs that the field means by MFU: forward plus twice that for
//! backward, causal attention counted once, no recompute (`PaLM`, Chowdhery et al. 2022, appendix B, with the causal
//! half).

use sterna_arch::{Architecture, Attention, DeltaNet};

/// TFLOs of forward and backward over sequences of `seqlens` tokens, as the reference counts them.
///
/// With `recompute`, the factors are 8 and 16 instead of 6 and 12. The reference knows no delta nets: they count by their products with
/// weights; and no adapters: they count nothing, and frozen weights as others.
///
/// Source: ArcticTraining `arctic_training/trainer/flops_counter.py`, the llama/qwen2/qwen3 branch.
pub fn reference_tflos(
    arch: &Architecture,
    seqlens: impl Iterator<Item = usize>,
    recompute: bool,
) -> f64 {
    let (dense_factor, attention_factor) = if recompute { (8.0, 16.0) } else { (6.0, 12.0) };
    let weights = arch.product_weights_of_layers() + arch.product_weights_of_head();
    let dense = dense_factor * weights as f64;
    let attentions = arch.layers.iter().filter_map(|layer| layer.mixer.attention());
    let widths: usize = attentions.map(score_and_value_widths).sum();
    let attention = attention_factor / 2.0 * widths as f64;
    seqlens.map(|len| len as f64).map(|len| dense * len + attention * len * len).sum::<f64>() / 1e12
}

/// TFLOs of the model itself over documents of `document_lens` tokens, of which `num_valid_tokens` have a label: causal attention,
/// sliding windows honoured, delta nets by their recurrence, no gradients of frozen weights, the head for tokens with a label only, because the loss reads no other
/// logits, nothing counted twice.
pub fn model_tflos(
    arch: &Architecture,
    document_lens: impl Iterator<Item = usize>,
    num_valid_tokens: usize,
) -> f64 {
    let nets = arch.layers.iter().filter_map(|layer| layer.mixer.delta_net());
    let rules: usize = nets.map(DeltaNet::rule_products).sum();
    let weights = arch.product_weights_of_layers() + arch.adapter_product_weights();
    let dense =
        6.0 * (weights + rules) as f64 - 2.0 * arch.frozen_product_weights_of_layers() as f64;
    let of_head = if arch.has_frozen_head() { 4.0 } else { 6.0 };
    let mut flos = of_head * arch.product_weights_of_head() as f64 * num_valid_tokens as f64;
    for len in document_lens {
        flos += dense * len as f64;
        for attention in arch.layers.iter().filter_map(|layer| layer.mixer.attention()) {
            // Forward is two multiply-adds (q k^T and p v) for each visible (query, key) pair, and backward is
            // twice the forward: 3 * 2 * (query + output) * pairs.
            let window = attention.sliding_window.map(|window| window as f64);
            flos +=
                6.0 * score_and_value_widths(attention) as f64 * visible_pairs(len as f64, window);
        }
    }
    flos / 1e12
}

/// Multiply-adds of attention for a (query, key) pair: the score's, and those of the values.
fn score_and_value_widths(attention: &Attention) -> usize {
    attention.q_width() + attention.o_width()
}

/// (query, key) pairs that a causal mask with an optional window leaves, taking `len^2 / 2` for the triangle.
fn visible_pairs(len: f64, window: Option<f64>) -> f64 {
    match window {
        Some(window) if window < len => window * window / 2.0 + (len - window) * window,
        _ => len * len / 2.0,
    }
}

/// Dense bf16 FLOP/s of a GPU by NVIDIA's datasheets, for the name that its driver gives; `None` for one that is not in the list.
///
/// Datasheets of the newer ones print the rate with sparsity, which is twice this.
pub fn datasheet_rate(name: &str) -> Option<f64> {
    // Longer names first: those with less power come under a name of their own.
    const RATES: [(&str, f64); 9] = [
        ("H100 PCIe", 756e12),
        ("H100 NVL", 835e12),
        ("H200 NVL", 835e12),
        ("GH200", 989e12),
        ("H100", 989e12),
        ("H200", 989e12),
        ("B200", 2250e12),
        ("A100", 312e12),
        ("L40S", 362e12),
    ];
    // `GB200` and `H100 MIG 1g.10gb` are not what their endings say.
    let is_whole = |known: &str| {
        name.split_once(known).is_some_and(|(before, after)| {
            !before.ends_with(char::is_alphanumeric) && !after.contains("MIG")
        })
    };
    RATES.iter().find(|(known, _)| is_whole(known)).map(|(_, rate)| *rate)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use sterna_arch::ModelConfig;

    use super::*;

    #[test]
    fn a_gpu_is_known_by_the_name_of_its_driver() {
        for (name, tflops) in [
            ("NVIDIA H200", Some(989.0)),
            ("NVIDIA H100 80GB HBM3", Some(989.0)),
            ("NVIDIA H100 PCIe", Some(756.0)),
            ("NVIDIA GH200 480GB", Some(989.0)),
            ("NVIDIA A100-SXM4-80GB", Some(312.0)),
            ("NVIDIA GB200", None),
            ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
            ("NVIDIA GeForce RTX 4090", None),
        ] {
            assert_eq!(datasheet_rate(name), tflops.map(|tflops| tflops * 1e12), "{name}");
        }
    }

    fn llama_8b() -> Architecture {
        let json = r#"{"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 131072, "rope_theta": 500000.0, "hidden_act": "silu"}"#;
        let config = ModelConfig::from_json(json, Path::new("config.json"));
        config.expect("a valid config").arch
    }

    /// Values that the reference's own code printed (`arctic_training` 0.8, `flops_counter.py`).
    #[test]
    fn reference_formula_matches_the_reference() {
        let config = llama_8b();
        let tflos = |lens: &[usize]| reference_tflos(&config, lens.iter().copied(), true);
        assert!((tflos(&[32_768]) - 4219.101).abs() < 1e-3);
        assert!((tflos(&[3_800_000]) - 30_511_016.496_3).abs() < 1e-3);
        assert!((tflos(&[100, 200, 4090]) - 298.7498).abs() < 1e-4);
    }

    /// `786432 N^2 + 4.503e10 N` for Llama-3.1-8B, by hand.
    #[test]
    fn model_formula_is_causal_and_counts_nothing_twice() {
        let n = 131_072_usize;
        let expected = (786_432.0 * (n as f64).powi(2) + 4.503e10 * n as f64) / 1e12;
        let actual = model_tflos(&llama_8b(), std::iter::once(n), n);
        assert!((actual / expected - 1.0).abs() < 1e-4, "{actual} against {expected}");
    }

    /// Against every pair of a mask counted one by one; the triangle of `len^2 / 2` leaves out half the diagonal.
    #[test]
    fn a_window_counts_the_pairs_that_it_leaves() {
        let (len, window) = (1_000_i64, 32_i64);
        let pairs = (0..len).map(|query| (query + 1).min(window)).sum::<i64>() as f64;
        let counted = visible_pairs(len as f64, Some(window as f64));
        assert!((counted + len.min(window) as f64 / 2.0 - pairs).abs() < 0.5, "{counted}, {pairs}");
        assert!((visible_pairs(20.0, Some(32.0)) - 200.0).abs() < f64::EPSILON);
    }

    /// A delta net, which costs each token the same, before a layer with attention; by hand.
    #[test]
    fn a_delta_net_counts_by_its_recurrence() {
        let json = r#"{"model_type": "qwen3_5_text", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 32, "full_attention_interval": 2,
            "linear_num_key_heads": 1, "linear_num_value_heads": 2, "linear_key_head_dim": 6, "linear_value_head_dim": 4}"#;
        let arch = ModelConfig::from_json(json, Path::new("config.json")).expect("valid").arch;
        // q and k 6 wide, v, z and the output 8, a and b 2; queries and their gates 16 each, k and v 8, the output 16; two MLPs.
        let weights = 16.0 * (6.0 + 6.0 + 8.0 + 8.0 + 8.0 + 2.0 + 2.0)
            + 16.0 * (16.0 + 16.0 + 8.0 + 8.0 + 16.0)
            + 2.0 * 3.0 * 16.0 * 24.0;
        let rule = 3.0 * 2.0 * 6.0 * 4.0;
        let expected = 6.0 * (weights + rule) * 10.0 + 12.0 * 16.0 * 50.0;
        let actual = model_tflos(&arch, std::iter::once(10), 0) * 1e12;
        assert!((actual - expected).abs() < 1e-3, "{actual} and {expected}");
    }

    #[test]
    fn a_token_without_a_label_costs_no_head() {
        let config = llama_8b();
        let of = |num_valid_tokens| model_tflos(&config, std::iter::once(1000), num_valid_tokens);
        let head = 6.0 * 128_256.0 * 4096.0 * 1000.0 / 1e12;
        assert!((of(1000) - of(0) - head).abs() < 1e-9);
    }
}
