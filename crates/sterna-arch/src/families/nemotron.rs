//! Nemotron-4 and Minitron (transformers `models/nemotron`): layer norms of one plus their weight, an MLP without a gate, half of each head turns.

use super::{Defaults, Family, Mlp, NormEps, NormParams, RopeFacts, Setting};
use crate::layer::NormKind;

pub(super) const NEMOTRON: Family = Family {
    model_type: "nemotron",
    causal_lm_class: "NemotronForCausalLM",
    defaults: Defaults {
        max_position_embeddings: 4096,
        bos_token_id: Some(2),
        eos_token_id: &[3],
        initializer_range: 0.0134,
        ..Defaults::USUAL
    },
    norm: NormKind::LayerOnePlus,
    norm_eps: NormEps::Key("norm_eps", 1e-5),
    norm_params: NormParams::WeightAndBias,
    qkv_bias: Setting::Key("attention_bias", false),
    o_bias: Setting::Key("attention_bias", false),
    rope: RopeFacts { partial: Some(0.5), is_scalable: false, ..RopeFacts::USUAL },
    mlp: Mlp::Plain { up: "mlp.up_proj", down: "mlp.down_proj" },
    activation: ("hidden_act", "relu2"),
    mlp_bias: Setting::Key("mlp_bias", false),
    ..Family::USUAL
};
