//! The families of models, each a file of facts about one class of transformers: what its config defaults to, and what its layers have.
//!
//! A fact is true of every model of the class; what a config may choose is a rule for reading its key. Nothing outside of this folder
//! asks which family a model is: its [`crate::Architecture`] has what follows from it.

mod apertus;
mod arcee;
mod cohere;
mod cohere2;
mod deepseek_v2;
mod deepseek_v3;
mod dots1;
mod ernie4_5;
mod ernie4_5_moe;
mod exaone4;
mod gemma;
mod gemma2;
mod gemma3_text;
mod gemma4_text;
mod glm;
mod glm4;
mod glm4_moe;
mod glm4_moe_lite;
mod gpt_oss;
mod granite;
mod granitemoe;
mod helium;
mod hunyuan_v1_dense;
mod hunyuan_v1_moe;
mod llama;
mod minimax_m2;
mod ministral3;
mod mistral;
mod mistral4;
mod mixtral;
mod muse_glimmer_text;
mod nemotron;
mod olmo;
mod olmo2;
mod olmo3;
mod olmoe;
mod phi3;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod qwen3_5_moe_text;
mod qwen3_5_text;
mod qwen3_moe;
mod qwen3_next;
mod seed_oss;
mod smollm3;
mod stablelm;
mod starcoder2;
mod vaultgemma;

use std::fmt;

use crate::layer::{NormKind, QkNormWidth, RouterScores};
use crate::rope::RopeLayout;
use crate::wrappers::Wrapper;

/// A class of decoders with a language-model head.
#[derive(Debug, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact by itself")]
pub struct Family {
    /// The `model_type` of its configs.
    model_type: &'static str,
    /// The transformers class, which loaders look up.
    pub(crate) causal_lm_class: &'static str,
    pub(crate) defaults: Defaults,
    /// Multimodal classes whose text decoder it usually is.
    pub(crate) wrappers: &'static [Wrapper],
    /// Keys of dropouts, each with its default. Training here has none: a config must set them to 0.
    pub(crate) dropouts: &'static [(&'static str, f64)],
    /// Keys that would switch on what is not there.
    pub(crate) refused: &'static [Refused],
    /// Whether checkpoints may hold the experts as MXFP4, from which they are widened where they are read.
    pub(crate) may_be_mxfp4: bool,

    /// Where norms stand, by the names of their tensors inside a layer.
    pub(crate) norms: Norms,
    /// Of all norms but those on queries and keys.
    pub(crate) norm: NormKind,
    pub(crate) norm_eps: NormEps,
    /// Which tensors a norm has.
    pub(crate) norm_params: NormParams,
    /// The key of what is added in norms on outputs, and its default; `None` is as in the others.
    pub(crate) post_norm_eps: Option<(&'static str, f64)>,
    /// Of the last norm, where that is of another kind.
    pub(crate) final_norm: Option<NormKind>,
    /// Whether both branches of a layer read its input.
    pub(crate) parallel: Setting,

    /// Of `q_proj`, `k_proj` and `v_proj`.
    pub(crate) qkv_bias: Setting,
    /// Of `o_proj`.
    pub(crate) o_bias: Setting,
    /// Whether a key `clip_qkv` may clamp what these three give.
    pub(crate) clips_qkv: bool,
    /// Which projections checkpoints store in one tensor.
    pub(crate) fused: Fused,
    pub(crate) qk_norm: Option<QkNorms>,
    /// Latents that keys, values and often queries are made of.
    pub(crate) latent: Option<LatentFacts>,
    /// Whether each head of the values passes through a norm without a weight.
    pub(crate) has_v_norm: bool,
    /// Whose sigmoid multiplies the output of attention.
    pub(crate) gate: Gate,
    /// Whether each query head has one more score, `self_attn.sinks`.
    pub(crate) has_sinks: bool,
    /// How the projections of gated delta nets are stored; `None` for a class none of whose layers may be `linear_attention`.
    pub(crate) delta_nets: Option<DeltaNetMaps>,
    /// Whether layers without a window have heads of another size and number, by keys of their own.
    pub(crate) has_global_heads: bool,
    /// Whether all query heads together have to be as wide as the hidden size.
    pub(crate) heads_fill_hidden: bool,
    pub(crate) windows: Windows,
    pub(crate) rotated: Rotated,
    pub(crate) rope: RopeFacts,
    pub(crate) scale: Scale,
    /// A key for the softcap of scores, with its default.
    pub(crate) attention_softcap: Option<(&'static str, Option<f64>)>,

    pub(crate) mlp: Mlp,
    /// Experts in place of the MLP.
    pub(crate) experts: Option<Experts>,
    /// The key of the activation, and its default.
    pub(crate) activation: (&'static str, &'static str),
    /// Of the projections of the MLP.
    pub(crate) mlp_bias: Setting,

    pub(crate) embedding: EmbeddingScale,
    /// Whether a layer's output is multiplied by a `layer_scalar`.
    pub(crate) has_layer_scalar: bool,
    /// A key for what branches are multiplied by, 1 where it is missing.
    pub(crate) residual_multiplier: Option<&'static str>,
    pub(crate) logits: LogitsScale,
    /// A key for the softcap of logits, with its default.
    pub(crate) final_softcap: Option<(&'static str, Option<f64>)>,
    /// What the weights of norms begin with.
    pub(crate) norm_init: f64,
}

/// What a config has where it does not say it.
#[derive(Debug, PartialEq)]
pub(crate) struct Defaults {
    pub(crate) max_position_embeddings: usize,
    /// `None`: as many as query heads.
    pub(crate) num_key_value_heads: Option<usize>,
    /// `None`: the hidden size over the number of query heads.
    pub(crate) head_dim: Option<usize>,
    pub(crate) tie_word_embeddings: bool,
    pub(crate) rope_theta: f64,
    pub(crate) bos_token_id: Option<u32>,
    pub(crate) eos_token_id: &'static [u32],
    pub(crate) pad_token_id: Option<u32>,
    pub(crate) initializer_range: f64,
}

/// A property that a class always has, or never, or that a key of its configs decides, which has a default.
#[derive(Debug, PartialEq)]
pub(crate) enum Setting {
    Never,
    Always,
    Key(&'static str, bool),
}

/// A key that would switch on what is not there.
#[derive(Debug, PartialEq)]
pub(crate) struct Refused {
    pub(crate) key: &'static str,
    /// What a config has where it does not say it, as JSON.
    pub(crate) default: &'static str,
    /// The values that switch nothing on, as JSON.
    pub(crate) idle: &'static [&'static str],
    /// What it would switch on.
    pub(crate) what: &'static str,
}

impl Refused {
    /// A key that must be missing or `false`.
    const fn flag(key: &'static str, what: &'static str) -> Self {
        Self { key, default: "false", idle: &["false", "null"], what }
    }
}

/// The names of a layer's norms; `None` where a class has none.
#[derive(Debug, PartialEq)]
pub(crate) struct Norms {
    pub(crate) pre_attention: Option<&'static str>,
    pub(crate) post_attention: Option<&'static str>,
    /// Left out in a layer whose branches are parallel.
    pub(crate) pre_ffn: Option<&'static str>,
    pub(crate) post_ffn: Option<&'static str>,
}

impl Norms {
    /// On the inputs of both branches.
    const PRE: Self = Self {
        pre_attention: Some("input_layernorm"),
        post_attention: None,
        pre_ffn: Some("post_attention_layernorm"),
        post_ffn: None,
    };
    /// On the outputs of both branches.
    const POST: Self = Self {
        pre_attention: None,
        post_attention: Some("post_attention_layernorm"),
        pre_ffn: None,
        post_ffn: Some("post_feedforward_layernorm"),
    };
    /// On both.
    const SANDWICH: Self = Self {
        pre_attention: Some("input_layernorm"),
        post_attention: Some("post_attention_layernorm"),
        pre_ffn: Some("pre_feedforward_layernorm"),
        post_ffn: Some("post_feedforward_layernorm"),
    };
}

/// What is added to the mean square in a norm.
#[derive(Debug, PartialEq)]
pub(crate) enum NormEps {
    Fixed(f64),
    /// A key, and its default.
    Key(&'static str, f64),
}

/// The tensors of a norm.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum NormParams {
    None,
    Weight,
    WeightAndBias,
}

/// Projections that checkpoints store in one tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Fused {
    None,
    /// `mlp.gate_up_proj`.
    GateUp,
    /// That, and `self_attn.qkv_proj`.
    QkvAndGateUp,
}

/// What gates the output of attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Gate {
    None,
    /// `gate_proj`.
    Projection,
    /// `q_proj`, which has of each head the query and then the gate.
    HalfOfQ,
}

/// The tensors of a gated delta net's projections.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum DeltaNetMaps {
    /// `in_proj_qkv`, `in_proj_z`, `in_proj_b` and `in_proj_a`.
    Apart,
    /// `in_proj_qkvz`, which has for each key head its query, its key, its values and their `z`, and `in_proj_ba`, in the same way.
    ByKeyHead,
}

/// Norms on queries and keys.
#[derive(Debug, PartialEq)]
pub(crate) struct QkNorms {
    pub(crate) when: Setting,
    /// The names of the two inside `self_attn`.
    pub(crate) names: [&'static str; 2],
    pub(crate) kind: NormKind,
    pub(crate) width: QkNormWidth,
    pub(crate) params: NormParams,
    pub(crate) is_after_rope: bool,
}

impl QkNorms {
    /// `q_norm` and `k_norm` over each head, before the rotary embedding, with one weight for all heads.
    const fn of_heads(kind: NormKind) -> Self {
        Self {
            when: Setting::Always,
            names: ["q_norm", "k_norm"],
            kind,
            width: QkNormWidth::Head,
            params: NormParams::Weight,
            is_after_rope: false,
        }
    }
}

/// What latents and heads have where a config does not say it.
#[derive(Debug, PartialEq)]
pub(crate) struct LatentFacts {
    /// `None`, as `null` in a config: queries are made of the input.
    pub(crate) q_lora_rank: Option<usize>,
    pub(crate) kv_lora_rank: usize,
    /// `qk_nope_head_dim`.
    pub(crate) nope: usize,
    /// `qk_rope_head_dim`.
    pub(crate) rope: usize,
    /// `v_head_dim`.
    pub(crate) v: usize,
    /// Whether `head_dim` and `partial_rotary_factor` are of a head with both parts, and not of the part that turns.
    pub(crate) counts_whole_heads: bool,
}

/// Which layers see a window of the tokens before them.
#[derive(Debug, PartialEq)]
pub(crate) enum Windows {
    /// None does.
    None,
    /// All do, if `sliding_window` is a number; with its default.
    All(Option<usize>),
    /// All do, where `use_sliding_window` is on, of 4,096 tokens where none is given.
    AllIfUsed,
    /// Where `use_sliding_window` is on, those of `layer_types`, or from `max_window_layers` on; of 4,096 tokens where none is given.
    Chosen,
    /// Those of `layer_types`, or from `max_window_layers` on, if `sliding_window` is a number.
    From {
        /// Of so many tokens where `sliding_window` is missing.
        default: usize,
        /// The first where `max_window_layers` is missing.
        first: usize,
    },
    /// Where `use_sliding_window` is on and `sliding_window` a number, those of `layer_types`, or those that are not rotated.
    NotRotated,
    /// Those of `layer_types`, or all but every `every`-th, which a `sliding_window_pattern` may change.
    AllBut {
        every: usize,
        /// Whether the class reads that key.
        has_pattern_key: bool,
        /// Of so many tokens where `sliding_window` is missing.
        default: usize,
        /// Whether `null` is no window for any layer.
        may_be_null: bool,
        last: Last,
    },
}

/// What the last layer decides.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Last {
    /// Nothing: layers are counted from the first, which is number 1.
    Any,
    /// It sees all tokens, whatever the config says.
    Full,
    /// Layers are counted from the last, which is number 0.
    Zero,
}

/// Which layers turn queries and keys by their positions.
#[derive(Debug, PartialEq)]
pub(crate) enum Rotated {
    All,
    /// Those with a 1 in `no_rope_layers`; without it all but every `no_rope_layer_interval`-th, 4 where that is missing.
    Chosen,
    /// Those that see a window; all in a model without windows.
    Sliding,
    /// Those whose entry in `layer_rope_theta` is not 0; without it all but every fourth, counted back from the last.
    WithTheta,
}

/// How a class turns queries and keys.
#[derive(Debug, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact by itself")]
pub(crate) struct RopeFacts {
    pub(crate) layout: RopeLayout,
    /// The default of `partial_rotary_factor`; `None` for a class that turns whole heads.
    pub(crate) partial: Option<f64>,
    /// Whether a `rotary_dim` says how much of a head turns where no factor does.
    pub(crate) has_rotary_dim: bool,
    /// What layers with a window have.
    pub(crate) sliding: SlidingRope,
    /// Whether all versions of the class read `rope_scaling`.
    pub(crate) is_scalable: bool,
    /// Whether it turns in single precision, and rounds once.
    pub(crate) rounds_once: bool,
    /// `rope_scaling` where a config does not say it, as JSON.
    pub(crate) default_scaling: Option<&'static str>,
    /// Whether `longrope` is the only scaling, which old files call `su` or `yarn`.
    pub(crate) is_longrope: bool,
    /// `original_max_position_embeddings` where a config of `longrope` does not say it.
    pub(crate) original_len: Option<usize>,
    /// Whether turned queries are scaled by their position, with a `llama_4_scaling_beta`.
    pub(crate) scales_queries: bool,
    /// Whether `rope_type` `dynamic` may have an `alpha`, which stretches all lengths alike.
    pub(crate) has_alpha: bool,
    /// Whether `rope_interleave`, true where it is missing, decides the layout.
    pub(crate) has_interleave: bool,
}

impl RopeFacts {
    const USUAL: Self = Self {
        layout: RopeLayout::Halves,
        partial: None,
        has_rotary_dim: false,
        sliding: SlidingRope::Same,
        is_scalable: true,
        rounds_once: false,
        default_scaling: None,
        is_longrope: false,
        original_len: None,
        scales_queries: false,
        has_alpha: false,
        has_interleave: false,
    };
}

/// The rotary embedding of layers with a window.
#[derive(Debug, PartialEq)]
pub(crate) enum SlidingRope {
    /// That of the others.
    Same,
    /// The same base, without scaling.
    Unscaled,
    /// A base by a key of its own with a default, without scaling.
    Base(&'static str, f64),
    /// A section of its own, in the only spelling that the class has.
    Section,
}

/// What multiplies the scores of attention.
#[derive(Debug, PartialEq)]
pub(crate) enum Scale {
    /// One over the root of the head size.
    HeadDim,
    /// The same, times the square of the magnitude that `mscale_all_dim` of a scaled rotary embedding asks for.
    HeadDimAndYarn,
    /// A key, and its default.
    Key(&'static str, f64),
    /// One over the root of a key, which has a default.
    RootOf(&'static str, f64),
    /// A key over the root of the head size; with its default.
    HeadDimTimes(&'static str, f64),
    One,
}

/// The projections of an MLP.
#[derive(Debug, PartialEq)]
pub(crate) enum Mlp {
    /// `gate_proj`, `up_proj`, `down_proj`.
    Gated,
    /// Two, by name.
    Plain { up: &'static str, down: &'static str },
}

/// The experts of a class, and their names.
#[derive(Debug, PartialEq)]
pub(crate) struct Experts {
    /// Whether a config that has their keys has them.
    pub(crate) when: Setting,
    /// The key of how many there are, and its default.
    pub(crate) num: (&'static str, usize),
    /// The key of how many a token takes, and its default; `None` where a config has to say it. It may be a list with a number for each
    /// layer, as the other sizes may, if all are equal.
    pub(crate) num_per_tok: (&'static str, Option<usize>),
    /// The key of their width, and its default; `None` where a config has to say it.
    pub(crate) intermediate_size: (&'static str, Option<usize>),
    /// Which layers have them.
    pub(crate) layers: SparseLayers,
    pub(crate) router: RouterFacts,
    pub(crate) weights: ExpertWeights,
    /// What experts have in place of the activation of the class.
    pub(crate) clamped_swiglu: Option<ClampFacts>,
    /// What all tokens go through beside their experts.
    pub(crate) shared: Option<Shared>,
    /// Norms around the experts alone, which then read the residual stream.
    pub(crate) norms: Option<ExpertNormFacts>,
    /// What the auxiliary loss of routers is multiplied by where a config does not say it; `None` for a class without that loss.
    pub(crate) aux_loss_coef: Option<f64>,
}

impl Experts {
    /// Those of Qwen, which most classes took over.
    const USUAL: Self = Self {
        when: Setting::Always,
        num: ("num_experts", 0),
        num_per_tok: ("num_experts_per_tok", None),
        intermediate_size: ("moe_intermediate_size", None),
        layers: SparseLayers::All,
        router: RouterFacts::SOFTMAX,
        weights: ExpertWeights::Each {
            list: "mlp.experts",
            projections: ["gate_proj", "up_proj", "down_proj"],
        },
        clamped_swiglu: None,
        shared: None,
        norms: None,
        aux_loss_coef: Some(0.001),
    };
}

/// The tensors that checkpoints store experts in.
#[derive(Debug, PartialEq)]
pub(crate) enum ExpertWeights {
    /// Three an expert, the gate, `up` and `down` of a list.
    Each { list: &'static str, projections: [&'static str; 3] },
    /// Two in all, by their whole names: `[experts, 2f, d]`, the gate before `up`, and `[experts, d, f]`.
    Stacked { gate_up: &'static str, down: &'static str },
    /// Two in all and a bias for each, by their whole names: `[experts, d, 2f]`, gate and `up` in turn, and `[experts, f, d]`; of biases
    /// `[experts, 2f]` and `[experts, d]`.
    Transposed {
        gate_up: &'static str,
        gate_up_bias: &'static str,
        down: &'static str,
        down_bias: &'static str,
    },
}

/// The keys for the constants of a clamped SwiGLU, each with its default.
#[derive(Debug, PartialEq)]
pub(crate) struct ClampFacts {
    pub(crate) alpha: (&'static str, f64),
    pub(crate) limit: (&'static str, f64),
}

/// The names of norms around the experts alone.
#[derive(Debug, PartialEq)]
pub(crate) struct ExpertNormFacts {
    pub(crate) input: &'static str,
    pub(crate) output: &'static str,
}

/// Which layers have experts.
#[derive(Debug, PartialEq)]
pub(crate) enum SparseLayers {
    All,
    /// Every `decoder_sparse_step`-th, without those of `mlp_only_layers`.
    Stepped,
    /// All but the first `first_k_dense_replace`; with its default.
    AllButFirst(usize),
    /// Those that `mlp_layer_types` calls `sparse`; all but the first where it is missing.
    Listed,
    /// Every `moe_layer_interval`-th from `moe_layer_start_index` to `moe_layer_end_index`, whose -1 is the last layer; 1, 1 and -1 where
    /// they are missing.
    Between,
}

/// A router, and the names of what it has.
#[derive(Debug, PartialEq)]
pub(crate) struct RouterFacts {
    pub(crate) name: &'static str,
    pub(crate) has_bias: bool,
    pub(crate) scores: RouterScores,
    pub(crate) is_fp32: bool,
    /// A buffer for the choice alone, and the sizes that its shape has before the number of experts.
    pub(crate) correction_bias: Option<(&'static str, &'static [usize])>,
    /// Groups of experts that are chosen first.
    pub(crate) groups: Option<GroupFacts>,
    /// Whether scores of the chosen are divided by their sum, and what is added to that.
    pub(crate) norm_topk_prob: Setting,
    pub(crate) norm_added: f64,
    /// A key for the least that they are divided by, and its default.
    pub(crate) norm_least: Option<(&'static str, f64)>,
    /// A key for what the weights are multiplied by, and its default.
    pub(crate) scale: Option<(&'static str, f64)>,
    /// A tensor with a number for each expert that its weight is multiplied by.
    pub(crate) expert_scales: Option<&'static str>,
    /// The weight of a norm on what the router reads, which is then multiplied by one over the root of the hidden size.
    pub(crate) norm_scale: Option<&'static str>,
}

impl RouterFacts {
    const SOFTMAX: Self = Self {
        name: "mlp.gate",
        has_bias: false,
        scores: RouterScores::Softmax,
        is_fp32: false,
        correction_bias: None,
        groups: None,
        norm_topk_prob: Setting::Key("norm_topk_prob", false),
        norm_added: 0.0,
        norm_least: None,
        scale: None,
        expert_scales: None,
        norm_scale: None,
    };
    /// `DeepSeek` 3's, which many classes took over.
    const SIGMOID: Self = Self {
        scores: RouterScores::Sigmoid,
        is_fp32: true,
        correction_bias: Some(("mlp.gate.e_score_correction_bias", &[])),
        groups: Some(GroupFacts { num: 1, num_chosen: 1, num_best: 2, has_method: false }),
        norm_added: 1e-20,
        scale: Some(("routed_scaling_factor", 1.0)),
        ..Self::SOFTMAX
    };
}

/// Groups of experts, by `n_group` and `topk_group`.
#[derive(Debug, PartialEq)]
pub(crate) struct GroupFacts {
    /// How many there are where a config does not say it.
    pub(crate) num: usize,
    /// Of how many a token takes experts where a config does not say it.
    pub(crate) num_chosen: usize,
    /// How many scores of a group are summed, its best.
    pub(crate) num_best: usize,
    /// Whether a `topk_method` of `group_limited_greedy` has to ask for them, in place of `greedy`, which a missing one is.
    pub(crate) has_method: bool,
}

/// An expert that every token takes, with the projections of a usual MLP.
#[derive(Debug, PartialEq)]
pub(crate) struct Shared {
    pub(crate) name: &'static str,
    /// A map to one number whose sigmoid multiplies its output.
    pub(crate) gate: Option<&'static str>,
    /// A norm of its output, by its name.
    pub(crate) output_norm: Option<&'static str>,
    pub(crate) intermediate_size: SharedSize,
}

/// The width of such an expert.
#[derive(Debug, PartialEq)]
pub(crate) enum SharedSize {
    /// A key, and its default.
    Key(&'static str, usize),
    /// That of so many experts, by a key and its default; `None` where a config has to say it.
    Experts(&'static str, Option<usize>),
}

/// What rows of the embedding are multiplied by.
#[derive(Debug, PartialEq)]
pub(crate) enum EmbeddingScale {
    One,
    /// A key, 1 where it is missing.
    Key(&'static str),
    /// The root of the hidden size, rounded to the dtype of the weights.
    RootOfHidden,
    /// One over the root of their mean square.
    Normalised,
}

/// What logits are multiplied by.
#[derive(Debug, PartialEq)]
pub(crate) enum LogitsScale {
    One,
    /// One over a key, 1 where it is missing.
    Over(&'static str),
    /// A key, and its default.
    Times(&'static str, f64),
}

/// Every family, in the order in which messages name them.
pub(crate) static ALL: &[&Family] = &[
    &apertus::APERTUS,
    &arcee::ARCEE,
    &cohere::COHERE,
    &cohere2::COHERE2,
    &deepseek_v2::DEEPSEEK_V2,
    &deepseek_v3::DEEPSEEK_V3,
    &dots1::DOTS1,
    &ernie4_5::ERNIE4_5,
    &ernie4_5_moe::ERNIE4_5_MOE,
    &exaone4::EXAONE4,
    &gemma::GEMMA,
    &gemma2::GEMMA2,
    &gemma3_text::GEMMA3_TEXT,
    &gemma4_text::GEMMA4_TEXT,
    &glm::GLM,
    &glm4::GLM4,
    &glm4_moe::GLM4_MOE,
    &glm4_moe_lite::GLM4_MOE_LITE,
    &gpt_oss::GPT_OSS,
    &granite::GRANITE,
    &granitemoe::GRANITEMOE,
    &helium::HELIUM,
    &hunyuan_v1_dense::HUNYUAN_V1_DENSE,
    &hunyuan_v1_moe::HUNYUAN_V1_MOE,
    &llama::LLAMA,
    &minimax_m2::MINIMAX_M2,
    &ministral3::MINISTRAL3,
    &mistral::MISTRAL,
    &mistral4::MISTRAL4,
    &mixtral::MIXTRAL,
    &muse_glimmer_text::MUSE_GLIMMER_TEXT,
    &nemotron::NEMOTRON,
    &olmo::OLMO,
    &olmo2::OLMO2,
    &olmo3::OLMO3,
    &olmoe::OLMOE,
    &phi3::PHI3,
    &qwen2::QWEN2,
    &qwen2_moe::QWEN2_MOE,
    &qwen3::QWEN3,
    &qwen3_5_moe_text::QWEN3_5_MOE_TEXT,
    &qwen3_5_text::QWEN3_5_TEXT,
    &qwen3_moe::QWEN3_MOE,
    &qwen3_next::QWEN3_NEXT,
    &seed_oss::SEED_OSS,
    &smollm3::SMOLLM3,
    &stablelm::STABLELM,
    &starcoder2::STARCODER2,
    &vaultgemma::VAULTGEMMA,
];

impl Family {
    /// What most classes have: Llama's layer with nothing to choose. A class names what it has beyond it.
    const USUAL: Self = Self {
        model_type: "",
        causal_lm_class: "",
        defaults: Defaults::USUAL,
        wrappers: &[],
        dropouts: &[("attention_dropout", 0.0)],
        refused: &[],
        may_be_mxfp4: false,
        norms: Norms::PRE,
        norm: NormKind::Rms,
        norm_eps: NormEps::Key("rms_norm_eps", 1e-6),
        norm_params: NormParams::Weight,
        post_norm_eps: None,
        final_norm: None,
        parallel: Setting::Never,
        qkv_bias: Setting::Never,
        o_bias: Setting::Never,
        clips_qkv: false,
        fused: Fused::None,
        qk_norm: None,
        latent: None,
        has_v_norm: false,
        gate: Gate::None,
        has_sinks: false,
        delta_nets: None,
        has_global_heads: false,
        heads_fill_hidden: false,
        windows: Windows::None,
        rotated: Rotated::All,
        rope: RopeFacts::USUAL,
        scale: Scale::HeadDim,
        attention_softcap: None,
        mlp: Mlp::Gated,
        experts: None,
        activation: ("hidden_act", "silu"),
        mlp_bias: Setting::Never,
        embedding: EmbeddingScale::One,
        has_layer_scalar: false,
        residual_multiplier: None,
        logits: LogitsScale::One,
        final_softcap: None,
        norm_init: 1.0,
    };

    /// The `model_type` of its configs.
    pub fn model_type(&self) -> &'static str {
        self.model_type
    }

    /// The class of transformers that loads its checkpoints.
    pub fn causal_lm_class(&self) -> &'static str {
        self.causal_lm_class
    }

    /// The family with this `model_type`.
    pub fn find(model_type: &str) -> Option<&'static Self> {
        ALL.iter().copied().find(|family| family.model_type == model_type)
    }

    /// The supported `model_type`s as a phrase for messages.
    pub(crate) fn names() -> String {
        let names: Vec<String> =
            ALL.iter().map(|family| format!("`{}`", family.model_type)).collect();
        names.join(", ")
    }
}

impl Defaults {
    const USUAL: Self = Self {
        max_position_embeddings: 32_768,
        num_key_value_heads: None,
        head_dim: None,
        tie_word_embeddings: false,
        rope_theta: 10_000.0,
        bos_token_id: None,
        eos_token_id: &[],
        pad_token_id: None,
        initializer_range: 0.02,
    };
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.model_type)
    }
}
