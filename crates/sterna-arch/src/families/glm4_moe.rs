//! GLM-4.5 to 4.7 (transformers `models/glm4_moe`): `DeepSeek` 3's experts behind ordinary attention on half of each head.

use super::{
    Defaults, Experts, Family, NormEps, QkNorms, RopeFacts, RouterFacts, Setting, Shared,
    SharedSize, SparseLayers,
};
use crate::layer::NormKind;

pub(super) const GLM4_MOE: Family = Family {
    model_type: "glm4_moe",
    causal_lm_class: "Glm4MoeForCausalLM",
    defaults: Defaults {
        max_position_embeddings: 131_072,
        num_key_value_heads: Some(8),
        ..Defaults::USUAL
    },
    norm_eps: NormEps::Key("rms_norm_eps", 1e-5),
    qkv_bias: Setting::Key("attention_bias", false),
    qk_norm: Some(QkNorms {
        when: Setting::Key("use_qk_norm", false),
        ..QkNorms::of_heads(NormKind::Rms)
    }),
    rope: RopeFacts { partial: Some(0.5), ..RopeFacts::USUAL },
    experts: Some(Experts {
        num: ("n_routed_experts", 128),
        num_per_tok: ("num_experts_per_tok", Some(8)),
        intermediate_size: ("moe_intermediate_size", Some(1408)),
        layers: SparseLayers::AllButFirst(1),
        router: RouterFacts {
            norm_topk_prob: Setting::Key("norm_topk_prob", true),
            ..RouterFacts::SIGMOID
        },
        shared: Some(Shared {
            name: "mlp.shared_experts",
            gate: None,
            output_norm: None,
            intermediate_size: SharedSize::Experts("n_shared_experts", Some(1)),
        }),
        aux_loss_coef: None,
        ..Experts::USUAL
    }),
    ..Family::USUAL
};
