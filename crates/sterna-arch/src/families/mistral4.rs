//! Mistral Small 4 (transformers `models/mistral4`): `DeepSeek` 3's latents with queries that grow with their position, and experts in one
//! tensor of a softmax router with groups.

use super::{
    Defaults, ExpertWeights, Experts, Family, GroupFacts, LatentFacts, RopeFacts, RouterFacts,
    Scale, Setting, Shared, SharedSize, SparseLayers,
};

pub(super) const MISTRAL4: Family = Family {
    model_type: "mistral4",
    causal_lm_class: "Mistral4ForCausalLM",
    defaults: Defaults {
        max_position_embeddings: 1_048_576,
        num_key_value_heads: Some(32),
        bos_token_id: Some(1),
        eos_token_id: &[2],
        pad_token_id: Some(11),
        ..Defaults::USUAL
    },
    // Of `q_a_proj` and `kv_a_proj_with_mqa`.
    qkv_bias: Setting::Key("attention_bias", false),
    o_bias: Setting::Key("attention_bias", false),
    latent: Some(LatentFacts {
        q_lora_rank: Some(1024),
        kv_lora_rank: 256,
        nope: 64,
        rope: 64,
        v: 128,
        counts_whole_heads: true,
    }),
    rope: RopeFacts {
        has_interleave: true,
        scales_queries: true,
        default_scaling: Some(
            r#"{"rope_type": "yarn", "rope_theta": 10000.0, "factor": 128.0, "original_max_position_embeddings": 8192,
                "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}"#,
        ),
        ..RopeFacts::USUAL
    },
    scale: Scale::HeadDimAndYarn,
    experts: Some(Experts {
        num: ("n_routed_experts", 128),
        num_per_tok: ("num_experts_per_tok", Some(4)),
        intermediate_size: ("moe_intermediate_size", Some(2048)),
        layers: SparseLayers::AllButFirst(0),
        router: RouterFacts {
            groups: Some(GroupFacts { num: 1, num_chosen: 1, num_best: 2, has_method: false }),
            norm_topk_prob: Setting::Key("norm_topk_prob", true),
            norm_added: 1e-20,
            scale: Some(("routed_scaling_factor", 1.0)),
            ..RouterFacts::SOFTMAX
        },
        weights: ExpertWeights::Stacked {
            gate_up: "mlp.experts.gate_up_proj",
            down: "mlp.experts.down_proj",
        },
        shared: Some(Shared {
            name: "mlp.shared_experts",
            gate: None,
            output_norm: None,
            intermediate_size: SharedSize::Experts("n_shared_experts", Some(1)),
        }),
        aux_loss_coef: None,
        ..Experts::USUAL
    }),
    ..Family::USUAL
};
