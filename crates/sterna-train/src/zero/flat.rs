//! One flat buffer's state on one rank: weights, gradients, what the optimizer keeps.

use std::ops::Range;

use sterna_arch::units::{FlatKind, FlatLayout};
use sterna_comm::Group;
use sterna_ops::tile::tiles;
use sterna_torch_sys::{
    copies::{Copies, InFlight, OnHost},
    memory::{self, MemoryKind},
};
use tch::{Device, Kind, Tensor};

use super::{
    Sharding,
    optimizer::{Loading, OptimizerState, StateFormat, Stepped, Update},
};
use crate::{error::TrainError, storage::disk::DiskScratch};

/// The weights of one flat buffer of one unit, as far as this rank holds them.
#[derive(Debug)]
pub(super) struct Weights {
    pub(super) layout: FlatLayout,
    /// In the model's dtype: `[shard_len]` if sharded, else `[len]`.
    pub(super) param: Tensor,
    /// The same memory, if it is the host's and a GPU computes.
    pub(super) param_on_host: Option<OnHost>,
}

/// One flat buffer that is trained, as far as this rank holds it.
#[derive(Debug)]
pub(super) struct Flat {
    pub(super) weights: Weights,
    /// Accumulated gradients of the step: `[shard_len]` if sharded, else `[len]`. Beside a GPU the host may read what it holds of
    /// them after [`Copies::synchronize`].
    pub(super) grad: Tensor,
    /// The same memory, if it is the host's and a GPU computes. It is never zeroed: the first sum of a step is written over it.
    pub(super) grad_on_host: Option<OnHost>,
    /// Whether `grad_on_host` holds gradients of this step.
    pub(super) has_grad_on_host: bool,
    /// Their sum of squares, computed on the device on their way.
    pub(super) squares_of_sent: Option<Tensor>,
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
    /// Of the model.
    pub(super) compute_device: Device,
    pub(super) param_device: Device,
    pub(super) grad_device: Device,
    /// Of masters and moments, unless they are on disk.
    pub(super) optimizer_device: Device,
    pub(super) moments_kind: Kind,
}

impl FlatOptions {
    /// Those of a flat buffer of this kind.
    pub(super) fn of(&self, kind: FlatKind) -> FlatOptions {
        let param_kind = if kind.is_fp32() { Kind::Float } else { self.param_kind };
        FlatOptions { param_kind, ..*self }
    }

    /// What the optimizer keeps for an element.
    pub(super) fn state_format(&self) -> StateFormat {
        let can_alias =
            self.param_kind == Kind::Float && self.param_device == self.optimizer_device;
        StateFormat { has_master: !can_alias, moments_kind: self.moments_kind }
    }

    /// Whether each rank steps a part of weights that all keep whole.
    pub(super) fn steps_parts_of_whole(&self) -> bool {
        self.sharding.optimizer && !self.sharding.params
    }

    /// Elements of `layout` that this rank steps.
    pub(super) fn optimizer_len(&self, layout: &FlatLayout) -> i64 {
        if self.sharding.optimizer { layout.shard_len as i64 } else { layout.len as i64 }
    }
}

/// Zeros, `[shard_len]` if sharded and `[len]` if not, and the same memory as copies see it, where they do.
fn zeros(
    layout: &FlatLayout,
    options: &FlatOptions,
    is_sharded: bool,
    kind: Kind,
    device: Device,
) -> Result<(Tensor, Option<OnHost>), TrainError> {
    let len = if is_sharded { layout.shard_len } else { layout.len } as i64;
    if device == options.compute_device {
        return Ok((Tensor::zeros(len, (kind, device)), None));
    }
    let on_host = OnHost::empty(&[len], kind)?;
    Ok((on_host.tensor().shallow_clone().zero_(), Some(on_host)))
}

impl Weights {
    /// Zeros for `layout`, to be written with [`Weights::region`].
    pub(super) fn new(layout: FlatLayout, options: &FlatOptions) -> Result<Self, TrainError> {
        let options = &options.of(layout.kind);
        let (kind, device) = (options.param_kind, options.param_device);
        let (param, param_on_host) =
            zeros(&layout, options, options.sharding.params, kind, device)?;
        memory::retag(&param, MemoryKind::Weights);
        Ok(Self { layout, param, param_on_host })
    }

    /// The elements of the whole buffer that `param` holds.
    pub(super) fn region(&self, options: &FlatOptions) -> Range<usize> {
        if options.sharding.params { self.layout.shard(options.rank) } else { 0..self.layout.len }
    }

    /// The part of `param` that this rank's optimizer steps, and that its checkpoint file has; a view.
    pub(super) fn own(&self, options: &FlatOptions) -> Tensor {
        if options.steps_parts_of_whole() {
            let shard = self.layout.shard(options.rank);
            self.param.narrow(0, shard.start as i64, shard.len() as i64)
        } else {
            self.param.shallow_clone()
        }
    }

    /// Where each rank steps its part of weights that all keep whole, brings those of the others.
    ///
    /// # Communication
    ///
    /// One all-gather over the world, if there are such parts. Collective.
    pub(super) fn gather_parts(
        &self,
        world: &Group,
        options: &FlatOptions,
    ) -> Result<(), TrainError> {
        if options.steps_parts_of_whole() {
            // The input is this rank's own slice of the output.
            world.all_gather_into_tensor(&self.param, &self.own(options))?.wait()?;
        }
        Ok(())
    }

    /// The element of the whole buffer that [`Weights::own`] begins with.
    pub(super) fn first_own(&self, options: &FlatOptions) -> usize {
        if options.sharding.optimizer { self.layout.shard(options.rank).start } else { 0 }
    }
}

impl Flat {
    /// Zeroed state for `layout`. Weights are written with [`Weights::region`], then [`Flat::reset_optimizer`].
    pub(super) fn new(
        layout: FlatLayout,
        options: &FlatOptions,
        disk: Option<&DiskScratch>,
    ) -> Result<Self, TrainError> {
        let (len, format) =
            (options.optimizer_len(&layout), options.of(layout.kind).state_format());
        let (is_sharded, kind, device) =
            (options.sharding.gradients, options.grad_kind, options.grad_device);
        let (grad, grad_on_host) = zeros(&layout, options, is_sharded, kind, device)?;
        memory::retag(&grad, MemoryKind::Gradients);
        let weights = Weights::new(layout, options)?;
        let _memory = memory::scope(MemoryKind::Optimizer);
        Ok(Self {
            weights,
            grad,
            grad_on_host,
            has_grad_on_host: false,
            squares_of_sent: None,
            state: match disk {
                Some(disk) => OptimizerState::on_disk(len, format, disk)?,
                None => OptimizerState::in_memory(len, format, options.optimizer_device),
            },
        })
    }

    /// Sets the fp32 masters from the weights, and the moments to zero.
    pub(super) fn reset_optimizer(&mut self, options: &FlatOptions) -> Result<(), TrainError> {
        self.state.reset(&self.weights.own(options))
    }

    /// The part of `grad` that this rank's optimizer uses, a view.
    pub(super) fn own_grad(&self, options: &FlatOptions) -> Tensor {
        if options.sharding.optimizer && !options.sharding.gradients {
            let shard = self.weights.layout.shard(options.rank);
            self.grad.narrow(0, shard.start as i64, shard.len() as i64)
        } else {
            self.grad.shallow_clone()
        }
    }

    /// Starts bringing back what the host has of this step's gradients, elements `start..start + len`, to be added to.
    pub(super) fn fetch_grad(
        &self,
        copies: Option<&Copies>,
        start: i64,
        len: i64,
    ) -> Result<Option<InFlight>, TrainError> {
        match (copies, &self.grad_on_host) {
            (Some(copies), Some(away)) if self.has_grad_on_host => {
                Ok(Some(copies.to_device(&away.narrow(start, len))?))
            }
            _ => Ok(None),
        }
    }

    /// Adds `sum`, gradients of elements `start..` of what this rank holds, to those of this step; `before` is what the host had of
    /// them.
    pub(super) fn add_grad(
        &mut self,
        copies: Option<&Copies>,
        start: i64,
        before: Option<InFlight>,
        sum: &Tensor,
    ) -> Result<(), TrainError> {
        let (Some(copies), true) = (copies, self.grad_on_host.is_some()) else {
            let _ = self.grad.narrow(0, start, sum.size()[0]).g_add_(sum);
            return Ok(());
        };
        let total = match before {
            Some(before) => before.wait()?.g_add_(sum),
            None => sum.to_kind(self.grad.kind()),
        };
        self.put_grad(copies, start, total)
    }

    /// Starts writing gradients of this step, from element `start` on, to the host, and sums up their squares on the device.
    pub(super) fn put_grad(
        &mut self,
        copies: &Copies,
        start: i64,
        total: Tensor,
    ) -> Result<(), TrainError> {
        let squares = sum_of_squares(&total);
        self.squares_of_sent = match self.squares_of_sent.take() {
            Some(before) if start > 0 => Some(before + squares),
            _ => Some(squares),
        };
        let away = self.grad_on_host.as_mut().expect("gradients beside a GPU");
        Ok(copies.to_host_at(total, away, start)?)
    }

    /// Forgets the gradients of this step.
    pub(super) fn clear_grad(&mut self) {
        self.has_grad_on_host = false;
        self.squares_of_sent = None;
        if self.grad_on_host.is_none() {
            let _ = self.grad.zero_();
        }
    }

    /// The sum of squares of the gradients that this rank's optimizer uses: a double where they were computed.
    pub(super) fn sum_of_squares(&self, options: &FlatOptions) -> Tensor {
        match &self.squares_of_sent {
            Some(squares) => squares.shallow_clone(),
            // Nothing has been added in this step, and the host has what was there before.
            None if self.grad_on_host.is_some() && !self.has_grad_on_host => {
                Tensor::zeros([], (Kind::Double, options.compute_device))
            }
            None => sum_of_squares(&self.own_grad(options)),
        }
    }

    /// Run `range` of this rank's part: one `AdamW` step of the states being loaded, then the weights from the masters, then
    /// no gradients.
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
            param: of(&self.weights.own(options)),
            grad: of(&self.own_grad(options)),
            zeroes_grad: self.grad_on_host.is_none(),
            weight_decay: match self.weights.layout.kind {
                FlatKind::Trained { is_decayed: true, .. } => update.adamw.weight_decay,
                _ => 0.0,
            },
            buffer_id,
            first: self.weights.first_own(options) as u64 + range.start as u64,
        };
        self.state.step(range, loading, &stepped, update)?;
        if range.end == options.optimizer_len(&self.weights.layout)
            && (self.grad_on_host.is_some() || stepped.grad.numel() < self.grad.numel())
        {
            // What other ranks stepped goes too.
            self.clear_grad();
        }
        Ok(())
    }
}

/// The sum of squares of a flat tensor, a double on its device.
///
/// libtorch's `norm` adds single-precision squares one after the other: it is 1.4% off on 134 million normal numbers, and
/// differently so on each shard size.
fn sum_of_squares(x: &Tensor) -> Tensor {
    // On a CPU, the double-precision copy of a block stays in the cache; a GPU needs more to be busy.
    let block_len = if x.device() == Device::Cpu { 1 << 16 } else { 1 << 24 };
    let mut sum = Tensor::zeros([], (Kind::Double, x.device()));
    for block in tiles(x.size()[0], block_len) {
        let block = x.narrow(0, block.start, block.end - block.start).to_kind(Kind::Double);
        let _ = sum.g_add_(&block.dot(&block));
    }
    sum
}
