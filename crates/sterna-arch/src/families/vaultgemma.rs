//! Gemma 2 without the norms on the outputs of its branches (transformers `models/vaultgemma`).

use super::{Defaults, EmbeddingScale, Family, Last, Norms, Scale, Setting, Windows};
use crate::layer::NormKind;

pub(super) const VAULTGEMMA: Family = Family {
    model_type: "vaultgemma",
    causal_lm_class: "VaultGemmaForCausalLM",
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
    norms: Norms { pre_ffn: Some("pre_feedforward_layernorm"), ..Norms::PRE },
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
