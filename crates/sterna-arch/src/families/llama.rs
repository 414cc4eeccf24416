//! Llama 1 to 3.3, SmolLM2 and everything else saved as `llama` (transformers `models/llama`).

use super::{Defaults, Family, Setting};
use crate::wrappers::Wrapper;

pub(super) const LLAMA: Family = Family {
    model_type: "llama",
    causal_lm_class: "LlamaForCausalLM",
    defaults: Defaults {
        max_position_embeddings: 2048,
        bos_token_id: Some(1),
        eos_token_id: &[2],
        ..Defaults::USUAL
    },
    qkv_bias: Setting::Key("attention_bias", false),
    o_bias: Setting::Key("attention_bias", false),
    mlp_bias: Setting::Key("mlp_bias", false),
    wrappers: &[Wrapper { model_type: "llava", ..Wrapper::USUAL }],
    ..Family::USUAL
};
