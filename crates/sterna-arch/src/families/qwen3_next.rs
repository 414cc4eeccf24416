//! Qwen3-Next 80B-A3B and Qwen3-Coder-Next (transformers `models/qwen3_next`): the text decoder of Qwen 3.5 with experts, each in tensors of
//! its own, and projections of delta nets that lie key head by key head. The hub's layers for multi-token prediction are left alone.

use super::qwen3_5_text::QWEN3_5_TEXT;
use super::{
    Defaults, DeltaNetMaps, Experts, Family, RouterFacts, Setting, Shared, SharedSize, SparseLayers,
};

pub(super) const QWEN3_NEXT: Family = Family {
    model_type: "qwen3_next",
    causal_lm_class: "Qwen3NextForCausalLM",
    defaults: Defaults { num_key_value_heads: Some(2), head_dim: Some(256), ..Defaults::USUAL },
    delta_nets: Some(DeltaNetMaps::ByKeyHead),
    experts: Some(Experts {
        num: ("num_experts", 512),
        num_per_tok: ("num_experts_per_tok", Some(10)),
        intermediate_size: ("moe_intermediate_size", Some(512)),
        layers: SparseLayers::Stepped,
        router: RouterFacts {
            norm_topk_prob: Setting::Key("norm_topk_prob", true),
            ..RouterFacts::SOFTMAX
        },
        shared: Some(Shared {
            name: "mlp.shared_expert",
            gate: Some("mlp.shared_expert_gate"),
            output_norm: None,
            intermediate_size: SharedSize::Key("shared_expert_intermediate_size", 512),
        }),
        ..Experts::USUAL
    }),
    wrappers: &[],
    ..QWEN3_5_TEXT
};
