//! One micro-batch, forward and backward: where units are gathered and reduced, and what is kept in between.

use std::{ops::Range, rc::Rc};

use sterna_arch::{Architecture, Layer, UnitLayout};
use sterna_comm::Comm;
use sterna_data::MicroBatch;
use sterna_model::{
    BlockContext, BlockGrads, BlockParams, Documents, HeadGroup, Implementation, Keep, Kept,
    RopeTable, Routing, Streaming, block, embed,
    head::{self, HeadGrads, HeadParams},
    rotary,
};
use sterna_recipe::{AttnImplementation, Place, Plan, Recipe, TileLengths};
use sterna_torch_sys::copies::Copies;
use tch::{Device, Kind, Tensor, no_grad_guard};

use crate::{
    disk::DiskScratch,
    error::TrainError,
    kept::{KeepPolicy, KeptBlock, Shelf},
    load::kind_of,
    phases::{Phase, Phases},
    zero::{Gradients, Sharding, StatePlacement, Zero},
};

/// The unit of the embedding.
const EMBED: usize = 0;

/// How the engine computes, as the recipe asks.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Dtype of weights and activations.
    pub kind: Kind,
    /// Where it computes.
    pub device: Device,
    /// What moves tensors between the device and the host, if the device is a GPU.
    pub copies: Option<Rc<Copies>>,
    /// What blocks keep from their forward, and where.
    pub keep: KeepPolicy,
    /// At most how many tokens go through each segment at once.
    pub tiles: TileLengths,
    /// Which kernels may compute attention on a CUDA device.
    pub attention: Implementation,
    /// Groups of heads whose attention runs one after the other.
    pub num_head_groups: usize,
    /// At most how many queries attend at once, to as many keys, which wait where attention outputs are kept; 0 is all at once.
    pub query_tile_len: usize,
}

impl EngineOptions {
    /// What `plan` says, on `device`. `num_attention`, of how many blocks the attention output is kept, is the trainer's choice
    /// where the recipe leaves it open; `disk` is the file for what lives on disk.
    ///
    /// # Errors
    ///
    /// [`TrainError::Torch`] if `device` does not answer.
    pub fn new(
        plan: &Plan,
        device: Device,
        num_attention: usize,
        disk: Option<&Rc<DiskScratch>>,
    ) -> Result<Self, TrainError> {
        let copies = match device {
            Device::Cuda(index) => Some(Rc::new(Copies::new(index)?)),
            _ => None,
        };
        let shelf = |place| Shelf::new(place, copies.as_ref(), disk);
        Ok(Self {
            kind: kind_of(plan.model.dtype),
            device,
            keep: KeepPolicy {
                graph: plan.keep.graph,
                inputs_every: plan.keep.inputs_every,
                num_attention,
                inputs_on: shelf(plan.keep.inputs_on),
                attention_on: shelf(plan.keep.attention_on),
            },
            copies,
            tiles: plan.tiles,
            attention: implementation_of(plan.attention.implementation),
            num_head_groups: plan.attention.head_groups,
            query_tile_len: plan.attention.query_tile,
        })
    }
}

/// The kernels that a recipe's name for attention allows on a CUDA device.
fn implementation_of(name: AttnImplementation) -> Implementation {
    match name {
        AttnImplementation::FlashAttention2 => Implementation::Flash,
        // libtorch has no third FlashAttention, and cuDNN's kernel is the one made for the processors that it is for.
        AttnImplementation::Sdpa
        | AttnImplementation::Eager
        | AttnImplementation::FlexAttention
        | AttnImplementation::FlashAttention3 => Implementation::Automatic,
    }
}

/// A model whose states are sharded over the world and whose sequence is split over the sp group.
pub struct Engine<'a> {
    comm: &'a Comm,
    arch: &'a Architecture,
    /// Of each layer.
    head_groups: Vec<Vec<HeadGroup>>,
    options: EngineOptions,
    /// The weights, gradients and optimizer states of all units: the embedding, each block, the norm with the head.
    pub zero: Zero,
    /// The memory that each phase of a step takes.
    pub phases: Phases,
}

/// One micro-batch as this rank sees it.
struct Shard {
    input_ids: Vec<i64>,
    shift_labels: Vec<i64>,
    num_rows: i64,
    documents: Documents,
    /// As [`Architecture::ropes`].
    ropes: Vec<RopeTable>,
    routing: Option<Routing>,
}

impl<'a> Engine<'a> {
    /// Allocates zeroed states for `arch`; [`Zero::load`] fills them.
    ///
    /// # Errors
    ///
    /// [`TrainError::Model`] if there are more sequence-parallel ranks, or groups of a rank's heads, than query heads; those of
    /// [`Zero::new`].
    pub fn new(
        comm: &'a Comm,
        arch: &'a Architecture,
        recipe: &Recipe,
        options: EngineOptions,
    ) -> Result<Self, TrainError> {
        if let Device::Cuda(_) = options.device {
            for layer in &arch.layers {
                let attention = &layer.attention;
                let (head_dim, has_softcap) =
                    (attention.head_dim as i64, attention.softcap.is_some());
                options.attention.check(options.kind, head_dim, has_softcap)?;
            }
        }
        let of_layer = |layer: &Layer| {
            let (sp_size, num_groups) = (comm.mesh.sp_size, options.num_head_groups);
            HeadGroup::of_all_ranks(&layer.attention, sp_size, num_groups)
        };
        let head_groups = arch.layers.iter().map(of_layer).collect::<Result<_, _>>()?;
        let world_size = comm.mesh.world_size;
        let deepspeed = &recipe.deepspeed;
        let host_if = |is_offloaded: bool| if is_offloaded { Device::Cpu } else { options.device };
        let zero = Zero::new(
            comm.world(),
            arch.units().map(|(_, specs)| UnitLayout::new(specs.to_vec(), world_size)).collect(),
            Sharding::new(deepspeed.zero_stage, world_size),
            options.copies.clone(),
            StatePlacement {
                param_kind: options.kind,
                grad_kind: kind_of(deepspeed.grad_accum_dtype),
                reduce_kind: kind_of(deepspeed.reduce_dtype),
                compute_device: options.device,
                param_device: host_if(deepspeed.offload_param),
                grad_device: host_if(recipe.memory.gradients_on != Place::Device),
                optimizer_device: host_if(recipe.memory.optimizer_on != Place::Device),
                optimizer_disk: recipe
                    .memory
                    .disk_dir
                    .clone()
                    .filter(|_| recipe.memory.optimizer_on == Place::Disk),
                moments_kind: kind_of(recipe.memory.moments_dtype),
                seed: recipe.seed,
            },
        )?;
        Ok(Self { comm, arch, head_groups, options, zero, phases: Phases::new() })
    }

    /// Dtype of weights and activations.
    pub fn kind(&self) -> Kind {
        self.options.kind
    }

    /// Where it computes.
    pub fn device(&self) -> Device {
        self.options.device
    }

    fn num_layers(&self) -> usize {
        self.arch.layers.len()
    }

    /// The unit of the final norm and the head.
    fn head_unit(&self) -> usize {
        self.num_layers() + 1
    }

    /// Forward and backward of one micro-batch. Gradients of `scale` times its summed loss, and of the auxiliary loss of its routers,
    /// are added to what the units hold; returns this rank's part of that scaled loss.
    ///
    /// # Communication
    ///
    /// Over the world, as [`Zero`] says for each unit; over the sp group, the exchanges of each block, and one all-reduce of what
    /// routers chose. Collective.
    ///
    /// # Memory
    ///
    /// What each block keeps, one segment's restored inputs and attention outputs, one block's working set, two gathered units, one
    /// unit's gradient.
    ///
    /// # Errors
    ///
    /// [`TrainError::Model`] or [`TrainError::Comm`] if a peer failed; [`TrainError::Disk`] if what was kept there is lost.
    pub fn forward_backward(&mut self, batch: &MicroBatch, scale: f64) -> Result<f64, TrainError> {
        let _no_grad = no_grad_guard();
        let mut shard = self.shard(batch);

        self.phases.begin(Phase::Forward);
        // Forward: keep what the policy says of each block.
        let mut x = self.embed(&shard)?;
        let mut kept = Vec::with_capacity(self.num_layers());
        for layer_idx in 0..self.num_layers() {
            let params = self.block_params(layer_idx)?;
            self.zero.prefetch(self.comm.world(), layer_idx + 2)?;
            let keep = Keep {
                attention: self.options.keep.keeps_attention(layer_idx),
                graph: self.options.keep.graph,
            };
            let context = BlockContext { counts_routes: true, ..self.context(&shard, layer_idx) };
            let (y, of_block) = block::forward(&context, &params, &x, keep)?;
            x = y;
            let is_last = layer_idx + 1 == self.num_layers();
            kept.push(self.options.keep.put(layer_idx, is_last, of_block)?);
        }

        self.finish_routing(&mut shard, batch, scale)?;
        let segments: Vec<Range<usize>> =
            self.options.keep.segments(self.num_layers()).rev().collect();
        self.options.keep.prefetch(&mut kept[segments[0].start])?;
        let (loss, mut dx) = self.loss_and_backward(&shard, x, segments[0].start, scale)?;
        // Of the sequence, as this rank's part.
        let aux_loss = shard.routing.as_ref().map_or(0.0, Routing::loss);
        let aux_loss = aux_loss / self.comm.mesh.sp_size as f64;

        self.phases.begin(Phase::Backward);
        // Backward, segment by segment: dx = (assigned), weight gradients += (over tiles, micro-batches and ranks).
        for (segment_idx, segment) in segments.iter().enumerate() {
            let restored = self.restore(&shard, &mut kept, segment.clone())?;
            for (layer_idx, of_block) in segment.clone().zip(restored).rev() {
                let params = self.block_params(layer_idx)?;
                let next = if layer_idx > segment.start {
                    Some(layer_idx - 1)
                } else {
                    segments.get(segment_idx + 1).map(|segment| segment.start)
                };
                self.prefetch_block(&mut kept, next)?;
                // Of the unit before this block's.
                self.zero.prefetch_gradients(layer_idx)?;
                let gradients = self.zero.gradients(layer_idx + 1)?;
                let mut grads =
                    BlockGrads::new(&self.arch.layers[layer_idx], optional(&gradients))?;
                let context = self.context(&shard, layer_idx);
                dx = block::backward(&context, &params, &mut grads, of_block, &dx)?;
                drop((params, grads));
                self.zero.reduce(self.comm.world(), gradients)?;
            }
        }

        // A norm on looked-up rows reads them again.
        let weight = match self.arch.embed.norm {
            Some(_) => Some(self.zero.gather(self.comm.world(), EMBED)?.remove(0)),
            None => None,
        };
        let mut gradients = self.zero.gradients(EMBED)?;
        let d_weight = &mut gradients.views[0];
        embed::backward(self.arch, weight.as_ref(), d_weight, &shard.input_ids, &dx)?;
        drop(weight);
        self.zero.reduce(self.comm.world(), gradients)?;
        Ok(loss * scale + aux_loss)
    }

    /// Ends the forward of routers, whose auxiliary loss weighs as much in a step as the micro-batch's labels do.
    fn finish_routing(
        &self,
        shard: &mut Shard,
        batch: &MicroBatch,
        scale: f64,
    ) -> Result<(), TrainError> {
        let Some(routing) = &mut shard.routing else { return Ok(()) };
        let num_tokens: usize = batch.packed_sample_seqlens.iter().flatten().sum();
        let num_rows = num_tokens * self.arch.moe_layers().count();
        let weight = scale * batch.num_valid_tokens() as f64;
        Ok(routing.finish(self.comm.sp(), num_rows, weight)?)
    }

    /// What the backwards of `blocks`, one segment, read: what they kept, and the inputs that only the first kept, by running the
    /// segment again. An attention output that running it again computes is kept until its block's backward.
    fn restore(
        &mut self,
        shard: &Shard,
        kept: &mut [KeptBlock],
        blocks: Range<usize>,
    ) -> Result<Vec<Kept>, TrainError> {
        let keep = Keep { attention: true, graph: false };
        let mut restored = Vec::with_capacity(blocks.len());
        let mut x = self.options.keep.take_input(&mut kept[blocks.start])?;
        for layer_idx in blocks.start..blocks.end - 1 {
            let params = self.block_params(layer_idx)?;
            self.prefetch_block(kept, Some(layer_idx + 1))?;
            let of_block = self.options.keep.take(&mut kept[layer_idx], x)?;
            let context = self.context(shard, layer_idx);
            let (y, of_block) = match &of_block.attention {
                Some(attention) => {
                    (block::forward_again(&context, &params, &of_block.x, attention)?, of_block)
                }
                None => block::forward(&context, &params, &of_block.x, keep)?,
            };
            x = y;
            restored.push(of_block);
        }
        restored.push(self.options.keep.take(&mut kept[blocks.end - 1], x)?);
        Ok(restored)
    }

    /// Starts bringing the block that comes next: its weights, and what it has kept.
    fn prefetch_block(
        &mut self,
        kept: &mut [KeptBlock],
        layer_idx: Option<usize>,
    ) -> Result<(), TrainError> {
        let Some(layer_idx) = layer_idx else { return Ok(()) };
        self.zero.prefetch(self.comm.world(), layer_idx + 1)?;
        self.options.keep.prefetch(&mut kept[layer_idx])
    }

    /// Forward of one micro-batch: this rank's part of the summed loss.
    ///
    /// # Communication
    ///
    /// As the forward half of [`Engine::forward_backward`]. Collective.
    ///
    /// # Errors
    ///
    /// As [`Engine::forward_backward`].
    pub fn forward(&mut self, batch: &MicroBatch) -> Result<f64, TrainError> {
        let _no_grad = no_grad_guard();
        let shard = self.shard(batch);
        let keep = Keep { attention: false, graph: false };
        let mut x = self.embed(&shard)?;
        for layer_idx in 0..self.num_layers() {
            let params = self.block_params(layer_idx)?;
            self.zero.prefetch(self.comm.world(), layer_idx + 2)?;
            (x, _) = block::forward(&self.context(&shard, layer_idx), &params, &x, keep)?;
        }
        let params = self.head_params()?;
        let sum = head::loss(
            self.arch,
            &params,
            &x,
            &shard.shift_labels,
            self.options.tiles.head as i64,
        )?;
        Ok(sum.loss_sum)
    }

    fn shard(&self, batch: &MicroBatch) -> Shard {
        let mesh = &self.comm.mesh;
        let shard = batch.shard(mesh.sp_size, mesh.sp_rank);
        let documents = batch
            .documents()
            .into_iter()
            .map(|range| range.start as i64..range.end as i64)
            .collect();
        let seq_len = longest_position(batch);
        let ropes = rotary::tables(
            self.arch,
            &shard.position_ids,
            seq_len,
            self.options.kind,
            self.options.device,
        );
        let is_token = tokens_of_shard(batch, mesh.sp_size, mesh.sp_rank);
        let routing = Routing::new(self.arch, &is_token, self.options.device);
        Shard {
            input_ids: shard.input_ids,
            shift_labels: shard.shift_labels,
            num_rows: shard.rows as i64,
            documents: Documents::new(documents),
            ropes,
            routing,
        }
    }

    fn context<'s>(&'s self, shard: &'s Shard, layer_idx: usize) -> BlockContext<'s> {
        let layer = &self.arch.layers[layer_idx];
        BlockContext {
            layer,
            layer_idx,
            sp: self.comm.sp(),
            groups: &self.head_groups[layer_idx],
            documents: &shard.documents,
            rope: layer.attention.rope.map(|rope_idx| &shard.ropes[rope_idx]),
            num_rows: shard.num_rows,
            routing: shard.routing.as_ref(),
            counts_routes: false,
            streaming: (self.options.query_tile_len > 0).then_some(Streaming {
                tile_len: self.options.query_tile_len as i64,
                stash: &self.options.keep.attention_on,
            }),
            attention: self.options.attention,
            pre_tile_len: self.options.tiles.pre as i64,
            post_tile_len: self.options.tiles.post as i64,
        }
    }

    /// Activations after the embedding, `[b * s/p, d]`.
    fn embed(&mut self, shard: &Shard) -> Result<Tensor, TrainError> {
        let params = self.zero.gather(self.comm.world(), EMBED)?;
        self.zero.prefetch(self.comm.world(), EMBED + 1)?;
        Ok(embed::forward(self.arch, &params[0], &shard.input_ids)?)
    }

    fn block_params(&mut self, layer_idx: usize) -> Result<BlockParams, TrainError> {
        let params = self.zero.gather(self.comm.world(), layer_idx + 1)?;
        let layer = &self.arch.layers[layer_idx];
        Ok(BlockParams::new(layer, params)?.widened_for_products(layer))
    }

    /// The head's weights, and the embedding's when the head is the embedding.
    fn head_params(&mut self) -> Result<HeadParams, TrainError> {
        let own = self.zero.gather(self.comm.world(), self.head_unit())?;
        let embedding = if self.arch.is_tied() {
            Some(self.zero.gather(self.comm.world(), EMBED)?.remove(0))
        } else {
            None
        };
        Ok(HeadParams { own, embedding })
    }

    /// The loss of the last block's output and its gradient; `next_layer_idx` is the block that comes next. Reduces the head's gradients; with a tied head, the
    /// embedding's are reduced here and again at the end of backward, and add up.
    fn loss_and_backward(
        &mut self,
        shard: &Shard,
        x: Tensor,
        next_layer_idx: usize,
        scale: f64,
    ) -> Result<(f64, Tensor), TrainError> {
        let params = self.head_params()?;
        self.zero.prefetch(self.comm.world(), next_layer_idx + 1)?;
        let of_head = self.zero.gradients(self.head_unit())?;
        let of_embed = self.arch.is_tied().then(|| self.zero.gradients(EMBED)).transpose()?;
        let embedding = of_embed.as_ref().map(|of_embed| of_embed.views[0].shallow_clone());
        let mut grads = HeadGrads { own: optional(&of_head), embedding };
        let (sum, dx) = head::loss_and_backward(
            self.arch,
            &params,
            &mut grads,
            &x,
            &shard.shift_labels,
            scale,
            self.options.tiles.head as i64,
        )?;
        drop((params, grads, x));
        self.zero.reduce(self.comm.world(), of_head)?;
        if let Some(of_embed) = of_embed {
            self.zero.reduce(self.comm.world(), of_embed)?;
        }
        Ok((sum.loss_sum, dx))
    }
}

/// The largest position of the micro-batch's samples plus one. Padding does not count: its positions continue the column
/// index, and how much there is of it depends on the number of ranks.
fn longest_position(batch: &MicroBatch) -> usize {
    let rows = batch.position_ids.chunks_exact(batch.len.max(1)).zip(&batch.packed_sample_seqlens);
    let of_row = |(row, seqlens): (&[i64], &Vec<usize>)| {
        row[..seqlens.iter().sum()].iter().max().map_or(0, |&position| position as usize + 1)
    };
    rows.map(of_row).max().unwrap_or(0)
}

/// Which rows of a rank's shard are tokens, and not the padding at a row's end.
fn tokens_of_shard(batch: &MicroBatch, sp_size: usize, sp_rank: usize) -> Vec<bool> {
    let shard_len = batch.len / sp_size;
    let places = sp_rank * shard_len..(sp_rank + 1) * shard_len;
    let of_row = |seqlens: &Vec<usize>| {
        let len: usize = seqlens.iter().sum();
        places.clone().map(move |place| place < len)
    };
    batch.packed_sample_seqlens.iter().flat_map(of_row).collect()
}

/// The views of a unit's gradients, all of them wanted.
fn optional(gradients: &Gradients) -> Vec<Option<Tensor>> {
    gradients.views.iter().map(|view| Some(view.shallow_clone())).collect()
}
