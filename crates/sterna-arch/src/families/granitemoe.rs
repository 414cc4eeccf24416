//! Granite 3 with experts: 1B-A400M, 3B-A800M (transformers `models/granitemoe`): the dense model's multipliers, experts in one tensor.

use super::granite::GRANITE;
use super::{ExpertWeights, Experts, Family, RouterFacts, Setting};

pub(super) const GRANITEMOE: Family = Family {
    model_type: "granitemoe",
    causal_lm_class: "GraniteMoeForCausalLM",
    mlp_bias: Setting::Never,
    experts: Some(Experts {
        num: ("num_local_experts", 8),
        num_per_tok: ("num_experts_per_tok", Some(2)),
        intermediate_size: ("intermediate_size", None),
        // The softmax of the chosen logits alone.
        router: RouterFacts {
            name: "block_sparse_moe.router.layer",
            norm_topk_prob: Setting::Always,
            ..RouterFacts::SOFTMAX
        },
        weights: ExpertWeights::Stacked {
            gate_up: "block_sparse_moe.input_linear.weight",
            down: "block_sparse_moe.output_linear.weight",
        },
        ..Experts::USUAL
    }),
    ..GRANITE
};
