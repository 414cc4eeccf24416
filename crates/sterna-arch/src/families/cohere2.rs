//! Command R7B and Command A (transformers `models/cohere2`): Command R with a window in three of four layers, which alone turn by position.

use super::{
    Defaults, Family, Last, LogitsScale, NormEps, Norms, RopeFacts, Rotated, Setting, Windows,
};
use crate::layer::NormKind;
use crate::rope::RopeLayout;

pub(super) const COHERE2: Family = Family {
    model_type: "cohere2",
    causal_lm_class: "Cohere2ForCausalLM",
    defaults: Defaults {
        max_position_embeddings: 8192,
        tie_word_embeddings: true,
        bos_token_id: Some(5),
        eos_token_id: &[255_001],
        pad_token_id: Some(0),
        ..Defaults::USUAL
    },
    norms: Norms { pre_ffn: None, ..Norms::PRE },
    norm: NormKind::Layer,
    norm_eps: NormEps::Key("layer_norm_eps", 1e-5),
    parallel: Setting::Always,
    qkv_bias: Setting::Key("attention_bias", false),
    o_bias: Setting::Key("attention_bias", false),
    windows: Windows::AllBut {
        every: 4,
        has_pattern_key: true,
        default: 4096,
        may_be_null: false,
        last: Last::Any,
    },
    rotated: Rotated::Sliding,
    rope: RopeFacts { layout: RopeLayout::Pairs, rounds_once: true, ..RopeFacts::USUAL },
    logits: LogitsScale::Times("logit_scale", 0.0625),
    ..Family::USUAL
};
