//! `DeepSeek` 2 and 2.5 (transformers `models/deepseek_v2`): attention by way of latents, and experts chosen by probabilities.
//!
//! Transformers 4.57 leaves `mscale_all_dim` out of the scale of scores; the models' own code and transformers 5 do not, and neither do
//! we.

use super::{
    Defaults, Experts, Family, GroupFacts, LatentFacts, Refused, RopeFacts, RouterFacts, Scale,
    Setting, Shared, SharedSize, SparseLayers,
};
use crate::rope::RopeLayout;

pub(super) const DEEPSEEK_V2: Family = Family {
    model_type: "deepseek_v2",
    causal_lm_class: "DeepseekV2ForCausalLM",
    defaults: Defaults {
        max_position_embeddings: 2048,
        bos_token_id: Some(1),
        eos_token_id: &[2],
        ..Defaults::USUAL
    },
    refused: &[
        Refused::flag("mlp_bias", "biases of MLPs and experts"),
        // Transformers reads it nowhere.
        Refused::flag("norm_topk_prob", "probabilities over their sum"),
    ],
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
    rope: RopeFacts { layout: RopeLayout::Pairs, rounds_once: true, ..RopeFacts::USUAL },
    scale: Scale::HeadDimAndYarn,
    experts: Some(Experts {
        num: ("n_routed_experts", 64),
        num_per_tok: ("num_experts_per_tok", None),
        intermediate_size: ("moe_intermediate_size", Some(1407)),
        layers: SparseLayers::AllButFirst(0),
        router: RouterFacts {
            is_fp32: true,
            norm_topk_prob: Setting::Never,
            scale: Some(("routed_scaling_factor", 1.0)),
            groups: Some(GroupFacts { num: 1, num_chosen: 1, num_best: 1, has_method: true }),
            ..RouterFacts::SOFTMAX
        },
        shared: Some(Shared {
            name: "mlp.shared_experts",
            gate: None,
            output_norm: None,
            intermediate_size: SharedSize::Experts("n_shared_experts", Some(2)),
        }),
        aux_loss_coef: None,
        ..Experts::USUAL
    }),
    ..Family::USUAL
};
