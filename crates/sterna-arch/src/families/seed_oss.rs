//! Seed-OSS (transformers `models/seed_oss`): biases on q, k and v, wide heads, and dropouts that a config has to switch off.

use super::{Defaults, Family, Setting};

pub(super) const SEED_OSS: Family = Family {
    model_type: "seed_oss",
    causal_lm_class: "SeedOssForCausalLM",
    defaults: Defaults {
        max_position_embeddings: 524_288,
        num_key_value_heads: Some(8),
        head_dim: Some(128),
        bos_token_id: Some(0),
        eos_token_id: &[2],
        pad_token_id: Some(1),
        ..Defaults::USUAL
    },
    dropouts: &[("residual_dropout", 0.1), ("attention_dropout", 0.1)],
    qkv_bias: Setting::Key("attention_bias", true),
    o_bias: Setting::Key("attention_out_bias", false),
    mlp_bias: Setting::Key("mlp_bias", false),
    ..Family::USUAL
};
