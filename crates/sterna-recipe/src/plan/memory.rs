//! Bytes of one rank, by what they are for.
//!
//! Each row says what the engine allocates, so that the sum is a bound from below for a run with the longest batch; allocator
//! rounding, libraries and the data cache come on top.

use sterna_hf::{DType, ModelConfig};

use crate::recipe::Recipe;

use super::{
    BatchPlan, HeadSplit, KeepPlan, TileLengths, ZeroPlan,
    tiles::{post_values, pre_values},
};

/// What bytes are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryKind {
    /// Weights in the model's format, as a rank keeps them.
    Weights,
    /// A gathered unit and the next one.
    GatheredWeights,
    /// Gradient accumulators.
    Gradients,
    /// Whole gradients of a unit and of the one on its way to its owners.
    UnitGradients,
    /// fp32 masters and moments.
    Optimizer,
    /// What forwards keep for backwards.
    KeptActivations,
    /// The tensors of one block's attention over the whole sequence.
    Attention,
    /// Input, output and gradients of the residual stream.
    ResidualStream,
    /// Intermediate values of one tile, and one weight gradient.
    TileScratch,
}

impl MemoryKind {
    /// A phrase for tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::GatheredWeights => "gathered weights",
            Self::Gradients => "gradients",
            Self::UnitGradients => "gradients of a unit",
            Self::Optimizer => "optimizer state",
            Self::KeptActivations => "kept activations",
            Self::Attention => "attention of a block",
            Self::ResidualStream => "residual stream",
            Self::TileScratch => "tile scratch",
        }
    }
}

/// Bytes of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRow {
    /// What for.
    pub kind: MemoryKind,
    /// Bytes on the device.
    pub device_bytes: u64,
    /// Bytes on the host.
    pub host_bytes: u64,
}

/// Bytes of one rank with the longest batch: the first of its group, which has the most heads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// One row a kind; kinds without bytes are left out.
    pub rows: Vec<MemoryRow>,
    /// What keeping the attention outputs of all blocks takes as well. The engine does so when there is room, and its backward
    /// then runs no attention forward.
    pub kept_attention_bytes: u64,
}

impl Memory {
    /// Bytes on the device in all.
    pub fn device_bytes(&self) -> u64 {
        self.rows.iter().map(|row| row.device_bytes).sum()
    }

    /// Bytes on the host in all.
    pub fn host_bytes(&self) -> u64 {
        self.rows.iter().map(|row| row.host_bytes).sum()
    }

    pub(super) fn new(
        recipe: &Recipe,
        model: &ModelConfig,
        zero: &ZeroPlan,
        heads: &HeadSplit,
        batch: BatchPlan,
        tiles: TileLengths,
        keep: KeepPlan,
    ) -> Self {
        let dtype = recipe.model.dtype;
        let mut memory = Self { rows: Vec::new(), kept_attention_bytes: 0 };
        memory.states(zero, dtype);
        memory.activations(
            &Activations {
                model,
                heads,
                batch,
                size: dtype.size(),
                sp_size: recipe.sequence_parallel_size,
            },
            keep,
            tiles,
        );
        memory
    }

    fn push(&mut self, kind: MemoryKind, elements: usize, size: usize, on_host: bool) {
        let bytes = elements as u64 * size as u64;
        if bytes > 0 {
            let (device_bytes, host_bytes) = if on_host { (0, bytes) } else { (bytes, 0) };
            self.rows.push(MemoryRow { kind, device_bytes, host_bytes });
        }
    }

    /// Weights, gradients and optimizer state.
    fn states(&mut self, zero: &ZeroPlan, dtype: DType) {
        let len = |is_sharded: bool| -> usize {
            zero.units
                .iter()
                .map(|unit| unit.count * if is_sharded { unit.shard_len } else { unit.padded_len })
                .sum()
        };
        // Units that follow each other: a block and its neighbour, or an end and a block.
        let blocks = zero
            .units
            .iter()
            .flat_map(|unit| std::iter::repeat_n(unit.padded_len, unit.count.min(2)));
        let lens: Vec<_> = blocks.collect();
        let two_units = lens.windows(2).map(|pair| pair[0] + pair[1]).max().unwrap_or(0);
        let grad = zero.grad_accum_dtype.size();
        self.push(MemoryKind::Weights, len(zero.shards_params), dtype.size(), zero.offload_param);
        if zero.shards_params || zero.offload_param {
            self.push(MemoryKind::GatheredWeights, two_units, dtype.size(), false);
        }
        self.push(MemoryKind::Gradients, len(zero.shards_gradients), grad, zero.offload_optimizer);
        if zero.shards_gradients || zero.offload_optimizer {
            self.push(MemoryKind::UnitGradients, two_units, grad, false);
        }
        // An fp32 model on the same side is its own master.
        let has_masters = dtype != DType::F32 || zero.offload_param != zero.offload_optimizer;
        let copies = if has_masters { 3 } else { 2 };
        self.push(
            MemoryKind::Optimizer,
            copies * len(zero.shards_optimizer),
            DType::F32.size(),
            zero.offload_optimizer,
        );
    }

    /// What grows with the length of the sequence.
    fn activations(&mut self, a: &Activations<'_>, keep: KeepPlan, tiles: TileLengths) {
        let bytes = a.model.num_hidden_layers * a.kept_bytes(keep);
        self.push(MemoryKind::KeptActivations, bytes, 1, keep.on_host);
        if !keep.graph {
            self.kept_attention_bytes =
                (a.model.num_hidden_layers * a.attention_output_bytes()) as u64;
        }
        self.push(MemoryKind::Attention, a.attention_bytes(), 1, false);
        // In the backward of a block: its input, the gradients of its output and input, and attention's output.
        self.push(
            MemoryKind::ResidualStream,
            a.batch.local_tokens * (3 * a.model.hidden_size + a.q_width()),
            a.size,
            false,
        );
        self.push(MemoryKind::TileScratch, a.tile_values(tiles), a.size, false);
    }
}

/// What the sizes of activations follow from.
struct Activations<'a> {
    model: &'a ModelConfig,
    /// Of the rank with the most.
    heads: &'a HeadSplit,
    batch: BatchPlan,
    /// Bytes of a value.
    size: usize,
    sp_size: usize,
}

impl Activations<'_> {
    /// `b * s`.
    fn all_tokens(&self) -> usize {
        self.batch.local_tokens * self.sp_size
    }

    fn q_width(&self) -> usize {
        self.model.num_attention_heads * self.model.head_dim
    }

    /// What one block keeps.
    fn kept_bytes(&self, keep: KeepPlan) -> usize {
        let (tokens, d, f) =
            (self.batch.local_tokens, self.model.hidden_size, self.model.intermediate_size);
        let mut bytes = tokens * d * self.size;
        if keep.graph {
            bytes += self.attention_output_bytes();
            let own_heads = 2 * self.heads.q.len() + 2 * self.heads.kv.len();
            let unnormed = if self.model.qk_norm {
                self.model.num_attention_heads + self.model.num_key_value_heads
            } else {
                0
            };
            let attended = self.all_tokens() * own_heads * self.model.head_dim;
            let pre = tokens * (d + unnormed * self.model.head_dim);
            let post = tokens * (2 * d + 3 * f);
            bytes += (attended + pre + post) * self.size;
        }
        bytes
    }

    /// The output of one block's attention for this rank's tokens, and the log-sum-exp of its heads.
    fn attention_output_bytes(&self) -> usize {
        let lse = self.heads.q.len() * self.all_tokens() * DType::F32.size();
        self.batch.local_tokens * self.q_width() * self.size + lse
    }

    /// q, k, v, o, the gradient of each; under sequence parallelism, first what is sent and what arrives.
    fn attention_bytes(&self) -> usize {
        let (q, kv) = (self.heads.q.len(), self.heads.kv.len());
        let computing = 4 * q + 4 * kv;
        let travelling = if self.sp_size > 1 { 2 * (3 * q + 2 * kv) } else { 0 };
        let values = self.all_tokens() * computing.max(travelling) * self.model.head_dim;
        // The log-sum-exp, and the row sums of o * d_o.
        values * self.size + 2 * self.all_tokens() * q * DType::F32.size()
    }

    /// The largest of the three segments: its tile, and the weight gradient that a tile adds.
    fn tile_values(&self, tiles: TileLengths) -> usize {
        let (d, f, v) =
            (self.model.hidden_size, self.model.intermediate_size, self.model.vocab_size);
        let pre = tiles.pre * pre_values(self.model) + self.q_width() * d;
        let post = tiles.post * post_values(self.model) + d * f;
        let head = tiles.head * (v + 2 * d) + v * d;
        pre.max(post).max(head)
    }
}
