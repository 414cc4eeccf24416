//! What a recipe will do with a model on a number of ranks, before anything is touched.
//!
//! A plan is a pure function of the recipe, the model's config and the world size. It holds what the engine follows (mesh,
//! heads, shards, tiles, what is kept) and the bytes that follow from it, so that a run that cannot fit is seen before it
//! starts. What only the data knows, such as the number of samples, is left out and not guessed.

mod check;
mod json;
mod memory;
mod text;
mod tiles;
mod units;

use sterna_arch::{DType, Family, HeadSplit, ModelConfig, UnitLayout, units::UnitKind};
use sterna_mesh::{Axis, Mesh};
use sterna_recipe::{
    AttnImplementation, Diagnostics, KeepAttention, Note, Place, Recipe, ZeroStage,
};

pub use crate::{
    memory::{Memory, MemoryKind, MemoryRow},
    tiles::TileLengths,
    units::UnitPlan,
};

/// What a rank computes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceType {
    /// The cores of the host.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
}

impl DeviceType {
    /// The word of torch, and of `--device`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
}

/// What will run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The model.
    pub model: ModelSummary,
    /// How the ranks are arranged, as the first one sees it.
    pub mesh: Mesh,
    /// What each computes on.
    pub device: DeviceType,
    /// The heads of each rank of a sequence-parallel group, of the first layer.
    pub heads: Vec<HeadSplit>,
    /// What is sharded, and where it lives.
    pub zero: ZeroPlan,
    /// The longest batch.
    pub batch: BatchPlan,
    /// How much is computed at once.
    pub tiles: TileLengths,
    /// What blocks' forwards keep for their backwards.
    pub keep: KeepPlan,
    /// How attention is cut.
    pub attention: AttentionPlan,
    /// What decides the number of optimizer steps.
    pub steps: StepsPlan,
    /// Bytes of one rank with the longest batch.
    pub memory: Memory,
    /// What is worth knowing: keys that change nothing here, and what these numbers imply.
    pub notes: Vec<Note>,
    /// The recipe with every default filled in, for [`Plan::to_json`].
    recipe: serde_json::Value,
}

/// The model as far as a plan shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSummary {
    /// As in the recipe.
    pub name: String,
    /// The class of transformers.
    pub family: &'static Family,
    /// Parameters in all; a tied head counts once.
    pub num_parameters: usize,
    /// Those that are trained: all, or adapters.
    pub num_trained: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// `d`.
    pub hidden_size: usize,
    /// `n`, of the first layer, as the next two.
    pub num_attention_heads: usize,
    /// `k`.
    pub num_key_value_heads: usize,
    /// `h`.
    pub head_dim: usize,
    /// `v`.
    pub vocab_size: usize,
    /// The format of weights and activations.
    pub dtype: DType,
    /// Whether the weights are drawn instead of read, or will be unless the number of layers that the recipe names is that of
    /// `config.json`.
    pub has_random_weights: bool,
}

/// What is sharded, and where it lives.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "each state is sharded or moved by itself")]
pub struct ZeroPlan {
    /// The stage of the recipe.
    pub stage: ZeroStage,
    /// Whether a rank keeps only its part of the weights.
    pub shards_params: bool,
    /// Whether a rank keeps only its part of the gradients.
    pub shards_gradients: bool,
    /// Whether a rank keeps only its part of masters and moments.
    pub shards_optimizer: bool,
    /// Whether the weights rest on the host.
    pub offload_param: bool,
    /// Where masters and moments live.
    pub optimizer_on: Place,
    /// Where gradients live: the device or the host.
    pub gradients_on: Place,
    /// The format of the moments.
    pub moments_dtype: DType,
    /// The format in which gradients travel.
    pub reduce_dtype: DType,
    /// The format of the gradient accumulators.
    pub grad_accum_dtype: DType,
    /// What is gathered and reduced at once.
    pub units: Vec<UnitPlan>,
    /// The most elements of units that are whole at once where they are gathered.
    pub gathered_len: usize,
    /// The same of what is trained, whose gradients are reduced.
    pub reduced_len: usize,
}

/// The longest batch that the recipe allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchPlan {
    /// Rows of a micro-batch.
    pub micro_batch_size: usize,
    /// Longest sample or pack, in tokens.
    pub max_length: usize,
    /// `s`: the same after padding.
    pub padded_length: usize,
    /// Tokens of a micro-batch on one rank.
    pub local_tokens: usize,
    /// Micro-batches of an optimizer step, over all data-parallel ranks.
    pub micro_batches_per_step: usize,
    /// At most so many tokens in an optimizer step.
    pub max_tokens_per_step: usize,
}

/// What blocks keep from their forward for their backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepPlan {
    /// Keep every intermediate value: nothing is computed again.
    pub graph: bool,
    /// The input of every so many blocks is kept, of blocks 0, k, 2k, ..; the others are restored by running from there again.
    pub inputs_every: usize,
    /// Of which blocks the attention output and log-sum-exp are kept. What `Auto` means is decided when the lengths of the data
    /// and the free memory are known.
    pub attention: KeepAttention,
    /// Where inputs are kept.
    pub inputs_on: Place,
    /// Where attention outputs are kept.
    pub attention_on: Place,
}

/// How a block's attention is cut, so that less of it exists at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionPlan {
    /// Groups of heads that run one after the other; 1 is all at once.
    pub head_groups: usize,
    /// At most so many queries at once, and as many keys, which wait where attention outputs are kept; 0 is all at once.
    pub query_tile: usize,
    /// Which kernels the recipe names.
    pub implementation: AttnImplementation,
}

/// What decides the number of optimizer steps, as far as the recipe goes; 0 is off, as there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepsPlan {
    /// Passes over the data, unless `train_iters` is set.
    pub epochs: usize,
    /// Optimizer steps to run.
    pub train_iters: usize,
    /// The data is repeated until it gives this many optimizer steps.
    pub min_iterations: usize,
    /// The smaller of `exit_iteration` and `exit_iteration_this_run`.
    pub exit_iteration: usize,
    /// Micro-batches of each data-parallel rank in an optimizer step.
    pub gradient_accumulation_steps: usize,
}

impl Plan {
    /// Plans a run of `recipe` with `model` on `world_size` ranks that compute on a `device` each.
    ///
    /// `model` is the config that the run uses: that of [`Recipe::model_config`].
    ///
    /// # Errors
    ///
    /// Every rule that the three break together, at once.
    #[expect(
        clippy::missing_panics_doc,
        reason = "the rules are checked before they are relied on"
    )]
    pub fn new(
        recipe: &Recipe,
        model: &ModelConfig,
        world_size: usize,
        device: DeviceType,
    ) -> Result<Self, Diagnostics> {
        let errors = check::errors(recipe, model, world_size);
        if !errors.is_empty() {
            return Err(Diagnostics::new(recipe.source.clone(), errors));
        }
        let sp_size = recipe.sequence_parallel_size;
        let mesh = Mesh::new(0, world_size, sp_size).expect("other sizes are refused above");
        let heads = model.arch.first_attention();
        let heads = HeadSplit::of_all_ranks(heads.num_heads, heads.num_kv_heads, sp_size);
        let heads = heads.expect("ranks that would have no head are refused above");
        let batch = BatchPlan::new(recipe, model, mesh);
        let zero = ZeroPlan::new(recipe, model, world_size);
        let tiles = TileLengths::new(recipe, model, device, batch.local_tokens);
        let options = &recipe.memory;
        let keep = KeepPlan {
            graph: recipe.model.disable_activation_checkpoint,
            inputs_every: options.keep_inputs_every.min(model.num_hidden_layers()),
            attention: options.keep_attention,
            inputs_on: options.inputs_on,
            attention_on: options.attention_on,
        };
        let attention = AttentionPlan {
            head_groups: options.attention_head_groups,
            query_tile: options.attention_query_tile,
            implementation: recipe.model.attn_implementation,
        };
        let memory = Memory::new(recipe, model, &zero, batch, tiles, keep, attention);
        let mut notes = recipe.notes.clone();
        notes.extend(check::notes(recipe, model, batch));
        let mut with_defaults = recipe.clone();
        with_defaults.memory.tile_bytes = Some(TileLengths::budget(recipe, device));
        Ok(Self {
            model: ModelSummary::new(recipe, model),
            mesh,
            device,
            heads,
            zero,
            batch,
            tiles,
            keep,
            attention,
            steps: StepsPlan::new(recipe),
            memory,
            notes,
            recipe: with_defaults.to_json(),
        })
    }

    /// The same where products of bf16 are computed in fp32 ([`MemoryKind::WidenedProducts`]): on a CPU without bf16 instructions.
    #[must_use]
    pub fn with_widened_products(mut self, model: &ModelConfig) -> Self {
        // A layer's, and beside them those of a group of its experts.
        let largest = |kind: UnitKind| {
            let units = self.zero.units.iter().filter(|unit| unit.kind == kind);
            units.map(|unit| unit.padded_len).max().unwrap_or(0)
        };
        let weights = largest(UnitKind::Layer) + largest(UnitKind::Experts);
        let num_tokens = self.batch.local_tokens * self.mesh.size(Axis::Sp);
        self.memory.push_widened(weights, model, self.mesh.size(Axis::Sp), num_tokens);
        self
    }

    /// The plan as JSON: the fields of this struct, bytes as numbers, and as `recipe` the recipe with every default.
    pub fn to_json(&self) -> serde_json::Value {
        json::plan(self)
    }
}

impl ModelSummary {
    /// Words after the number of parameters where some are frozen; `number` writes one.
    pub fn of_them_trained(&self, number: impl Fn(f64) -> String) -> String {
        if self.num_trained == self.num_parameters {
            return String::new();
        }
        let share = 100.0 * self.num_trained as f64 / self.num_parameters as f64;
        format!(" ({}, {share:.2}%, of them trained)", number(self.num_trained as f64))
    }

    fn new(recipe: &Recipe, model: &ModelConfig) -> Self {
        let attention = model.arch.first_attention();
        Self {
            name: recipe.model.name_or_path.clone(),
            family: model.family,
            num_parameters: model.arch.num_parameters(),
            num_trained: model.arch.num_trained(),
            num_hidden_layers: model.num_hidden_layers(),
            hidden_size: model.arch.hidden_size,
            num_attention_heads: attention.num_heads,
            num_key_value_heads: attention.num_kv_heads,
            head_dim: attention.head_dim,
            vocab_size: model.arch.vocab_size,
            dtype: recipe.model.dtype,
            has_random_weights: recipe.model.random_weights || recipe.model.names_depth(),
        }
    }
}

impl ZeroPlan {
    fn new(recipe: &Recipe, model: &ModelConfig, world_size: usize) -> Self {
        let deepspeed = &recipe.deepspeed;
        let stage = deepspeed.zero_stage;
        let units = model.arch.units();
        let layouts: Vec<UnitLayout> =
            units.all().iter().map(|unit| UnitLayout::new(unit, world_size)).collect();
        // A world of one has nothing to shard.
        let is_shared = world_size > 1;
        Self {
            stage,
            shards_params: is_shared && stage.shards_params(),
            shards_gradients: is_shared && stage.shards_gradients(),
            shards_optimizer: is_shared && stage.shards_optimizer(),
            offload_param: deepspeed.offload_param,
            optimizer_on: recipe.memory.optimizer_on,
            gradients_on: recipe.memory.gradients_on,
            moments_dtype: recipe.memory.moments_dtype,
            reduce_dtype: deepspeed.reduce_dtype,
            grad_accum_dtype: deepspeed.grad_accum_dtype,
            units: units::units(&layouts, model.arch.is_tied(), world_size),
            gathered_len: units::gathered_len(&layouts, UnitLayout::padded_len),
            reduced_len: units::gathered_len(&layouts, UnitLayout::trained_len),
        }
    }
}

impl BatchPlan {
    fn new(recipe: &Recipe, model: &ModelConfig, mesh: Mesh) -> Self {
        let data = &recipe.data;
        let max_length = data.row_length(data.max_length.unwrap_or(model.max_position_embeddings));
        let padded_length =
            check::padded_length(recipe, max_length).next_multiple_of(mesh.size(Axis::Sp));
        let micro_batches_per_step =
            recipe.gradient_accumulation_steps.saturating_mul(mesh.size(Axis::Dp));
        Self {
            micro_batch_size: recipe.micro_batch_size,
            max_length,
            padded_length,
            local_tokens: recipe.micro_batch_size * padded_length / mesh.size(Axis::Sp),
            micro_batches_per_step,
            max_tokens_per_step: micro_batches_per_step
                .saturating_mul(recipe.micro_batch_size * max_length),
        }
    }
}

impl StepsPlan {
    fn new(recipe: &Recipe) -> Self {
        let exits = [recipe.exit_iteration, recipe.exit_iteration_this_run];
        Self {
            epochs: recipe.epochs,
            train_iters: recipe.train_iters,
            min_iterations: recipe.min_iterations,
            exit_iteration: exits.into_iter().filter(|exit| *exit > 0).min().unwrap_or(0),
            gradient_accumulation_steps: recipe.gradient_accumulation_steps,
        }
    }
}
