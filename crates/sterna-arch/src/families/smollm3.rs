//! `SmolLM3` (transformers `models/smollm3`): Llama without rotary embeddings in every fourth layer.

use super::{Defaults, Family, Rotated, Setting, Windows};

pub(super) const SMOLLM3: Family = Family {
    model_type: "smollm3",
    causal_lm_class: "SmolLM3ForCausalLM",
    defaults: Defaults {
        num_key_value_heads: Some(4),
        // Its class leaves that to the base class, whose default is another than those of Llama and its kin.
        tie_word_embeddings: true,
        rope_theta: 2_000_000.0,
        bos_token_id: Some(128_000),
        eos_token_id: &[128_001],
        pad_token_id: Some(128_004),
        ..Defaults::USUAL
    },
    qkv_bias: Setting::Key("attention_bias", false),
    o_bias: Setting::Key("attention_bias", false),
    mlp_bias: Setting::Key("mlp_bias", false),
    windows: Windows::NotRotated,
    rotated: Rotated::Chosen,
    ..Family::USUAL
};
