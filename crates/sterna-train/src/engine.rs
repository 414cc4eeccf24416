//! One micro-batch, forward and backward: where units are gathered and reduced, and what is kept in between.

use sterna_comm::Comm;
use sterna_data::MicroBatch;
use sterna_hf::ModelConfig;
use sterna_model::{
    BlockContext, BlockGrads, BlockParams, Documents, HeadSplit, Keep, Kept, KeptAttention,
    RopeTable, block, embed,
    head::{self, HeadGrads, HeadParams},
    rotary,
};
use sterna_recipe::{Place, Plan, Recipe, TileLengths};
use tch::{Device, Kind, Tensor, no_grad_guard};

use crate::{
    error::TrainError,
    load::kind_of,
    zero::{Gradients, Sharding, StatePlacement, UnitLayout, Zero},
};

/// The unit of the embedding.
const EMBED: usize = 0;

/// How the engine computes, as the recipe asks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EngineOptions {
    /// Dtype of weights and activations.
    pub kind: Kind,
    /// Where it computes.
    pub device: Device,
    /// What a block keeps from its forward.
    pub keep: Keep,
    /// Where that is kept: the host with `activation_checkpoint_cpu_offload`. On a CPU this is a move within host memory.
    pub keep_device: Device,
    /// At most how many tokens go through each segment at once.
    pub tiles: TileLengths,
}

impl EngineOptions {
    /// What `plan` says, on `device`. `keep_attention` is the trainer's choice.
    pub fn new(plan: &Plan, device: Device, keep_attention: bool) -> Self {
        let graph = plan.keep.graph;
        Self {
            kind: kind_of(plan.model.dtype),
            device,
            keep: Keep { attention: keep_attention || graph, graph },
            keep_device: if plan.keep.inputs_on == Place::Host { Device::Cpu } else { device },
            tiles: plan.tiles,
        }
    }
}

/// A model whose states are sharded over the world and whose sequence is split over the sp group.
pub struct Engine<'a> {
    comm: &'a Comm,
    config: &'a ModelConfig,
    heads: Vec<HeadSplit>,
    options: EngineOptions,
    /// The weights, gradients and optimizer states of all units: the embedding, each block, the norm with the head.
    pub zero: Zero,
}

/// One micro-batch as this rank sees it.
struct Shard {
    input_ids: Vec<i64>,
    shift_labels: Vec<i64>,
    num_rows: i64,
    documents: Documents,
    rope: RopeTable,
}

impl<'a> Engine<'a> {
    /// Allocates zeroed states for `config`; [`Zero::load`] fills them.
    ///
    /// # Errors
    ///
    /// [`TrainError::Model`] if there are more sequence-parallel ranks than query heads.
    pub fn new(
        comm: &'a Comm,
        config: &'a ModelConfig,
        recipe: &Recipe,
        options: EngineOptions,
    ) -> Result<Self, TrainError> {
        let heads = HeadSplit::of_all_ranks(
            config.num_attention_heads,
            config.num_key_value_heads,
            comm.mesh.sp_size,
        )?;
        let parameters = config.parameters();
        let head = [parameters.norm].into_iter().chain(parameters.lm_head).collect();
        let units = [vec![parameters.embed]].into_iter().chain(parameters.layers).chain([head]);
        let world_size = comm.mesh.world_size;
        let deepspeed = &recipe.deepspeed;
        let host_if = |is_offloaded: bool| if is_offloaded { Device::Cpu } else { options.device };
        let zero = Zero::new(
            comm.world(),
            units.map(|specs| UnitLayout::new(specs, world_size)).collect(),
            Sharding::new(deepspeed.zero_stage, world_size),
            StatePlacement {
                param_kind: options.kind,
                grad_kind: kind_of(deepspeed.grad_accum_dtype),
                reduce_kind: kind_of(deepspeed.reduce_dtype),
                compute_device: options.device,
                param_device: host_if(deepspeed.offload_param),
                optimizer_device: host_if(recipe.memory.optimizer_on != Place::Device),
            },
        );
        Ok(Self { comm, config, heads, options, zero })
    }

    /// Dtype of weights and activations.
    pub fn kind(&self) -> Kind {
        self.options.kind
    }

    fn num_layers(&self) -> usize {
        self.config.num_hidden_layers
    }

    /// The unit of the final norm and the head.
    fn head_unit(&self) -> usize {
        self.num_layers() + 1
    }

    /// Forward and backward of one micro-batch. Gradients of `scale` times its summed loss are added to what the units
    /// hold; returns this rank's part of that scaled loss.
    ///
    /// # Communication
    ///
    /// Over the world, as [`Zero`] says for each unit; over the sp group, the exchanges of each block. Collective.
    ///
    /// # Memory
    ///
    /// What each block keeps, one block's working set, two gathered units, one unit's gradient.
    ///
    /// # Errors
    ///
    /// [`TrainError::Model`] or [`TrainError::Comm`] if a peer failed.
    pub fn forward_backward(&mut self, batch: &MicroBatch, scale: f64) -> Result<f64, TrainError> {
        let _no_grad = no_grad_guard();
        let shard = self.shard(batch);

        // Forward: keep what the policy says of each block, in the order in which backward will not need it.
        let mut x = self.embed(&shard)?;
        let mut kept = Vec::with_capacity(self.num_layers());
        for layer_idx in 0..self.num_layers() {
            let params = self.block_params(layer_idx)?;
            self.zero.prefetch(self.comm.world(), layer_idx + 2)?;
            let (y, of_block) =
                block::forward(&self.context(&shard, layer_idx), &params, &x, self.options.keep)?;
            kept.push(moved(of_block, self.options.keep_device));
            x = y;
        }

        let (loss, mut dx) = self.loss_and_backward(&shard, x, scale)?;

        // Backward: dx = (assigned), weight gradients += (accumulated over tiles, micro-batches and ranks).
        for (layer_idx, of_block) in kept.into_iter().enumerate().rev() {
            let params = self.block_params(layer_idx)?;
            // The unit before block i is unit i: the block before it, or the embedding.
            if layer_idx > 0 {
                self.zero.prefetch(self.comm.world(), layer_idx)?;
            }
            let gradients = self.zero.gradients(layer_idx + 1);
            let mut grads = BlockGrads::new(self.config, optional(&gradients))?;
            let context = self.context(&shard, layer_idx);
            dx = block::backward(
                &context,
                &params,
                &mut grads,
                moved(of_block, self.options.device),
                &dx,
            )?;
            drop((params, grads));
            self.zero.reduce(self.comm.world(), gradients)?;
        }

        let mut gradients = self.zero.gradients(EMBED);
        embed::backward(self.config, &mut gradients.views[0], &shard.input_ids, &dx)?;
        self.zero.reduce(self.comm.world(), gradients)?;
        Ok(loss * scale)
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
            self.config,
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
        let rope = rotary::table(
            self.config,
            &shard.position_ids,
            seq_len,
            self.options.kind,
            self.options.device,
        );
        Shard {
            input_ids: shard.input_ids,
            shift_labels: shard.shift_labels,
            num_rows: shard.rows as i64,
            documents: Documents::new(documents),
            rope,
        }
    }

    fn context<'s>(&'s self, shard: &'s Shard, layer_idx: usize) -> BlockContext<'s> {
        BlockContext {
            config: self.config,
            layer_idx,
            sp: self.comm.sp(),
            heads: &self.heads,
            documents: &shard.documents,
            rope: &shard.rope,
            num_rows: shard.num_rows,
            pre_tile_len: self.options.tiles.pre as i64,
            post_tile_len: self.options.tiles.post as i64,
        }
    }

    /// Activations after the embedding, `[b * s/p, d]`.
    fn embed(&mut self, shard: &Shard) -> Result<Tensor, TrainError> {
        let params = self.zero.gather(self.comm.world(), EMBED)?;
        self.zero.prefetch(self.comm.world(), EMBED + 1)?;
        Ok(embed::forward(self.config, &params[0], &shard.input_ids)?)
    }

    fn block_params(&mut self, layer_idx: usize) -> Result<BlockParams, TrainError> {
        let params = self.zero.gather(self.comm.world(), layer_idx + 1)?;
        Ok(BlockParams::new(self.config, &params)?)
    }

    /// The head's weights, and the embedding's when the head is the embedding.
    fn head_params(&mut self) -> Result<HeadParams, TrainError> {
        let mut params = self.zero.gather(self.comm.world(), self.head_unit())?;
        let lm_head = match params.len() {
            1 => self.zero.gather(self.comm.world(), EMBED)?.remove(0),
            _ => params.remove(1),
        };
        Ok(HeadParams { norm: params.remove(0), lm_head })
    }

    /// The loss of the last block's output and its gradient. Reduces the head's gradients; with a tied head, the
    /// embedding's are reduced here and again at the end of backward, and add up.
    fn loss_and_backward(
        &mut self,
        shard: &Shard,
        x: Tensor,
        scale: f64,
    ) -> Result<(f64, Tensor), TrainError> {
        let params = self.head_params()?;
        self.zero.prefetch(self.comm.world(), self.num_layers())?;
        let of_head = self.zero.gradients(self.head_unit());
        let of_embed = (of_head.views.len() == 1).then(|| self.zero.gradients(EMBED));
        let lm_head = match &of_embed {
            Some(of_embed) => of_embed.views[0].shallow_clone(),
            None => of_head.views[1].shallow_clone(),
        };
        let mut grads =
            HeadGrads { norm: Some(of_head.views[0].shallow_clone()), lm_head: Some(lm_head) };
        let (sum, dx) = head::loss_and_backward(
            self.config,
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

/// The views of a unit's gradients, all of them wanted.
fn optional(gradients: &Gradients) -> Vec<Option<Tensor>> {
    gradients.views.iter().map(|view| Some(view.shallow_clone())).collect()
}

/// What a block kept, at another place. On the same device nothing is copied.
fn moved(mut kept: Kept, device: Device) -> Kept {
    kept.x = kept.x.to_device(device);
    kept.attention = kept.attention.map(|KeptAttention { o, lse }| KeptAttention {
        o: o.to_device(device),
        lse: lse.to_device(device),
    });
    kept
}
