//! Helium (transformers `models/helium`): Llama whose rotary pairs are neighbours, and norms that round once.

use super::{Defaults, Family, NormEps, RopeFacts, Setting};
use crate::layer::NormKind;
use crate::rope::RopeLayout;

pub(super) const HELIUM: Family = Family {
    model_type: "helium",
    causal_lm_class: "HeliumForCausalLM",
    defaults: Defaults {
        max_position_embeddings: 4096,
        num_key_value_heads: Some(20),
        head_dim: Some(128),
        rope_theta: 100_000.0,
        bos_token_id: Some(1),
        eos_token_id: &[2],
        pad_token_id: Some(3),
        ..Defaults::USUAL
    },
    norm: NormKind::RmsRoundedOnce,
    norm_eps: NormEps::Key("rms_norm_eps", 1e-8),
    qkv_bias: Setting::Key("attention_bias", false),
    // `o_proj` of its class is square.
    heads_fill_hidden: true,
    rope: RopeFacts { layout: RopeLayout::Pairs, ..RopeFacts::USUAL },
    mlp_bias: Setting::Key("mlp_bias", false),
    ..Family::USUAL
};
