//! Bytes of one rank, by what they are for.
//!
//! Each row says what the engine allocates, so that the sum is a bound from below for a run with the longest batch; allocator
//! rounding, libraries and the data cache come on top.

use sterna_arch::{Architecture, Attention, DType, DeltaNet, HeadSplit, Layer, Mixer, ModelConfig};
use sterna_recipe::{KeepAttention, Place, Recipe};

use crate::{AttentionPlan, BatchPlan, KeepPlan, TileLengths, UnitPlan, ZeroPlan};

/// What bytes are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryKind {
    /// Weights in the model's format, as a rank keeps them.
    Weights,
    /// A gathered unit and the next one, and beside experts the rest of their layer.
    GatheredWeights,
    /// The weights of one block in fp32, and the operands of a call of attention, where products of bf16 are computed in it.
    WidenedProducts,
    /// Gradient accumulators.
    Gradients,
    /// Whole gradients of a unit and of the one on its way to its owners.
    UnitGradients,
    /// fp32 masters and moments.
    Optimizer,
    /// Block inputs and the routes of tokens to experts, and everything else with `disable_activation_checkpoint`, that forwards keep for backwards.
    KeptActivations,
    /// Attention outputs and log-sum-exps that forwards keep for backwards.
    KeptAttention,
    /// What is restored of the blocks between two kept inputs.
    Segment,
    /// The tensors of one block's attention over the whole sequence.
    Attention,
    /// Keys and values that tiles of queries read.
    StreamedKeysValues,
    /// Gradients of the residual stream, and what of a block's inputs is not kept on the device.
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
            Self::WidenedProducts => "products in fp32",
            Self::Gradients => "gradients",
            Self::UnitGradients => "gradients of a unit",
            Self::Optimizer => "optimizer state",
            Self::KeptActivations => "kept activations",
            Self::KeptAttention => "kept attention outputs",
            Self::Segment => "restored activations",
            Self::Attention => "attention of a block",
            Self::StreamedKeysValues => "streamed keys and values",
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
    /// Bytes on disk.
    pub disk_bytes: u64,
}

/// Bytes of one rank with the longest batch: the first of its group, which has the most heads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// One row a kind; kinds without bytes are left out.
    pub rows: Vec<MemoryRow>,
    /// What keeping the attention output of one more block takes, where that is decided by the memory that is free
    /// ([`KeepAttention::Auto`]); 0 where the recipe has decided.
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

    /// Bytes on disk in all.
    pub fn disk_bytes(&self) -> u64 {
        self.rows.iter().map(|row| row.disk_bytes).sum()
    }

    pub(crate) fn new(
        recipe: &Recipe,
        model: &ModelConfig,
        zero: &ZeroPlan,
        batch: BatchPlan,
        tiles: TileLengths,
        keep: KeepPlan,
        attention: AttentionPlan,
    ) -> Self {
        let dtype = recipe.model.dtype;
        let mut memory = Self { rows: Vec::new(), kept_attention_bytes: 0 };
        memory.states(zero, dtype, recipe.gradient_accumulation_steps);
        memory.activations(
            &Activations {
                arch: &model.arch,
                batch,
                size: dtype.size(),
                sp_size: recipe.sequence_parallel_size,
                attention,
            },
            keep,
            tiles,
        );
        memory
    }

    fn push(&mut self, kind: MemoryKind, elements: usize, size: usize, place: Place) {
        let bytes = elements as u64 * size as u64;
        if bytes > 0 {
            let on = |here: Place| if here == place { bytes } else { 0 };
            self.rows.push(MemoryRow {
                kind,
                device_bytes: on(Place::Device),
                host_bytes: on(Place::Host),
                disk_bytes: on(Place::Disk),
            });
        }
    }

    /// What the rank with the most heads widens of `num_tokens` tokens, beside `weights` of a layer.
    pub(crate) fn push_widened(
        &mut self,
        weights: usize,
        model: &ModelConfig,
        sp_size: usize,
        num_tokens: usize,
    ) {
        // A call has all heads of a document up to this length, and one kv head with its queries of a longer one
        // (`sterna-ops/src/attention/calls.rs`).
        const LONG_CALL_LEN: usize = 8192;
        let of_layer = |layer: &Layer| {
            // The rule of a delta net is single precision everywhere.
            let Mixer::Attention(attention) = &layer.mixer else { return 0 };
            let heads = first_split(&layer.mixer, sp_size);
            let group = attention.num_heads.div_ceil(attention.num_kv_heads);
            // q, o, d_o, d_q, and d_k and d_v for each query head; k and v.
            let width = |q: usize, kv: usize| (6 * q + 2 * kv) * attention.head_dim;
            let short = num_tokens.min(LONG_CALL_LEN) * width(heads.q.len(), heads.kv.len());
            let long = if num_tokens > LONG_CALL_LEN { num_tokens * width(group, 1) } else { 0 };
            short.max(long)
        };
        let elements = weights + model.arch.largest(of_layer);
        self.push(MemoryKind::WidenedProducts, elements, DType::F32.size(), Place::Device);
    }

    /// Weights, gradients and optimizer state.
    fn states(&mut self, zero: &ZeroPlan, dtype: DType, num_micro_batches: usize) {
        let sum = |of_unit: &dyn Fn(&UnitPlan) -> usize| -> usize {
            zero.units.iter().map(|unit| unit.count * of_unit(unit)).sum()
        };
        let len = |is_sharded: bool| {
            sum(&|unit| if is_sharded { unit.shard_len } else { unit.padded_len })
        };
        let trained_len = |is_sharded: bool| {
            sum(&|unit| if is_sharded { unit.trained_shard_len } else { unit.trained_len })
        };
        let whole = zero.gathered_len;
        let grad = zero.grad_accum_dtype.size();
        let on_host_if = |is_moved| if is_moved { Place::Host } else { Place::Device };
        let params_on = on_host_if(zero.offload_param);
        self.push(MemoryKind::Weights, len(zero.shards_params), dtype.size(), params_on);
        if zero.shards_params || zero.offload_param {
            self.push(MemoryKind::GatheredWeights, whole, dtype.size(), Place::Device);
        }
        let grads_on = zero.gradients_on;
        self.push(MemoryKind::Gradients, trained_len(zero.shards_gradients), grad, grads_on);
        if zero.shards_gradients || grads_on == Place::Host {
            // A second micro-batch adds to what comes back from the host: one leaves, one is added to, one comes.
            let is_fetched = !zero.shards_gradients && num_micro_batches > 1;
            let largest = zero.units.iter().map(|unit| unit.trained_len).max().unwrap_or(0);
            let fetched = if is_fetched { largest } else { 0 };
            let whole = zero.reduced_len;
            self.push(MemoryKind::UnitGradients, whole + fetched, grad, Place::Device);
        }
        // An fp32 model on the same side is its own master.
        let stepped_on = on_host_if(zero.optimizer_on != Place::Device);
        let master =
            if dtype == DType::F32 && params_on == stepped_on { 0 } else { DType::F32.size() };
        let bytes = master + 2 * zero.moments_dtype.size();
        self.push(
            MemoryKind::Optimizer,
            trained_len(zero.shards_optimizer),
            bytes,
            zero.optimizer_on,
        );
    }

    /// What grows with the length of the sequence.
    fn activations(&mut self, a: &Activations<'_>, keep: KeepPlan, tiles: TileLengths) {
        let layers = &a.arch.layers;
        let num_layers = layers.len();
        let hidden = a.batch.local_tokens * a.arch.hidden_size * a.size;
        let graphs = layers.iter().map(|layer| if keep.graph { a.graph_bytes(layer) } else { 0 });
        let routes = layers.iter().map(Layer::route_bytes).sum::<usize>() * a.batch.local_tokens;
        let inputs = num_layers.div_ceil(keep.inputs_every) * hidden + routes;
        let kept = inputs + graphs.sum::<usize>();
        // Intermediate values stay where they were computed.
        let place = if keep.graph { Place::Device } else { keep.inputs_on };
        self.push(MemoryKind::KeptActivations, kept, 1, place);
        let of_attention = a.arch.largest(|layer| a.mixer_output_bytes(&layer.mixer));
        let num_attention = match keep.attention {
            _ if keep.graph => 0,
            KeepAttention::All => num_layers,
            KeepAttention::Blocks(number) => number.min(num_layers),
            KeepAttention::Auto => {
                self.kept_attention_bytes = of_attention as u64;
                0
            }
        };
        let of_layers = layers.iter().map(|layer| a.mixer_output_bytes(&layer.mixer));
        let kept = of_layers.take(num_attention).sum();
        self.push(MemoryKind::KeptAttention, kept, 1, keep.attention_on);
        // Restored inputs of a segment, and the attention outputs that restoring them computes.
        let segment = (keep.inputs_every - 1) * (hidden + of_attention);
        self.push(MemoryKind::Segment, segment, 1, Place::Device);
        let attention = a.arch.largest(|layer| a.mixer_bytes(&layer.mixer));
        self.push(MemoryKind::Attention, attention, 1, Place::Device);
        let streamed = a.arch.largest(|layer| a.streamed_bytes(&layer.mixer));
        self.push(MemoryKind::StreamedKeysValues, streamed, 1, keep.attention_on);
        // The gradients of a layer's output and input, and the rotary angles; what is kept elsewhere has come back to be read,
        // and from the host the next layer's comes beside it.
        let fetched = |width: usize, place: Place| match place {
            Place::Device => 0,
            Place::Host => 2 * width,
            Place::Disk => width,
        };
        // Where memory decides, it may decide for some.
        let may_keep_attention =
            num_attention > 0 || !keep.graph && keep.attention == KeepAttention::Auto;
        let o_width = a.arch.largest(|layer| layer.mixer.output_width());
        let angles: usize = a.arch.ropes.iter().map(|rope| rope.dim).sum();
        let values = 2 * a.arch.hidden_size
            + a.arch.largest(Layer::peak_beside_experts)
            + fetched(a.arch.hidden_size, keep.inputs_on)
            + if may_keep_attention { fetched(o_width, keep.attention_on) } else { 0 }
            + 2 * angles;
        let values = a.batch.local_tokens * values;
        self.push(MemoryKind::ResidualStream, values, a.size, Place::Device);
        self.push(MemoryKind::TileScratch, a.tile_values(tiles), a.size, Place::Device);
    }
}

/// The heads of the first rank, which has the most.
fn first_split(mixer: &Mixer, sp_size: usize) -> HeadSplit {
    let splits = mixer.split(sp_size);
    splits.expect("ranks that would have no head are refused before").swap_remove(0)
}

/// Values of a token that the projections of a delta net give to so many value heads and key heads.
fn projected(net: &DeltaNet, values: usize, keys: usize) -> usize {
    2 * keys * net.key_head_dim + values * (net.value_head_dim + 2)
}

/// What the sizes of activations follow from, on the rank with the most heads.
struct Activations<'a> {
    arch: &'a Architecture,
    batch: BatchPlan,
    /// Bytes of a value.
    size: usize,
    sp_size: usize,
    attention: AttentionPlan,
}

impl Activations<'_> {
    /// `b * s`.
    fn all_tokens(&self) -> usize {
        self.batch.local_tokens * self.sp_size
    }

    /// What a layer keeps beside its input when it keeps everything.
    fn graph_bytes(&self, layer: &Layer) -> usize {
        let tokens = self.batch.local_tokens;
        let heads = first_split(&layer.mixer, self.sp_size);
        let (q, kv) = (heads.q.len(), heads.kv.len());
        let of_heads = match &layer.mixer {
            // q and o, k and v.
            Mixer::Attention(attention) => (q + kv) * (attention.head_dim + attention.v_head_dim),
            Mixer::DeltaNet(net) => projected(net, q, kv),
        };
        let attended = self.all_tokens() * of_heads;
        let saved = tokens * (layer.saved_before_attention() + layer.saved_after_attention());
        self.mixer_output_bytes(&layer.mixer) + (attended + saved) * self.size
    }

    /// The output of a layer's mixer for this rank's tokens, and the log-sum-exp or the states of its heads.
    fn mixer_output_bytes(&self, mixer: &Mixer) -> usize {
        mixer.kept_bytes(self.batch.local_tokens, self.sp_size, self.size).iter().sum()
    }

    /// Query and kv heads of this rank that run at once.
    fn heads_at_once(&self, mixer: &Mixer) -> (usize, usize) {
        let heads = first_split(mixer, self.sp_size);
        let num_groups = self.attention.head_groups;
        let group_size = mixer.num_heads() / mixer.num_kv_heads();
        if num_groups == 1 {
            return (heads.q.len(), heads.kv.len());
        }
        let q = heads.q.len().div_ceil(num_groups);
        // A run of query heads may begin inside one kv head's group and end inside another's.
        (q, ((q - 1).div_ceil(group_size) + 1).min(heads.kv.len()))
    }

    /// Keys and values of heads that run at once, which wait for tiles of queries.
    fn streamed_bytes(&self, mixer: &Mixer) -> usize {
        let Mixer::Attention(attention) = mixer else { return 0 };
        let (_, kv) = self.heads_at_once(mixer);
        match self.attention.query_tile {
            0 => 0,
            _ => 2 * self.all_tokens() * kv * attention.head_dim * self.size,
        }
    }

    /// q, k, v, o, the gradient of each, of the heads that run at once; under sequence parallelism, first what is sent and what
    /// arrives. Values and outputs count as wide as queries, which attention makes of them. (Where `o` is kept on the device it is
    /// counted there as well.)
    fn attention_bytes(&self, attention: &Attention, (q, kv): (usize, usize)) -> usize {
        let head = attention.head_dim * self.size;
        let (tokens, tile) = (self.all_tokens(), self.attention.query_tile);
        let of_group = if tile == 0 {
            tokens * (4 * q + 4 * kv) * head
        } else {
            // Gradients of keys and values add up in single precision, and are rounded when all tiles are done; the chunk in use
            // and the next one.
            let sums = 2 * tokens * kv * attention.head_dim * (DType::F32.size() + self.size);
            tokens * 4 * q * head + sums + 4 * tile.min(tokens) * kv * head
        };
        let travelling = if self.sp_size > 1 { 2 * tokens * (2 * q + 2 * kv) * head } else { 0 };
        // The log-sum-exp, and the row sums of o * d_o.
        let row_sums = 2 * tokens * q * DType::F32.size();
        of_group.max(travelling) + row_sums
    }

    /// The tensors of a mixer's heads that run at once.
    fn mixer_bytes(&self, mixer: &Mixer) -> usize {
        let heads = self.heads_at_once(mixer);
        let of_group = match mixer {
            Mixer::Attention(attention) => self.attention_bytes(attention, heads),
            Mixer::DeltaNet(net) => self.delta_net_bytes(net, heads),
        };
        // The gradients of all heads' outputs wait for their group.
        let waiting = match self.attention.head_groups {
            1 => 0,
            _ => self.batch.local_tokens * mixer.output_width() * self.size,
        };
        of_group + waiting
    }

    /// What the projections gave, the same after the convolutions, the gradients of that, and that of the output; `g` and its gradient; in
    /// single precision the states of a run of chunks and their gradients, and some tensors of its tokens.
    fn delta_net_bytes(&self, net: &DeltaNet, (q, kv): (usize, usize)) -> usize {
        let tokens = self.all_tokens();
        let projected = projected(net, q, kv);
        let values = tokens * (3 * projected + q * net.value_head_dim) * self.size;
        let travelling = if self.sp_size > 1 { 2 * tokens * projected * self.size } else { 0 };
        let (h_k, h_v) = (net.key_head_dim, net.value_head_dim);
        let run = DeltaNet::TOKENS_OF_STATE.min(tokens) * (8 * h_k + 8 * h_v);
        let states = 2 * DeltaNet::TOKENS_OF_STATE.min(tokens) / 64 * h_k * h_v;
        let numbers = 2 * tokens * q * DType::F32.size();
        values.max(travelling) + numbers + q * (run + states) * DType::F32.size()
    }

    /// The largest of the three segments: its tile, and the weight gradient that a tile adds.
    fn tile_values(&self, tiles: TileLengths) -> usize {
        let (d, v) = (self.arch.hidden_size, self.arch.vocab_size);
        // Gradients of A and B are small beside a tile.
        let is_frozen = self.arch.has_adapters();
        let of_weight = |numel: usize| if is_frozen { 0 } else { numel };
        let qkv = |layer: &Layer| {
            let weight = of_weight(layer.mixer.largest_projection());
            tiles.qkv * layer.peak_before_attention() + weight.max(layer.dora_values(tiles.qkv))
        };
        let mlp = |layer: &Layer| {
            let weight = layer.ffn.largest_weight().max(d * layer.mixer.output_width());
            let weight = of_weight(weight).max(layer.dora_values(tiles.mlp));
            tiles.mlp * layer.peak_after_attention() + weight
        };
        // A softcap keeps the logits beside their gradient.
        let logits = if self.arch.head.softcap.is_some() { 2 * v } else { v };
        let weight = if self.arch.has_frozen_head() { 0 } else { v * d };
        let head = tiles.head * (logits + 2 * d) + weight;
        self.arch.largest(qkv).max(self.arch.largest(mlp)).max(head)
    }
}
