//! What the card can do at most: matrix products, copies within it, copies to and from the host; and how near ops come to it.

use anyhow::Result;
use serde_json::{Value, json};
use sterna_bench::figures;
use sterna_ops::{cross_entropy, linear, rms_norm, swiglu};
use tch::{Device, Kind, Tensor};

use crate::context::Context;
use crate::record::{Findings, Table};
use crate::timing::{Times, time};

/// The key of the rate of bf16 products in the data of this section, FLOP/s.
pub const GEMM_RATE: &str = "gemm_flop_per_second";

/// Measures every ceiling.
///
/// # Errors
///
/// None but those of a device, which panics.
pub fn run(context: &Context) -> Result<Findings> {
    let mut rows = Rows::default();
    let rate = products(context, &mut rows);
    copies(context, &mut rows);
    ops(context, &mut rows);
    let mut findings = Findings {
        tables: vec![rows.table],
        notes: vec![
            "Random numbers, not zeros, which run faster. A rate is that of the median; a copy within the device counts bytes read and \
             bytes written. An op's rate counts each input and each result once: near that of the copy, there is nothing left to gain."
                .to_owned(),
        ],
        data: json!({ "rows": rows.data, GEMM_RATE: rate }),
        ..Findings::default()
    };
    if !(rate.is_finite() && rate > 0.0) {
        findings.fail(&format!("the rate of bf16 products is {rate}"));
    }
    Ok(findings)
}

/// What decides a step of the 8B shape, in the seconds that a lease has for it: the largest product, weight gradients of a short and of a
/// long tile, the head at both, and pinned copies.
///
/// # Errors
///
/// As [`run`].
pub fn run_of_lease(context: &Context) -> Result<Findings> {
    let mut rows = Rows::default();
    let rate = largest_product(context, &mut rows);
    tiles(context, &mut rows);
    pinned_copies(context, &mut rows);
    Ok(Findings {
        tables: vec![rows.table],
        notes: vec![
            "Random numbers, not zeros. A weight gradient is added in fp32 by the product itself; the short tile is that of 128 MiB, the long \
             one that of 1 GiB."
                .to_owned(),
        ],
        data: json!({ "rows": rows.data, GEMM_RATE: rate }),
        ..Findings::default()
    })
}

fn largest_product(context: &Context, rows: &mut Rows) -> f64 {
    let size: i64 = if context.is_tiny { 128 } else { 8192 };
    let random = || Tensor::randn([size, size], (Kind::BFloat16, context.device));
    let (a, b) = (random(), random());
    let times = time(context, || drop(a.mm(&b.tr())));
    let flop = 2.0 * (size as f64).powi(3);
    rows.add("bf16 product", &format!("{size} x {size} x {size}"), times, flop, "FLOP")
}

fn tiles(context: &Context, rows: &mut Rows) {
    let (hidden, width, vocab): (i64, i64, i64) =
        if context.is_tiny { (32, 64, 101) } else { (4096, 14_336, 128_256) };
    let cut = |len: i64| if context.is_tiny { len / 64 } else { len };
    let random = |size: [i64; 2]| Tensor::randn(size, (Kind::BFloat16, context.device));
    let mut of = |what: &str, len: i64, outer: i64| {
        let (x, d_y) = (random([len, hidden]), random([len, outer]));
        let mut d_weight = Tensor::zeros([outer, hidden], (Kind::Float, context.device));
        let flop = 2.0 * (len * outer * hidden) as f64;
        let work = || linear::backward_params(&d_y, &x, Some(&mut d_weight), None);
        let times = time(context, work);
        rows.add(what, &format!("{outer} x {len} x {hidden}"), times, flop, "FLOP");
    };
    for len in [832, 6656] {
        of("weight gradient of the MLP", cut(len), width);
    }
    for len in [512, 4096] {
        of("weight gradient of the head", cut(len), vocab);
    }
    for len in [512, 4096] {
        let len = cut(len);
        let (x, weight) = (random([len, hidden]), random([vocab, hidden]));
        let labels = Tensor::zeros(len, (Kind::Int64, context.device));
        let weights = Tensor::ones(len, (Kind::Double, context.device));
        let times = time(context, || {
            let logits = linear::forward(&x, &weight, None);
            drop(cross_entropy::forward_backward(&logits, &labels, &weights));
            drop(linear::backward_input(&logits, &weight));
        });
        let flop = 4.0 * (len * vocab * hidden) as f64;
        let size = format!("{len} x {hidden} x {vocab}");
        rows.add("head and loss, without weight gradient", &size, times, flop, "FLOP");
    }
}

fn pinned_copies(context: &Context, rows: &mut Rows) {
    if !context.device.is_cuda() {
        return;
    }
    let bytes: i64 = if context.is_tiny { 1 << 20 } else { 2 << 30 };
    let size = format!("{} MiB", bytes >> 20);
    let mut on_device = Tensor::ones(bytes, (Kind::Int8, context.device));
    let Ok(mut pinned) = sterna_torch_sys::memory::pinned(&[bytes], Kind::Int8) else { return };
    let times = time(context, || on_device.copy_(&pinned));
    rows.add("host to device, pinned", &size, times, bytes as f64, "B");
    let times = time(context, || pinned.copy_(&on_device));
    rows.add("device to host, pinned", &size, times, bytes as f64, "B");
}

struct Rows {
    table: Table,
    data: Vec<Value>,
}

impl Default for Rows {
    fn default() -> Self {
        let head = ["what", "size", "shortest, ms", "median, ms", "rate"];
        Self { table: Table::new(&head), data: Vec::new() }
    }
}

impl Rows {
    /// A measurement of `amount` of `unit` (`FLOP` or `B`) and returns its rate.
    fn add(&mut self, what: &str, size: &str, times: Times, amount: f64, unit: &str) -> f64 {
        let rate = amount / times.median;
        let shown = match unit {
            "FLOP" => format!("{} TFLOP/s", figures::rate(rate / 1e12)),
            _ => format!("{} GB/s", figures::rate(rate / 1e9)),
        };
        self.table.rows.push(vec![
            what.to_owned(),
            size.to_owned(),
            format!("{:.3}", times.shortest * 1e3),
            format!("{:.3}", times.median * 1e3),
            shown,
        ]);
        self.data.push(json!({
            "what": what, "size": size, "seconds_shortest": times.shortest, "seconds_median": times.median,
            "rate": rate, "unit": format!("{unit}/s"),
        }));
        rate
    }
}

/// bf16 products, square and of the 8B shape; returns the fastest rate, FLOP/s.
fn products(context: &Context, rows: &mut Rows) -> f64 {
    let shapes: &[(i64, i64, i64)] = if context.is_tiny {
        &[(128, 128, 128), (256, 128, 64)]
    } else {
        // Rows are tokens: of a tile of the MLP, and of its way back.
        &[(8192, 8192, 8192), (16_384, 4096, 14_336), (16_384, 14_336, 4096), (16_384, 4096, 6144)]
    };
    let mut best: f64 = 0.0;
    for &(m, k, n) in shapes {
        let random = |size: [i64; 2]| Tensor::randn(size, (Kind::BFloat16, context.device));
        let (a, b) = (random([m, k]), random([n, k]));
        let times = time(context, || drop(a.mm(&b.tr())));
        let flop = 2.0 * (m * k * n) as f64;
        best = best.max(rows.add("bf16 product", &format!("{m} x {k} x {n}"), times, flop, "FLOP"));
    }
    best
}

fn copies(context: &Context, rows: &mut Rows) {
    let bytes: i64 = if context.is_tiny { 1 << 20 } else { 1 << 30 };
    let size = format!("{} MiB", bytes >> 20);
    let random = |device| Tensor::randn(bytes / 4, (Kind::Float, device));
    let on_device = random(context.device);
    let mut other = on_device.empty_like();
    let times = time(context, || other.copy_(&on_device));
    rows.add("copy within the device", &size, times, 2.0 * bytes as f64, "B");
    let pageable = random(Device::Cpu);
    let mut host: Vec<(&str, Tensor)> = vec![("pageable", pageable.copy())];
    // There is nothing to pin memory for without a GPU.
    if context.device.is_cuda() {
        host.push(("pinned", pageable.pin_memory(context.device)));
    }
    for (kind, mut memory) in host {
        let times = time(context, || other.copy_(&memory));
        rows.add(&format!("host to device, {kind}"), &size, times, bytes as f64, "B");
        let times = time(context, || memory.copy_(&other));
        rows.add(&format!("device to host, {kind}"), &size, times, bytes as f64, "B");
    }
}

/// What `sterna-ops` does beside products and attention, at the 8B shape, beside libtorch's own where it has one; and the gradient of a
/// weight, rounded to bf16 and added in fp32.
fn ops(context: &Context, rows: &mut Rows) {
    let (len, width, hidden, vocab) =
        if context.is_tiny { (16, 64, 32, 101) } else { (16_384, 14_336, 4096, 128_256) };
    let random = |size: &[i64]| Tensor::randn(size, (Kind::BFloat16, context.device));
    let (x, d_x) = (random(&[len, hidden]), random(&[len, hidden]));
    let weight = random(&[hidden]);
    let mut add = |what: &str, size: [i64; 2], tensors: i64, work: &mut dyn FnMut()| {
        let bytes = (tensors * size[0] * size[1] * 2) as f64;
        rows.add(what, &format!("{} x {}", size[0], size[1]), time(context, work), bytes, "B");
    };
    let size = [len, hidden];
    add("RMSNorm forward", size, 2, &mut || drop(rms_norm::forward(&x, &weight, 1e-5)));
    add("RMSNorm forward, libtorch's", size, 2, &mut || {
        drop(x.rms_norm(hidden, Some(&weight), 1e-5));
    });
    let mut d_weight = Tensor::zeros(hidden, (Kind::Float, context.device));
    add("RMSNorm backward", size, 3, &mut || {
        drop(rms_norm::backward(&d_x, &x, &weight, 1e-5, Some(&mut d_weight)));
    });
    let [gate, up, d_y] = [0; 3].map(|_| random(&[len, width]));
    let size = [len, width];
    add("SwiGLU forward", size, 3, &mut || drop(swiglu::forward(&gate, &up)));
    add("SwiGLU backward", size, 5, &mut || drop(swiglu::backward(&d_y, &gate, &up)));
    let logits = random(&[len / 16, vocab]);
    let labels = Tensor::zeros(len / 16, (Kind::Int64, context.device));
    let weights = Tensor::ones(len / 16, (Kind::Double, context.device));
    add("cross-entropy with gradient", [len / 16, vocab], 2, &mut || {
        drop(cross_entropy::forward_backward(&logits, &labels, &weights));
    });
    let mut d_weight = Tensor::zeros([width, hidden], (Kind::Float, context.device));
    let flop = 2.0 * (len * width * hidden) as f64;
    let size = format!("{width} x {len} x {hidden}");
    let times = time(context, || drop(d_y.tr().mm(&x)));
    rows.add("weight gradient, bf16", &size, times, flop, "FLOP");
    let times = time(context, || linear::backward_params(&d_y, &x, Some(&mut d_weight), None));
    rows.add("weight gradient, added in fp32", &size, times, flop, "FLOP");
}
