//! `MiniMax` M2 (transformers `models/minimax_m2`, 5): experts of a sigmoid router, and norms on queries and keys over all their heads.

use super::{Defaults, ExpertWeights, Experts, Family, QkNorms, RopeFacts, RouterFacts, Setting};
use crate::layer::{NormKind, QkNormWidth, RouterScores};

pub(super) const MINIMAX_M2: Family = Family {
    model_type: "minimax_m2",
    causal_lm_class: "MiniMaxM2ForCausalLM",
    defaults: Defaults {
        max_position_embeddings: 196_608,
        num_key_value_heads: Some(8),
        head_dim: Some(128),
        rope_theta: 5_000_000.0,
        bos_token_id: Some(200_034),
        eos_token_id: &[200_020],
        ..Defaults::USUAL
    },
    dropouts: &[("attention_dropout", 0.0), ("router_jitter_noise", 0.0)],
    qk_norm: Some(QkNorms { width: QkNormWidth::AllHeads, ..QkNorms::of_heads(NormKind::Rms) }),
    rope: RopeFacts { partial: Some(1.0), has_rotary_dim: true, ..RopeFacts::USUAL },
    experts: Some(Experts {
        num: ("num_local_experts", 256),
        num_per_tok: ("num_experts_per_tok", Some(8)),
        intermediate_size: ("intermediate_size", None),
        router: RouterFacts {
            name: "block_sparse_moe.gate",
            scores: RouterScores::Sigmoid,
            correction_bias: Some(("block_sparse_moe.e_score_correction_bias", &[])),
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
