//! `OLMoE` (transformers `models/olmoe`): experts, and norms on queries and keys over all their heads.

use super::{Defaults, Experts, Family, NormEps, QkNorms, Refused, Setting};
use crate::layer::{NormKind, QkNormWidth};

pub(super) const OLMOE: Family = Family {
    model_type: "olmoe",
    causal_lm_class: "OlmoeForCausalLM",
    defaults: Defaults {
        max_position_embeddings: 4096,
        eos_token_id: &[50_279],
        pad_token_id: Some(1),
        ..Defaults::USUAL
    },
    refused: &[Refused {
        key: "clip_qkv",
        default: "null",
        idle: &["null"],
        what: "clamps behind norms on queries and keys",
    }],
    norm_eps: NormEps::Key("rms_norm_eps", 1e-5),
    qkv_bias: Setting::Key("attention_bias", false),
    o_bias: Setting::Key("attention_bias", false),
    qk_norm: Some(QkNorms { width: QkNormWidth::AllHeads, ..QkNorms::of_heads(NormKind::Rms) }),
    heads_fill_hidden: true,
    experts: Some(Experts {
        num: ("num_experts", 64),
        num_per_tok: ("num_experts_per_tok", Some(8)),
        intermediate_size: ("intermediate_size", None),
        aux_loss_coef: Some(0.01),
        ..Experts::USUAL
    }),
    ..Family::USUAL
};
