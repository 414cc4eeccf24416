//! One flat buffer's state on one rank: weights, gradients, what the optimizer keeps.

use std::ops::Range;

use sterna_torch_sys::memory::{self, MemoryKind};
use tch::{Device, Kind, Tensor};

use super::{
    FlatLayout, Sharding,
    optimizer::{Loading, OptimizerState, StateFormat, Stepped, Update},
};
use crate::{disk::DiskScratch, error::TrainError};

/// One flat buffer of one unit, as far as this rank holds it.
#[derive(Debug)]
pub(super) struct Flat {
    pub(super) layout: FlatLayout,
    /// The weights in the model's dtype: `[shard_len]` if sharded, else `[len]`.
    pub(super) param: Tensor,
    /// Accumulated gradients of the step: `[shard_len]` if sharded, else `[len]`.
    pub(super) grad: Tensor,
    /// Masters and moments of what this rank steps.
    pub(super) state: OptimizerState,
}

/// Where a flat buffer's states live and in which dtype.
#[derive(Debug, Clone, Copy)]
pub(super) struct FlatOptions {
    pub(super) sharding: Sharding,
    pub(super) rank: usize,
    pub(super) param_kind: Kind,
    pub(super) grad_kind: Kind,
    pub(super) param_device: Device,
    /// Of the gradients, and of masters and moments unless those are on disk.
    pub(super) optimizer_device: Device,
    pub(super) moments_kind: Kind,
}

impl FlatOptions {
    /// What the optimizer keeps for an element.
    pub(super) fn state_format(&self) -> StateFormat {
        let can_alias =
            self.param_kind == Kind::Float && self.param_device == self.optimizer_device;
        StateFormat { has_master: !can_alias, moments_kind: self.moments_kind }
    }

    /// Elements of `layout` that this rank steps.
    pub(super) fn optimizer_len(&self, layout: &FlatLayout) -> i64 {
        if self.sharding.optimizer { layout.shard_len as i64 } else { layout.len as i64 }
    }
}

impl Flat {
    /// Zeroed state for `layout`. Weights are written with [`Flat::param_region`], then [`Flat::reset_optimizer`].
    pub(super) fn new(
        layout: FlatLayout,
        options: &FlatOptions,
        disk: Option<&DiskScratch>,
    ) -> Result<Self, TrainError> {
        let local_len =
            |is_sharded: bool| if is_sharded { layout.shard_len } else { layout.len } as i64;
        let sharding = options.sharding;
        let zeros = |is_sharded, kind, device| Tensor::zeros(local_len(is_sharded), (kind, device));
        let (len, format) = (options.optimizer_len(&layout), options.state_format());
        let param = zeros(sharding.params, options.param_kind, options.param_device);
        memory::retag(&param, MemoryKind::Weights);
        let grad = zeros(sharding.gradients, options.grad_kind, options.optimizer_device);
        memory::retag(&grad, MemoryKind::Gradients);
        let _memory = memory::scope(MemoryKind::Optimizer);
        Ok(Self {
            param,
            grad,
            state: match disk {
                Some(disk) => OptimizerState::on_disk(len, format, disk)?,
                None => OptimizerState::in_memory(len, format, options.optimizer_device),
            },
            layout,
        })
    }

    /// The elements of the whole buffer that `param` holds.
    pub(super) fn param_region(&self, options: &FlatOptions) -> Range<usize> {
        if options.sharding.params { self.layout.shard(options.rank) } else { 0..self.layout.len }
    }

    /// The part of `param` that this rank's optimizer steps, a view.
    pub(super) fn own_param(&self, options: &FlatOptions) -> Tensor {
        if options.sharding.optimizer && !options.sharding.params {
            let shard = self.layout.shard(options.rank);
            self.param.narrow(0, shard.start as i64, shard.len() as i64)
        } else {
            self.param.shallow_clone()
        }
    }

    /// The element of the whole buffer that this rank's optimizer steps first.
    pub(super) fn first_own(&self, options: &FlatOptions) -> usize {
        if options.sharding.optimizer { self.layout.shard(options.rank).start } else { 0 }
    }

    /// Sets the fp32 masters from the weights, and the moments to zero.
    pub(super) fn reset_optimizer(&mut self, options: &FlatOptions) -> Result<(), TrainError> {
        let own_param = self.own_param(options);
        self.state.reset(&own_param)
    }

    /// The part of `grad` that this rank's optimizer uses, a view.
    pub(super) fn own_grad(&self, options: &FlatOptions) -> Tensor {
        if options.sharding.optimizer && !options.sharding.gradients {
            let shard = self.layout.shard(options.rank);
            self.grad.narrow(0, shard.start as i64, shard.len() as i64)
        } else {
            self.grad.shallow_clone()
        }
    }

    /// Run `range` of this rank's part: one `AdamW` step of the states being loaded, then the weights from the masters, then
    /// zero gradients.
    pub(super) fn step(
        &mut self,
        options: &FlatOptions,
        range: &Range<i64>,
        loading: Loading,
        buffer_id: u64,
        update: &Update<'_>,
    ) -> Result<(), TrainError> {
        let of = |x: &Tensor| x.narrow(0, range.start, range.end - range.start);
        let stepped = Stepped {
            param: of(&self.own_param(options)),
            grad: of(&self.own_grad(options)),
            weight_decay: if self.layout.is_decayed { update.adamw.weight_decay } else { 0.0 },
            buffer_id,
            first: self.first_own(options) as u64 + range.start as u64,
        };
        self.state.step(range, loading, &stepped, update)?;
        if range.end == options.optimizer_len(&self.layout)
            && stepped.grad.numel() < self.grad.numel()
        {
            // What other ranks stepped.
            let _ = self.grad.zero_();
        }
        Ok(())
    }
}
