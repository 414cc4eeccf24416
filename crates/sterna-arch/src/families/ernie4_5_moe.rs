//! ERNIE 4.5 with experts (transformers `models/ernie4_5_moe`): the dense model's attention, and a bias for the choice alone.

use super::ernie4_5::ERNIE4_5;
use super::{
    Defaults, Experts, Family, Refused, RouterFacts, Setting, Shared, SharedSize, SparseLayers,
};

pub(super) const ERNIE4_5_MOE: Family = Family {
    model_type: "ernie4_5_moe",
    causal_lm_class: "Ernie4_5_MoeForCausalLM",
    defaults: Defaults { num_key_value_heads: Some(4), head_dim: None, ..ERNIE4_5.defaults },
    refused: &[Refused::flag("use_bias", "bias on a head")],
    qkv_bias: Setting::Never,
    o_bias: Setting::Never,
    mlp_bias: Setting::Never,
    experts: Some(Experts {
        num: ("moe_num_experts", 64),
        num_per_tok: ("moe_k", Some(6)),
        intermediate_size: ("moe_intermediate_size", Some(1536)),
        layers: SparseLayers::Between,
        router: RouterFacts {
            is_fp32: true,
            correction_bias: Some(("mlp.moe_statics.e_score_correction_bias", &[1])),
            norm_topk_prob: Setting::Always,
            norm_least: Some(("moe_norm_min", 1e-12)),
            ..RouterFacts::SOFTMAX
        },
        shared: Some(Shared {
            name: "mlp.shared_experts",
            gate: None,
            output_norm: None,
            intermediate_size: SharedSize::Experts("moe_num_shared_experts", Some(2)),
        }),
        ..Experts::USUAL
    }),
    ..ERNIE4_5
};
