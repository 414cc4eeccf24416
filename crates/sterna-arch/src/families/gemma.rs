//! Gemma 1 (transformers `models/gemma`): norms of one plus their weight, and rows of the embedding times the root of their width.

use super::{Defaults, EmbeddingScale, Family, Refused, Setting};
use crate::layer::NormKind;

pub(super) const GEMMA: Family = Family {
    model_type: "gemma",
    causal_lm_class: "GemmaForCausalLM",
    defaults: Defaults {
        max_position_embeddings: 8192,
        num_key_value_heads: Some(16),
        head_dim: Some(256),
        tie_word_embeddings: true,
        bos_token_id: Some(2),
        eos_token_id: &[1],
        pad_token_id: Some(0),
        ..Defaults::USUAL
    },
    refused: &[Refused::flag("use_bidirectional_attention", "attention to tokens that come later")],
    norm: NormKind::RmsOnePlus,
    norm_init: 0.0,
    qkv_bias: Setting::Key("attention_bias", false),
    o_bias: Setting::Key("attention_bias", false),
    // Its other key, `hidden_activation`, is one that the class does not read.
    activation: ("hidden_act", "gelu_pytorch_tanh"),
    embedding: EmbeddingScale::RootOfHidden,
    ..Family::USUAL
};
