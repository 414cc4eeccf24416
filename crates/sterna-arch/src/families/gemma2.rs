//! Gemma 2 (transformers `models/gemma2`): Gemma with norms around both branches, softcaps, and a window in every other layer.

use super::{Defaults, EmbeddingScale, Family, Last, Norms, Refused, Scale, Setting, Windows};
use crate::layer::NormKind;

pub(super) const GEMMA2: Family = Family {
    model_type: "gemma2",
    causal_lm_class: "Gemma2ForCausalLM",
    defaults: Defaults {
        max_position_embeddings: 8192,
        num_key_value_heads: Some(4),
        head_dim: Some(256),
        tie_word_embeddings: true,
        bos_token_id: Some(2),
        eos_token_id: &[1],
        pad_token_id: Some(0),
        ..Defaults::USUAL
    },
    refused: &[Refused::flag("use_bidirectional_attention", "attention to tokens that come later")],
    norms: Norms::SANDWICH,
    norm: NormKind::RmsOnePlus,
    norm_init: 0.0,
    qkv_bias: Setting::Key("attention_bias", false),
    o_bias: Setting::Key("attention_bias", false),
    windows: Windows::AllBut {
        every: 2,
        has_pattern_key: false,
        default: 4096,
        may_be_null: false,
        last: Last::Any,
    },
    scale: Scale::RootOf("query_pre_attn_scalar", 256.0),
    attention_softcap: Some(("attn_logit_softcapping", Some(50.0))),
    activation: ("hidden_activation", "gelu_pytorch_tanh"),
    embedding: EmbeddingScale::RootOfHidden,
    final_softcap: Some(("final_logit_softcapping", Some(30.0))),
    ..Family::USUAL
};
