//! Qwen 3.5 and 3.6, dense, their text decoder (transformers `models/qwen3_5`): three gated delta nets, then a layer with gated
//! attention, of whose heads a quarter turns.

use super::{Defaults, DeltaNetMaps, Family, Gate, QkNorms, RopeFacts, Setting};
use crate::layer::NormKind;
use crate::wrappers::{Names, Wrapper};

pub(super) const QWEN3_5_TEXT: Family = Family {
    model_type: "qwen3_5_text",
    causal_lm_class: "Qwen3_5ForCausalLM",
    defaults: Defaults { num_key_value_heads: Some(4), head_dim: Some(256), ..Defaults::USUAL },
    norm: NormKind::RmsOnePlus,
    norm_init: 0.0,
    qkv_bias: Setting::Key("attention_bias", false),
    o_bias: Setting::Key("attention_bias", false),
    qk_norm: Some(QkNorms::of_heads(NormKind::RmsOnePlus)),
    gate: Gate::HalfOfQ,
    delta_nets: Some(DeltaNetMaps::Apart),
    rope: RopeFacts { partial: Some(0.25), ..RopeFacts::USUAL },
    wrappers: &[Wrapper { model_type: "qwen3_5", names: Names::BESIDE, ..Wrapper::USUAL }],
    ..Family::USUAL
};
