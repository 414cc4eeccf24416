//! Ministral 3 (transformers `models/ministral3`): Mistral with yarn, and queries that grow with their position.

use super::{Defaults, Family, NormEps, RopeFacts, Windows};

pub(super) const MINISTRAL3: Family = Family {
    model_type: "ministral3",
    causal_lm_class: "Ministral3ForCausalLM",
    defaults: Defaults {
        max_position_embeddings: 262_144,
        num_key_value_heads: Some(8),
        head_dim: Some(128),
        rope_theta: 1_000_000.0,
        bos_token_id: Some(1),
        eos_token_id: &[2],
        pad_token_id: Some(11),
        ..Defaults::USUAL
    },
    norm_eps: NormEps::Key("rms_norm_eps", 1e-5),
    windows: Windows::All(None),
    rope: RopeFacts {
        default_scaling: Some(
            r#"{"rope_type": "yarn", "rope_theta": 1000000.0, "factor": 16.0, "original_max_position_embeddings": 16384,
                "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}"#,
        ),
        scales_queries: true,
        ..RopeFacts::USUAL
    },
    ..Family::USUAL
};
