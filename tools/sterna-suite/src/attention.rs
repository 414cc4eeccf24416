//! Attention at head size 128 over lengths, forward and backward, by flash and by cuDNN; and from which length cuDNN is faster.
//!
//! `sterna-ops` gives documents from `LEAST_CUDNN_LEN` tokens on to cuDNN. This section measures where that should be.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};
use sterna_bench::figures::{rate, thousands};
use sterna_ops::attention::{AttentionSpec, Documents, Implementation, backward, forward};
use sterna_torch_sys::cuda_attention::{
    PackedLengths, cudnn_backward, cudnn_forward, flash_backward, flash_forward,
};
use tch::{Kind, Tensor};

use crate::context::Context;
use crate::record::{Findings, Table};
use crate::timing::{Times, time};

/// Query heads, kv heads and head size of Llama-3.1-8B.
const HEADS: (i64, i64, i64) = (32, 8, 128);

/// From where `sterna-ops` takes cuDNN, tokens (`attention/choice.rs`).
const CHOSEN: usize = 16_384;

/// Who computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kernel {
    Flash,
    Cudnn,
    /// The one there is.
    Cpu,
}

impl Kernel {
    fn name(self) -> &'static str {
        match self {
            Self::Flash => "flash",
            Self::Cudnn => "cuDNN",
            Self::Cpu => "CPU",
        }
    }
}

/// Times of one kernel at one length.
#[derive(Debug, Clone, Copy)]
struct Measured {
    len: i64,
    kernel: Kernel,
    forward: Times,
    backward: Times,
}

impl Measured {
    /// Seconds of forward and backward.
    fn both(&self) -> f64 {
        self.forward.median + self.backward.median
    }

    /// What the first calls took longer than the others: cuDNN's plans.
    fn plan(&self) -> f64 {
        let more = |times: Times| times.first - times.median;
        (more(self.forward) + more(self.backward)).max(0.0)
    }
}

/// Measures all lengths.
///
/// # Errors
///
/// None: a kernel that refuses is a failure among the findings.
pub fn run(context: &Context) -> Result<Findings> {
    let lens = [1024, 2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072];
    Ok(measure_all(context, &lens, i64::MAX))
}

/// The lengths that a lease asks about: where cuDNN may begin to pay, by both kernels, and what a step of 32K and of 128K takes, by cuDNN.
///
/// # Errors
///
/// As [`run`].
pub fn run_of_lease(context: &Context) -> Result<Findings> {
    Ok(measure_all(context, &[2048, 4096, 8192, 32_768, 131_072], 8192))
}

/// Up to `longest_of_flash` tokens by each kernel, from there by cuDNN.
fn measure_all(context: &Context, lens: &[i64], longest_of_flash: i64) -> Findings {
    let lens = if context.is_tiny { &[64, 128] } else { lens };
    let kernels: &[Kernel] =
        if context.device.is_cuda() { &[Kernel::Flash, Kernel::Cudnn] } else { &[Kernel::Cpu] };
    let mut measured = Vec::new();
    let mut findings = Findings::default();
    let mut left = String::new();
    for &len in lens {
        // What was measured is worth more than the longest length.
        if context.time_left() < Duration::from_secs(12) && !context.is_tiny {
            left = format!(" The time was up before {} tokens.", thousands(len as usize));
            break;
        }
        for &kernel in kernels {
            if kernel == Kernel::Flash && len > longest_of_flash {
                continue;
            }
            match measure(context, len, kernel) {
                Ok(times) => measured.push(times),
                Err(error) => findings.fail(&format!(
                    "{} of {} tokens: {error}",
                    kernel.name(),
                    thousands(len as usize)
                )),
            }
        }
    }
    findings.tables = vec![table(&measured)];
    findings.notes = vec![
        format!(
            "bf16, causal, {} query heads on {} of size {}. FLOPs: half of the square, backward 2.5 times the forward.{left}",
            HEADS.0, HEADS.1, HEADS.2
        ),
        crossover_text(&measured),
    ];
    findings.data = json!({
        "rows": measured.iter().map(to_json).collect::<Vec<_>>(),
        "cudnn_faster_from": crossover(&measured),
        "cudnn_chosen_from": CHOSEN,
    });
    findings
}

fn measure(context: &Context, len: i64, kernel: Kernel) -> Result<Measured> {
    let (queries, kvs, dim) = HEADS;
    let random = |heads| Tensor::randn([len, heads, dim], (Kind::BFloat16, context.device));
    let (q, k, v, d_o) = (random(queries), random(kvs), random(kvs), random(queries));
    let scale = 1.0 / (dim as f64).sqrt();
    let spec = AttentionSpec {
        kv_of_q: (0..queries).map(|head| (head * kvs / queries) as usize).collect(),
        scale,
        softcap: None,
        sliding_window: None,
        implementation: Implementation::Automatic,
    };
    let documents = Documents::new(std::iter::once(0..len).collect());
    let ends = Tensor::from_slice(&[0, len as i32]).to_device(context.device);
    let lengths = PackedLengths {
        cu_seqlens_q: ends.shallow_clone(),
        cu_seqlens_k: ends,
        max_q: len,
        max_k: len,
        left: None,
        right: Some(0),
    };
    let run_forward = || match kernel {
        Kernel::Flash => flash_forward([&q, &k, &v], &lengths, scale),
        Kernel::Cudnn => cudnn_forward([&q, &k, &v], true, scale),
        Kernel::Cpu => Ok(forward(&q, &k, &v, &spec, &documents)),
    };
    context.synchronize();
    let started = Instant::now();
    let (o, lse) = run_forward()?;
    context.synchronize();
    let first = started.elapsed().as_secs_f64();
    let inputs = [&d_o, &q, &k, &v, &o, &lse];
    let run_backward = || match kernel {
        Kernel::Flash => flash_backward(inputs, &lengths, scale).map(drop),
        Kernel::Cudnn => cudnn_backward(inputs, true, scale).map(drop),
        Kernel::Cpu => {
            drop(backward(&d_o, &q, &k, &v, &o, &lse, &spec, &documents));
            Ok(())
        }
    };
    let mut failed = None;
    let mut timed = |work: &dyn Fn() -> Result<(), sterna_torch_sys::Error>| {
        time(context, || {
            if let Err(error) = work() {
                failed = Some(error);
            }
        })
    };
    let forward = Times { first, ..timed(&|| run_forward().map(drop)) };
    let backward = timed(&run_backward);
    match failed {
        Some(error) => Err(error.into()),
        None => Ok(Measured { len, kernel, forward, backward }),
    }
}

/// FLOPs of the forward: two products of half a square for each query head.
pub(crate) fn forward_flop(len: i64) -> f64 {
    let (queries, _, dim) = HEADS;
    2.0 * (queries * dim) as f64 * (len as f64).powi(2)
}

fn table(measured: &[Measured]) -> Table {
    let head = [
        "tokens",
        "kernel",
        "forward, ms",
        "TFLOP/s",
        "backward, ms",
        "TFLOP/s",
        "first calls take longer by, ms",
    ];
    let mut table = Table::new(&head);
    for row in measured {
        let flop = forward_flop(row.len);
        table.rows.push(vec![
            thousands(row.len as usize),
            row.kernel.name().to_owned(),
            format!("{:.3}", row.forward.median * 1e3),
            rate(flop / row.forward.median / 1e12),
            format!("{:.3}", row.backward.median * 1e3),
            rate(2.5 * flop / row.backward.median / 1e12),
            format!("{:.1}", row.plan() * 1e3),
        ]);
    }
    table
}

fn to_json(row: &Measured) -> Value {
    json!({
        "tokens": row.len,
        "kernel": row.kernel.name(),
        "forward_seconds_shortest": row.forward.shortest,
        "forward_seconds_median": row.forward.median,
        "backward_seconds_shortest": row.backward.shortest,
        "backward_seconds_median": row.backward.median,
        "first_calls_longer_by_seconds": row.plan(),
    })
}

/// The pairs of times at one length, ascending: flash and cuDNN.
fn pairs(measured: &[Measured]) -> Vec<(&Measured, &Measured)> {
    let of = |kernel| measured.iter().filter(move |row| row.kernel == kernel);
    of(Kernel::Flash)
        .filter_map(|flash| Some((flash, of(Kernel::Cudnn).find(|cudnn| cudnn.len == flash.len)?)))
        .collect()
}

/// The least measured length from which on cuDNN is the faster of the two at every longer one, forward and backward together.
fn crossover(measured: &[Measured]) -> Option<i64> {
    let pairs = pairs(measured);
    let faster = pairs.iter().rev().take_while(|(flash, cudnn)| cudnn.both() < flash.both());
    faster.last().map(|(flash, _)| flash.len)
}

/// The crossover in words, beside what `sterna-ops` does today and what a plan costs there.
fn crossover_text(measured: &[Measured]) -> String {
    let pairs = pairs(measured);
    if pairs.is_empty() {
        return "Crossover of flash and cuDNN: both need a GPU.".to_owned();
    }
    let today = format!("sterna-ops takes cuDNN from {} tokens on.", thousands(CHOSEN));
    let Some(len) = crossover(measured) else {
        return format!("Crossover: cuDNN is not faster at the longest length. {today}");
    };
    let (flash, cudnn) = pairs
        .iter()
        .find(|(flash, _)| flash.len == len)
        .expect("the crossover is one of the lengths");
    let uses = cudnn.plan() / (flash.both() - cudnn.both());
    format!(
        "Crossover: cuDNN is faster from {} tokens on, forward and backward together. Its plans for a new length cost {:.0} ms there, \
         which {uses:.0} layers win back. {today}",
        thousands(len as usize),
        cudnn.plan() * 1e3,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(len: i64, kernel: Kernel, seconds: f64) -> Measured {
        let times = Times { first: seconds, shortest: seconds, median: seconds };
        let first = Times { first: seconds + 0.5, ..times };
        Measured { len, kernel, forward: first, backward: times }
    }

    #[test]
    fn the_crossover_holds_for_every_longer_document() {
        let rows = |cudnn: [f64; 4]| -> Vec<Measured> {
            let lens = [1, 2, 4, 8];
            let flash = lens.map(|len| row(len, Kernel::Flash, len as f64));
            let cudnn = (0..4).map(|i| row(lens[i], Kernel::Cudnn, cudnn[i]));
            flash.into_iter().chain(cudnn).collect()
        };
        // Faster at 1 by chance, slower at 2.
        let found = rows([0.5, 2.5, 3.5, 6.0]);
        assert_eq!(crossover(&found), Some(4));
        let text = crossover_text(&found);
        assert!(text.starts_with("Crossover: cuDNN is faster from 4 tokens on"), "{text}");
        // Plans cost 0.5 s, and each layer wins 2 * (4 - 3.5).
        assert!(text.contains("cost 500 ms there, which 0 layers"), "{text}");
        assert_eq!(crossover(&rows([0.5, 1.0, 2.0, 9.0])), None);
    }
}
