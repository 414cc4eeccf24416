//! One micro-batch, forward and backward: where units are gathered and reduced, and what is kept in between.

mod experts;
mod shard;

use std::{ops::Range, rc::Rc};

use sterna_arch::{Architecture, Layer, ParamSpec, UnitLayout, Units};
use sterna_comm::{Comm, ReduceOp};
use sterna_data::MicroBatch;
use sterna_mesh::Axis;
use sterna_model::{
    AttentionContext, BlockContext, BlockGrads, BlockParams, HeadGroup, Implementation, Keep, Kept,
    Routing, Streaming, block, embed,
    head::{self, HeadGrads, HeadParams, LabelLosses},
};
use sterna_plan::{Plan, TileLengths};
use sterna_recipe::{AttnImplementation, Place, Recipe};
use sterna_torch_sys::copies::{Copies, upload};
use tch::{Device, Kind, Tensor, no_grad_guard};

use self::{experts::ExpertUnits, shard::Shard};
use crate::{
    activations::kept::{KeepPolicy, KeptBlock, Offload},
    error::TrainError,
    load::kind_of,
    objective::{Labels, Objective, TokenWeights},
    observe::phases::{Phase, Phases},
    storage::disk::DiskScratch,
    zero::{Gradients, Sharding, StatePlacement, Zero},
};

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
        let offload = |place| Offload::new(place, copies.as_ref(), disk);
        Ok(Self {
            kind: kind_of(plan.model.dtype),
            device,
            keep: KeepPolicy {
                graph: plan.keep.graph,
                inputs_every: plan.keep.inputs_every,
                num_attention,
                inputs_on: offload(plan.keep.inputs_on),
                attention_on: offload(plan.keep.attention_on),
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

/// A rank's part of the loss of a micro-batch.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchLoss {
    /// Of what is minimised.
    pub loss: f64,
    /// Of each sample, row after row.
    pub of_samples: Vec<SampleLoss>,
}

/// A rank's part of the loss of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct SampleLoss {
    /// The sum of `-ln p` over labels, in nats.
    pub sum: f64,
    /// Labels.
    pub num_labels: usize,
}

/// A model whose states are sharded over the world and whose sequence is split over the sp group.
pub struct Engine<'a> {
    model: Model<'a>,
    /// The weights, gradients and optimizer states of all units.
    pub zero: Zero,
    /// The memory that each phase of a step takes.
    pub phases: Phases,
    /// How many of this rank's tokens took each expert since they were last asked for, `[layers, experts]`.
    loads: Option<Tensor>,
}

/// What is computed, without weights and activations.
struct Model<'a> {
    comm: &'a Comm,
    arch: &'a Architecture,
    units: Units,
    /// Of each layer.
    head_groups: Vec<Vec<HeadGroup>>,
    options: EngineOptions,
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
            for attention in arch.layers.iter().filter_map(|layer| layer.mixer.attention()) {
                let (head_dim, has_softcap) =
                    (attention.head_dim as i64, attention.softcap.is_some());
                options.attention.check(options.kind, head_dim, has_softcap)?;
            }
        }
        let of_layer = |layer: &Layer| {
            let (sp_size, num_groups) = (comm.mesh.size(Axis::Sp), options.num_head_groups);
            HeadGroup::of_all_ranks(&layer.mixer, sp_size, num_groups)
        };
        let head_groups = arch.layers.iter().map(of_layer).collect::<Result<_, _>>()?;
        let world_size = comm.mesh.world_size();
        let deepspeed = &recipe.deepspeed;
        let host_if = |is_offloaded: bool| if is_offloaded { Device::Cpu } else { options.device };
        let units = arch.units();
        let layouts = units.all().iter().map(|unit| UnitLayout::new(unit, world_size));
        let zero = Zero::new(
            comm.world(),
            layouts.collect(),
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
        let model = Model { comm, arch, units, head_groups, options };
        Ok(Self { model, zero, phases: Phases::new(), loads: None })
    }

    /// Dtype of weights and activations.
    pub fn kind(&self) -> Kind {
        self.model.options.kind
    }

    /// Where it computes.
    pub fn device(&self) -> Device {
        self.model.options.device
    }

    /// Forward and backward of one micro-batch. Gradients of what `objective` makes of it, and of the auxiliary loss of its routers,
    /// are added to what the units hold; returns this rank's part of that loss, and of those of the samples.
    ///
    /// # Communication
    ///
    /// Over the world, as [`Zero`] says for each unit; over the sp group, the exchanges of each block, and one all-reduce of what
    /// routers chose. Collective.
    ///
    /// # Memory
    ///
    /// What each block keeps, one segment's restored inputs and attention outputs, one block's working set, two gathered units and one
    /// unit's gradient. Beside a group of experts, the weights of its layer and their gradient too.
    ///
    /// # Errors
    ///
    /// [`TrainError::Model`] or [`TrainError::Comm`] if a peer failed; [`TrainError::Disk`] if what was kept there is lost.
    pub fn forward_backward(
        &mut self,
        batch: &MicroBatch,
        objective: &dyn Objective,
    ) -> Result<BatchLoss, TrainError> {
        let _no_grad = no_grad_guard();
        let mut shard = Shard::new(&self.model, batch);
        let num_layers = self.model.arch.layers.len();
        let (world, keep) = (self.model.comm.world(), self.model.options.keep.clone());

        self.phases.begin(Phase::Forward);
        // Forward: keep what the policy says of each block.
        let mut x = self.embed(&shard)?;
        let mut kept = Vec::with_capacity(num_layers);
        for layer_idx in 0..num_layers {
            let of_block = Keep { attention: keep.keeps_attention(layer_idx), graph: keep.graph };
            let (y, of_block) = self.block_forward(&shard, layer_idx, None, &x, of_block, None)?;
            x = y;
            kept.push(keep.put(layer_idx, layer_idx + 1 == num_layers, of_block)?);
        }

        self.model.finish_routing(&mut shard, batch, objective.share(batch))?;
        if let Some(routing) = &shard.routing {
            self.loads = Some(match self.loads.take() {
                Some(mut loads) => loads.g_add_(routing.loads()),
                None => routing.loads().shallow_clone(),
            });
        }
        let mut segments: Vec<Range<usize>> = keep.segments(num_layers).rev().collect();
        keep.prefetch(&mut kept[segments[0].start])?;
        let (loss, mut dx) =
            self.loss_and_backward(&shard, batch, x, segments[0].start, objective)?;
        // Of the sequence, as this rank's part.
        let aux_loss = shard.routing.as_ref().map_or(0.0, Routing::loss);
        let aux_loss = aux_loss / self.model.comm.mesh.size(Axis::Sp) as f64;

        self.phases.begin(Phase::Backward);
        // Backward, segment by segment: dx = (assigned), weight gradients += (over tiles, micro-batches and ranks).
        let first = self.model.first_trained_layer();
        segments.retain(|segment| segment.end > first);
        for (segment_idx, segment) in segments.iter().enumerate() {
            let restored = self.restore(&shard, &mut kept, segment.clone())?;
            let num_below = first.saturating_sub(segment.start);
            for (layer_idx, of_block) in segment.clone().zip(restored).skip(num_below).rev() {
                let next = if layer_idx > segment.start + num_below {
                    Some(layer_idx - 1)
                } else {
                    segments.get(segment_idx + 1).map(|segment| segment.start)
                };
                let next = next.map(|layer_idx| (layer_idx, &mut kept[layer_idx]));
                dx = self.block_backward(&shard, layer_idx, next, of_block, &dx)?;
            }
        }

        // A norm on looked-up rows reads them again.
        let arch = self.model.arch;
        let reads = arch.embed.norm.is_some() && arch.embed.weight.is_trained();
        let weight =
            if reads { Some(self.zero.gather(world, Units::EMBEDDING)?.remove(0)) } else { None };
        let mut gradients = self.zero.gradients(Units::EMBEDDING)?;
        if let Some(d_weight) = &mut gradients.views[0] {
            embed::backward(arch, weight.as_ref(), d_weight, &shard.input_ids, &dx)?;
        }
        drop(weight);
        self.zero.reduce(world, gradients)?;
        Ok(BatchLoss { loss: loss.loss + aux_loss, ..loss })
    }

    /// How many tokens of all ranks the busiest expert of a layer has taken over the mean of its experts, in the layer where that is
    /// most, since the last call; `None` in a model without experts. The host waits for the device.
    ///
    /// # Communication
    ///
    /// One all-reduce over the world in a model with experts. Collective.
    ///
    /// # Errors
    ///
    /// [`TrainError::Comm`] if a peer failed.
    pub fn take_expert_loads(&mut self) -> Result<Option<f64>, TrainError> {
        let Some(loads) = self.loads.take() else { return Ok(None) };
        self.model.comm.world().all_reduce_(&loads, ReduceOp::Sum)?;
        let largest = loads.amax([-1_i64].as_slice(), false);
        let sums = loads.sum_dim_intlist(-1_i64, false, Kind::Double);
        // A layer without experts has taken none.
        let of_layers = largest * loads.size()[1] / sums.clamp_min(1.0);
        Ok(Some(of_layers.max().double_value(&[])))
    }

    /// Forward of a block; `route` is [`BlockContext::route`], `next_kept` what starts to come back beside it.
    fn block_forward(
        &mut self,
        shard: &Shard,
        layer_idx: usize,
        route: Option<&Tensor>,
        x: &Tensor,
        keep: Keep,
        next_kept: Option<&mut KeptBlock>,
    ) -> Result<(Tensor, Kept), TrainError> {
        let next = self.model.units.after(layer_idx);
        let params = self.block_params(layer_idx, Some(next), next_kept)?;
        let context = BlockContext { route, ..self.model.context(shard, layer_idx) };
        let mut experts =
            ExpertUnits::new(&self.model, &mut self.zero, layer_idx, Some(next), None);
        Ok(block::forward(&context, &params, Some(&mut experts), x, keep)?)
    }

    /// Backward of a block, whose gradients are reduced; `next` is the layer whose weights and kept tensors come next.
    fn block_backward(
        &mut self,
        shard: &Shard,
        layer_idx: usize,
        next: Option<(usize, &mut KeptBlock)>,
        kept: Kept,
        d_y: &Tensor,
    ) -> Result<Tensor, TrainError> {
        let (world, units) = (self.model.comm.world(), &self.model.units);
        let (unit_idx, experts) = (units.layer(layer_idx), units.experts(layer_idx));
        let (next, next_kept) = next.unzip();
        let next = next.map(|layer_idx| units.layer(layer_idx));
        let layer_before = layer_idx.checked_sub(1);
        let unit_before = layer_before.map_or(Units::EMBEDDING, |layer_idx| units.layer(layer_idx));
        let next_gradients = if experts.is_empty() { unit_before } else { experts.start };
        let layer = &self.model.arch.layers[layer_idx];
        let params = self.block_params(layer_idx, next, next_kept)?;
        self.zero.prefetch_gradients(next_gradients)?;
        let gradients = self.zero.gradients(unit_idx)?;
        let unit = &self.model.units.all()[unit_idx];
        let mut grads = BlockGrads::new(layer, &unit.param_idxs, views_of(&gradients))?;
        let context = self.model.context(shard, layer_idx);
        let unit_before = Some(unit_before);
        let mut experts =
            ExpertUnits::new(&self.model, &mut self.zero, layer_idx, next, unit_before);
        let d_x = block::backward(&context, &params, &mut grads, Some(&mut experts), kept, d_y)?;
        drop((params, grads));
        self.zero.reduce(world, gradients)?;
        Ok(d_x)
    }

    /// What the backwards of `blocks`, one segment, read: what they kept, and the inputs that only the first kept, by running the
    /// segment again. An attention output that running it again computes is kept until its block's backward.
    fn restore(
        &mut self,
        shard: &Shard,
        kept: &mut [KeptBlock],
        blocks: Range<usize>,
    ) -> Result<Vec<Kept>, TrainError> {
        let keep = self.model.options.keep.clone();
        let mut restored = Vec::with_capacity(blocks.len());
        let mut x = keep.take_input(&mut kept[blocks.start])?;
        for layer_idx in blocks.start..blocks.end - 1 {
            let of_block = keep.take(&mut kept[layer_idx], x)?;
            let next_kept = Some(&mut kept[layer_idx + 1]);
            let (y, of_block) = if let Some(mixer) = &of_block.mixer {
                let next = Some(self.model.units.after(layer_idx));
                let params = self.block_params(layer_idx, next, next_kept)?;
                let route = of_block.route.as_ref();
                let context = BlockContext { route, ..self.model.context(shard, layer_idx) };
                let mut experts =
                    ExpertUnits::new(&self.model, &mut self.zero, layer_idx, next, None);
                let y =
                    block::recompute(&context, &params, Some(&mut experts), &of_block.x, mixer)?;
                (y, of_block)
            } else {
                let keep = Keep { attention: true, graph: false };
                let Kept { x, route, .. } = &of_block;
                self.block_forward(shard, layer_idx, route.as_ref(), x, keep, next_kept)?
            };
            x = y;
            restored.push(of_block);
        }
        restored.push(keep.take(&mut kept[blocks.end - 1], x)?);
        Ok(restored)
    }

    /// Forward of one micro-batch: this rank's part of the sum of `-ln p` over labels.
    ///
    /// # Communication
    ///
    /// As the forward half of [`Engine::forward_backward`]. Collective.
    ///
    /// # Errors
    ///
    /// As [`Engine::forward_backward`].
    pub fn forward(&mut self, batch: &MicroBatch) -> Result<BatchLoss, TrainError> {
        let _no_grad = no_grad_guard();
        let shard = Shard::new(&self.model, batch);
        let keep = Keep { attention: false, graph: false };
        let mut x = self.embed(&shard)?;
        for layer_idx in 0..self.model.arch.layers.len() {
            (x, _) = self.block_forward(&shard, layer_idx, None, &x, keep, None)?;
        }
        let params = self.head_params()?;
        let tile_len = self.model.options.tiles.head as i64;
        let losses = head::loss(self.model.arch, &params, &x, &shard.shift_labels, tile_len)?;
        Ok(BatchLoss::new(&shard, batch, &losses))
    }

    /// Activations after the embedding, `[b * s/p, d]`.
    fn embed(&mut self, shard: &Shard) -> Result<Tensor, TrainError> {
        let world = self.model.comm.world();
        let params = self.zero.gather(world, Units::EMBEDDING)?;
        self.zero.prefetch(world, self.model.units.layer(0))?;
        Ok(embed::forward(self.model.arch, &params[0], &shard.input_ids)?)
    }

    /// The weights of a layer without its experts. Starts gathering its first experts, or `next` if it has none, and then bringing back
    /// `next_kept`.
    fn block_params(
        &mut self,
        layer_idx: usize,
        next: Option<usize>,
        next_kept: Option<&mut KeptBlock>,
    ) -> Result<BlockParams, TrainError> {
        let Model { comm, arch, units, options, .. } = &self.model;
        let (unit_idx, experts) = (units.layer(layer_idx), units.experts(layer_idx));
        let params = self.zero.gather(comm.world(), unit_idx)?;
        let next = if experts.is_empty() { next } else { Some(experts.start) };
        if let Some(next) = next {
            self.zero.prefetch(comm.world(), next)?;
        }
        if let Some(next_kept) = next_kept {
            options.keep.prefetch(next_kept)?;
        }
        let (layer, unit) = (&arch.layers[layer_idx], &units.all()[unit_idx]);
        Ok(BlockParams::new(layer, &unit.param_idxs, params)?.widened_for_products(layer))
    }

    /// The head's weights, and the embedding's when the head is the embedding.
    fn head_params(&mut self) -> Result<HeadParams, TrainError> {
        let Model { comm, arch, units, .. } = &self.model;
        let own = self.zero.gather(comm.world(), units.head())?;
        let embedding = if arch.is_tied() {
            Some(self.zero.gather(comm.world(), Units::EMBEDDING)?.remove(0))
        } else {
            None
        };
        Ok(HeadParams { own, embedding })
    }

    /// This rank's part of the loss and the gradient of the last block's output; `next_layer_idx` is the block that comes next. Reduces the
    /// head's gradients; with a tied head, the embedding's are reduced here and again at the end of backward, and add up.
    fn loss_and_backward(
        &mut self,
        shard: &Shard,
        batch: &MicroBatch,
        x: Tensor,
        next_layer_idx: usize,
        objective: &dyn Objective,
    ) -> Result<(BatchLoss, Tensor), TrainError> {
        let params = self.head_params()?;
        let Model { comm, arch, units, options, .. } = &self.model;
        let world = comm.world();
        self.zero.prefetch(world, units.layer(next_layer_idx))?;
        let tile_len = options.tiles.head as i64;
        let labels = &shard.shift_labels;
        let mut log_probs = || Ok(head::loss(arch, &params, &x, labels, tile_len)?.of_labels.neg());
        let mut labelled = Labels::new(&shard.samples, options.device, comm.sp(), &mut log_probs);
        let TokenWeights { weights, loss } = objective.token_weights(&mut labelled)?;
        let of_head = self.zero.gradients(units.head())?;
        let is_tied = arch.is_tied();
        let of_embed = is_tied.then(|| self.zero.gradients(Units::EMBEDDING)).transpose()?;
        let embedding = of_embed.as_ref().and_then(|of_embed| views_of(of_embed).remove(0));
        let mut grads = HeadGrads { own: views_of(&of_head), embedding };
        let (losses, dx) =
            head::loss_and_backward(arch, &params, &mut grads, &x, labels, &weights, tile_len)?;
        drop((params, grads, x));
        self.zero.reduce(world, of_head)?;
        if let Some(of_embed) = of_embed {
            self.zero.reduce(world, of_embed)?;
        }
        let of_batch = BatchLoss::new(shard, batch, &losses);
        Ok((BatchLoss { loss: loss.value(of_batch.loss), ..of_batch }, dx))
    }
}

impl BatchLoss {
    /// The sums over labels. The host waits for them.
    fn new(shard: &Shard, batch: &MicroBatch, losses: &LabelLosses) -> Self {
        let num_samples = batch.packed_sample_seqlens.iter().map(Vec::len).sum();
        let mut of_samples = vec![SampleLoss::default(); num_samples];
        let device = losses.sum.device();
        let samples = upload(Tensor::from_slice(&shard.samples), device);
        // The sum over all, then those of samples: one read.
        let sums = Tensor::zeros([1 + num_samples as i64], (Kind::Double, device));
        sums.get(0).copy_(&losses.sum);
        let _ = sums.narrow(0, 1, num_samples as i64).index_add_(0, &samples, &losses.of_labels);
        let sums = Vec::<f64>::try_from(sums).expect("one dimension, double precision");
        for (of_sample, sum) in of_samples.iter_mut().zip(&sums[1..]) {
            of_sample.sum = *sum;
        }
        for sample in &shard.samples {
            of_samples[*sample as usize].num_labels += 1;
        }
        Self { loss: sums[0], of_samples }
    }
}

impl Model<'_> {
    /// The first layer whose backward has something to do: that of those below computes nothing that is trained.
    fn first_trained_layer(&self) -> usize {
        if self.arch.embed.weight.is_trained() {
            return 0;
        }
        let is_trained = |layer: &Layer| layer.params.iter().any(ParamSpec::is_trained);
        self.arch.layers.iter().position(is_trained).unwrap_or(self.arch.layers.len())
    }

    fn context<'s>(&'s self, shard: &'s Shard, layer_idx: usize) -> BlockContext<'s> {
        let layer = &self.arch.layers[layer_idx];
        BlockContext {
            layer,
            layer_idx,
            attention: AttentionContext {
                sp: self.comm.sp(),
                groups: &self.head_groups[layer_idx],
                documents: &shard.documents,
                rope: layer.mixer.rope().map(|rope_idx| &shard.ropes[rope_idx]),
                num_rows: shard.num_rows,
                streaming: (self.options.query_tile_len > 0).then_some(Streaming {
                    tile_len: self.options.query_tile_len as i64,
                    store: &self.options.keep.attention_on,
                }),
                implementation: self.options.attention,
                qkv_tile_len: self.options.tiles.qkv as i64,
            },
            routing: shard.routing.as_ref(),
            route: None,
            mlp_tile_len: self.options.tiles.mlp as i64,
        }
    }

    /// Ends the forward of routers, whose auxiliary loss counts `weight` in the step.
    fn finish_routing(
        &self,
        shard: &mut Shard,
        batch: &MicroBatch,
        weight: f64,
    ) -> Result<(), TrainError> {
        let Some(routing) = &mut shard.routing else { return Ok(()) };
        let num_tokens: usize = batch.packed_sample_seqlens.iter().flatten().sum();
        let num_rows = num_tokens * self.arch.moe_layers().count();
        Ok(routing.finish(self.comm.sp(), num_rows, weight)?)
    }
}

/// The views of a unit's gradients.
fn views_of(gradients: &Gradients) -> Vec<Option<Tensor>> {
    gradients.views.iter().map(|view| view.as_ref().map(Tensor::shallow_clone)).collect()
}
