//! Qwen 1.5, 2 and 2.5 (transformers `models/qwen2`).

use super::{Defaults, Family, Setting, Windows};

pub(super) const QWEN2: Family = Family {
    model_type: "qwen2",
    causal_lm_class: "Qwen2ForCausalLM",
    defaults: Defaults { num_key_value_heads: Some(32), ..Defaults::USUAL },
    // Whatever the file says.
    qkv_bias: Setting::Always,
    windows: Windows::Chosen,
    ..Family::USUAL
};
