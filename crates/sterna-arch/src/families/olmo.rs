//! `OLMo` 1 (transformers `models/olmo`): layer norms without weights, and projections that may be clamped.

use super::{Defaults, Family, NormEps, NormParams, RopeFacts, Setting};
use crate::layer::NormKind;

pub(super) const OLMO: Family = Family {
    model_type: "olmo",
    causal_lm_class: "OlmoForCausalLM",
    defaults: Defaults {
        max_position_embeddings: 2048,
        eos_token_id: &[50_279],
        pad_token_id: Some(1),
        ..Defaults::USUAL
    },
    norm: NormKind::Layer,
    norm_eps: NormEps::Fixed(1e-5),
    norm_params: NormParams::None,
    qkv_bias: Setting::Key("attention_bias", false),
    o_bias: Setting::Key("attention_bias", false),
    clips_qkv: true,
    rope: RopeFacts { rounds_once: true, ..RopeFacts::USUAL },
    ..Family::USUAL
};
