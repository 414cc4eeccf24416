//! GLM-4 9B of 2024 (transformers `models/glm`): half of each head turns, in pairs of neighbours.

use super::{Defaults, Family, Fused, NormEps, RopeFacts, Setting};
use crate::rope::RopeLayout;

pub(super) const GLM: Family = Family {
    model_type: "glm",
    causal_lm_class: "GlmForCausalLM",
    defaults: Defaults {
        max_position_embeddings: 131_072,
        num_key_value_heads: Some(2),
        head_dim: Some(128),
        eos_token_id: &[151_329, 151_336, 151_338],
        pad_token_id: Some(151_329),
        ..Defaults::USUAL
    },
    norm_eps: NormEps::Key("rms_norm_eps", 0.000_000_156_25),
    qkv_bias: Setting::Key("attention_bias", true),
    fused: Fused::GateUp,
    rope: RopeFacts { layout: RopeLayout::Pairs, partial: Some(0.5), ..RopeFacts::USUAL },
    ..Family::USUAL
};
