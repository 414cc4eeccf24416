//! Command R (transformers `models/cohere`): both branches read one layer norm, rotary pairs are neighbours.

use super::{Defaults, Family, LogitsScale, NormEps, Norms, QkNorms, RopeFacts, Setting};
use crate::layer::{NormKind, QkNormWidth};
use crate::rope::RopeLayout;

pub(super) const COHERE: Family = Family {
    model_type: "cohere",
    causal_lm_class: "CohereForCausalLM",
    defaults: Defaults {
        max_position_embeddings: 8192,
        tie_word_embeddings: true,
        bos_token_id: Some(5),
        eos_token_id: &[255_001],
        pad_token_id: Some(0),
        ..Defaults::USUAL
    },
    norms: Norms { pre_ffn: None, ..Norms::PRE },
    norm: NormKind::Layer,
    norm_eps: NormEps::Key("layer_norm_eps", 1e-5),
    parallel: Setting::Always,
    qkv_bias: Setting::Key("attention_bias", false),
    o_bias: Setting::Key("attention_bias", false),
    qk_norm: Some(QkNorms {
        when: Setting::Key("use_qk_norm", false),
        width: QkNormWidth::HeadWithRow,
        ..QkNorms::of_heads(NormKind::Layer)
    }),
    rope: RopeFacts { layout: RopeLayout::Pairs, rounds_once: true, ..RopeFacts::USUAL },
    logits: LogitsScale::Times("logit_scale", 0.0625),
    ..Family::USUAL
};
