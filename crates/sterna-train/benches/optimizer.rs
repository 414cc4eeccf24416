//! Nanoseconds for each parameter of an optimizer step, and what it adds to resident memory: the whole buffer at once, in
//! slices, with bf16 moments, on disk. A bf16 model, one rank.
//!
//! ```text
//! OMP_NUM_THREADS=2 cargo bench -p sterna-train --bench optimizer -- [million parameters] [folder for the disk]
//! ```
#![expect(clippy::print_stdout, reason = "a benchmark's result is what it prints")]
#![expect(clippy::unwrap_used, reason = "a benchmark that fails should say so at once")]

use std::{
    env, fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use sterna_arch::{
    Init, ParamSpec, UnitLayout,
    units::{Unit, UnitKind},
};
use sterna_comm::{Comm, RankEnv};
use sterna_recipe::ZeroStage;
use sterna_torch_sys::{AdamW, fused_adamw_};
use sterna_train::{
    HostMemory,
    load::WeightSource,
    zero::{Sharding, StatePlacement, Zero},
};
use tch::{Device, Kind, Tensor};

const ADAMW: AdamW = AdamW { lr: 1e-4, beta1: 0.9, beta2: 0.999, weight_decay: 0.1, eps: 1e-8 };
const GRAD_SCALE: f64 = 0.5;
const REPEATS: u64 = 5;

fn main() {
    let mut arguments = env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let millions = arguments.next().map_or(64, |text| text.parse::<i64>().unwrap());
    let folder = arguments.next().map_or_else(env::temp_dir, PathBuf::from);
    let len = millions << 20;
    let _no_grad = tch::no_grad_guard();
    println!(
        "{millions} Mi parameters, {} threads, disk {}",
        tch::get_num_threads(),
        folder.display()
    );
    for grad_kind in [Kind::Float, Kind::BFloat16] {
        println!("-- {grad_kind:?} gradients");
        let buffers = Buffers::new(len, grad_kind);
        measure("whole buffer", len, |step| buffers.step(step, len));
        for log_slice in [13, 14, 15, 16, 17, 18, 20] {
            let name = format!("slices of 2^{log_slice}");
            measure(&name, len, |step| buffers.step(step, 1 << log_slice));
        }
        drop(buffers);
        for (name, moments_kind, is_on_disk) in [
            ("Zero::step", Kind::Float, false),
            ("Zero::step, bf16 moments", Kind::BFloat16, false),
            ("Zero::step, on disk", Kind::Float, true),
            ("Zero::step, bf16 moments, on disk", Kind::BFloat16, true),
        ] {
            let disk = is_on_disk.then(|| folder.clone());
            let (comm, mut zero) = zero(len, grad_kind, moments_kind, disk);
            measure(name, len, |step| zero.step(comm.world(), &ADAMW, step, GRAD_SCALE).unwrap());
        }
    }
}

/// Prints the shortest of a few runs: what else runs on the machine only adds.
fn measure(name: &str, len: i64, mut step: impl FnMut(u64)) {
    step(1);
    // The highest resident size is counted anew.
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = HostMemory::now().process;
    let times = (2..2 + REPEATS).map(|i| {
        let started = Instant::now();
        step(i);
        started.elapsed()
    });
    let best = times.min().unwrap();
    let added = HostMemory::now().process_peak.saturating_sub(before);
    let per_parameter = best.as_secs_f64() * 1e9 / len as f64;
    println!("{name:<40} {per_parameter:>7.2} ns {:>9.1} MB more", added as f64 / 1e6);
}

/// What a step works on, bare.
struct Buffers {
    param: Tensor,
    master: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
}

impl Buffers {
    fn new(len: i64, grad_kind: Kind) -> Self {
        let zeros = |kind| Tensor::zeros([len], (kind, Device::Cpu));
        Self {
            param: zeros(Kind::BFloat16),
            master: zeros(Kind::Float),
            grad: zeros(grad_kind),
            exp_avg: zeros(Kind::Float),
            exp_avg_sq: zeros(Kind::Float),
        }
    }

    /// What a step is, in slices of this length.
    fn step(&self, step: u64, slice_len: i64) {
        let len = self.param.size()[0];
        for start in (0..len).step_by(slice_len as usize) {
            let of = |x: &Tensor| x.narrow(0, start, slice_len.min(len - start));
            let mut grad = of(&self.grad);
            let mut scaled = grad.to_kind(Kind::Float);
            let _ = scaled.g_mul_scalar_(GRAD_SCALE);
            let (master, exp_avg, exp_avg_sq) =
                (of(&self.master), of(&self.exp_avg), of(&self.exp_avg_sq));
            fused_adamw_(&master, &scaled, &exp_avg, &exp_avg_sq, step as i64, &ADAMW).unwrap();
            of(&self.param).copy_(&master);
            let _ = grad.zero_();
        }
    }
}

fn zero(
    len: i64,
    grad_kind: Kind,
    moments_kind: Kind,
    optimizer_disk: Option<PathBuf>,
) -> (Comm, Zero) {
    let comm = Comm::init(&RankEnv::single(), 1, Duration::from_secs(30)).unwrap();
    let spec = ParamSpec::new("weight", [len as usize], Init::Normal { std: 0.02, zero_row: None });
    let placement = StatePlacement {
        param_kind: Kind::BFloat16,
        grad_kind,
        reduce_kind: grad_kind,
        compute_device: Device::Cpu,
        param_device: Device::Cpu,
        grad_device: Device::Cpu,
        optimizer_device: Device::Cpu,
        optimizer_disk,
        moments_kind,
        seed: 42,
    };
    let layouts = vec![UnitLayout::new(&Unit::whole(UnitKind::Layer, &[spec]), 1)];
    let sharding = Sharding::new(ZeroStage::Zero, 1);
    let mut zero = Zero::new(comm.world(), layouts, sharding, None, placement).unwrap();
    zero.load(&WeightSource::Random { seed: 1 }).unwrap();
    (comm, zero)
}
