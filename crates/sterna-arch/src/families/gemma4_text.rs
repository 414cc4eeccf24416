//! Gemma 4 31B and 26B-A4B, their text decoder (transformers `models/gemma4`): wider and fewer heads in layers without a window, whose values
//! are their keys; in the latter experts beside the MLP, each with norms of its own. Embeddings of each layer and layers that share keys and
//! values, which other sizes have, are refused.

use super::{
    Defaults, EmbeddingScale, ExpertNormFacts, ExpertWeights, Experts, Family, Last, Norms,
    QkNorms, Refused, RopeFacts, RouterFacts, Scale, Setting, Shared, SharedSize, SlidingRope,
    Windows,
};
use crate::layer::NormKind;
use crate::wrappers::{Names, Wrapper};

pub(super) const GEMMA4_TEXT: Family = Family {
    model_type: "gemma4_text",
    causal_lm_class: "Gemma4ForCausalLM",
    defaults: Defaults {
        max_position_embeddings: 131_072,
        num_key_value_heads: Some(4),
        head_dim: Some(256),
        tie_word_embeddings: true,
        bos_token_id: Some(2),
        eos_token_id: &[1],
        pad_token_id: Some(0),
        ..Defaults::USUAL
    },
    refused: &[
        Refused {
            key: "hidden_size_per_layer_input",
            default: "256",
            idle: &["0", "null"],
            what: "embeddings of each layer",
        },
        Refused {
            key: "num_kv_shared_layers",
            default: "0",
            idle: &["0", "null"],
            what: "layers that share keys and values",
        },
        Refused {
            key: "use_bidirectional_attention",
            default: "null",
            // Of images only.
            idle: &["null", "false", "\"vision\""],
            what: "attention to tokens that come later",
        },
    ],
    norms: Norms::SANDWICH,
    norm: NormKind::RmsRoundedOnce,
    qkv_bias: Setting::Key("attention_bias", false),
    o_bias: Setting::Key("attention_bias", false),
    qk_norm: Some(QkNorms::of_heads(NormKind::RmsRoundedOnce)),
    has_v_norm: true,
    has_global_heads: true,
    windows: Windows::AllBut {
        every: 6,
        has_pattern_key: false,
        default: 512,
        may_be_null: false,
        last: Last::Full,
    },
    rope: RopeFacts {
        sliding: SlidingRope::Section,
        default_scaling: Some(
            r#"{"sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0}}"#,
        ),
        ..RopeFacts::USUAL
    },
    scale: Scale::One,
    activation: ("hidden_activation", "gelu_pytorch_tanh"),
    experts: Some(Experts {
        when: Setting::Key("enable_moe_block", false),
        num_per_tok: ("top_k_experts", None),
        router: RouterFacts {
            name: "router.proj",
            norm_topk_prob: Setting::Always,
            expert_scales: Some("router.per_expert_scale"),
            norm_scale: Some("router.scale"),
            ..RouterFacts::SOFTMAX
        },
        weights: ExpertWeights::Stacked {
            gate_up: "experts.gate_up_proj",
            down: "experts.down_proj",
        },
        shared: Some(Shared {
            name: "mlp",
            gate: None,
            output_norm: Some("post_feedforward_layernorm_1"),
            intermediate_size: SharedSize::Key("intermediate_size", 0),
        }),
        norms: Some(ExpertNormFacts {
            input: "pre_feedforward_layernorm_2",
            output: "post_feedforward_layernorm_2",
        }),
        aux_loss_coef: None,
        ..Experts::USUAL
    }),
    embedding: EmbeddingScale::RootOfHidden,
    has_layer_scalar: true,
    final_softcap: Some(("final_logit_softcapping", None)),
    wrappers: &[Wrapper { model_type: "gemma4", names: Names::BESIDE, ..Wrapper::USUAL }],
    ..Family::USUAL
};
