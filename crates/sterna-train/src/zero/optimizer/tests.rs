//! A step against double precision, on disk against in memory, in shards against whole.

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
        self.step_in_slices(step, grad_scale, SLICE_LEN, None);
    }

    fn step_in_slices(
        &mut self,
        step: u64,
        grad_scale: f64,
        slice_len: i64,
        copies: Option<&Copies>,
    ) {
        let update = Update { adamw: &ADAMW, step, grad_scale, seed: 42, slice_len, copies };
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
                zeroes_grad: true,
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

#[test]
fn any_range_of_any_state_is_read_and_written_wherever_it_lives() {
    let folder = tempfile::tempdir().unwrap();
    let disk = DiskScratch::create(folder.path(), 0).unwrap();
    let len = 2 * SLICE_LEN + 7;
    let start = normal(len, 3);
    // Within a run, across all three, the last elements.
    let ranges = [3..10, SLICE_LEN - 2..2 * SLICE_LEN + 5, len - 1..len];
    for (param_kind, moments_kind) in [
        (Kind::Float, Kind::BFloat16),
        (Kind::BFloat16, Kind::Float),
        (Kind::BFloat16, Kind::BFloat16),
    ] {
        let mut memory = Buffer::new(&start, param_kind, moments_kind, None);
        let mut on_disk = Buffer::new(&start, param_kind, moments_kind, Some(&disk));
        for buffer in [&mut memory, &mut on_disk] {
            buffer.step(&normal(len, 4), 1, 1.0);
        }
        for name in [StateName::Master, StateName::ExpAvg, StateName::ExpAvgSq] {
            for (seed, range) in (5..).zip(&ranges) {
                let values = normal(range.end - range.start, seed);
                for buffer in [&mut memory, &mut on_disk] {
                    let before = buffer.state.read(name, range).unwrap();
                    let has_state = name != StateName::Master || param_kind != Kind::Float;
                    assert_eq!(before.is_some(), has_state);
                    buffer.state.write(name, range, &values).unwrap();
                }
                let all = 0..len;
                let [memory, on_disk] =
                    [&memory, &on_disk].map(|buffer| buffer.state.read(name, &all).unwrap());
                assert_eq!(memory, on_disk, "{name:?} {range:?}");
                if let Some(state) = memory {
                    let written = state.narrow(0, range.start, range.end - range.start);
                    assert_eq!(written, values.totype(state.kind()), "{name:?} {range:?}");
                }
            }
        }
    }
}

/// Gradients and weights on a device, states on the host: slices of both on their way while others are stepped.
#[test]
fn ranks_step_slices_of_a_device_as_those_of_the_host_bit_for_bit() {
    const LEN: i64 = 20 * 64 + 5;
    sterna_testkit::spawn_ranks(1, |_: &sterna_testkit::TestRank| {
        sterna_fake_cuda::install();
        let device = Device::Cuda(0);
        for moments in [Kind::Float, Kind::BFloat16] {
            let start = normal(LEN, 0);
            let mut on_host = Buffer::new(&start, Kind::BFloat16, moments, None);
            let mut on_device = Buffer::new(&start, Kind::BFloat16, moments, None);
            on_device.param = on_device.param.to_device(device);
            on_device.grad = on_device.grad.to_device(device);
            let copies = Copies::new(0).unwrap();
            for step in 1..=2 {
                let grad = normal(LEN, step as i64);
                for (buffer, copies) in [(&mut on_host, None), (&mut on_device, Some(&copies))] {
                    buffer.grad.copy_(&grad);
                    buffer.step_in_slices(step, 0.5, 64, copies);
                }
                copies.wait_all().unwrap();
                assert_eq!(on_device.param.to_device(Device::Cpu), on_host.param, "step {step}");
            }
            for name in [StateName::Master, StateName::ExpAvg, StateName::ExpAvgSq] {
                let of = |buffer: &Buffer| buffer.state.read(name, &(0..LEN)).unwrap().unwrap();
                assert_eq!(of(&on_device), of(&on_host), "{name:?}");
            }
        }
    });
}
