//! `OLMo` 3 (transformers `models/olmo3`): `OLMo` 2 with a window in three of four layers, which its scaled rotary embedding leaves out.

use super::{
    Defaults, Family, Last, NormEps, Norms, QkNorms, RopeFacts, Setting, SlidingRope, Windows,
};
use crate::layer::{NormKind, QkNormWidth};

pub(super) const OLMO3: Family = Family {
    model_type: "olmo3",
    causal_lm_class: "Olmo3ForCausalLM",
    defaults: Defaults {
        max_position_embeddings: 2048,
        eos_token_id: &[50_279],
        pad_token_id: Some(1),
        ..Defaults::USUAL
    },
    norms: Norms::POST,
    norm: NormKind::RmsRoundedOnce,
    norm_eps: NormEps::Key("rms_norm_eps", 1e-5),
    qkv_bias: Setting::Key("attention_bias", false),
    o_bias: Setting::Key("attention_bias", false),
    qk_norm: Some(QkNorms {
        width: QkNormWidth::AllHeads,
        ..QkNorms::of_heads(NormKind::RmsRoundedOnce)
    }),
    windows: Windows::AllBut {
        every: 4,
        has_pattern_key: false,
        default: 4096,
        may_be_null: false,
        last: Last::Any,
    },
    rope: RopeFacts { sliding: SlidingRope::Unscaled, rounds_once: true, ..RopeFacts::USUAL },
    ..Family::USUAL
};
