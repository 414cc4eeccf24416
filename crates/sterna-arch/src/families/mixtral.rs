//! Mixtral (transformers `models/mixtral`): Mistral with experts.

use super::{Defaults, ExpertWeights, Experts, Family, NormEps, RouterFacts, Setting, Windows};

pub(super) const MIXTRAL: Family = Family {
    model_type: "mixtral",
    causal_lm_class: "MixtralForCausalLM",
    defaults: Defaults {
        max_position_embeddings: 131_072,
        num_key_value_heads: Some(8),
        rope_theta: 1_000_000.0,
        bos_token_id: Some(1),
        eos_token_id: &[2],
        ..Defaults::USUAL
    },
    dropouts: &[("attention_dropout", 0.0), ("router_jitter_noise", 0.0)],
    norm_eps: NormEps::Key("rms_norm_eps", 1e-5),
    windows: Windows::All(None),
    experts: Some(Experts {
        num: ("num_local_experts", 8),
        num_per_tok: ("num_experts_per_tok", Some(2)),
        intermediate_size: ("intermediate_size", None),
        router: RouterFacts {
            name: "block_sparse_moe.gate",
            norm_topk_prob: Setting::Always,
            ..RouterFacts::SOFTMAX
        },
        weights: ExpertWeights::Each {
            list: "block_sparse_moe.experts",
            projections: ["w1", "w3", "w2"],
        },
        ..Experts::USUAL
    }),
    ..Family::USUAL
};
