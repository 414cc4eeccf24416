//! Time and resident memory of a chain of tensor operations, with libtorch's allocator and with ours.
//!
//! ```text
//! OMP_NUM_THREADS=2 cargo bench -p sterna-torch-sys --bench allocator -- [rows] [rounds]
//! ```
//!
//! The chain is the MLP of SmolLM2-135M in bf16 over tiles of `rows` tokens, forward and backward, beside tensors that are
//! kept for later: sizes from 0.5 to 24 MB. Each run has a process of its own; the two allocators take turns.
#![expect(clippy::print_stdout, reason = "a benchmark's result is what it prints")]
#![expect(clippy::unwrap_used, reason = "a benchmark that fails should say so at once")]

use std::process::Command;
use std::time::{Duration, Instant};

use sterna_torch_sys::memory;
use tch::{Device, Kind, Tensor};

const HIDDEN: i64 = 576;
const WIDTH: i64 = 1536;
const NUM_LAYERS: usize = 30;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    if let [name, rows, rounds] = &arguments[..] {
        return run(name, rows.parse().unwrap(), rounds.parse().unwrap());
    }
    let rows = arguments.first().map_or("4096", String::as_str);
    let rounds = arguments.get(1).map_or("5", String::as_str);
    for _ in 0..3 {
        for name in ["libtorch", "sterna"] {
            let status =
                Command::new(std::env::current_exe().unwrap()).args([name, rows, rounds]).status();
            assert!(status.unwrap().success());
        }
    }
}

/// Runs the chain `rounds` times and prints the shortest time of a round, what the processor did, and memory.
fn run(name: &str, rows: i64, rounds: usize) {
    let _no_grad = tch::no_grad_guard();
    if name == "sterna" {
        memory::install();
    }
    let options = (Kind::BFloat16, Device::Cpu);
    let [gate, up] = [0; 2].map(|_| Tensor::randn([WIDTH, HIDDEN], options));
    let down = Tensor::randn([HIDDEN, WIDTH], options);
    let x = Tensor::randn([rows, HIDDEN], options);
    let mut best = Duration::MAX;
    for _ in 0..rounds {
        let started = Instant::now();
        let mut kept = vec![x.shallow_clone()];
        for _ in 0..NUM_LAYERS {
            let y = forward(kept.last().unwrap(), &gate, &up, &down);
            kept.push(y);
        }
        let mut d_y = x.ones_like();
        while let Some(x) = kept.pop() {
            d_y = backward(&x, &d_y, &gate, &up, &down);
        }
        best = best.min(started.elapsed());
    }
    let [resident, peak] = ["VmRSS:", "VmHWM:"].map(status);
    // Of the whole run: minor faults, and the processor's time in ticks of 10 ms, for us and for the kernel.
    let [faults, user, system] = [7, 11, 12].map(stat);
    println!(
        "{name:<9} {rows} rows: {:>8.1} ms a round, {:>6} ms user and {:>5} ms system in all, {faults:>8} page faults, \
         {resident:>6.1} MB resident at the end, {peak:>6.1} MB at the peak",
        best.as_secs_f64() * 1e3,
        user * 10,
        system * 10,
    );
}

fn forward(x: &Tensor, gate: &Tensor, up: &Tensor, down: &Tensor) -> Tensor {
    let a = x.matmul(&gate.tr()).silu() * x.matmul(&up.tr());
    a.matmul(&down.tr()).g_add_(x)
}

fn backward(x: &Tensor, d_y: &Tensor, gate: &Tensor, up: &Tensor, down: &Tensor) -> Tensor {
    let (g, u) = (x.matmul(&gate.tr()), x.matmul(&up.tr()));
    let d_a = d_y.matmul(down);
    let (d_g, d_u) = (&d_a * &u * g.sigmoid(), &d_a * g.silu());
    let _grads = [d_g.tr().matmul(x), d_u.tr().matmul(x)].map(|grad| grad.to_kind(Kind::Float));
    d_g.matmul(gate).g_add_(&d_u.matmul(up)) * 1e-3
}

/// A field of `/proc/self/status`, MB.
fn status(name: &str) -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() * 1024.0 / 1e6
}

/// A number of `/proc/self/stat`, counted from the process's state.
fn stat(index: usize) -> u64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap();
    text.rsplit(')').next().unwrap().split_whitespace().nth(index).unwrap().parse().unwrap()
}
