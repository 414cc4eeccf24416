//! Qwen 3.5 and 3.6 with experts: 35B-A3B, 122B-A10B, 397B-A17B, their text decoder (transformers `models/qwen3_5_moe`): the dense model with
//! experts in one tensor in place of its MLP, and one that every token takes, behind a gate.

use super::qwen3_5_text::QWEN3_5_TEXT;
use super::{Defaults, ExpertWeights, Experts, Family, RouterFacts, Setting, Shared, SharedSize};
use crate::wrappers::{Names, Wrapper};

pub(super) const QWEN3_5_MOE_TEXT: Family = Family {
    model_type: "qwen3_5_moe_text",
    causal_lm_class: "Qwen3_5MoeForCausalLM",
    defaults: Defaults { num_key_value_heads: Some(2), head_dim: Some(256), ..Defaults::USUAL },
    experts: Some(Experts {
        num: ("num_experts", 256),
        num_per_tok: ("num_experts_per_tok", Some(8)),
        intermediate_size: ("moe_intermediate_size", Some(512)),
        router: RouterFacts { norm_topk_prob: Setting::Always, ..RouterFacts::SOFTMAX },
        weights: ExpertWeights::Stacked {
            gate_up: "mlp.experts.gate_up_proj",
            down: "mlp.experts.down_proj",
        },
        shared: Some(Shared {
            name: "mlp.shared_expert",
            gate: Some("mlp.shared_expert_gate"),
            output_norm: None,
            intermediate_size: SharedSize::Key("shared_expert_intermediate_size", 512),
        }),
        ..Experts::USUAL
    }),
    wrappers: &[Wrapper { model_type: "qwen3_5_moe", names: Names::BESIDE, ..Wrapper::USUAL }],
    ..QWEN3_5_TEXT
};
