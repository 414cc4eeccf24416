//! What the card can do at most: matrix products, copies within it, copies to and from the host.

use anyhow::Result;
use serde_json::{Value, json};
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
    let mut findings = Findings {
        tables: vec![rows.table],
        notes: vec![
            "Random numbers, not zeros, which run faster. A rate is that of the median; a copy within the device counts bytes read and \
             bytes written."
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
            "FLOP" => format!("{:.1} TFLOP/s", rate / 1e12),
            _ => format!("{:.1} GB/s", rate / 1e9),
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
