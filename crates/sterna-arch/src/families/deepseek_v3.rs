//! `DeepSeek` 3 and R1 (transformers `models/deepseek_v3`): attention by way of latents, and experts chosen by sigmoids, a bias and groups.

use super::{
    Defaults, Experts, Family, GroupFacts, LatentFacts, RopeFacts, RouterFacts, Scale, Setting,
    Shared, SharedSize, SparseLayers,
};

pub(super) const DEEPSEEK_V3: Family = Family {
    model_type: "deepseek_v3",
    causal_lm_class: "DeepseekV3ForCausalLM",
    defaults: Defaults {
        max_position_embeddings: 4096,
        num_key_value_heads: Some(128),
        bos_token_id: Some(0),
        eos_token_id: &[1],
        ..Defaults::USUAL
    },
    // Of `q_a_proj` and `kv_a_proj_with_mqa`.
    qkv_bias: Setting::Key("attention_bias", false),
    o_bias: Setting::Key("attention_bias", false),
    latent: Some(LatentFacts {
        q_lora_rank: Some(1536),
        kv_lora_rank: 512,
        nope: 128,
        rope: 64,
        v: 128,
        counts_whole_heads: false,
    }),
    rope: RopeFacts { has_interleave: true, ..RopeFacts::USUAL },
    scale: Scale::HeadDimAndYarn,
    experts: Some(Experts {
        num: ("n_routed_experts", 256),
        num_per_tok: ("num_experts_per_tok", Some(8)),
        intermediate_size: ("moe_intermediate_size", Some(2048)),
        layers: SparseLayers::AllButFirst(3),
        router: RouterFacts {
            norm_topk_prob: Setting::Key("norm_topk_prob", true),
            scale: Some(("routed_scaling_factor", 2.5)),
            groups: Some(GroupFacts { num: 8, num_chosen: 4, num_best: 2, has_method: false }),
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
