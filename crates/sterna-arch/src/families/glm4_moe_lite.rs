//! GLM-4.7-Flash (transformers `models/glm4_moe_lite`): `DeepSeek` 3 with heads of one width.

use super::{
    Defaults, Experts, Family, LatentFacts, NormEps, Refused, RopeFacts, RouterFacts, Scale,
    Setting, Shared, SharedSize, SparseLayers,
};

pub(super) const GLM4_MOE_LITE: Family = Family {
    model_type: "glm4_moe_lite",
    causal_lm_class: "Glm4MoeLiteForCausalLM",
    defaults: Defaults {
        max_position_embeddings: 202_752,
        num_key_value_heads: Some(20),
        bos_token_id: Some(0),
        eos_token_id: &[1],
        ..Defaults::USUAL
    },
    refused: &[
        // The class reads `mlp_layer_types`.
        Refused {
            key: "first_k_dense_replace",
            default: "1",
            idle: &["1", "null"],
            what: "MLPs in more layers than the first, or in none",
        },
        Refused { key: "n_group", default: "1", idle: &["1", "null"], what: "groups of experts" },
    ],
    norm_eps: NormEps::Key("rms_norm_eps", 1e-5),
    // Of `q_a_proj` and `kv_a_proj_with_mqa`.
    qkv_bias: Setting::Key("attention_bias", false),
    o_bias: Setting::Key("attention_bias", false),
    latent: Some(LatentFacts {
        q_lora_rank: Some(768),
        kv_lora_rank: 512,
        nope: 192,
        rope: 64,
        v: 256,
        counts_whole_heads: false,
    }),
    rope: RopeFacts { has_interleave: true, ..RopeFacts::USUAL },
    scale: Scale::HeadDimAndYarn,
    experts: Some(Experts {
        num: ("n_routed_experts", 64),
        num_per_tok: ("num_experts_per_tok", Some(4)),
        intermediate_size: ("moe_intermediate_size", Some(1536)),
        layers: SparseLayers::Listed,
        router: RouterFacts {
            norm_topk_prob: Setting::Key("norm_topk_prob", true),
            scale: Some(("routed_scaling_factor", 1.8)),
            groups: None,
            ..RouterFacts::SIGMOID
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
