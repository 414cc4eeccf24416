//! gpt-oss 20B and 120B (transformers `models/gpt_oss`): sinks, a window in every second layer, and experts with biases in one tensor, whose
//! activation is clamped. The hub has the experts as MXFP4.

use super::{
    ClampFacts, Defaults, ExpertWeights, Experts, Family, Last, NormEps, RopeFacts, RouterFacts,
    Setting, Windows,
};
use crate::layer::NormKind;

pub(super) const GPT_OSS: Family = Family {
    model_type: "gpt_oss",
    causal_lm_class: "GptOssForCausalLM",
    defaults: Defaults {
        max_position_embeddings: 131_072,
        num_key_value_heads: Some(8),
        head_dim: Some(64),
        rope_theta: 150_000.0,
        ..Defaults::USUAL
    },
    may_be_mxfp4: true,
    norm: NormKind::RmsRoundedOnce,
    norm_eps: NormEps::Key("rms_norm_eps", 1e-5),
    qkv_bias: Setting::Key("attention_bias", true),
    o_bias: Setting::Key("attention_bias", true),
    has_sinks: true,
    windows: Windows::AllBut {
        every: 2,
        has_pattern_key: false,
        default: 128,
        may_be_null: false,
        last: Last::Any,
    },
    rope: RopeFacts {
        default_scaling: Some(
            r#"{"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": false,
                "original_max_position_embeddings": 4096}"#,
        ),
        ..RopeFacts::USUAL
    },
    experts: Some(Experts {
        num: ("num_local_experts", 128),
        num_per_tok: ("num_experts_per_tok", Some(4)),
        intermediate_size: ("intermediate_size", None),
        router: RouterFacts {
            name: "mlp.router",
            has_bias: true,
            norm_topk_prob: Setting::Always,
            ..RouterFacts::SOFTMAX
        },
        weights: ExpertWeights::Transposed {
            gate_up: "mlp.experts.gate_up_proj",
            gate_up_bias: "mlp.experts.gate_up_proj_bias",
            down: "mlp.experts.down_proj",
            down_bias: "mlp.experts.down_proj_bias",
        },
        clamped_swiglu: Some(ClampFacts {
            alpha: ("swiglu_alpha", 1.702),
            limit: ("swiglu_limit", 7.0),
        }),
        aux_loss_coef: Some(0.9),
        ..Experts::USUAL
    }),
    ..Family::USUAL
};
