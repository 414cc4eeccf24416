//! Hunyuan, dense (transformers `models/hunyuan_v1_dense`): norms on queries and keys after they have turned.

use super::{Defaults, Family, NormEps, QkNorms, RopeFacts, Setting};
use crate::layer::NormKind;

pub(super) const HUNYUAN_V1_DENSE: Family = Family {
    model_type: "hunyuan_v1_dense",
    causal_lm_class: "HunYuanDenseV1ForCausalLM",
    defaults: Defaults {
        max_position_embeddings: 2048,
        bos_token_id: Some(1),
        eos_token_id: &[2],
        pad_token_id: Some(0),
        ..Defaults::USUAL
    },
    norm_eps: NormEps::Key("rms_norm_eps", 1e-5),
    qkv_bias: Setting::Key("attention_bias", false),
    o_bias: Setting::Key("attention_bias", false),
    qk_norm: Some(QkNorms {
        names: ["query_layernorm", "key_layernorm"],
        is_after_rope: true,
        ..QkNorms::of_heads(NormKind::Rms)
    }),
    rope: RopeFacts { has_alpha: true, ..RopeFacts::USUAL },
    ..Family::USUAL
};
