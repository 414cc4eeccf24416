//! `StarCoder2` (transformers `models/starcoder2`): layer norms, biases everywhere, and an MLP without a gate.

use super::{Defaults, Family, Mlp, NormEps, NormParams, Setting, Windows};
use crate::layer::NormKind;

pub(super) const STARCODER2: Family = Family {
    model_type: "starcoder2",
    causal_lm_class: "Starcoder2ForCausalLM",
    defaults: Defaults {
        max_position_embeddings: 4096,
        num_key_value_heads: Some(2),
        tie_word_embeddings: true,
        bos_token_id: Some(50_256),
        eos_token_id: &[50_256],
        initializer_range: 0.018_042,
        ..Defaults::USUAL
    },
    dropouts: &[("attention_dropout", 0.0), ("residual_dropout", 0.0), ("embedding_dropout", 0.0)],
    norm: NormKind::Layer,
    norm_eps: NormEps::Key("norm_epsilon", 1e-5),
    norm_params: NormParams::WeightAndBias,
    qkv_bias: Setting::Key("use_bias", true),
    o_bias: Setting::Key("use_bias", true),
    windows: Windows::All(None),
    mlp: Mlp::Plain { up: "mlp.c_fc", down: "mlp.c_proj" },
    activation: ("hidden_act", "gelu_pytorch_tanh"),
    mlp_bias: Setting::Key("use_bias", true),
    ..Family::USUAL
};
