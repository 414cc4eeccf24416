//! `OLMo` 2 (transformers `models/olmo2`): norms on the outputs of both branches, and on queries and keys over all their heads.

use super::{Defaults, Family, NormEps, Norms, QkNorms, RopeFacts, Setting};
use crate::layer::{NormKind, QkNormWidth};

pub(super) const OLMO2: Family = Family {
    model_type: "olmo2",
    causal_lm_class: "Olmo2ForCausalLM",
    defaults: Defaults {
        max_position_embeddings: 2048,
        eos_token_id: &[50_279],
        pad_token_id: Some(1),
        ..Defaults::USUAL
    },
    norms: Norms::POST,
    norm: NormKind::RmsRoundedOnce,
    norm_eps: NormEps::Key("rms_norm_eps", 1e-5),
    qkv_bias: Setting::Key("attention_bias", false),
    o_bias: Setting::Key("attention_bias", false),
    qk_norm: Some(QkNorms {
        width: QkNormWidth::AllHeads,
        ..QkNorms::of_heads(NormKind::RmsRoundedOnce)
    }),
    rope: RopeFacts { rounds_once: true, ..RopeFacts::USUAL },
    ..Family::USUAL
};
