//! Apertus (transformers `models/apertus`): norms on queries and keys, and an MLP without a gate whose activation is trained.

use super::{Defaults, Family, Mlp, NormEps, Norms, QkNorms, RopeFacts, Setting};
use crate::layer::NormKind;

pub(super) const APERTUS: Family = Family {
    model_type: "apertus",
    causal_lm_class: "ApertusForCausalLM",
    defaults: Defaults {
        max_position_embeddings: 65_536,
        rope_theta: 12_000_000.0,
        bos_token_id: Some(1),
        eos_token_id: &[2],
        pad_token_id: Some(3),
        ..Defaults::USUAL
    },
    norms: Norms {
        pre_attention: Some("attention_layernorm"),
        pre_ffn: Some("feedforward_layernorm"),
        ..Norms::PRE
    },
    norm_eps: NormEps::Key("rms_norm_eps", 1e-5),
    qkv_bias: Setting::Key("attention_bias", false),
    o_bias: Setting::Key("attention_bias", false),
    qk_norm: Some(QkNorms::of_heads(NormKind::Rms)),
    rope: RopeFacts {
        default_scaling: Some(
            r#"{"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192,
                "low_freq_factor": 1.0, "high_freq_factor": 4.0}"#,
        ),
        ..RopeFacts::USUAL
    },
    mlp: Mlp::Plain { up: "mlp.up_proj", down: "mlp.down_proj" },
    activation: ("hidden_act", "xielu"),
    ..Family::USUAL
};
