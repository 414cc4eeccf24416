//! Masters and moments of a flat buffer: where they are, in which dtype, and their step in slices.
//!
//! A step reads and writes each state once. It goes through the buffer in slices that fit the cache, and does all there is to
//! do to a slice while it is there: scale the gradient, step, write the weights in the model's dtype, zero the gradient. So there is no
//! second copy of anything but of a slice.
//!
//! # Numerics
//!
//! A step is computed in fp32. Moments in bf16 are widened, stepped, and rounded stochastically: plain rounding loses
//! every change below half a unit in the last place, 0.2 to 0.4% of the value, and the second moment changes by
//! `(1 - beta2) * (g^2 / exp_avg_sq - 1)` of itself. With `beta2 = 0.999` it would never come down from the largest
//! gradients it has seen. The random bits are a hash of seed, step, buffer and place in the buffer, so a run repeats bit
//! for bit, and how the buffer is cut into shards and slices changes none of them.

use std::{collections::VecDeque, ops::Range};

use sterna_checkpoint::StateName;
use sterna_torch_sys::{
    AdamW,
    copies::{Copies, OnHost},
    fused_adamw_, round_stochastically,
};
use tch::{Device, Kind, Tensor};

use crate::{
    error::TrainError,
    storage::disk::{DiskScratch, Region, SliceRead},
};

/// Elements stepped at once, and read from disk at once: 18 MB of states, weights and gradients, which a last-level cache
/// holds. Shorter slices wait more often for the slowest thread, longer ones for memory (measured: docs/benchmarks/2026-11-21-2-cores.md).
const SLICE_LEN: i64 = 1 << 20;

/// As [`SLICE_LEN`] where a GPU steps: its launches cost more than its caches save.
const DEVICE_SLICE_LEN: i64 = 1 << 24;

/// Elements stepped at once where the states are on `device`.
pub(super) fn slice_len(device: Device) -> i64 {
    if device == Device::Cpu { SLICE_LEN } else { DEVICE_SLICE_LEN }
}

/// One update of all buffers of a rank.
#[derive(Debug, Clone, Copy)]
pub(super) struct Update<'a> {
    pub(super) adamw: &'a AdamW,
    /// Counted from 1.
    pub(super) step: u64,
    /// What gradients are multiplied by first.
    pub(super) grad_scale: f64,
    /// Of the rounding of bf16 moments.
    pub(super) seed: u64,
    /// Elements stepped at once ([`slice_len`]).
    pub(super) slice_len: i64,
    /// There if a GPU computes.
    pub(super) copies: Option<&'a Copies>,
}

/// What is kept for an element.
#[derive(Debug, Clone, Copy)]
pub(super) struct StateFormat {
    /// An fp32 master beside the weight; without, the weight is fp32 and its own master.
    pub(super) has_master: bool,
    /// fp32 or bf16.
    pub(super) moments_kind: Kind,
}

/// Masters and moments of the part of a flat buffer that this rank steps.
#[derive(Debug)]
pub(super) struct OptimizerState {
    len: i64,
    format: StateFormat,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Memory(Run),
    /// Run after run of [`SLICE_LEN`] elements, each with its masters, first and second moments.
    Disk(Region),
}

/// The states of a run of elements, flat.
#[derive(Debug)]
struct Run {
    /// fp32; `None` if the weights are.
    master: Option<Tensor>,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
}

/// A run on its way from disk; `None` if it is in memory anyway.
pub(super) type Loading = Option<SliceRead>;

/// Memory for two runs from disk: while one is stepped, the thread of the file writes the one before and reads the next
/// to its place.
#[derive(Debug, Default)]
pub(super) struct RunBuffers {
    idle: Option<Tensor>,
    busy: Option<Tensor>,
}

/// What a run of states belongs to: flat, and as long.
#[derive(Debug)]
pub(super) struct Stepped {
    /// Weights in the model's dtype.
    pub(super) param: Tensor,
    pub(super) grad: Tensor,
    /// Whether the gradients are zeroed: those that are written over need not be.
    pub(super) zeroes_grad: bool,
    pub(super) weight_decay: f64,
    /// A number of its own for each flat buffer of the model, for the rounding.
    pub(super) buffer_id: u64,
    /// Elements of the whole buffer before the first one here.
    pub(super) first: u64,
}

impl StateFormat {
    /// Bytes of an element.
    fn bytes(self) -> i64 {
        let master = if self.has_master { 4 } else { 0 };
        master + 2 * self.moments_kind.elt_size_in_bytes() as i64
    }
}

impl OptimizerState {
    /// Zeroed states of `len` elements on `device`.
    pub(super) fn in_memory(len: i64, format: StateFormat, device: Device) -> Self {
        let zeros = |kind| Tensor::zeros(len, (kind, device));
        let run = Run {
            master: format.has_master.then(|| zeros(Kind::Float)),
            exp_avg: zeros(format.moments_kind),
            exp_avg_sq: zeros(format.moments_kind),
        };
        Self { len, format, place: Place::Memory(run) }
    }

    /// States of `len` elements on `disk`, which are whatever was there until [`OptimizerState::reset`].
    pub(super) fn on_disk(
        len: i64,
        format: StateFormat,
        disk: &DiskScratch,
    ) -> Result<Self, TrainError> {
        let region = disk.region(Self::bytes(len, format))?;
        Ok(Self { len, format, place: Place::Disk(region) })
    }

    /// Bytes of the states of `len` elements.
    pub(super) fn bytes(len: i64, format: StateFormat) -> u64 {
        (len * format.bytes()) as u64
    }

    /// Masters from the weights `param`, and zero moments.
    pub(super) fn reset(&mut self, param: &Tensor) -> Result<(), TrainError> {
        let runs = self.runs();
        match &mut self.place {
            Place::Memory(run) => {
                if let Some(master) = &mut run.master {
                    master.copy_(param);
                }
                let _ = (run.exp_avg.zero_(), run.exp_avg_sq.zero_());
            }
            Place::Disk(region) => {
                for range in runs {
                    let bytes = (range.end - range.start) * self.format.bytes();
                    let buffer = Tensor::zeros([bytes], (Kind::Uint8, Device::Cpu));
                    if let Some(mut master) = Run::in_buffer(&buffer, self.format).master {
                        master.copy_(&param.narrow(0, range.start, range.end - range.start));
                    }
                    region.write_at((range.start * self.format.bytes()) as u64, buffer)?;
                }
            }
        }
        Ok(())
    }

    /// Elements `range` of one state: a view where it is in memory, a copy from disk. `None` where the weights are the masters.
    pub(super) fn read(
        &self,
        name: StateName,
        range: &Range<i64>,
    ) -> Result<Option<Tensor>, TrainError> {
        match &self.place {
            Place::Memory(run) => Ok(run
                .state(name)
                .map(|state| state.narrow(0, range.start, range.end - range.start))),
            Place::Disk(region) => {
                let kind = self.kind_on_disk(name);
                let Some(kind) = kind else { return Ok(None) };
                let values = Tensor::empty([range.end - range.start], (kind, Device::Cpu));
                for piece in self.pieces_on_disk(range) {
                    let (start, len) = (piece.start - range.start, piece.end - piece.start);
                    let offset = self.place_on_disk(name, &piece);
                    // It fills the part of `values`.
                    let _ = region.read_at(offset, values.narrow(0, start, len))?.wait()?;
                }
                Ok(Some(values))
            }
        }
    }

    /// Sets elements `range` of one state from `values`, in any dtype; the masters not, where the weights are.
    pub(super) fn write(
        &mut self,
        name: StateName,
        range: &Range<i64>,
        values: &Tensor,
    ) -> Result<(), TrainError> {
        match &self.place {
            Place::Memory(run) => {
                if let Some(state) = run.state(name) {
                    state.narrow(0, range.start, range.end - range.start).copy_(values);
                }
            }
            Place::Disk(region) => {
                let Some(kind) = self.kind_on_disk(name) else { return Ok(()) };
                for piece in self.pieces_on_disk(range) {
                    let (start, len) = (piece.start - range.start, piece.end - piece.start);
                    let offset = self.place_on_disk(name, &piece);
                    // A copy, also where it has this dtype already: it must stay as it is until it is written.
                    region.write_at(offset, values.narrow(0, start, len).totype(kind).copy())?;
                }
            }
        }
        Ok(())
    }

    /// `range`, cut where runs end.
    fn pieces_on_disk(&self, range: &Range<i64>) -> Vec<Range<i64>> {
        let cut = |run: Range<i64>| run.start.max(range.start)..run.end.min(range.end);
        self.runs().into_iter().map(cut).filter(|piece| piece.start < piece.end).collect()
    }

    /// The dtype of a state on disk; `None` where the weights are the masters.
    fn kind_on_disk(&self, name: StateName) -> Option<Kind> {
        match name {
            StateName::Master => self.format.has_master.then_some(Kind::Float),
            StateName::ExpAvg | StateName::ExpAvgSq => Some(self.format.moments_kind),
        }
    }

    /// The first byte of elements `piece` of a state, which lie in one run.
    fn place_on_disk(&self, name: StateName, piece: &Range<i64>) -> u64 {
        let run_start = piece.start / SLICE_LEN * SLICE_LEN;
        let run_len = SLICE_LEN.min(self.len - run_start);
        let moment_size = self.format.moments_kind.elt_size_in_bytes() as i64;
        let master_size = if self.format.has_master { 4 } else { 0 };
        let (before, size) = match name {
            StateName::Master => (0, master_size),
            StateName::ExpAvg => (master_size, moment_size),
            StateName::ExpAvgSq => (master_size + moment_size, moment_size),
        };
        let in_run = before * run_len + (piece.start - run_start) * size;
        (run_start * self.format.bytes() + in_run) as u64
    }

    /// The elements that are loaded and stepped at once: all of them, unless they are on disk.
    pub(super) fn runs(&self) -> Vec<Range<i64>> {
        match self.place {
            Place::Memory(_) => pieces(self.len, self.len).collect(),
            Place::Disk(_) => pieces(self.len, SLICE_LEN).collect(),
        }
    }

    /// Starts loading run `range`.
    pub(super) fn load(
        &self,
        range: &Range<i64>,
        buffers: &mut RunBuffers,
    ) -> Result<Loading, TrainError> {
        match &self.place {
            Place::Memory(_) => Ok(None),
            Place::Disk(region) => {
                let bytes = self.format.bytes();
                let buffer = buffers.next(SLICE_LEN * bytes);
                let buffer = buffer.narrow(0, 0, (range.end - range.start) * bytes);
                Ok(Some(region.read_at((range.start * bytes) as u64, buffer)?))
            }
        }
    }

    /// Steps run `range` when it is loaded, and starts writing it back.
    pub(super) fn step(
        &mut self,
        range: &Range<i64>,
        loading: Loading,
        stepped: &Stepped,
        update: &Update<'_>,
    ) -> Result<(), TrainError> {
        match &self.place {
            Place::Memory(run) => run.step(stepped, update),
            Place::Disk(region) => {
                let buffer = loading.expect("a run on disk is loaded before its step").wait()?;
                Run::in_buffer(&buffer, self.format).step(stepped, update)?;
                region.write_at((range.start * self.format.bytes()) as u64, buffer)
            }
        }
    }
}

impl RunBuffers {
    /// The one of the two that was not handed out last, of `bytes`. What is read into it is read after what was written from
    /// it.
    fn next(&mut self, bytes: i64) -> Tensor {
        std::mem::swap(&mut self.idle, &mut self.busy);
        self.busy
            .get_or_insert_with(|| Tensor::empty([bytes], (Kind::Uint8, Device::Cpu)))
            .shallow_clone()
    }
}

impl Run {
    fn state(&self, name: StateName) -> Option<&Tensor> {
        match name {
            StateName::Master => self.master.as_ref(),
            StateName::ExpAvg => Some(&self.exp_avg),
            StateName::ExpAvgSq => Some(&self.exp_avg_sq),
        }
    }

    /// The states that lie in `buffer` one after the other.
    fn in_buffer(buffer: &Tensor, format: StateFormat) -> Self {
        let len = buffer.size()[0] / format.bytes();
        let mut start = 0;
        let mut next = |kind: Kind| {
            let bytes = len * kind.elt_size_in_bytes() as i64;
            let part = buffer.narrow(0, start, bytes).view_dtype(kind);
            start += bytes;
            part
        };
        Self {
            master: format.has_master.then(|| next(Kind::Float)),
            exp_avg: next(format.moments_kind),
            exp_avg_sq: next(format.moments_kind),
        }
    }

    /// `AdamW`, the weights from the masters, zero gradients: all of it slice by slice. Gradients and weights may be on the GPU and
    /// the states on the host: slices of the former come while the ones before them are stepped, and go as soon as they are.
    fn step(&self, stepped: &Stepped, update: &Update<'_>) -> Result<(), TrainError> {
        let Stepped { weight_decay, buffer_id, first, .. } = *stepped;
        let adamw = AdamW { weight_decay, ..*update.adamw };
        let key = |moment: u64| mixed(&[update.seed, update.step, buffer_id, moment]);
        let (first_key, second_key) = (key(0), key(1));
        let device = self.exp_avg.device();
        let mut grads = GradSlices::new(stepped, update.copies, device, update.slice_len);
        for slice in pieces(self.exp_avg.size()[0], update.slice_len) {
            let of = |x: &Tensor| x.narrow(0, slice.start, slice.end - slice.start);
            let (mut param, mut grad) = (of(&stepped.param), grads.next()?);
            let master = self.master.as_ref().map_or_else(|| param.shallow_clone(), of);
            let mut scaled = grad.to_kind(Kind::Float);
            if update.grad_scale < 1.0 {
                let _ = scaled.g_mul_scalar_(update.grad_scale);
            }
            let (mut exp_avg, mut exp_avg_sq) = (of(&self.exp_avg), of(&self.exp_avg_sq));
            // No copies where they are fp32 already.
            let wide = (exp_avg.to_kind(Kind::Float), exp_avg_sq.to_kind(Kind::Float));
            fused_adamw_(&master, &scaled, &wide.0, &wide.1, update.step as i64, &adamw)?;
            if exp_avg.kind() == Kind::BFloat16 {
                let position = first + slice.start as u64;
                round_stochastically(&wide.0, &mut exp_avg, first_key, position)?;
                round_stochastically(&wide.1, &mut exp_avg_sq, second_key, position)?;
            }
            match update.copies.filter(|_| param.device() != device) {
                Some(copies) => {
                    let away = OnHost::empty(&param.size(), param.kind())?;
                    away.tensor().shallow_clone().copy_(&master);
                    copies.to_device_at(&away, &param)?;
                }
                None if self.master.is_some() => param.copy_(&master),
                None => {}
            }
            if stepped.zeroes_grad && grads.is_here() {
                let _ = grad.zero_();
            }
        }
        if stepped.zeroes_grad && !grads.is_here() {
            // The host has waited for all of them.
            let _ = stepped.grad.shallow_clone().zero_();
        }
        Ok(())
    }
}

/// The slices of a run's gradients where its states are, in order.
struct GradSlices<'a> {
    grad: &'a Tensor,
    /// What brings them, if they are elsewhere.
    copies: Option<&'a Copies>,
    slices: Box<dyn Iterator<Item = Range<i64>>>,
    /// On their way to the host.
    coming: VecDeque<OnHost>,
}

impl<'a> GradSlices<'a> {
    fn new(
        stepped: &'a Stepped,
        copies: Option<&'a Copies>,
        device: Device,
        slice_len: i64,
    ) -> Self {
        let grad = &stepped.grad;
        let copies = copies.filter(|_| grad.device() != device);
        let slices = Box::new(pieces(grad.size()[0], slice_len));
        Self { grad, copies, slices, coming: VecDeque::new() }
    }

    /// Whether the slices are views of the gradients.
    fn is_here(&self) -> bool {
        self.copies.is_none()
    }

    fn next(&mut self) -> Result<Tensor, TrainError> {
        /// As many as keep the copies going while a slice is stepped.
        const AHEAD: usize = 8;
        let view = |slice: Range<i64>| self.grad.narrow(0, slice.start, slice.end - slice.start);
        let Some(copies) = self.copies else {
            return Ok(view(self.slices.next().expect("as many slices as of the states")));
        };
        while self.coming.len() < AHEAD
            && let Some(slice) = self.slices.next()
        {
            self.coming.push_back(copies.to_host(view(slice))?);
            copies.release_sent()?;
        }
        let first = self.coming.pop_front().expect("as many slices as of the states");
        first.wait()?;
        Ok(first.tensor().shallow_clone())
    }
}

/// Ranges of `piece_len` that cover `0..len`, and a shorter last one. Not even ones: the kernel's vectors then start at the
/// same elements however a buffer is cut, and so does its rest, which is rounded differently.
pub(super) fn pieces(len: i64, piece_len: i64) -> impl Iterator<Item = Range<i64>> {
    (0..len).step_by(piece_len.max(1) as usize).map(move |start| start..len.min(start + piece_len))
}

/// A hash of `numbers` (the finalizer of `SplitMix64`, after each).
fn mixed(numbers: &[u64]) -> u64 {
    numbers.iter().fold(0, |state, number| {
        let mut z = (state ^ number).wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    })
}

#[cfg(test)]
mod tests;
