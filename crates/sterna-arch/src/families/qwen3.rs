//! Qwen 3, dense (transformers `models/qwen3`).

use super::{Defaults, Family, QkNorms, Setting, Windows};
use crate::layer::NormKind;

pub(super) const QWEN3: Family = Family {
    model_type: "qwen3",
    causal_lm_class: "Qwen3ForCausalLM",
    defaults: Defaults { num_key_value_heads: Some(32), head_dim: Some(128), ..Defaults::USUAL },
    qkv_bias: Setting::Key("attention_bias", false),
    o_bias: Setting::Key("attention_bias", false),
    qk_norm: Some(QkNorms::of_heads(NormKind::Rms)),
    windows: Windows::Chosen,
    ..Family::USUAL
};
