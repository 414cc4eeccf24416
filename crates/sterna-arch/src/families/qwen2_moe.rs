//! Qwen 1.5 and 2 with experts: A2.7B, 57B-A14B (transformers `models/qwen2_moe`): one of them is every token's, behind a gate.

use super::{Defaults, Experts, Family, Refused, Setting, Shared, SharedSize, SparseLayers};

pub(super) const QWEN2_MOE: Family = Family {
    model_type: "qwen2_moe",
    causal_lm_class: "Qwen2MoeForCausalLM",
    defaults: Defaults { num_key_value_heads: Some(16), ..Defaults::USUAL },
    // Versions of transformers give it to other layers.
    refused: &[Refused::flag("use_sliding_window", "windows in this family")],
    qkv_bias: Setting::Key("qkv_bias", true),
    heads_fill_hidden: true,
    experts: Some(Experts {
        num: ("num_experts", 60),
        num_per_tok: ("num_experts_per_tok", Some(4)),
        intermediate_size: ("moe_intermediate_size", Some(1408)),
        layers: SparseLayers::Stepped,
        shared: Some(Shared {
            name: "mlp.shared_expert",
            gate: Some("mlp.shared_expert_gate"),
            output_norm: None,
            intermediate_size: SharedSize::Key("shared_expert_intermediate_size", 5632),
        }),
        ..Experts::USUAL
    }),
    ..Family::USUAL
};
