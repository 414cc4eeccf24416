//! `dots.llm1` (transformers `models/dots1`): `DeepSeek` 3's experts behind ordinary attention.

use super::{
    Defaults, Experts, Family, QkNorms, RouterFacts, Setting, Shared, SharedSize, SparseLayers,
    Windows,
};
use crate::layer::NormKind;

pub(super) const DOTS1: Family = Family {
    model_type: "dots1",
    causal_lm_class: "Dots1ForCausalLM",
    defaults: Defaults {
        max_position_embeddings: 2048,
        num_key_value_heads: Some(32),
        ..Defaults::USUAL
    },
    qkv_bias: Setting::Key("attention_bias", false),
    o_bias: Setting::Key("attention_bias", false),
    qk_norm: Some(QkNorms::of_heads(NormKind::Rms)),
    windows: Windows::From { default: 4096, first: 62 },
    experts: Some(Experts {
        num: ("n_routed_experts", 0),
        intermediate_size: ("moe_intermediate_size", Some(1408)),
        layers: SparseLayers::AllButFirst(0),
        router: RouterFacts::SIGMOID,
        shared: Some(Shared {
            name: "mlp.shared_experts",
            gate: None,
            output_norm: None,
            intermediate_size: SharedSize::Experts("n_shared_experts", None),
        }),
        aux_loss_coef: None,
        ..Experts::USUAL
    }),
    ..Family::USUAL
};
