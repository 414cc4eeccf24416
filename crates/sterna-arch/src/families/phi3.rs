//! Phi-3, Phi-3.5, Phi-4 and Phi-4-mini (transformers `models/phi3`): Llama with projections in one tensor, and `longrope`.

use super::{Defaults, Family, Fused, NormEps, RopeFacts, Windows};

pub(super) const PHI3: Family = Family {
    model_type: "phi3",
    causal_lm_class: "Phi3ForCausalLM",
    defaults: Defaults {
        max_position_embeddings: 4096,
        bos_token_id: Some(1),
        eos_token_id: &[32_000],
        pad_token_id: Some(32_000),
        ..Defaults::USUAL
    },
    dropouts: &[("resid_pdrop", 0.0), ("attention_dropout", 0.0)],
    norm_eps: NormEps::Key("rms_norm_eps", 1e-5),
    fused: Fused::QkvAndGateUp,
    windows: Windows::All(None),
    rope: RopeFacts {
        partial: Some(1.0),
        is_longrope: true,
        original_len: Some(4096),
        ..RopeFacts::USUAL
    },
    ..Family::USUAL
};
