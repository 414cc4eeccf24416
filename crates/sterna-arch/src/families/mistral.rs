//! Mistral 7B and its kin (transformers `models/mistral`).

use super::{Defaults, Family, Windows};
use crate::wrappers::Wrapper;

pub(super) const MISTRAL: Family = Family {
    model_type: "mistral",
    causal_lm_class: "MistralForCausalLM",
    defaults: Defaults {
        max_position_embeddings: 131_072,
        num_key_value_heads: Some(8),
        bos_token_id: Some(1),
        eos_token_id: &[2],
        ..Defaults::USUAL
    },
    windows: Windows::All(Some(4096)),
    wrappers: &[Wrapper { model_type: "mistral3", ..Wrapper::USUAL }],
    ..Family::USUAL
};
