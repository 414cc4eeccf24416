//! What a training run prints.
//!
//! The metrics line is the reference's, letter by letter, so that whatever people grep for keeps working; what we add
//! stands behind it. Everything goes to stderr: stdout is for data.

mod banner;
mod narrator;
mod screen;

use std::time::Duration;

use sterna_train::{EvalMetrics, IterationMetrics, SourceMetrics};

pub(crate) use narrator::Narrator;
pub(crate) use screen::Screen;

const GIB: f64 = (1_u64 << 30) as f64;

/// The reference's line for one optimizer step, then tokens a second, the gradient's norm and the peak memory.
pub(crate) fn iteration_line(metrics: &IterationMetrics) -> String {
    let memory = &metrics.memory;
    let node_percent = 100.0 * memory.node as f64 / (memory.node_total as f64).max(1.0);
    let head = [
        progress("Train", metrics.iter, metrics.max_iter),
        format!("loss: {:.4}", metrics.loss),
        format!("iter time: {}", seconds(metrics.iter_time)),
        format!("iter tflops: {:.1}", metrics.iter_tflops),
        format!("lr: {}", scientific(metrics.lr)),
        format!("seqlen: {}", base10(metrics.seqlen)),
        format!("step time: {}", seconds(metrics.step_time)),
        format!("step tflops: {:.1}", metrics.step_tflops),
        format!("epoch: {}", metrics.epoch),
    ];
    let tail = [
        format!(
            "CPU mem: proc {:.2} GB / node {:.2} GB ({node_percent:.1}%)",
            memory.process as f64 / GIB,
            memory.node as f64 / GIB
        ),
        format!("tok/s: {}", base10(metrics.tokens_per_second)),
        format!("mfu: {:.1}%", 100.0 * metrics.mfu),
        format!("grad norm: {:.4}", metrics.grad_norm),
        format!("peak mem: {:.2} GB", metrics.peak_memory as f64 / GIB),
    ];
    head.into_iter().chain(gpu_memory(metrics)).chain(tail).collect::<Vec<_>>().join(" | ")
}

/// Memory of the GPU in the reference's words: what tensors have, what they had at most in this step, and what all processes
/// use of it. Nothing on a CPU, and no `NV` without NVML.
fn gpu_memory(metrics: &IterationMetrics) -> Vec<String> {
    let gigabytes = |name: &str, bytes: u64| format!("{name} {:.2} GB", bytes as f64 / GIB);
    let Some(device) = &metrics.device_memory else { return Vec::new() };
    let mut parts = vec![
        gigabytes("MA", device.allocated),
        gigabytes("Max_MA", device.allocated_peak),
        gigabytes("reserved", device.reserved_peak),
    ];
    parts.extend(metrics.board_memory.map(|board| gigabytes("NV", board.used)));
    parts
}

/// The line for one evaluation.
pub(crate) fn eval_line(metrics: &EvalMetrics) -> String {
    let of_source = |source: &SourceMetrics| {
        let loss = source.loss.map_or_else(|| "no labels".to_owned(), |loss| format!("{loss:.4}"));
        format!("{}: {loss}", source.name)
    };
    let by_source: Vec<String> = metrics.sources.iter().map(of_source).collect();
    let by_source =
        if by_source.is_empty() { String::new() } else { format!(" ({})", by_source.join(", ")) };
    [
        progress("Eval", metrics.iter, metrics.max_iter),
        format!("loss: {:.4}{by_source}", metrics.loss),
        format!("samples: {}", metrics.num_samples),
        format!("labels: {}", metrics.num_valid_tokens),
        format!("eval time: {}", seconds(metrics.time)),
    ]
    .join(" | ")
}

/// `Train iter:  3/30  10%`.
fn progress(kind: &str, iter: u64, max_iter: u64) -> String {
    let width = max_iter.to_string().len();
    let percent = 100 * iter / max_iter.max(1);
    format!("{kind:>5} iter: {iter:>width$}/{max_iter} {percent:>3}%")
}

/// `12.345s`, from a minute on `0:01:05`, from a day on `1 day, 0:01:05`.
fn seconds(time: f64) -> String {
    if time < 60.0 {
        return format!("{time:.3}s");
    }
    let whole = Duration::from_secs_f64(time).as_secs();
    let clock = format!("{}:{:02}:{:02}", whole / 3600 % 24, whole / 60 % 60, whole % 60);
    match whole / 86_400 {
        0 => clock,
        1 => format!("1 day, {clock}"),
        days => format!("{days} days, {clock}"),
    }
}

/// `1.000E-05`: three digits and an exponent of at least two.
fn scientific(value: f64) -> String {
    let text = format!("{value:.3E}");
    let Some((mantissa, exponent)) = text.split_once('E') else {
        return text;
    };
    let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |digits| ('-', digits));
    format!("{mantissa}E{sign}{digits:0>2}")
}

/// `3.80M`: two decimals and a unit of a power of a thousand; `0` is plain.
pub(crate) fn base10(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let units = ["", "K", "M", "B", "T"];
    let mut scaled = value;
    let mut unit = 0;
    while scaled.abs() >= 1000.0 && unit + 1 < units.len() {
        scaled /= 1000.0;
        unit += 1;
    }
    format!("{scaled:.2}{}", units[unit])
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;
    use sterna_train::{HostMemory, StepMemory, StepTime};

    use super::*;

    #[test]
    fn the_line_starts_as_the_reference_writes_it() {
        let metrics = IterationMetrics {
            is_skipped: false,
            epoch: 0,
            iter: 3,
            max_iter: 30,
            loss: 1.234_5,
            lr: 1e-5,
            grad_norm: 0.987_65,
            moe_load_max_over_mean: None,
            seqlen: 3_800_000.0,
            num_tokens: 3_799_000,
            num_valid_tokens: 1_000_000,
            sources: Vec::new(),
            figures: Vec::new(),
            iter_time: 12.345,
            step_time: 12.3,
            iter_tflops: 456.7,
            step_tflops: 457.9,
            tokens_per_second: 307_736.0,
            mfu: 0.5,
            peak_memory: 95 << 30,
            memory: HostMemory {
                process: 90 << 30,
                process_peak: 95 << 30,
                node: 700 << 30,
                node_total: 1939 << 30,
            },
            device_memory: None,
            board_memory: None,
            phase_time: StepTime::default(),
            phases: StepMemory::default(),
        };
        // The first 11 fields are from arctic_training's documented output; it has device memory before `CPU mem`.
        assert_snapshot!(iteration_line(&metrics), @"Train iter:  3/30  10% | loss: 1.2345 | iter time: 12.345s | iter tflops: 456.7 | lr: 1.000E-05 | seqlen: 3.80M | step time: 12.300s | step tflops: 457.9 | epoch: 0 | CPU mem: proc 90.00 GB / node 700.00 GB (36.1%) | tok/s: 307.74K | mfu: 50.0% | grad norm: 0.9877 | peak mem: 95.00 GB");
    }

    #[test]
    fn an_evaluation_is_aligned_with_it() {
        let mut metrics = EvalMetrics {
            iter: 1,
            max_iter: 4,
            loss: 2.5,
            num_valid_tokens: 512,
            sources: Vec::new(),
            figures: Vec::new(),
            num_samples: 6,
            time: 3.25,
        };
        assert_snapshot!(eval_line(&metrics), @" Eval iter: 1/4  25% | loss: 2.5000 | samples: 6 | labels: 512 | eval time: 3.250s");
        let of_source = |name: &str, loss| SourceMetrics {
            name: name.to_owned(),
            split: "train".to_owned(),
            loss,
            num_tokens: 600,
            num_valid_tokens: 512,
        };
        metrics.sources = vec![of_source("chats.jsonl", Some(2.5)), of_source("code.jsonl", None)];
        assert_snapshot!(eval_line(&metrics), @" Eval iter: 1/4  25% | loss: 2.5000 (chats.jsonl: 2.5000, code.jsonl: no labels) | samples: 6 | labels: 512 | eval time: 3.250s");
    }

    #[test]
    fn numbers_read_as_python_prints_them() {
        // Expected values are what CPython 3.11 prints for the reference's format strings.
        assert_eq!(
            [0.0, 1e-5, 1.5e10, 2.0].map(scientific),
            ["0.000E+00", "1.000E-05", "1.500E+10", "2.000E+00"]
        );
        assert_eq!(
            [59.999_4, 60.0, 3_725.9, 90_061.0].map(seconds),
            ["59.999s", "0:01:00", "1:02:05", "1 day, 1:01:01"]
        );
        assert_eq!([0.0, 512.0, 2048.0, 3.8e6].map(base10), ["0", "512.00", "2.05K", "3.80M"]);
    }
}
