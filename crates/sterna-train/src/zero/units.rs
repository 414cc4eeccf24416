//! All units of a model on one rank: gather, reduce, clip, step.

use std::{collections::HashMap, ops::Range, path::PathBuf, rc::Rc};

use sterna_arch::{
    Role, UnitLayout,
    units::{FlatKind, FlatLayout, Overlap, UnitKind},
};
use sterna_checkpoint::StateName;
use sterna_comm::{Group, ReduceOp, Work};
use sterna_model::stage::{Stage, num_bytes};
use sterna_torch_sys::{
    AdamW,
    copies::{Copies, InFlight},
    memory::{self, MemoryKind},
};
use tch::{Device, Kind, Tensor, no_grad_guard};

use super::{
    Sharding,
    flat::{Flat, FlatOptions, Weights},
    optimizer::{Loading, OptimizerState, RunBuffers, Update, slice_len},
    reduce::{PIECE_LEN, all_reduce_in_pieces, reduce_scatter_in_pieces},
};
use crate::{error::TrainError, load::WeightSource, scalars::sum, storage::disk::DiskScratch};

/// Where the states of all units live and in which dtypes.
#[derive(Debug, Clone)]
pub struct StatePlacement {
    /// Dtype of the weights that the model computes with.
    pub param_kind: Kind,
    /// Dtype of the gradient accumulators.
    pub grad_kind: Kind,
    /// Dtype in which gradients travel between ranks.
    pub reduce_kind: Kind,
    /// Where the model computes.
    pub compute_device: Device,
    /// Where the weights rest between uses (`offload_param`).
    pub param_device: Device,
    /// Where gradients live (`memory.gradients_on`).
    pub grad_device: Device,
    /// Where masters and moments live unless they are on disk (`memory.optimizer_on`).
    pub optimizer_device: Device,
    /// The folder of the scratch file that masters and moments live in, if they are on disk.
    pub optimizer_disk: Option<PathBuf>,
    /// Dtype of the moments: fp32 or bf16.
    pub moments_kind: Kind,
    /// Of the stochastic rounding of bf16 moments.
    pub seed: u64,
}

/// The states of every unit on this rank.
///
/// # Memory
///
/// For a model of `P` parameters on `w` ranks, with a 2-byte dtype: weights `2 P`, gradients `4 P`, masters and moments
/// `12 P` bytes (`8 P` with bf16 moments), each divided by `w` where [`Sharding`] says so. With an fp32 model the masters are
/// the weights. On disk, masters and moments cost two slices of a million elements while they are stepped.
/// A gathered unit costs its size in the model's dtype while in use, and once more while the next one is prefetched; a layer's own unit
/// stays while its experts are used.
/// Sharded gradients cost one unit being filled and, while it travels, the one before it twice, sent and received, in the dtype
/// that travels; units larger than a block only once.
pub struct Zero {
    pub(super) units: Vec<Unit>,
    options: FlatOptions,
    placement: StatePlacement,
    /// There if the model computes on a GPU.
    copies: Option<Rc<Copies>>,
    world_size: usize,
    /// Elements of the largest flat buffer of a block or a group of experts.
    usual_len: usize,
    gathering: HashMap<usize, Vec<Gathering>>,
    /// Gradients of earlier micro-batches on their way to the device.
    returning: HashMap<usize, Vec<InFlight>>,
    reducing: Vec<Reducing>,
}

#[derive(Debug)]
pub(super) struct Unit {
    pub(super) layout: UnitLayout,
    pub(super) flats: Vec<Flat>,
    /// What is not trained.
    pub(super) fixed: Vec<Weights>,
}

impl Unit {
    /// The weights of every buffer, in the order of [`UnitLayout::all_flats`].
    fn weights(&self) -> impl Iterator<Item = &Weights> {
        self.flats.iter().map(|flat| &flat.weights).chain(&self.fixed)
    }
}

/// A flat buffer on its way to being whole on the device.
struct Gathering {
    whole: Tensor,
    /// What comes from the host: all of it, or this rank's part.
    in_flight: Option<InFlight>,
    work: Option<Work>,
}

/// A gradient buffer on its way to its owner.
struct Reducing {
    unit_idx: usize,
    flat_idx: usize,
    shard: Tensor,
    /// What the host had of it, on its way to the device.
    before: Option<InFlight>,
    /// Kept alive until the transfer ends.
    _whole: Tensor,
    work: Work,
}

/// A run of elements of the part of a flat buffer that this rank steps.
struct RunId {
    unit_idx: usize,
    flat_idx: usize,
    range: Range<i64>,
}

/// Gradient buffers of one unit, to be accumulated into (`+=`) and given back to [`Zero::reduce`].
#[derive(Debug)]
pub struct Gradients {
    unit_idx: usize,
    flats: Vec<Tensor>,
    /// One view for each parameter of the unit, in the order of its specs; `None` for one that is not trained.
    pub views: Vec<Option<Tensor>>,
}

impl Zero {
    /// Allocates the states of `units` (zeroed) for this rank of `world`. `copies` are there if a GPU computes. What is on disk is valid from [`Zero::load`] on.
    ///
    /// # Errors
    ///
    /// [`TrainError::ScratchFolder`] or [`TrainError::ScratchSpace`] if the optimizer cannot live where it is asked to.
    pub fn new(
        world: &Group,
        units: Vec<UnitLayout>,
        sharding: Sharding,
        copies: Option<Rc<Copies>>,
        placement: StatePlacement,
    ) -> Result<Self, TrainError> {
        let options = FlatOptions {
            sharding,
            rank: world.rank(),
            param_kind: placement.param_kind,
            grad_kind: placement.grad_kind,
            compute_device: placement.compute_device,
            param_device: placement.param_device,
            grad_device: placement.grad_device,
            optimizer_device: placement.optimizer_device,
            moments_kind: placement.moments_kind,
        };
        let bytes = |flat: &FlatLayout| {
            let format = options.of(flat.kind).state_format();
            OptimizerState::bytes(options.optimizer_len(flat), format)
        };
        let needed_bytes = units.iter().flat_map(|layout| &layout.flats).map(bytes).sum();
        let disk = placement
            .optimizer_disk
            .as_ref()
            .map(|dir| DiskScratch::create(dir, needed_bytes))
            .transpose()?;
        let is_usual =
            |layout: &&UnitLayout| matches!(layout.kind, UnitKind::Layer | UnitKind::Experts);
        let usual = units.iter().filter(is_usual).flat_map(|layout| &layout.flats);
        let usual_len = usual.map(|flat| flat.len).max().unwrap_or(0);
        let unit = |layout: UnitLayout| {
            let flats = layout.flats.iter();
            let flats = flats.map(|flat| Flat::new(flat.clone(), &options, disk.as_ref()));
            let fixed = layout.fixed.iter().map(|flat| Weights::new(flat.clone(), &options));
            Ok(Unit {
                flats: flats.collect::<Result<_, TrainError>>()?,
                fixed: fixed.collect::<Result<_, TrainError>>()?,
                layout,
            })
        };
        Ok(Self {
            units: units.into_iter().map(unit).collect::<Result<_, TrainError>>()?,
            options,
            placement,
            copies,
            world_size: world.size(),
            usual_len,
            gathering: HashMap::new(),
            returning: HashMap::new(),
            reducing: Vec::new(),
        })
    }

    /// Number of units.
    pub fn num_units(&self) -> usize {
        self.units.len()
    }

    /// The layout of unit `unit_idx`.
    pub fn layout(&self, unit_idx: usize) -> &UnitLayout {
        &self.units[unit_idx].layout
    }

    /// Writes the weights that this rank holds, and the masters from them, those of adapters from `source`. No rank reads more than it
    /// holds.
    ///
    /// # Errors
    ///
    /// Those of `source`; [`TrainError::Disk`] if masters cannot be written to disk.
    pub fn load(&mut self, source: &WeightSource<'_>) -> Result<(), TrainError> {
        self.load_some(source, |_| true)?;
        let _no_grad = no_grad_guard();
        for unit in &mut self.units {
            for flat in &mut unit.flats {
                flat.reset_optimizer(&self.options)?;
                // PEFT keeps adapters of a bf16 model in fp32, so that their masters begin with more than the weights hold.
                let layout = &flat.weights.layout;
                let first = flat.weights.first_own(&self.options);
                let own = first..first + self.options.optimizer_len(layout) as usize;
                for Overlap { spec_idx, param_range, region_offset } in layout.overlaps(&own) {
                    let spec = &unit.layout.specs[spec_idx];
                    if spec.role == Role::Adapter {
                        let options = (Kind::Float, self.placement.compute_device);
                        let mut values = Tensor::empty(param_range.len() as i64, options);
                        source.fill(&mut values, spec, &param_range)?;
                        let start = region_offset as i64;
                        let range = start..start + param_range.len() as i64;
                        flat.state.write(StateName::Master, &range, &values)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Writes the weights of a base under adapters, which checkpoints do not have.
    ///
    /// # Errors
    ///
    /// Those of `source`.
    pub fn load_frozen(&mut self, source: &WeightSource<'_>) -> Result<(), TrainError> {
        self.load_some(source, |kind| kind == FlatKind::Frozen)
    }

    fn load_some(
        &mut self,
        source: &WeightSource<'_>,
        is_wanted: impl Fn(FlatKind) -> bool,
    ) -> Result<(), TrainError> {
        let _no_grad = no_grad_guard();
        for unit in &mut self.units {
            for weights in unit.weights().filter(|weights| is_wanted(weights.layout.kind)) {
                for overlap in weights.layout.overlaps(&weights.region(&self.options)) {
                    let len = overlap.param_range.len() as i64;
                    let mut target = weights.param.narrow(0, overlap.region_offset as i64, len);
                    let spec = &unit.layout.specs[overlap.spec_idx];
                    source.fill(&mut target, spec, &overlap.param_range)?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn options(&self) -> &FlatOptions {
        &self.options
    }

    pub(super) fn placement(&self) -> &StatePlacement {
        &self.placement
    }

    /// Every flat buffer that checkpoints have with its name there, and what the optimizer keeps of it if it is trained.
    pub(super) fn named_buffers(
        &self,
    ) -> impl Iterator<Item = (String, &Weights, Option<&OptimizerState>)> {
        self.units.iter().enumerate().flat_map(|(unit_idx, unit)| {
            let trained = unit.flats.iter().map(|flat| (&flat.weights, Some(&flat.state)));
            let all = trained.chain(unit.fixed.iter().map(|weights| (weights, None)));
            all.filter_map(move |(weights, state)| {
                let name = name_in_checkpoints(weights.layout.kind)?;
                Some((format!("{unit_idx}.{name}"), weights, state))
            })
        })
    }

    pub(super) fn flats_mut(&mut self) -> impl Iterator<Item = &mut Flat> {
        self.units.iter_mut().flat_map(|unit| &mut unit.flats)
    }

    /// Drops the gradients of a step that is not to be made.
    ///
    /// # Errors
    ///
    /// [`TrainError::Comm`] if a gradient was on its way and a peer failed.
    pub fn discard_gradients(&mut self) -> Result<(), TrainError> {
        let _no_grad = no_grad_guard();
        self.finish_reducing()?;
        self.returning.clear();
        self.flats_mut().for_each(Flat::clear_grad);
        Ok(())
    }

    /// Starts gathering unit `unit_idx`, so that [`Zero::gather`] finds it under way.
    ///
    /// # Communication
    ///
    /// With sharded weights, one all-gather over the world for each flat buffer. Collective.
    ///
    /// # Errors
    ///
    /// [`TrainError::Comm`] if the collective cannot start.
    pub fn prefetch(&mut self, world: &Group, unit_idx: usize) -> Result<(), TrainError> {
        if !self.gathering.contains_key(&unit_idx) {
            let _stage = Stage::Gather.enter_with(Some(unit_idx), self.num_bytes(unit_idx));
            let gathering = self.start_gathering(world, unit_idx)?;
            self.gathering.insert(unit_idx, gathering);
        }
        Ok(())
    }

    /// Bytes of a unit's weights when they are whole.
    fn num_bytes(&self, unit_idx: usize) -> u64 {
        let len = self.units[unit_idx].layout.padded_len();
        (len * self.placement.param_kind.elt_size_in_bytes()) as u64
    }

    fn start_gathering(
        &self,
        world: &Group,
        unit_idx: usize,
    ) -> Result<Vec<Gathering>, TrainError> {
        let is_sharded = self.options.sharding.params;
        let mut gathering = Vec::new();
        for Weights { layout, param, param_on_host } in self.units[unit_idx].weights() {
            let empty =
                || Tensor::empty(layout.len as i64, (param.kind(), self.placement.compute_device));
            gathering.push(match (&self.copies, param_on_host) {
                (Some(copies), Some(away)) if is_sharded => {
                    let whole = empty();
                    let local = copies.to_device(away)?;
                    let work = copies
                        .after_copies(|| world.all_gather_into_tensor(&whole, local.tensor()))??;
                    Gathering { whole, in_flight: Some(local), work: Some(work) }
                }
                (Some(copies), Some(away)) => {
                    let whole = copies.to_device(away)?;
                    let tensor = whole.tensor().shallow_clone();
                    Gathering { whole: tensor, in_flight: Some(whole), work: None }
                }
                _ if is_sharded => {
                    let whole = empty();
                    let work = world.all_gather_into_tensor(&whole, param)?;
                    Gathering { whole, in_flight: None, work: Some(work) }
                }
                _ => Gathering { whole: param.shallow_clone(), in_flight: None, work: None },
            });
        }
        Ok(gathering)
    }

    /// The parameters of unit `unit_idx` in the order of its specs; dropping them frees what was gathered.
    ///
    /// # Errors
    ///
    /// [`TrainError::Comm`] if a peer failed.
    pub fn gather(&mut self, world: &Group, unit_idx: usize) -> Result<Vec<Tensor>, TrainError> {
        let _stage = Stage::Gather.enter_with(Some(unit_idx), self.num_bytes(unit_idx));
        let gathering = match self.gathering.remove(&unit_idx) {
            Some(under_way) => under_way,
            None => self.start_gathering(world, unit_idx)?,
        };
        let mut wholes = Vec::new();
        for Gathering { whole, in_flight, work } in gathering {
            if let Some(work) = work {
                work.wait()?;
            }
            if let Some(in_flight) = in_flight {
                // `whole`, or what was gathered to it.
                let _ = in_flight.wait()?;
            }
            wholes.push(whole);
        }
        let layout = &self.units[unit_idx].layout;
        let views = views(layout, layout.all_flats().zip(&wholes));
        Ok(views.into_iter().flatten().collect())
    }

    /// Starts bringing back what earlier micro-batches have added up for unit `unit_idx`, where the host holds it whole, so that
    /// [`Zero::gradients`] finds it under way.
    ///
    /// # Errors
    ///
    /// [`TrainError::Torch`] if the device has failed.
    pub fn prefetch_gradients(&mut self, unit_idx: usize) -> Result<(), TrainError> {
        let flats = &self.units[unit_idx].flats;
        let (Some(copies), false) = (&self.copies, self.options.sharding.gradients) else {
            return Ok(());
        };
        let away = flats.iter().filter(|flat| flat.has_grad_on_host);
        let away: Vec<_> = away.filter_map(|flat| flat.grad_on_host.as_ref()).collect();
        if !away.is_empty() && !self.returning.contains_key(&unit_idx) {
            let num_bytes = away.iter().map(|away| num_bytes(away.tensor())).sum();
            let _stage = Stage::Copy.enter_with(Some(unit_idx), num_bytes);
            let _memory = memory::scope(MemoryKind::Gradients);
            let returning = away.into_iter().map(|away| copies.to_device(away));
            self.returning.insert(unit_idx, returning.collect::<Result<_, _>>()?);
        }
        Ok(())
    }

    /// Gradient buffers for one backward of unit `unit_idx`.
    ///
    /// Where gradients are kept whole by the device that computes, these are the accumulators themselves. Where the host keeps them
    /// whole, what it has of this step, on the device. Where they are sharded, a zeroed buffer of the unit's size.
    /// [`Zero::reduce`] frees the latter two.
    ///
    /// # Errors
    ///
    /// [`TrainError::Torch`] if the device has failed.
    pub fn gradients(&mut self, unit_idx: usize) -> Result<Gradients, TrainError> {
        self.prefetch_gradients(unit_idx)?;
        let mut returned = self.returning.remove(&unit_idx).into_iter().flatten();
        let unit = &self.units[unit_idx];
        let _memory = memory::scope(MemoryKind::Gradients);
        let mut flats = Vec::with_capacity(unit.flats.len());
        for flat in &unit.flats {
            flats.push(if let Some(returned) = returned.next() {
                returned.wait()?
            } else if self.options.sharding.gradients || flat.grad_on_host.is_some() {
                let options = (self.placement.grad_kind, self.placement.compute_device);
                Tensor::zeros(flat.weights.layout.len as i64, options)
            } else {
                flat.grad.shallow_clone()
            });
        }
        let views = views(&unit.layout, unit.layout.flats.iter().zip(&flats));
        Ok(Gradients { unit_idx, flats, views })
    }

    /// Takes the gradients of one backward of a unit. A unit may be reduced several times in a step: gradients add up.
    ///
    /// # Communication
    ///
    /// With sharded gradients, one reduce-scatter (sum) over the world for each flat buffer, which runs beside the
    /// backward of the next unit. A buffer larger than a block's, the embedding's or the head's, is reduced before this returns, in
    /// pieces: as long as it travelled, it would exist three times. Collective.
    ///
    /// # Errors
    ///
    /// [`TrainError::Comm`] if a peer failed.
    pub fn reduce(&mut self, world: &Group, gradients: Gradients) -> Result<(), TrainError> {
        let num_bytes = gradients.flats.iter().map(num_bytes).sum();
        let _stage = Stage::Reduce.enter_with(Some(gradients.unit_idx), num_bytes);
        // At most one unit is on its way: its buffer would otherwise add to the peak.
        self.finish_reducing()?;
        let Gradients { unit_idx, flats, views } = gradients;
        drop(views);
        for (flat_idx, whole) in flats.into_iter().enumerate() {
            let flat = &mut self.units[unit_idx].flats[flat_idx];
            if self.options.sharding.gradients {
                let reduce_kind = self.placement.reduce_kind;
                if flat.weights.layout.len > self.usual_len {
                    reduce_scatter_in_pieces(
                        world,
                        &whole,
                        reduce_kind,
                        PIECE_LEN,
                        |start, sum| {
                            let copies = self.copies.as_deref();
                            let before = flat.fetch_grad(copies, start, sum.size()[0])?;
                            flat.add_grad(copies, start, before, sum)?;
                            // Two pieces cost the device their memory, and not all of them.
                            Ok(copies.map_or(Ok(()), Copies::release_sent)?)
                        },
                    )?;
                    flat.has_grad_on_host = flat.grad_on_host.is_some();
                    continue;
                }
                let whole = whole.to_kind(reduce_kind);
                let shard = Tensor::empty(
                    flat.weights.layout.shard_len as i64,
                    (whole.kind(), whole.device()),
                );
                let work = world.reduce_scatter_tensor(&shard, &whole, ReduceOp::Sum)?;
                let shard_len = flat.weights.layout.shard_len as i64;
                let before = flat.fetch_grad(self.copies.as_deref(), 0, shard_len)?;
                self.reducing.push(Reducing {
                    unit_idx,
                    flat_idx,
                    shard,
                    before,
                    _whole: whole,
                    work,
                });
            } else if let (Some(copies), true) = (&self.copies, flat.grad_on_host.is_some()) {
                // What the host had of this step is in it.
                flat.put_grad(copies, 0, whole)?;
                flat.has_grad_on_host = true;
            }
        }
        if let Some(copies) = &self.copies {
            copies.release_sent()?;
        }
        Ok(())
    }

    fn finish_reducing(&mut self) -> Result<(), TrainError> {
        for Reducing { unit_idx, flat_idx, shard, before, _whole, work } in self.reducing.drain(..)
        {
            work.wait()?;
            let flat = &mut self.units[unit_idx].flats[flat_idx];
            // A shard's gradient is a sum over ranks (above) and over micro-batches (here).
            flat.add_grad(self.copies.as_deref(), 0, before, &shard)?;
            flat.has_grad_on_host = flat.grad_on_host.is_some();
        }
        Ok(())
    }

    /// Completes the sums over ranks that the stages below 2 leave to the end of the step.
    ///
    /// # Communication
    ///
    /// Stage 0: all-reduces over the pieces of each flat buffer; stage 1: reduce-scatters. Collective.
    ///
    /// # Errors
    ///
    /// [`TrainError::Comm`] if a peer failed.
    pub fn finish_gradients(&mut self, world: &Group) -> Result<(), TrainError> {
        let _no_grad = no_grad_guard();
        let _stage = Stage::Reduce.enter();
        self.finish_reducing()?;
        if self.world_size == 1 || self.options.sharding.gradients {
            return Ok(());
        }
        self.wait_for_copies()?;
        for flat in self.units.iter_mut().flat_map(|unit| &mut unit.flats) {
            // Of this rank's own gradients.
            flat.squares_of_sent = None;
            let reduce_kind = self.placement.reduce_kind;
            if self.options.sharding.optimizer {
                let own = flat.own_grad(&self.options);
                reduce_scatter_in_pieces(
                    world,
                    &flat.grad,
                    reduce_kind,
                    PIECE_LEN,
                    |start, sum| {
                        own.narrow(0, start, sum.size()[0]).copy_(sum);
                        Ok(())
                    },
                )?;
            } else {
                all_reduce_in_pieces(world, &flat.grad, reduce_kind, PIECE_LEN)?;
            }
        }
        Ok(())
    }

    /// The l2 norm of the whole gradient, the same on every rank.
    ///
    /// # Communication
    ///
    /// One all-reduce of one double where a rank holds only a part. Collective.
    ///
    /// # Errors
    ///
    /// [`TrainError::Comm`] if a peer failed.
    pub fn gradient_norm(&self, world: &Group) -> Result<f64, TrainError> {
        let _no_grad = no_grad_guard();
        let flats = self.units.iter().flat_map(|unit| &unit.flats);
        let of_flats: Vec<_> = flats.map(|flat| flat.sum_of_squares(&self.options)).collect();
        // Read at once: each reading makes the host wait for a GPU.
        let of_flats = Tensor::stack(&of_flats, 0).to_device(Device::Cpu);
        let mut sum_of_squares = (0..of_flats.size()[0]).map(|i| of_flats.double_value(&[i])).sum();
        if self.options.sharding.optimizer {
            sum_of_squares = sum(world, &[sum_of_squares])?[0];
        }
        Ok(sum_of_squares.sqrt())
    }

    /// One optimizer step: `AdamW` on what this rank owns, then the weights to every rank that keeps them whole.
    ///
    /// `adamw` holds the learning rate of this step; `step` counts the updates from 1; gradients are multiplied by `grad_scale` first and are zero afterwards.
    ///
    /// # Communication
    ///
    /// Where optimizer states are sharded and weights are not, one all-gather over the world for each flat buffer. Collective.
    ///
    /// # Memory
    ///
    /// A few slices. What is on disk is read ahead and written behind while the slices in between are stepped; so is what travels
    /// between a GPU and the host.
    ///
    /// # Waiting
    ///
    /// Where the host holds gradients or weights beside a GPU, it waits until all copies of them are done; where it holds the states
    /// only, for each slice of the gradients.
    ///
    /// # Errors
    ///
    /// [`TrainError::Comm`] if a peer failed; [`TrainError::Disk`] if the disk did; [`TrainError::Torch`] if the kernel refuses.
    pub fn step(
        &mut self,
        world: &Group,
        adamw: &AdamW,
        step: u64,
        grad_scale: f64,
    ) -> Result<(), TrainError> {
        let _no_grad = no_grad_guard();
        // What was gathered before would be used after.
        debug_assert!(self.gathering.is_empty(), "a unit was gathered and not used");
        self.wait_for_copies()?;
        let copies = self.copies.clone();
        let update = Update {
            adamw,
            step,
            grad_scale,
            seed: self.placement.seed,
            slice_len: slice_len(self.placement.optimizer_device),
            copies: copies.as_deref(),
        };
        let runs = self.runs();
        let mut buffers = RunBuffers::default();
        let mut ahead = None;
        for (i, RunId { unit_idx, flat_idx, range }) in runs.iter().enumerate() {
            let loading = match ahead.take() {
                Some(loading) => loading,
                None => self.load_run(&runs[i], &mut buffers)?,
            };
            ahead = runs.get(i + 1).map(|next| self.load_run(next, &mut buffers)).transpose()?;
            let flat = &mut self.units[*unit_idx].flats[*flat_idx];
            // A unit has at most four.
            let buffer_id = 4 * *unit_idx as u64 + *flat_idx as u64;
            flat.step(&self.options, range, loading, buffer_id, &update)?;
            let is_last = range.end == self.options.optimizer_len(&flat.weights.layout);
            if is_last && self.options.steps_parts_of_whole() {
                if let Some(copies) = &copies {
                    copies.wait_all()?;
                }
                flat.weights.gather_parts(world, &self.options)?;
            }
        }
        if let Some(copies) = &copies {
            copies.wait_all()?;
        }
        Ok(())
    }

    /// Waits until the host may read and write what it holds beside a GPU.
    fn wait_for_copies(&self) -> Result<(), TrainError> {
        let StatePlacement { compute_device, param_device, grad_device, .. } = self.placement;
        match &self.copies {
            Some(copies) if [param_device, grad_device].iter().any(|x| *x != compute_device) => {
                Ok(copies.synchronize()?)
            }
            _ => Ok(()),
        }
    }

    /// What is stepped at once, in order.
    fn runs(&self) -> Vec<RunId> {
        let mut runs = Vec::new();
        for (unit_idx, unit) in self.units.iter().enumerate() {
            for (flat_idx, flat) in unit.flats.iter().enumerate() {
                let of_flat = flat.state.runs().into_iter();
                runs.extend(of_flat.map(|range| RunId { unit_idx, flat_idx, range }));
            }
        }
        runs
    }

    fn load_run(&self, run: &RunId, buffers: &mut RunBuffers) -> Result<Loading, TrainError> {
        self.units[run.unit_idx].flats[run.flat_idx].state.load(&run.range, buffers)
    }
}

/// What checkpoints call a flat buffer of a unit; `None` if they do not have it.
pub(super) fn name_in_checkpoints(kind: FlatKind) -> Option<&'static str> {
    match kind {
        FlatKind::Trained { is_decayed: true, is_fp32: false } => Some("decayed"),
        FlatKind::Trained { is_decayed: false, is_fp32: false } => Some("undecayed"),
        FlatKind::Trained { is_decayed: true, is_fp32: true } => Some("decayed_fp32"),
        FlatKind::Trained { is_decayed: false, is_fp32: true } => Some("undecayed_fp32"),
        FlatKind::Buffers { is_fp32: false } => Some("buffers"),
        FlatKind::Buffers { is_fp32: true } => Some("buffers_fp32"),
        FlatKind::Frozen => None,
    }
}

/// A view of each parameter of `layout` in those of its flat buffers that are given whole, in the order of the specs; `None` for one that
/// is in none of them.
fn views<'a>(
    layout: &UnitLayout,
    wholes: impl Iterator<Item = (&'a FlatLayout, &'a Tensor)>,
) -> Vec<Option<Tensor>> {
    let mut views: Vec<Option<Tensor>> = Vec::new();
    views.resize_with(layout.specs.len(), || None);
    for (flat, whole) in wholes {
        for slot in &flat.slots {
            let shape = layout.specs[slot.spec_idx].shape.iter();
            let shape: Vec<i64> = shape.map(|&size| size as i64).collect();
            let view = whole.narrow(0, slot.offset as i64, slot.numel as i64).view(&shape[..]);
            views[slot.spec_idx] = Some(view);
        }
    }
    views
}
