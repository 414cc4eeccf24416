//! The families of models, each a file of facts about one class of transformers: what its config defaults to, and what its blocks have.
//!
//! A fact is true of every model of the class; what a config may choose is a rule for reading its key. Nothing outside of this folder
//! asks which family a model is: [`crate::ModelConfig`] has what follows from it.

mod granite;
mod llama;
mod mistral;
mod qwen2;
mod qwen3;
mod seed_oss;
mod smollm3;

use std::fmt;

/// A class of decoders with a language-model head.
#[derive(Debug, PartialEq)]
pub struct Family {
    /// The `model_type` of its configs.
    model_type: &'static str,
    /// The transformers class, which loaders look up.
    pub(crate) causal_lm_class: &'static str,
    pub(crate) defaults: Defaults,
    /// Of `q_proj`, `k_proj` and `v_proj`.
    pub(crate) qkv_bias: Setting,
    /// Of `o_proj`.
    pub(crate) o_bias: Setting,
    /// Of `gate_proj`, `up_proj` and `down_proj`.
    pub(crate) mlp_bias: Setting,
    /// Whether queries and keys pass through an RMSNorm over each head before the rotary embedding.
    pub(crate) qk_norm: bool,
    pub(crate) windows: Windows,
    pub(crate) rotated: Rotated,
    pub(crate) multipliers: Multipliers,
    /// Keys of dropouts beside `attention_dropout`, each with its default. Training here has none: a config must set them to 0.
    pub(crate) dropouts: &'static [(&'static str, f64)],
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
    pub(crate) attention_dropout: f64,
}

impl Defaults {
    /// Those of most classes.
    pub(crate) const USUAL: Self = Self {
        max_position_embeddings: 32_768,
        num_key_value_heads: None,
        head_dim: None,
        tie_word_embeddings: false,
        rope_theta: 10_000.0,
        bos_token_id: None,
        eos_token_id: &[],
        pad_token_id: None,
        attention_dropout: 0.0,
    };
}

/// A property that a class always has, or never, or that a key of its configs decides, which has a default.
#[derive(Debug, PartialEq)]
pub(crate) enum Setting {
    Never,
    Always,
    Key(&'static str, bool),
}

/// Whether a config scales what others leave as it is.
#[derive(Debug, PartialEq)]
pub(crate) enum Multipliers {
    None,
    /// By `embedding_multiplier`, `residual_multiplier`, `attention_multiplier` in place of one over the root of the head size, and
    /// `logits_scaling`, which divides; each 1 where it is missing.
    Keys,
}

/// Which blocks see a window of the tokens before them.
#[derive(Debug, PartialEq)]
pub(crate) enum Windows {
    /// None does.
    None,
    /// All do, if `sliding_window` is a number, 4,096 where it is missing.
    All,
    /// Where `use_sliding_window` is on, those of `layer_types`, or from `max_window_layers` on; of 4,096 tokens where none is given.
    Chosen,
    /// Where `use_sliding_window` is on and `sliding_window` a number, those of `layer_types`, or those that are not rotated.
    NotRotated,
}

/// Which blocks turn queries and keys by their positions.
#[derive(Debug, PartialEq)]
pub(crate) enum Rotated {
    All,
    /// Those with a 1 in `no_rope_layers`; without it all but every `no_rope_layer_interval`-th, 4 where that is missing.
    Chosen,
}

/// Every family, in the order in which messages name them.
pub(crate) static ALL: [&Family; 7] = [
    &granite::GRANITE,
    &llama::LLAMA,
    &mistral::MISTRAL,
    &qwen2::QWEN2,
    &qwen3::QWEN3,
    &seed_oss::SEED_OSS,
    &smollm3::SMOLLM3,
];

impl Family {
    /// The `model_type` of its configs.
    pub fn model_type(&self) -> &'static str {
        self.model_type
    }

    /// The family with this `model_type`.
    pub(crate) fn find(model_type: &str) -> Option<&'static Self> {
        ALL.into_iter().find(|family| family.model_type == model_type)
    }

    /// The supported `model_type`s as a phrase for messages.
    pub(crate) fn names() -> String {
        ALL.map(|family| format!("`{}`", family.model_type)).join(", ")
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.model_type)
    }
}
