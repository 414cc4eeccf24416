//! Qwen 1.5, 2 and 2.5 (transformers `models/qwen2`).

use super::{Defaults, Family, Setting, Windows};
use crate::wrappers::{Names, Wrapper};

pub(super) const QWEN2: Family = Family {
    model_type: "qwen2",
    causal_lm_class: "Qwen2ForCausalLM",
    defaults: Defaults { num_key_value_heads: Some(32), ..Defaults::USUAL },
    // Whatever the file says.
    qkv_bias: Setting::Always,
    windows: Windows::Chosen,
    wrappers: &[Wrapper {
        model_type: "qwen2_5_vl",
        aliases: &["qwen2_5_vl", "qwen2_5_vl_text"],
        defaults: r#"{"num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 1000000.0, "max_window_layers": 80,
            "bos_token_id": 151643, "eos_token_id": 151645}"#,
        is_flat_too: true,
        names: Names::TEXT,
    }],
    ..Family::USUAL
};
