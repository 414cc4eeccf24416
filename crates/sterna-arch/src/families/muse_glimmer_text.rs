//! Muse Glimmer, its text decoder (transformers `models/muse_glimmer`): normalised embeddings, norms around both branches, a gate on the
//! output of attention, and every fourth layer without window and rotary embedding.

use super::{
    Defaults, EmbeddingScale, Family, Gate, Last, LogitsScale, NormEps, NormParams, Norms, QkNorms,
    Rotated, Scale, Setting, Windows,
};
use crate::layer::NormKind;
use crate::wrappers::{Names, Wrapper};

pub(super) const MUSE_GLIMMER_TEXT: Family = Family {
    model_type: "muse_glimmer_text",
    // Transformers has no class for the text decoder alone.
    causal_lm_class: "MuseGlimmerForConditionalGeneration",
    defaults: Defaults {
        max_position_embeddings: 131_072,
        num_key_value_heads: Some(2),
        head_dim: Some(128),
        bos_token_id: Some(200_000),
        eos_token_id: &[200_001],
        ..Defaults::USUAL
    },
    norms: Norms::SANDWICH,
    norm: NormKind::RmsOnePlus,
    norm_eps: NormEps::Key("rms_norm_eps", 1e-5),
    post_norm_eps: Some(("post_norm_eps", 1e-8)),
    final_norm: Some(NormKind::RmsRoundedOnce),
    qkv_bias: Setting::Key("attention_bias", false),
    o_bias: Setting::Key("attention_bias", false),
    qk_norm: Some(QkNorms {
        params: NormParams::None,
        ..QkNorms::of_heads(NormKind::RmsRoundedOnce)
    }),
    gate: Gate::Projection,
    windows: Windows::AllBut {
        every: 4,
        has_pattern_key: false,
        default: 2048,
        may_be_null: false,
        last: Last::Zero,
    },
    rotated: Rotated::WithTheta,
    scale: Scale::HeadDimTimes("qk_scale_factor", 3.87),
    activation: ("hidden_activation", "silu"),
    embedding: EmbeddingScale::Normalised,
    logits: LogitsScale::Times("output_multiplier", 0.196_116_135_138_184_04),
    final_softcap: Some(("final_logit_softcapping", Some(20.0))),
    wrappers: &[Wrapper { model_type: "muse_glimmer", names: Names::BESIDE, ..Wrapper::USUAL }],
    ..Family::USUAL
};
