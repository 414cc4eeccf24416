//! Qwen 3 with experts: 30B-A3B, 235B-A22B, Qwen3-Coder (transformers `models/qwen3_moe`).

use super::{Defaults, Experts, Family, QkNorms, Setting, SparseLayers, Windows};
use crate::layer::NormKind;

pub(super) const QWEN3_MOE: Family = Family {
    model_type: "qwen3_moe",
    causal_lm_class: "Qwen3MoeForCausalLM",
    defaults: Defaults { num_key_value_heads: Some(4), ..Defaults::USUAL },
    qkv_bias: Setting::Key("attention_bias", false),
    o_bias: Setting::Key("attention_bias", false),
    qk_norm: Some(QkNorms::of_heads(NormKind::Rms)),
    windows: Windows::AllIfUsed,
    experts: Some(Experts {
        num: ("num_experts", 128),
        num_per_tok: ("num_experts_per_tok", Some(8)),
        intermediate_size: ("moe_intermediate_size", Some(768)),
        layers: SparseLayers::Stepped,
        ..Experts::USUAL
    }),
    ..Family::USUAL
};
