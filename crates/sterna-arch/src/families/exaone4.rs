//! EXAONE 4 (transformers `models/exaone4`): norms on the outputs of both branches, and a window in three of four layers, which alone turn by
//! position.

use super::{Defaults, Family, Last, NormEps, Norms, QkNorms, Rotated, Windows};
use crate::layer::NormKind;

pub(super) const EXAONE4: Family = Family {
    model_type: "exaone4",
    causal_lm_class: "Exaone4ForCausalLM",
    defaults: Defaults {
        max_position_embeddings: 2048,
        num_key_value_heads: Some(32),
        bos_token_id: Some(0),
        eos_token_id: &[2],
        ..Defaults::USUAL
    },
    norms: Norms::POST,
    norm_eps: NormEps::Key("rms_norm_eps", 1e-5),
    qk_norm: Some(QkNorms::of_heads(NormKind::Rms)),
    windows: Windows::AllBut {
        every: 4,
        has_pattern_key: true,
        default: 4096,
        may_be_null: true,
        last: Last::Any,
    },
    rotated: Rotated::Sliding,
    ..Family::USUAL
};
