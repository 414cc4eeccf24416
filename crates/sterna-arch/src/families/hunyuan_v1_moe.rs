//! Hunyuan with experts: A13B (transformers `models/hunyuan_v1_moe`): the dense model's attention, one expert of all tokens.

use super::hunyuan_v1_dense::HUNYUAN_V1_DENSE;
use super::{Experts, Family, RouterFacts, Setting, Shared, SharedSize};

pub(super) const HUNYUAN_V1_MOE: Family = Family {
    model_type: "hunyuan_v1_moe",
    causal_lm_class: "HunYuanMoEV1ForCausalLM",
    experts: Some(Experts {
        num: ("num_experts", 1),
        num_per_tok: ("moe_topk", Some(1)),
        intermediate_size: ("intermediate_size", None),
        router: RouterFacts {
            name: "mlp.gate.wg",
            is_fp32: true,
            norm_topk_prob: Setting::Always,
            ..RouterFacts::SOFTMAX
        },
        shared: Some(Shared {
            name: "mlp.shared_mlp",
            gate: None,
            output_norm: None,
            intermediate_size: SharedSize::Key("intermediate_size", 11_008),
        }),
        aux_loss_coef: None,
        ..Experts::USUAL
    }),
    ..HUNYUAN_V1_DENSE
};
