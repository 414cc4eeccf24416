//! What an H200 has to reach, and what was reached.
//!
//! MFU and memory are ours alone. Beside a baseline stands what both do at their own precision of the optimizer: ours keeps fp32 masters (14 bytes a
//! parameter with gradients in fp32), theirs bf16 weights and moments (8), because 18 bytes a parameter of 8B do not fit their card. Their
//! attention may be the same kernel as ours: the report has the one that libtorch's sdpa took.

use anyhow::Result;
use serde::Serialize;
use sterna_bench::figures::thousands;

use crate::baseline::SYSTEMS;
use crate::context::Context;
use crate::longest::{self, Longest};
use crate::recipe::OUT_OF_MEMORY;
use crate::record::Table;
use crate::shape::{self, RunResult, STERNA};

/// Lengths at which baselines are compared, tokens.
const LONG: [usize; 2] = [131_072, 262_144];

/// Tokens, and the percents of MFU that are required and aimed at.
const MFU: [(usize, f64, f64); 3] =
    [(32_768, 42.0, 47.0), (131_072, 45.0, 49.0), (262_144, 45.0, 49.0)];

/// Layers of the shape that speed is required of, and of the slope.
const LAYERS: (usize, usize) = (32, 2);

/// Lengths between which the slope is taken, tokens.
const SLOPES: [(usize, usize); 2] = [(262_144, 524_288), (524_288, 1_048_576)];

/// One line of the requirement.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Requirement {
    /// What is required, with its unit.
    pub what: String,
    /// The least, or the most, that is right.
    pub required: f64,
    /// What was measured.
    pub reached: Option<f64>,
    /// Whether that is enough; `None` if it was not measured.
    pub is_met: Option<bool>,
    /// In words: the figure, or which command measures it.
    pub shown: String,
}

/// The figures that requirements are about.
struct Measured {
    runs: Vec<RunResult>,
    longest: Vec<Longest>,
    /// Of bf16 products: by the datasheet, and as measured.
    rates: [Option<f64>; 2],
}

/// Every requirement, as far as it has been measured.
///
/// # Errors
///
/// A result that cannot be read.
pub fn all(context: &Context) -> Result<Vec<Requirement>> {
    let measured = Measured {
        runs: shape::results(context)?,
        longest: longest::results(context)?,
        rates: [shape::datasheet_rate(context), shape::gemm_rate(context)],
    };
    let mut all = Vec::new();
    for (length, required, aim) in MFU {
        let flop = shape::step_flop(context, length, LAYERS.0)?;
        all.push(measured.mfu(length, flop, required, aim));
    }
    all.extend(LONG.map(|length| measured.speed(length)));
    all.push(measured.length());
    all.extend(SLOPES.map(|(short, long)| measured.slope(short, long)));
    Ok(all)
}

impl Requirement {
    fn at_least(what: String, required: f64, reached: Option<f64>, shown: String) -> Self {
        Self { what, required, reached, is_met: reached.map(|reached| reached >= required), shown }
    }
}

fn command(length: usize) -> String {
    format!("not measured: `bash run.sh long-{}k`", length / 1024)
}

impl Measured {
    fn run(&self, system: &str, length: usize, layers: usize) -> Option<&RunResult> {
        self.runs.iter().find(|run| {
            run.system == system && run.length == length && run.layers == layers && run.is_done()
        })
    }

    fn mfu(&self, length: usize, flop: f64, required: f64, aim: f64) -> Requirement {
        let median = self
            .run(STERNA, length, LAYERS.0)
            .and_then(RunResult::seconds)
            .map(|(_, median)| median);
        let of = |rate: Option<f64>| Some(flop / median? / rate? * 100.0);
        let [of_datasheet, of_measured] = self.rates.map(of);
        let percent = |share: f64| format!("{share:.1}%");
        let shown = match (of_datasheet, of_measured) {
            (Some(share), None) => percent(share),
            (Some(share), Some(measured)) => {
                format!("{share:.1}% ({measured:.1}% of the measured rate)")
            }
            (None, Some(measured)) => {
                format!("{measured:.1}% of the measured rate; the datasheet's is not known")
            }
            (None, None) if median.is_some() => {
                "no rate is known: `bash run.sh ceilings`".to_owned()
            }
            (None, None) => command(length),
        };
        let what =
            format!("MFU at {} tokens, of the datasheet's rate, %; aim {aim}", thousands(length));
        Requirement::at_least(what, required, of_datasheet.or(of_measured), shown)
    }

    fn speed(&self, length: usize) -> Requirement {
        let ours = self.run(STERNA, length, LAYERS.0).and_then(RunResult::seconds);
        let baselines = || {
            self.runs.iter().filter(|run| {
                run.system != STERNA && run.length == length && run.layers == LAYERS.0
            })
        };
        let best = baselines()
            .filter_map(|run| Some((run.seconds()?.1, run.system.as_str())))
            .min_by(|a, b| a.0.total_cmp(&b.0));
        let what = format!(
            "times as fast as the best baseline at {} tokens, each at its own precision of the optimizer",
            thousands(length)
        );
        let without: Vec<String> = SYSTEMS
            .iter()
            .filter(|system| baselines().all(|run| run.system != **system || !run.is_done()))
            .map(|system| {
                let status =
                    baselines().find(|run| run.system == *system).map(|run| run.status.as_str());
                format!("{system}: {}", status.unwrap_or("not run"))
            })
            .collect();
        let others = without.join("; ");
        let (reached, shown) = match (ours, best) {
            (Some((_, ours)), Some((baseline, name))) => {
                let others = if others.is_empty() { others } else { format!("; {others}") };
                let shown = format!(
                    "{:.2}x ({name}: {baseline:.1} s, ours {ours:.1} s{others})",
                    baseline / ours
                );
                (Some(baseline / ours), shown)
            }
            // Nobody to be slower than, if each was tried.
            (Some(_), None) => (None, format!("no baseline has a figure ({others})")),
            _ => (None, command(length)),
        };
        // One that did not run, or only for a warm-up step, might have been faster.
        let has_answered = |system: &&str| {
            baselines().any(|run| {
                run.system == **system
                    && (run.is_done() && !run.has_warmup_only || run.status == OUT_OF_MEMORY)
            })
        };
        let is_sure = SYSTEMS.iter().all(has_answered)
            && self.run(STERNA, length, LAYERS.0).is_some_and(|run| !run.has_warmup_only);
        let is_met = match reached {
            Some(reached) if reached < 1.3 => Some(false),
            Some(_) | None => (is_sure && ours.is_some()).then_some(true),
        };
        Requirement { what, required: 1.3, reached, is_met, shown }
    }

    fn length(&self) -> Requirement {
        let ours = self.longest.iter().find(|found| found.system == STERNA && found.longest > 0);
        let best = self
            .longest
            .iter()
            .filter(|found| found.system != STERNA && found.longest > 0)
            .max_by_key(|found| found.longest);
        let what = "times the best baseline's longest length in the same memory".to_owned();
        let (reached, shown) = match (ours, best) {
            (Some(ours), Some(baseline)) => {
                let ratio = ours.longest as f64 / baseline.longest as f64;
                let shown = format!(
                    "{ratio:.1}x ({} tokens; {}: {})",
                    thousands(ours.longest),
                    baseline.system,
                    thousands(baseline.longest)
                );
                if baseline.shortest_that_does_not_fit.is_none() {
                    // It might go on.
                    let shown = format!("{shown}, whose search ended while steps still fitted");
                    return Requirement { what, required: 4.0, reached: Some(ratio), is_met: None, shown };
                }
                let is_searched =
                    |system: &&str| self.longest.iter().any(|found| found.system == **system && found.longest > 0);
                let left: Vec<&str> =
                    SYSTEMS.iter().copied().filter(|system| !is_searched(system)).collect();
                if ratio >= 4.0 && !left.is_empty() {
                    let shown = format!("{shown}; not searched: {}", left.join(", "));
                    return Requirement { what, required: 4.0, reached: Some(ratio), is_met: None, shown };
                }
                (Some(ratio), shown)
            }
            _ => (None, "not measured: `bash run.sh longest sterna`, then `liger`, `liger-offload`, `deepspeed`, `deepspeed-offload`".to_owned()),
        };
        Requirement::at_least(what, 4.0, reached, shown)
    }

    fn slope(&self, short: usize, long: usize) -> Requirement {
        let peak = |length| self.run(STERNA, length, LAYERS.1)?.device_peak;
        let slope = peak(long).zip(peak(short)).map(|(long_peak, short_peak)| {
            (long_peak as f64 - short_peak as f64) / (long - short) as f64 / 1e3
        });
        let shown = match slope {
            Some(slope) => format!(
                "{slope:.1} KB ({})",
                if slope <= 28.0 { "the aim of 28 is met" } else { "the aim is 28" }
            ),
            None => {
                "not measured: `bash run.sh lease-2`, or `slope-512k` and `slope-1m`".to_owned()
            }
        };
        Requirement {
            what: format!(
                "device memory a token from {} to {} tokens, KB, at most",
                thousands(short),
                thousands(long)
            ),
            required: 60.0,
            reached: slope,
            is_met: slope.map(|slope| slope < 60.0),
            shown,
        }
    }
}

/// The table of the report.
pub fn table(all: &[Requirement]) -> Table {
    let mut table = Table::new(&["what", "required", "reached", ""]);
    for requirement in all {
        let verdict = match requirement.is_met {
            Some(true) => "met",
            Some(false) => "FALLS SHORT",
            None => "open",
        };
        table.rows.push(vec![
            requirement.what.clone(),
            requirement.required.to_string(),
            requirement.shown.clone(),
            verdict.to_owned(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn run(system: &str, length: usize, layers: usize, seconds: f64, peak: u64) -> RunResult {
        RunResult {
            system: system.to_owned(),
            length,
            layers,
            status: "done".to_owned(),
            how: String::new(),
            step_seconds: vec![seconds],
            losses: vec![11.8],
            has_warmup_only: false,
            device_peak: Some(peak),
            host_peak: None,
            is_tiny: false,
        }
    }

    fn found(system: &str, longest: usize) -> Longest {
        Longest {
            system: system.to_owned(),
            status: "done".to_owned(),
            longest,
            shortest_that_does_not_fit: Some(longest + 1),
            tried: Value::Null,
            is_tiny: false,
        }
    }

    #[test]
    fn each_requirement_is_met_or_not_by_the_best_baseline() {
        let mut measured = Measured {
            runs: vec![
                run(STERNA, 131_072, 32, 60.0, 0),
                run("hf", 131_072, 32, 120.0, 0),
                run("liger", 131_072, 32, 75.0, 0),
                run(STERNA, 262_144, 2, 1.0, 30_000_000_000),
                run(STERNA, 524_288, 2, 1.0, 40_000_000_000),
            ],
            longest: vec![
                found(STERNA, 786_432),
                found("liger", 131_072),
                found("deepspeed", 262_144),
            ],
            rates: [Some(1000e12), Some(800e12)],
        };
        let mfu = measured.mfu(131_072, 0.46 * 60.0 * 1000e12, 45.0, 49.0);
        assert_eq!(mfu.is_met, Some(true), "{mfu:?}");
        assert_eq!(measured.mfu(131_072, 0.44 * 60.0 * 1000e12, 45.0, 49.0).is_met, Some(false));
        let speed = measured.speed(131_072);
        assert_eq!((speed.reached, speed.is_met), (Some(1.25), Some(false)));
        assert!(speed.shown.contains("liger"), "{}", speed.shown);
        let length = measured.length();
        assert_eq!((length.reached, length.is_met), (Some(3.0), Some(false)));
        // A baseline whose search was not ended might go further.
        measured.longest[2].shortest_that_does_not_fit = None;
        assert_eq!(measured.length().is_met, None);
        let slope = measured.slope(262_144, 524_288);
        assert!((slope.reached.unwrap() - 38.147).abs() < 1e-3, "{slope:?}");
        assert_eq!(slope.is_met, Some(true));
        let open = measured.speed(262_144);
        assert_eq!(open.is_met, None);
        assert!(open.shown.contains("long-256k"), "{}", open.shown);
        // Where no baseline fits, there is nobody to be slower than.
        measured.runs.push(run(STERNA, 262_144, 32, 190.0, 0));
        assert_eq!(measured.speed(262_144).is_met, None);
        for system in SYSTEMS {
            let status = "out of memory".to_owned();
            measured.runs.push(RunResult { status, ..run(system, 262_144, 32, 0.0, 0) });
        }
        assert_eq!(measured.speed(262_144).is_met, Some(true));
        // One that had no time, or cannot be imported, might have been faster.
        measured.runs.last_mut().unwrap().status = "not run: no time".to_owned();
        assert_eq!(measured.speed(262_144).is_met, None);
    }
}
