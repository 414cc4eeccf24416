//! ERNIE 4.5, dense (transformers `models/ernie4_5`): Llama whose rotary pairs are neighbours.

use super::{Defaults, Family, NormEps, RopeFacts, Setting};
use crate::rope::RopeLayout;

pub(super) const ERNIE4_5: Family = Family {
    model_type: "ernie4_5",
    causal_lm_class: "Ernie4_5ForCausalLM",
    defaults: Defaults {
        max_position_embeddings: 131_072,
        num_key_value_heads: Some(2),
        head_dim: Some(128),
        tie_word_embeddings: true,
        rope_theta: 500_000.0,
        bos_token_id: Some(1),
        eos_token_id: &[2],
        pad_token_id: Some(0),
        ..Defaults::USUAL
    },
    norm_eps: NormEps::Key("rms_norm_eps", 1e-5),
    qkv_bias: Setting::Key("use_bias", false),
    o_bias: Setting::Key("use_bias", false),
    rope: RopeFacts { layout: RopeLayout::Pairs, rounds_once: true, ..RopeFacts::USUAL },
    mlp_bias: Setting::Key("use_bias", false),
    ..Family::USUAL
};
