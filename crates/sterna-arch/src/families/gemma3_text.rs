//! Gemma 3, its text decoder (transformers `models/gemma3`): Gemma 2 with norms on queries and keys in place of the softcap of scores, and two
//! rotary embeddings.

use super::{
    Defaults, EmbeddingScale, Family, Last, Norms, QkNorms, Refused, RopeFacts, Scale, Setting,
    SlidingRope, Windows,
};
use crate::layer::NormKind;
use crate::wrappers::Wrapper;

pub(super) const GEMMA3_TEXT: Family = Family {
    model_type: "gemma3_text",
    causal_lm_class: "Gemma3ForCausalLM",
    defaults: Defaults {
        max_position_embeddings: 131_072,
        num_key_value_heads: Some(4),
        head_dim: Some(256),
        tie_word_embeddings: true,
        rope_theta: 1_000_000.0,
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
    qk_norm: Some(QkNorms::of_heads(NormKind::RmsOnePlus)),
    windows: Windows::AllBut {
        every: 6,
        has_pattern_key: true,
        default: 4096,
        may_be_null: false,
        last: Last::Any,
    },
    rope: RopeFacts {
        sliding: SlidingRope::Base("rope_local_base_freq", 10_000.0),
        ..RopeFacts::USUAL
    },
    scale: Scale::RootOf("query_pre_attn_scalar", 256.0),
    activation: ("hidden_activation", "gelu_pytorch_tanh"),
    embedding: EmbeddingScale::RootOfHidden,
    final_softcap: Some(("final_logit_softcapping", None)),
    wrappers: &[Wrapper { model_type: "gemma3", ..Wrapper::USUAL }],
    ..Family::USUAL
};
