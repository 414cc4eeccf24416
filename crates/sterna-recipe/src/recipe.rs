//! The recipe with every default filled in and every rule that needs no model checked.
//!
//! A value of these types is one that the engine can carry out: what cannot be done was refused while loading
//! ([`crate::load`]), so nothing downstream needs a "not supported" branch. The types are plain data; the field docs say
//! what the engine does with a value, `docs/reference/recipe.md` says the same to the person who types it. Fields are
//! called as the keys are, because the recipe's JSON ([`Recipe::to_json`]) is derived from them.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use serde::Serialize;
use serde_json::{Map, Value};
use sterna_arch::{DType, LoraConfig, ModelConfig};

use crate::{diagnostic::Note, json, source::RecipeSource};

/// A checked recipe: what to train, on what, and how.
#[derive(Clone, Debug, Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "a recipe has independent switches")]
pub struct Recipe {
    /// The text it came from, so that a later error can still show the line.
    #[serde(skip)]
    pub source: RecipeSource,
    /// `type`: what is trained on.
    #[serde(rename = "type")]
    pub trainer: Trainer,
    /// `model`: the weights to start from.
    pub model: ModelOptions,
    /// `tokenizer`: the tokenizer and chat template.
    pub tokenizer: TokenizerOptions,
    /// `data`: where samples come from and how they become batches.
    pub data: DataOptions,
    /// What `type: dpo` needs beside them; `None` for another type.
    #[serde(flatten)]
    pub dpo: Option<DpoOptions>,
    /// `optimizer`: `AdamW` and its constants.
    pub optimizer: OptimizerOptions,
    /// `scheduler`: the learning rate over optimizer steps.
    pub scheduler: SchedulerOptions,
    /// `deepspeed`: what is sharded and where it lives.
    pub deepspeed: DeepSpeedOptions,
    /// `memory`: what blocks keep for their backward and where, how much is computed at once, where the optimizer lives.
    pub memory: MemoryOptions,
    /// `logger`: log files and who prints.
    pub logger: LoggerOptions,
    /// `checkpoint`: what is written, where and when; entries with `enabled: false` are dropped.
    pub checkpoint: Vec<CheckpointOptions>,

    /// Rows of one micro-batch on one sequence-parallel group.
    pub micro_batch_size: usize,
    /// Micro-batches of one optimizer step.
    pub gradient_accumulation_steps: usize,
    /// Ranks that share one sequence; 1 is off.
    pub sequence_parallel_size: usize,
    /// How the losses of the micro-batches of one step are averaged.
    pub loss_average: LossAverage,
    /// What happens to a step whose loss or gradient norm is not a finite number.
    pub on_nonfinite: NonFinitePolicy,
    /// Whether what blocks keep lives on the host unless `memory` says where.
    pub activation_checkpoint_cpu_offload: bool,
    /// Whether the per-token part of a block runs in tiles of at most `memory.tile_bytes`.
    pub tiled_mlp_compute: bool,

    /// Passes over the data; `train_iters` overrides it.
    pub epochs: usize,
    /// Optimizer steps to run, and the length of the schedule; 0 means `epochs` decides.
    pub train_iters: usize,
    /// Stop when this many optimizer steps were made in all; 0 is off.
    pub exit_iteration: usize,
    /// Stop when this run made this many optimizer steps; 0 is off.
    pub exit_iteration_this_run: usize,
    /// Repeat the data until it gives at least this many optimizer steps; 0 is off.
    pub min_iterations: usize,
    /// Repeat the first batch for ever.
    pub overfit_first_batch: bool,
    /// If this file exists, training stops before the next step.
    pub kill_switch_path: PathBuf,
    /// Seeds every random choice but the data's, which `data.seed` seeds.
    pub seed: u64,

    /// Optimizer steps between evaluations; 0 exactly when there is no evaluation data.
    pub eval_interval: usize,
    /// Evaluate once before the first step.
    pub eval_on_start: bool,
    /// Whether the metrics line and the metrics file are written.
    #[serde(rename = "train_log_iter_interval", serialize_with = "json::as_number")]
    pub train_log_metrics: bool,
    /// The JSONL file that metrics are appended to, relative to the working directory.
    pub train_log_metrics_path: PathBuf,

    /// Keys that are set and change nothing here, each with the reason.
    #[serde(skip)]
    pub notes: Vec<Note>,
}

impl Recipe {
    /// The config of the model in `dir` as this recipe trains it: with `hf_config_kwargs`, and experts in groups of
    /// `memory.expert_group_bytes`.
    ///
    /// # Errors
    ///
    /// As [`ModelConfig::from_dir`], [`ModelConfig::with_overrides`] and [`ModelConfig::with_lora`].
    pub fn model_config(
        &self,
        dir: &Path,
        adapter_dir: Option<&Path>,
    ) -> sterna_arch::Result<ModelConfig> {
        let mut config =
            ModelConfig::from_dir(dir)?.with_overrides(&self.model.hf_config_kwargs)?;
        if let Some(lora) = &self.model.peft_config {
            config = config.with_lora(lora.clone())?;
        } else if let Some(adapter_dir) = adapter_dir {
            config = config.with_lora(LoraConfig::from_dir(adapter_dir)?)?;
        }
        self.group_experts(&mut config);
        Ok(config)
    }

    /// Cuts the experts of a model into groups of `memory.expert_group_bytes`.
    pub fn group_experts(&self, config: &mut ModelConfig) {
        config.arch.group_experts(self.memory.expert_group_bytes / self.model.dtype.size());
    }
}

/// How the losses of the micro-batches of one optimizer step, over all data-parallel ranks, become one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossAverage {
    /// The mean over micro-batches of each one's mean over labelled tokens, as the reference.
    MicroBatch,
    /// The mean over all labelled tokens of the step: every token weighs the same.
    Token,
}

/// What happens to an optimizer step whose loss or gradient norm is NaN or infinite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NonFinitePolicy {
    /// The run ends with an error before the optimizer moves.
    Stop,
    /// The step's gradients are dropped and the run goes on: weights, moments and their step count stay as they were.
    Skip,
    /// The optimizer steps all the same.
    Warn,
}

/// `model`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelOptions {
    /// A folder, or a name on the Hugging Face hub.
    pub name_or_path: String,
    /// The format of weights and activations; masters and gradients are fp32.
    #[serde(serialize_with = "json::displayed")]
    pub dtype: DType,
    /// Which attention the recipe named.
    pub attn_implementation: AttnImplementation,
    /// Whether every activation is kept instead of being recomputed in the backward pass.
    pub disable_activation_checkpoint: bool,
    /// Changes to `config.json`; the model starts from random weights if they change `num_hidden_layers`.
    pub hf_config_kwargs: Map<String, Value>,
    /// Start from random weights instead of the files of `name_or_path`.
    pub random_weights: bool,
    /// Folder name of the export, if not the checkpoint's own.
    pub save_name: Option<String>,
    /// Adapters that are trained in place of the weights; they begin as PEFT draws them.
    pub peft_config: Option<LoraConfig>,
    /// A folder of PEFT, or a name on the hub, of adapters to train on.
    pub adapter_name_or_path: Option<String>,
}

impl ModelOptions {
    /// Whether `hf_config_kwargs` asks for another number of layers than `unchanged`, the `config.json` of `name_or_path` without
    /// those changes, so that its weights do not fit.
    pub fn changes_depth(&self, unchanged: &ModelConfig) -> bool {
        self.hf_config_kwargs
            .get("num_hidden_layers")
            .is_some_and(|layers| layers.as_u64() != Some(unchanged.num_hidden_layers() as u64))
    }

    /// Whether `hf_config_kwargs` asks for a number of layers, be it that of `config.json` or another.
    pub fn names_depth(&self) -> bool {
        self.hf_config_kwargs.contains_key("num_hidden_layers")
    }
}

/// Names of attention kernels that transformers knows by name. All mean exact causal attention per document, and on a CPU the same kernel.
///
/// On a CUDA device one of them forces a kernel; the others leave the choice to the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttnImplementation {
    /// `sdpa`: the fastest kernel.
    Sdpa,
    /// `eager`: the fastest kernel; what transformers computes with plain products is the same attention.
    Eager,
    /// `flex_attention`: the fastest kernel.
    FlexAttention,
    /// `flash_attention_2`: FlashAttention 2 and no other kernel; metrics count the attention of each document.
    FlashAttention2,
    /// `flash_attention_3`: the fastest kernel, because libtorch has none of that name; metrics as [`Self::FlashAttention2`].
    FlashAttention3,
}

impl AttnImplementation {
    /// Whether the reference's metrics count attention per packed document (flash attention only) or over the batch.
    pub fn is_flash(self) -> bool {
        matches!(self, Self::FlashAttention2 | Self::FlashAttention3)
    }
}

/// `tokenizer`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TokenizerOptions {
    /// A folder or a hub name; the model's when the recipe gives none.
    pub name_or_path: String,
}

/// What a run trains on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trainer {
    /// Replies.
    Sft,
    /// All of a text.
    Causal,
    /// Preferences between two replies.
    Dpo,
}

/// The keys of `type: dpo`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DpoOptions {
    /// A folder or a hub name of the model that replies are compared with, the model that is trained when the recipe gives none; `None` if
    /// no loss compares them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ref_model: Option<String>,
    /// How far from that model the trained one may go: less for larger values. Above 0.
    pub beta: f64,
    /// The probability that a pair is the wrong way round, from 0 to below 0.5.
    pub label_smoothing: f64,
    /// The margin that `SimPO` wants between the rewards of the two replies.
    pub simpo_gamma: f64,
    /// What the loss of a good reply is multiplied by where replies have no pairs.
    pub desirable_weight: f64,
    /// And that of a bad one.
    pub undesirable_weight: f64,
    /// What is minimised: the sum of these, each times its weight. Never empty.
    pub loss_type: Vec<DpoLoss>,
    /// As many, at least 0, one of them above.
    pub loss_weights: Vec<f64>,
}

impl DpoOptions {
    /// What is minimised, and how much of it.
    pub fn losses(&self) -> impl Iterator<Item = (DpoLoss, f64)> {
        self.loss_type.iter().copied().zip(self.loss_weights.iter().copied())
    }

    /// Whether rows are single replies, good or bad: then there is one loss.
    pub fn is_unpaired(&self) -> bool {
        self.loss_type.iter().any(|loss| loss.is_unpaired())
    }

    /// Whether replies are compared with how far the trained model is from the reference model altogether.
    pub fn has_kl(&self) -> bool {
        self.loss_type.contains(&DpoLoss::Kto)
    }
}

/// What is minimised of pairs, by TRL's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DpoLoss {
    /// DPO, and cDPO with `label_smoothing`.
    Sigmoid,
    /// DPO over mean log-probabilities of tokens.
    SigmoidNorm,
    /// The hinge of `SLiC`.
    Hinge,
    /// IPO, over mean log-probabilities of tokens.
    Ipo,
    /// Robust DPO.
    Robust,
    /// EXO.
    ExoPair,
    /// NCA.
    NcaPair,
    /// SPPO with hard preferences.
    SppoHard,
    /// APO, where chosen replies are better than the model's.
    ApoZero,
    /// APO, where they are worse.
    ApoDown,
    /// `SimPO`, over mean log-probabilities of tokens.
    Simpo,
    /// ORPO: the odds of the chosen reply against those of the other, and [`Self::Sft`].
    Orpo,
    /// The mean of `-ln p` over the tokens of chosen replies.
    Sft,
    /// KTO, of replies that have no pairs.
    Kto,
    /// [`Self::ApoZero`] of replies that have no pairs.
    ApoZeroUnpaired,
}

impl DpoLoss {
    /// Whether it compares replies with what a reference model says of them.
    pub fn has_reference(self) -> bool {
        !matches!(self, Self::Simpo | Self::Orpo | Self::Sft)
    }

    /// Whether its rows are single replies, good or bad.
    pub fn is_unpaired(self) -> bool {
        matches!(self, Self::Kto | Self::ApoZeroUnpaired)
    }
}

/// `data`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "a recipe has independent switches")]
pub struct DataOptions {
    /// As in [`Recipe::trainer`].
    #[serde(rename = "type")]
    pub trainer: Trainer,
    /// Training data, concatenated in this order; never empty.
    pub sources: Vec<Source>,
    /// Evaluation data; empty when there is none or when `train_eval_split` makes it.
    pub eval_sources: Vec<Source>,
    /// Fractions of the training data used for training and for evaluation; they sum to exactly 1.
    pub train_eval_split: (f64, f64),
    /// Longest sample, or pack, in tokens; `None` means the model's `max_position_embeddings`.
    pub max_length: Option<usize>,
    /// How samples are put together when `pack_samples` is on.
    pub packing: Packing,
    /// Which tokens are trained on when `mask_inputs` is on.
    pub label_mask: LabelMask,
    /// Processes of the reference's dataset map; here it only decides where the reference's packs end.
    pub num_proc: usize,
    /// Seeds shuffle, split and packing.
    pub seed: u64,
    /// Folder of the processed data sets, relative to the working directory.
    pub cache_dir: PathBuf,
    /// Fail instead of processing when the processed data is not in the cache.
    pub fail_on_missing_cache: bool,
    /// Batches are padded to a multiple of this many tokens.
    pub div_length: usize,
    /// Whether only the assistant's tokens are trained on.
    pub mask_inputs: bool,
    /// Fill packs past `max_length` with one whole sample, as the reference does.
    pub always_max_length: bool,
    /// What a batch is padded to.
    pub pad_to: PadTo,
    /// Whether anything is done about samples longer than `max_length`; else they stay as they are, or packing cuts them.
    pub filter_samples: bool,
    /// What is done about them.
    pub excess_length: ExcessLength,
    /// How many samples a mix by weights has.
    pub stopping_strategy: StoppingStrategy,
    /// Put several samples into one sequence.
    pub pack_samples: bool,
    /// Drop the pack that is not full at the end of a packing batch.
    pub drop_last: bool,
    /// Probability that a pack's positions run through it instead of restarting at each sample.
    pub fuse_positions_prob: f64,
    /// Repeat the data until one pack can be filled.
    pub repeat_to_pack_max_length: bool,
    /// Leave an empty `<think></think>` at the start of a reply out of the loss.
    pub ignore_empty_think: bool,
    /// Which of the assistant's messages are trained on.
    pub train_on: TrainOn,
    /// Variables of the chat template; those of a row's own `chat_template_kwargs` replace them.
    pub chat_template_kwargs: Map<String, Value>,
    /// What is done about the names of special tokens in the texts of a row.
    pub control_tokens: ControlTokens,
}

impl DataOptions {
    /// Tokens of the longest row of a batch where no sample is longer than `max_length`: one of `type: dpo` has two samples.
    pub fn row_length(&self, max_length: usize) -> usize {
        match self.trainer {
            Trainer::Sft | Trainer::Causal => max_length,
            Trainer::Dpo => max_length.saturating_mul(2),
        }
    }

    /// Whether packing cuts samples at `max_length`, wherever that is: the reference's packing of texts.
    pub fn is_sliced(&self) -> bool {
        self.trainer == Trainer::Causal && self.pack_samples && self.packing == Packing::Reference
    }

    /// Whether there will be evaluation data.
    pub fn has_eval(&self) -> bool {
        !self.eval_sources.is_empty() || self.train_eval_split.1 > 0.0
    }
}

/// One `huggingface_instruct` source of chats.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Source {
    /// What its rows are for.
    #[serde(rename = "type")]
    pub kind: SourceType,
    /// A folder or file, or a data set name on the hub, without a `:split` part.
    pub name_or_path: String,
    /// The split to read, after split mapping, with any slice: `train_sft[:10%]`, `train+test`.
    pub split: String,
    /// Arguments of the reference's `load_dataset` that mean something here (`name`, `data_files`, `data_dir`, `revision`).
    pub kwargs: Map<String, Value>,
    /// What the rows are; `None` recognises it from the columns unless there is a role mapping.
    pub format: Option<RowFormat>,
    /// For each role, in turn order, where its messages are; empty if the format says so.
    #[serde(serialize_with = "json::roles")]
    pub role_mapping: Vec<(String, RolePath)>,
    /// What is done about messages of roles that the mapping does not name.
    pub unmapped_roles: UnmappedRoles,
    /// The column of messages; `None` tries `messages`, `conversations`, `conversation`, `dialog`.
    pub messages_key: Option<String>,
    /// The column of tool descriptions; `None` tries `tools`.
    pub tools_key: Option<String>,
    /// The column of raw text; `None` tries `text`.
    pub text_key: Option<String>,
    /// The field that holds a message's text; `None` tries `content`, `text`, `message`, `value`.
    pub content_key: Option<String>,
    /// How many of the rows are used.
    #[serde(flatten)]
    pub sample: Sampling,
    /// Seeds the choice of rows.
    pub sample_seed: u64,
    /// How often its samples are in an epoch of the mix, above 0: 2.5 is all of them twice and half of them once more. 1 if there are
    /// weights.
    pub epochs: f64,
    /// Its share of the samples of the mix, relative to the weights of the others; all sources of a side have one, or none has.
    pub weight: Option<f64>,
}

/// The reference's name for what the rows of a source are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceType {
    /// `type: sft`.
    HuggingFaceInstruct,
    /// `type: causal`.
    HuggingFaceCausal,
    /// `type: dpo`.
    HuggingFace,
}

/// Where the messages of one role are in a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RolePath {
    /// A column: one message, or a list of them.
    Column(String),
    /// The items of `array` whose `field` equals `value`.
    Items {
        /// A column that holds a list of structs.
        array: String,
        /// The field that names the role.
        field: String,
        /// What that field must equal.
        value: String,
    },
}

impl fmt::Display for RolePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Column(column) => f.write_str(column),
            Self::Items { array, field, value } => write!(f, "{array}.{field}.{value}"),
        }
    }
}

/// Which rows of a source are used.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sampling {
    /// All of them.
    All,
    /// `floor(rows * ratio)` of them, without replacement.
    Ratio(f64),
    /// This many of them, without replacement.
    Count(usize),
}

/// How samples become packs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// The reference's rule: next fit inside batches of at most 1000 samples, so curves overlay.
    Reference,
    /// One pass over all samples: packs are filled whatever `max_length` is.
    Global,
}

/// Which tokens of a chat are labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LabelMask {
    /// What the assistant wrote and its end-of-turn token, in every turn.
    Exact,
    /// What the reference labels, found by text search.
    Reference,
}

/// What a row of a source is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowFormat {
    /// A list of messages, each with `role` and `content` or `from` and `value`.
    Messages,
    /// `instruction`, `input`, `output`.
    Alpaca,
    /// `prompt` and `completion`, both text or both lists of messages.
    PromptCompletion,
    /// Text without turns.
    Text,
    /// `input_ids`, with `labels` or a mask.
    Tokens,
    /// `chosen` and `rejected`, with or without `prompt`.
    Preference,
    /// `prompt`, `completion` and `label`, whether the completion is a good one.
    UnpairedPreference,
}

/// What is done about messages of roles that a source's role mapping, or without one the chat template, does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnmappedRoles {
    /// A row is refused if it would lose a call of a tool or its result, or if its format has no role mapping; other messages are
    /// left out and counted.
    Refuse,
    /// All are left out and counted.
    Drop,
}

/// Which messages of the assistant are trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrainOn {
    /// Every one that no flag of its own excludes.
    All,
    /// The last one of a chat, unless its own flag excludes it.
    Last,
    /// Those with a flag that includes them.
    Marked,
}

/// What is done about a sample longer than `max_length`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExcessLength {
    /// It is left out and counted.
    Drop,
    /// Its first `max_length` tokens are kept.
    Truncate,
    /// It becomes several samples of at most `max_length` tokens.
    Split,
    /// It ends the run.
    Raise,
}

/// How many samples a mix by weights has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoppingStrategy {
    /// As many as there can be without using a sample twice.
    FirstExhausted,
    /// As few as there can be with every sample used.
    AllExhausted,
}

/// What is done about the names of special tokens, such as `<|im_end|>`, in the texts of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlTokens {
    /// They become these tokens, as in transformers, and a warning counts the rows.
    Warn,
    /// They become the tokens of their letters.
    PlainText,
}

/// What a batch is padded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PadTo {
    /// The next multiple of `div_length`.
    DivLength,
    /// `max_length`.
    MaxLength,
}

/// `optimizer`: `AdamW` with bias correction.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OptimizerOptions {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Decoupled weight decay; biases and norms are left out.
    pub weight_decay: f64,
    /// Decay rates of the two moments.
    pub betas: (f64, f64),
    /// Added to the root of the second moment: 1e-8, not a recipe key.
    pub eps: f64,
}

/// `scheduler`.
#[derive(Clone, Debug, PartialEq)]
pub struct SchedulerOptions {
    /// Warm-up as a fraction of the optimizer steps of the run.
    pub warmup_ratio: f64,
    /// The curve.
    pub schedule: Schedule,
}

/// The learning-rate curves of transformers' `get_scheduler`, and WSD. All give a factor on the peak learning rate.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Down to 0 in a straight line.
    Linear,
    /// Down a cosine.
    Cosine {
        /// Waves over the run; 0.5 ends at 0.
        num_cycles: f64,
    },
    /// Several half cosines, each from the peak.
    CosineWithRestarts {
        /// How many.
        num_cycles: usize,
    },
    /// Down to `lr_end` as a power of the remaining fraction.
    Polynomial {
        /// Learning rate at the end, below the peak.
        lr_end: f64,
        /// Exponent.
        power: f64,
    },
    /// The peak, without warm-up.
    Constant,
    /// The peak, after the warm-up.
    ConstantWithWarmup,
    /// One over the root of the step.
    InverseSqrt {
        /// Time scale in steps; `None` is the number of warm-up steps, or 10000 without warm-up.
        timescale: Option<usize>,
    },
    /// A cosine that ends at a given rate.
    CosineWithMinLr {
        /// Waves over the run.
        num_cycles: f64,
        /// Rate at the end as a fraction of the peak.
        min_lr_rate: f64,
    },
    /// As [`Self::CosineWithMinLr`], starting the warm-up above 0.
    CosineWarmupWithMinLr {
        /// Waves over the run.
        num_cycles: f64,
        /// Rate at the end as a fraction of the peak.
        min_lr_rate: f64,
        /// Rate at the first step as a fraction of the peak; `None` is 0.
        warmup_lr_rate: Option<f64>,
    },
    /// Warm up, stay, decay: `warmup_stable_decay`, and the reference's `type: wds`.
    WarmupStableDecay {
        /// Steps of the warm-up; `None` is what `warmup_ratio` gives.
        num_warmup_steps: Option<usize>,
        /// Steps in between; `None` is what warm-up and decay leave.
        num_stable_steps: Option<usize>,
        /// Steps of the decay.
        num_decay_steps: usize,
        /// Shape of the warm-up.
        warmup_type: Ramp,
        /// Shape of the decay.
        decay_type: Ramp,
        /// Factor on the peak at the first step and at the end.
        min_lr_ratio: f64,
        /// Waves of a cosine decay.
        num_cycles: f64,
    },
}

/// Shape of a warm-up or a decay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ramp {
    /// A straight line.
    Linear,
    /// A half cosine.
    Cosine,
    /// One minus a square root.
    OneMinusSqrt,
}

/// `deepspeed`: the keys of it that mean something here.
#[derive(Clone, Debug, PartialEq)]
pub struct DeepSpeedOptions {
    /// `zero_optimization.stage`.
    pub zero_stage: ZeroStage,
    /// Whether the weight shards live on the host.
    pub offload_param: bool,
    /// Largest global gradient norm; 0 is off.
    pub gradient_clipping: f64,
    /// Format in which gradients travel between ranks.
    pub reduce_dtype: DType,
    /// Format of the gradient accumulators between micro-batches.
    pub grad_accum_dtype: DType,
    /// `train_batch_size`, when given: the plan checks it against the world size.
    pub train_batch_size: Option<usize>,
}

/// What is sharded over the data-parallel and sequence-parallel ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ZeroStage {
    /// Nothing.
    Zero,
    /// Optimizer state.
    One,
    /// And gradients.
    Two,
    /// And weights.
    Three,
}

impl ZeroStage {
    /// 0 to 3.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// Whether each rank keeps only its part of the optimizer state.
    pub fn shards_optimizer(self) -> bool {
        self >= Self::One
    }

    /// Whether each rank keeps only its part of the gradients.
    pub fn shards_gradients(self) -> bool {
        self >= Self::Two
    }

    /// Whether each rank keeps only its part of the weights.
    pub fn shards_params(self) -> bool {
        self >= Self::Three
    }
}

/// `memory`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryOptions {
    /// The input of every so many blocks is kept; a backward runs those in between again to restore theirs.
    pub keep_inputs_every: usize,
    /// Of which blocks the attention output and log-sum-exp are kept, so that their backward runs no attention forward.
    pub keep_attention: KeepAttention,
    /// Where kept block inputs wait for the backward.
    pub inputs_on: Place,
    /// Where kept attention outputs wait, and the keys and values that tiles of queries read.
    pub attention_on: Place,
    /// In how many groups of heads, one after the other, a block's attention runs.
    pub attention_head_groups: usize,
    /// At most how many queries attend at once, and to how many keys at once; 0 is all of them.
    pub attention_query_tile: usize,
    /// What the intermediate values of one tile may take, in bytes; by the type of the device if `None`.
    pub tile_bytes: Option<usize>,
    /// What the weights of the experts that are gathered and reduced at once may take, in bytes; one expert at least.
    pub expert_group_bytes: usize,
    /// Where masters and moments live.
    pub optimizer_on: Place,
    /// Where gradients live: the device or the host.
    pub gradients_on: Place,
    /// The format of the optimizer's moments.
    #[serde(serialize_with = "json::displayed")]
    pub moments_dtype: DType,
    /// The folder for what lives on disk, relative to the working directory; set whenever something does.
    pub disk_dir: Option<PathBuf>,
    /// The folder that each rank writes `rank<N>.json` to, a trace of its first steps.
    pub timeline_dir: Option<PathBuf>,
    /// How many steps that trace has.
    pub timeline_steps: usize,
}

/// Of which blocks the attention output is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepAttention {
    /// Of as many as there is memory for, which is known when the data and the free memory are.
    Auto,
    /// Of all.
    All,
    /// Of the first so many.
    Blocks(usize),
}

/// Where a state or an activation waits until it is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the memory of the device that computes.
    Device,
    /// In the memory of the host, which on a CPU is the same.
    Host,
    /// In a file in `memory.disk_dir`.
    Disk,
}

/// `logger`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LoggerOptions {
    /// Log files go to `<output_dir>/logs/rank_<local_rank>.log`; `None` writes none.
    pub output_dir: Option<PathBuf>,
    /// Lowest level that is logged; `None` leaves it to `AT_LOG_LEVEL`, else warnings.
    pub level: Option<LogLevel>,
    /// Local ranks that print.
    pub print_output_ranks: Ranks,
    /// Local ranks that write a log file.
    pub file_output_ranks: Ranks,
}

/// Levels of Python's `logging`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// `DEBUG`.
    Debug,
    /// `INFO`.
    Info,
    /// `WARNING`.
    Warning,
    /// `ERROR`.
    Error,
    /// `CRITICAL`.
    Critical,
}

/// A set of local ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ranks {
    /// Every rank.
    All,
    /// These.
    List(Vec<usize>),
}

impl Ranks {
    /// Whether `local_rank` is in the set.
    pub fn contains(&self, local_rank: usize) -> bool {
        match self {
            Self::All => true,
            Self::List(ranks) => ranks.contains(&local_rank),
        }
    }
}

/// One entry of `checkpoint`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CheckpointOptions {
    /// What is written.
    #[serde(rename = "type")]
    pub kind: CheckpointKind,
    /// Where, relative to the working directory.
    pub output_dir: PathBuf,
    /// Whether a run goes on from the newest good checkpoint in `output_dir`; in one entry at most, never an export's.
    pub auto_resume: bool,
    /// Optimizer steps between saves; 0 is off.
    pub save_every_n_steps: usize,
    /// Epochs between saves; 0 is off.
    pub save_every_n_epochs: usize,
    /// Whether the end of training is saved.
    pub save_end_of_training: bool,
    /// How many checkpoints of this entry are kept, the newest; 0 keeps all.
    pub keep_last_n: usize,
}

/// What a checkpoint entry writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckpointKind {
    /// `huggingface`: an export, a folder that transformers loads.
    HuggingFace,
    /// `sterna`: the whole state of training, to go on from. Recipes written for the reference say `deepspeed`.
    Sterna,
}
