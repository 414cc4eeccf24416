//! `StableLM` (transformers `models/stablelm`): layer norms with biases, a quarter of each head turns.

use super::{Defaults, Family, NormEps, NormParams, QkNorms, RopeFacts, Setting};
use crate::layer::{NormKind, QkNormWidth};

pub(super) const STABLELM: Family = Family {
    model_type: "stablelm",
    causal_lm_class: "StableLmForCausalLM",
    defaults: Defaults {
        max_position_embeddings: 4096,
        num_key_value_heads: Some(32),
        bos_token_id: Some(0),
        eos_token_id: &[0],
        ..Defaults::USUAL
    },
    dropouts: &[("attention_dropout", 0.0), ("hidden_dropout", 0.0)],
    norm: NormKind::Layer,
    norm_eps: NormEps::Key("layer_norm_eps", 1e-5),
    norm_params: NormParams::WeightAndBias,
    parallel: Setting::Key("use_parallel_residual", false),
    qkv_bias: Setting::Key("use_qkv_bias", false),
    // Its attention computes the head size from the hidden size; its rotary embedding alone reads `head_dim`.
    heads_fill_hidden: true,
    rope: RopeFacts { partial: Some(0.25), ..RopeFacts::USUAL },
    qk_norm: Some(QkNorms {
        when: Setting::Key("qk_layernorm", false),
        names: ["q_layernorm.norms", "k_layernorm.norms"],
        width: QkNormWidth::HeadWithTensor,
        ..QkNorms::of_heads(NormKind::Layer)
    }),
    ..Family::USUAL
};
