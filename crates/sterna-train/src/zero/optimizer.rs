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

use std::ops::Range;

use sterna_torch_sys::{AdamW, fused_adamw_, round_stochastically};
use tch::{Device, Kind, Tensor};

use crate::{
    disk::{DiskScratch, Region, SliceRead},
    error::TrainError,
};

/// Elements stepped at once, and read from disk at once: 18 MB of states, weights and gradients, which a last-level cache
/// holds. Shorter slices wait more often for the slowest thread, longer ones for memory (measured in docs/LOG.md).
const SLICE_LEN: i64 = 1 << 20;

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

    /// `AdamW`, the weights from the masters, zero gradients: all of it slice by slice.
    fn step(&self, stepped: &Stepped, update: &Update<'_>) -> Result<(), TrainError> {
        let Stepped { weight_decay, buffer_id, first, .. } = *stepped;
        let adamw = AdamW { weight_decay, ..*update.adamw };
        let key = |moment: u64| mixed(&[update.seed, update.step, buffer_id, moment]);
        let (first_key, second_key) = (key(0), key(1));
        for slice in pieces(self.exp_avg.size()[0], SLICE_LEN) {
            let of = |x: &Tensor| x.narrow(0, slice.start, slice.end - slice.start);
            let (mut param, mut grad) = (of(&stepped.param), of(&stepped.grad));
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
            if self.master.is_some() {
                param.copy_(&master);
            }
            let _ = grad.zero_();
        }
        Ok(())
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
mod tests {
    use super::*;

    const ADAMW: AdamW = AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.999, weight_decay: 0.1, eps: 1e-8 };

    fn normal(len: i64, seed: i64) -> Tensor {
        tch::manual_seed(seed);
        Tensor::randn([len], (Kind::Double, Device::Cpu))
    }

    /// A state with the weights, gradients and runs of one buffer.
    struct Buffer {
        state: OptimizerState,
        param: Tensor,
        grad: Tensor,
        first: u64,
    }

    impl Buffer {
        fn new(
            param: &Tensor,
            param_kind: Kind,
            moments_kind: Kind,
            disk: Option<&DiskScratch>,
        ) -> Self {
            let len = param.size()[0];
            let format = StateFormat { has_master: param_kind != Kind::Float, moments_kind };
            let mut state = match disk {
                Some(disk) => OptimizerState::on_disk(len, format, disk).unwrap(),
                None => OptimizerState::in_memory(len, format, Device::Cpu),
            };
            let param = param.to_kind(param_kind).copy();
            state.reset(&param).unwrap();
            Self { state, grad: param.zeros_like().to_kind(Kind::Float), param, first: 0 }
        }

        fn step(&mut self, grad: &Tensor, step: u64, grad_scale: f64) {
            self.grad.copy_(grad);
            let update = Update { adamw: &ADAMW, step, grad_scale, seed: 42 };
            let mut buffers = RunBuffers::default();
            let runs = self.state.runs();
            let mut ahead = self.state.load(&runs[0], &mut buffers).unwrap();
            for (i, range) in runs.iter().enumerate() {
                let loading = ahead.take();
                if let Some(next) = runs.get(i + 1) {
                    ahead = self.state.load(next, &mut buffers).unwrap();
                }
                let of = |x: &Tensor| x.narrow(0, range.start, range.end - range.start);
                let stepped = Stepped {
                    param: of(&self.param),
                    grad: of(&self.grad),
                    weight_decay: ADAMW.weight_decay,
                    buffer_id: 5,
                    first: self.first + range.start as u64,
                };
                self.state.step(range, loading, &stepped, &update).unwrap();
            }
            assert_eq!(self.grad.count_nonzero(0).int64_value(&[]), 0);
        }
    }

    /// `torch.optim.AdamW`'s formula in double precision.
    struct Reference {
        param: Tensor,
        exp_avg: Tensor,
        exp_avg_sq: Tensor,
    }

    impl Reference {
        fn step(&mut self, grad: &Tensor, step: u64) {
            let AdamW { lr, beta1, beta2, weight_decay, eps } = ADAMW;
            let correction = |beta: f64| 1.0 - beta.powi(step as i32);
            self.exp_avg = &self.exp_avg * beta1 + grad * (1.0 - beta1);
            self.exp_avg_sq = &self.exp_avg_sq * beta2 + grad.square() * (1.0 - beta2);
            let root = (&self.exp_avg_sq / correction(beta2)).sqrt() + eps;
            self.param = &self.param * (1.0 - lr * weight_decay)
                - &self.exp_avg / root * (lr / correction(beta1));
        }
    }

    /// What a first, naive version of bf16 moments would do.
    struct PlainRounding {
        param: Tensor,
        exp_avg: Tensor,
        exp_avg_sq: Tensor,
    }

    impl PlainRounding {
        fn step(&mut self, grad: &Tensor, step: u64) {
            let wide = (self.exp_avg.to_kind(Kind::Float), self.exp_avg_sq.to_kind(Kind::Float));
            let grad = grad.to_kind(Kind::Float);
            fused_adamw_(&self.param, &grad, &wide.0, &wide.1, step as i64, &ADAMW).unwrap();
            self.exp_avg.copy_(&wide.0);
            self.exp_avg_sq.copy_(&wide.1);
        }
    }

    /// How far a way is from that of double precision, relative to it.
    fn error(way: &Tensor, of_reference: &Tensor) -> f64 {
        ((way - of_reference).norm() / of_reference.norm()).double_value(&[])
    }

    #[test]
    fn moments_follow_double_precision_where_plain_bf16_stalls() {
        const LEN: i64 = 4096;
        const HALF: u64 = 600;
        let start = normal(LEN, 0);
        let zeros = |kind| Tensor::zeros([LEN], (kind, Device::Cpu));
        let mut reference = Reference {
            param: start.copy(),
            exp_avg: zeros(Kind::Double),
            exp_avg_sq: zeros(Kind::Double),
        };
        let mut fp32 = Buffer::new(&start, Kind::Float, Kind::Float, None);
        let mut bf16 = Buffer::new(&start, Kind::Float, Kind::BFloat16, None);
        let mut plain = PlainRounding {
            param: start.to_kind(Kind::Float),
            exp_avg: zeros(Kind::BFloat16),
            exp_avg_sq: zeros(Kind::BFloat16),
        };
        // Gradients of many sizes, with noise as large as they are, that become ten times smaller on half the way. Rounded
        // plainly, the second moment rises by the largest gradients, and then stays.
        let direction = normal(LEN, 1) * (normal(LEN, 2) * 2.0).exp();
        let mut turn = [(); 4].map(|()| start.copy());
        for step in 1..=2 * HALF {
            let size = if step <= HALF { 1.0 } else { 0.1 };
            let grad = (&direction + direction.abs() * normal(LEN, 2 + step as i64)) * size;
            // What the buffers hold is fp32, twice too large, and scaled back exactly.
            let grad = grad.to_kind(Kind::Float).to_kind(Kind::Double);
            reference.step(&grad, step);
            fp32.step(&(&grad * 2.0), step, 0.5);
            bf16.step(&(&grad * 2.0), step, 0.5);
            plain.step(&grad, step);
            if step % HALF == 0 {
                let params = [&reference.param, &fp32.param, &bf16.param, &plain.param]
                    .map(|param| param.to_kind(Kind::Double));
                let way = |i: usize| &params[i] - &turn[i];
                let [fp32, bf16, plain] = [1, 2, 3].map(|i| error(&way(i), &way(0)));
                let found = format!("after {step} steps: fp32 {fp32}, bf16 {bf16}, plain {plain}");
                // A step rounds weights of about 1 by up to 6e-8, all of 600 perhaps in one direction; the way is 0.1 at least.
                assert!(fp32 < 600.0 * 6e-8 / 0.1, "{found}");
                // `exp_avg_sq` is off by 5%, so an update by 2.5%: a unit in the last place is 0.4 to 0.8% of it, a change of
                // 0.1% goes up or down by one with a deviation of 0.2%, and some 500 of those add up.
                assert!(bf16 < 2.5e-2, "{found}");
                if step > HALF {
                    assert!(plain > 1e-1, "{found}");
                }
                turn = params;
            }
        }
    }

    #[test]
    fn states_on_disk_are_those_in_memory_bit_for_bit() {
        let folder = tempfile::tempdir().unwrap();
        let disk = DiskScratch::create(folder.path(), 0).unwrap();
        // Three runs, the last one short and no multiple of a vector.
        let start = normal(2 * SLICE_LEN + 7, 3);
        for (param_kind, moments_kind) in [
            (Kind::Float, Kind::Float),
            (Kind::Float, Kind::BFloat16),
            (Kind::BFloat16, Kind::Float),
            (Kind::BFloat16, Kind::BFloat16),
        ] {
            let mut memory = Buffer::new(&start, param_kind, moments_kind, None);
            let mut on_disk = Buffer::new(&start, param_kind, moments_kind, Some(&disk));
            for step in 1..=3 {
                let grad = normal(start.size()[0], 3 + step as i64);
                memory.step(&grad, step, 0.7);
                on_disk.step(&grad, step, 0.7);
                assert_ne!(memory.param, start.to_kind(param_kind));
                assert_eq!(memory.param, on_disk.param, "{param_kind:?} {moments_kind:?} {step}");
            }
        }
    }

    #[test]
    fn shards_step_as_the_whole_bit_for_bit() {
        // Two shards of whole vectors: the kernel itself rounds the rest of a buffer differently.
        let (len, half) = (2 * SLICE_LEN + 64, SLICE_LEN + 32);
        let start = normal(len, 5);
        let buffer = |part: &Tensor| Buffer::new(part, Kind::BFloat16, Kind::BFloat16, None);
        let mut whole = buffer(&start);
        let mut shards = [0, half]
            .map(|first| Buffer { first: first as u64, ..buffer(&start.narrow(0, first, half)) });
        for step in 1..=3 {
            let grad = normal(len, 5 + step as i64);
            whole.step(&grad, step, 1.0);
            for shard in &mut shards {
                shard.step(&grad.narrow(0, shard.first as i64, half), step, 1.0);
            }
        }
        let params = shards.map(|shard| shard.param);
        assert_eq!(Tensor::cat(&params, 0), whole.param);
    }
}
