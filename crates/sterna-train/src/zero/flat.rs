//! One flat buffer's state on one rank: weights, fp32 masters, gradients, moments.

use std::ops::Range;

use sterna_torch_sys::{AdamW, fused_adamw_};
use tch::{Device, Kind, Tensor};

use super::{FlatLayout, Sharding};
use crate::error::TrainError;

/// One flat buffer of one unit, as far as this rank holds it.
#[derive(Debug)]
pub(super) struct Flat {
    pub(super) layout: FlatLayout,
    /// The weights in the model's dtype: `[shard_len]` if sharded, else `[len]`.
    pub(super) param: Tensor,
    /// The fp32 weights that the optimizer steps: `[shard_len]` if sharded, else `[len]`. With an fp32 model it is a
    /// view of `param`, so that there is no second copy.
    pub(super) master: Tensor,
    /// Accumulated gradients of the step: `[shard_len]` if sharded, else `[len]`.
    pub(super) grad: Tensor,
    /// First moment, fp32, as long as `master`.
    exp_avg: Tensor,
    /// Second moment, fp32, as long as `master`.
    exp_avg_sq: Tensor,
}

/// Where a flat buffer's states live and in which dtype.
#[derive(Debug, Clone, Copy)]
pub(super) struct FlatOptions {
    pub(super) sharding: Sharding,
    pub(super) rank: usize,
    pub(super) param_kind: Kind,
    pub(super) grad_kind: Kind,
    pub(super) param_device: Device,
    pub(super) optimizer_device: Device,
}

impl Flat {
    /// Zeroed state for `layout`. Weights are written with [`Flat::param_region`], then [`Flat::reset_master`].
    pub(super) fn new(layout: FlatLayout, options: &FlatOptions) -> Self {
        let local_len =
            |is_sharded: bool| if is_sharded { layout.shard_len } else { layout.len } as i64;
        let sharding = options.sharding;
        let param =
            Tensor::zeros(local_len(sharding.params), (options.param_kind, options.param_device));
        let optimizer_len = local_len(sharding.optimizer);
        let optimizer_state =
            || Tensor::zeros(optimizer_len, (Kind::Float, options.optimizer_device));
        let mut flat = Self {
            param: param.shallow_clone(),
            master: param,
            grad: Tensor::zeros(
                local_len(sharding.gradients),
                (options.grad_kind, options.optimizer_device),
            ),
            exp_avg: optimizer_state(),
            exp_avg_sq: optimizer_state(),
            layout,
        };
        let own_param = flat.own_param(options);
        let can_alias =
            options.param_kind == Kind::Float && options.param_device == options.optimizer_device;
        flat.master = if can_alias { own_param } else { optimizer_state() };
        flat
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

    /// Sets the fp32 masters from the weights.
    pub(super) fn reset_master(&mut self, options: &FlatOptions) {
        let own_param = self.own_param(options);
        self.master.copy_(&own_param);
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

    /// One `AdamW` step of this rank's part, then the weights from the masters, then zero gradients.
    ///
    /// `step` counts from 1. Gradients are multiplied by `grad_scale` first.
    pub(super) fn step(
        &mut self,
        options: &FlatOptions,
        adamw: &AdamW,
        step: u64,
        grad_scale: f64,
    ) -> Result<(), TrainError> {
        let mut grad = self.own_grad(options);
        if grad_scale < 1.0 {
            let _ = grad.g_mul_scalar_(grad_scale);
        }
        let grad = grad.to_kind(Kind::Float);
        let weight_decay = if self.layout.is_decayed { adamw.weight_decay } else { 0.0 };
        let adamw = AdamW { weight_decay, ..*adamw };
        fused_adamw_(&self.master, &grad, &self.exp_avg, &self.exp_avg_sq, step as i64, &adamw)?;
        // With an fp32 model the masters are the weights and this copies a tensor onto itself.
        self.own_param(options).copy_(&self.master);
        let _ = self.grad.zero_();
        Ok(())
    }
}
