//! Granite 3, dense (transformers `models/granite`): Llama with four multipliers.

use super::{Defaults, EmbeddingScale, Family, LogitsScale, Scale, Setting};

pub(super) const GRANITE: Family = Family {
    model_type: "granite",
    causal_lm_class: "GraniteForCausalLM",
    defaults: Defaults {
        max_position_embeddings: 2048,
        bos_token_id: Some(1),
        eos_token_id: &[2],
        ..Defaults::USUAL
    },
    qkv_bias: Setting::Key("attention_bias", false),
    o_bias: Setting::Key("attention_bias", false),
    mlp_bias: Setting::Key("mlp_bias", false),
    scale: Scale::Key("attention_multiplier", 1.0),
    embedding: EmbeddingScale::Key("embedding_multiplier"),
    residual_multiplier: Some("residual_multiplier"),
    logits: LogitsScale::Over("logits_scaling"),
    ..Family::USUAL
};
