//! GLM-4-0414 and GLM-Z1 (transformers `models/glm4`): GLM with norms around both branches.

use super::{Defaults, Family, Fused, NormEps, Norms, RopeFacts, Setting};
use crate::rope::RopeLayout;

pub(super) const GLM4: Family = Family {
    model_type: "glm4",
    causal_lm_class: "Glm4ForCausalLM",
    defaults: Defaults {
        max_position_embeddings: 131_072,
        num_key_value_heads: Some(2),
        head_dim: Some(128),
        eos_token_id: &[151_329, 151_336, 151_338],
        pad_token_id: Some(151_329),
        ..Defaults::USUAL
    },
    norms: Norms {
        pre_attention: Some("input_layernorm"),
        post_attention: Some("post_self_attn_layernorm"),
        pre_ffn: Some("post_attention_layernorm"),
        post_ffn: Some("post_mlp_layernorm"),
    },
    norm_eps: NormEps::Key("rms_norm_eps", 0.000_000_156_25),
    qkv_bias: Setting::Key("attention_bias", true),
    fused: Fused::GateUp,
    rope: RopeFacts { layout: RopeLayout::Pairs, partial: Some(0.5), ..RopeFacts::USUAL },
    ..Family::USUAL
};
