//! The shape of Llama-3.1-8B, fully fine-tuned at long lengths: Sterna, and what a user would pick instead, on the same card.
//!
//! Each run leaves `runs/shape/LENGTH-LAYERS-SYSTEM/result.json`; commands at other times add to them, and the report has all.

pub mod profile;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sterna_arch::ModelConfig;
use sterna_bench::figures::{shortest_and_median, thousands};
use sterna_bench::process::End;
use sterna_train::observe::flops::model_tflos;

use self::profile::Profile;
use crate::baseline::{Baseline, SYSTEMS};
use crate::context::Context;
use crate::recipe::{DONE, Training, write_documents};
use crate::record::{Findings, Section, Table, read_json, write_json};

/// Ours, beside [`SYSTEMS`].
pub const STERNA: &str = "sterna";

/// What one run measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// [`STERNA`] or one of [`SYSTEMS`].
    pub system: String,
    /// Tokens of the one document of a step.
    pub length: usize,
    /// Layers of the shape.
    pub layers: usize,
    /// `done`, `out of memory`, `not run: ..` or `failed: ..`.
    pub status: String,
    /// Settings of ours.
    pub how: String,
    /// Of the measured steps.
    pub step_seconds: Vec<f64>,
    /// Whether that is the first step, because the time was up before another had ended: it is longer than others, by what is pinned,
    /// planned and compiled in it.
    #[serde(default)]
    pub has_warmup_only: bool,
    /// Of all steps.
    pub losses: Vec<f64>,
    /// What the allocator had taken of the GPU at most.
    pub device_peak: Option<u64>,
    /// Resident.
    pub host_peak: Option<u64>,
    /// Whether it was run with `--tiny`, and says nothing of the machine.
    pub is_tiny: bool,
}

impl RunResult {
    /// Whether it has figures.
    pub fn is_done(&self) -> bool {
        self.status == DONE
    }

    /// Shortest and median seconds of a step.
    pub fn seconds(&self) -> Option<(f64, f64)> {
        if self.is_done() { shortest_and_median(self.step_seconds.clone()) } else { None }
    }
}

/// A length and a number of layers, and how often.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Tokens.
    pub length: usize,
    /// Layers, at most those of the config.
    pub layers: usize,
    /// Steps that are measured, after one that is not.
    pub steps: usize,
    /// Our settings; the fastest that fit, if `None`.
    pub profile: Option<Profile>,
}

/// Runs `systems` at `case` one after the other, ours first, until the time is up; those left are told so.
///
/// # Errors
///
/// When a program cannot be started or a file not be written.
pub fn run(context: &Context, case: Case, systems: &[&str]) -> Result<Findings> {
    let model = model_folder(context);
    for (i, &system) in systems.iter().enumerate() {
        let folder = folder(context, case, system);
        let left = context.time_left();
        // What is too little for a start and a step is left to the command for this system alone.
        let least = Duration::from_secs(if context.is_tiny { 1 } else { 30 });
        if i > 0 && left < least {
            if !folder.join("result.json").exists() {
                let status =
                    format!("{NOT_RUN}: the time of this command was spent before it; {ALONE}");
                write_json(&folder.join("result.json"), &not_run(context, case, system, &status))?;
            }
            continue;
        }
        let result = if system == STERNA {
            ours(context, case, &model, &folder, &[])?
        } else {
            theirs(context, case, &model, system, &folder)?
        };
        write_json(&folder.join("result.json"), &result)?;
    }
    let results: Vec<RunResult> = results(context)?
        .into_iter()
        .filter(|result| result.length == case.length && result.layers == case.layers)
        .collect();
    findings(context, &results)
}

/// The folder with `config.json` of the shape.
pub fn model_folder(context: &Context) -> PathBuf {
    context.inputs.join(if context.is_tiny { "tiny" } else { "llama-3.1-8b" })
}

/// Layers of the shape itself.
///
/// # Errors
///
/// A config that cannot be read.
pub fn all_layers(context: &Context) -> Result<usize> {
    let config = ModelConfig::from_dir(&model_folder(context)).context("the shape's config")?;
    Ok(config.num_hidden_layers())
}

/// Tokens of a length that a section is about: small for a tiny run, powers of two in the same order.
pub fn length(context: &Context, length: usize) -> usize {
    if context.is_tiny { length >> 8 } else { length }
}

/// The shape with `layers` layers.
///
/// # Errors
///
/// A config that cannot be read.
pub fn model_config(context: &Context, layers: usize) -> Result<ModelConfig> {
    let config = ModelConfig::from_dir(&model_folder(context)).context("the shape's config")?;
    let changes = json!({"num_hidden_layers": layers});
    let changes = changes.as_object().context("an object")?.clone();
    config.with_overrides(&changes).context("the shape with other layers")
}

/// Where the run of a system is.
pub fn folder(context: &Context, case: Case, system: &str) -> PathBuf {
    context.out.join(format!("runs/shape/{}-{}-{system}", case.length, case.layers))
}

/// A run without figures.
pub fn not_run(context: &Context, case: Case, system: &str, status: &str) -> RunResult {
    RunResult {
        system: system.to_owned(),
        length: case.length,
        layers: case.layers,
        status: status.to_owned(),
        how: String::new(),
        step_seconds: Vec::new(),
        has_warmup_only: false,
        losses: Vec::new(),
        device_peak: None,
        host_peak: None,
        is_tiny: context.is_tiny,
    }
}

/// A training of ours at `case`, but for its memory settings.
pub fn training(
    context: &Context,
    case: Case,
    model: &Path,
    folder: &Path,
    data: &Path,
) -> Training {
    let positions = json!(case.length.max(131_072));
    Training {
        folder: folder.to_owned(),
        model: model.to_owned(),
        data: data.to_owned(),
        max_length: case.length,
        steps: case.steps + 1,
        settings: vec![
            ("model.dtype".to_owned(), json!("bf16")),
            ("model.hf_config_kwargs.num_hidden_layers".to_owned(), json!(case.layers)),
            ("model.hf_config_kwargs.max_position_embeddings".to_owned(), positions),
        ],
        device: context.device_name(),
        ranks: 1,
    }
}

/// Trains ours at `case` in `folder`, with settings of the recipe on top of the profile's.
///
/// # Errors
///
/// When the program cannot be started or a file not be written.
pub fn ours(
    context: &Context,
    case: Case,
    model: &Path,
    folder: &Path,
    settings: &[(String, Value)],
) -> Result<RunResult> {
    let data = folder.join("documents.jsonl");
    write_documents(&data, &vec![case.length; case.steps + 1])?;
    let mut training = training(context, case, model, folder, &data);
    let profile = case.profile.unwrap_or_else(|| Profile::choose(context, &training));
    training.settings.extend(profile.settings());
    training.settings.extend_from_slice(settings);
    let trained = training.run(context)?;
    fs::remove_file(&data).ok();
    let seconds: Vec<f64> = trained.steps.iter().map(|step| step.seconds).collect();
    let (warmup, measured) = seconds.split_at(seconds.len().min(1));
    let has_warmup_only = trained.watched.end == End::TimedOut && measured.is_empty();
    let (status, step_seconds) = if trained.watched.end == End::TimedOut {
        timed_out(warmup, measured)
    } else {
        (trained.status(case.steps + 1), measured.to_vec())
    };
    Ok(RunResult {
        status,
        how: profile.name(),
        step_seconds,
        has_warmup_only,
        losses: trained.steps.iter().map(|step| step.loss).collect(),
        device_peak: trained.device_peak(),
        host_peak: trained.host_peak(),
        ..not_run(context, case, STERNA, "")
    })
}

/// What is made of a run that was ended after its time: the steps that it measured, or else the first, which the report then says.
fn timed_out(warmup: &[f64], measured: &[f64]) -> (String, Vec<f64>) {
    let seconds = if measured.is_empty() { warmup } else { measured };
    if seconds.is_empty() {
        (format!("{NOT_RUN}: no step ended in the time of this command; {ALONE}"), Vec::new())
    } else {
        (DONE.to_owned(), seconds.to_vec())
    }
}

/// How the status of what was not measured begins.
const NOT_RUN: &str = "not run";

/// What to do about a system that others took the time of: how such a status ends.
pub const ALONE: &str = "name it alone behind the command";

fn theirs(
    context: &Context,
    case: Case,
    model: &Path,
    system: &str,
    folder: &Path,
) -> Result<RunResult> {
    let baseline = Baseline {
        system,
        config: &model.join("config.json"),
        layers: case.layers,
        lengths: &[case.length],
        warmup: 1,
        steps: case.steps,
        folder,
        limit: context.time_left(),
    };
    let result = baseline.run(context)?;
    let numbers = |value: &Value| -> Vec<f64> {
        value
            .as_array()
            .map(|all| all.iter().filter_map(Value::as_f64).collect())
            .unwrap_or_default()
    };
    let measured = numbers(&result["step_seconds"]);
    let has_warmup_only = result["timed_out"] == json!(true) && measured.is_empty();
    let (status, step_seconds) = if result["timed_out"] == json!(true) {
        timed_out(&numbers(&result["warmup_seconds"]), &measured)
    } else {
        let status = result["status"].as_str().unwrap_or("failed: it wrote no result");
        (status.to_owned(), measured)
    };
    Ok(RunResult {
        status,
        step_seconds,
        how: result["attention_kernel"].as_str().unwrap_or_default().to_owned(),
        has_warmup_only,
        losses: numbers(&result["losses"]),
        device_peak: result["device_peak_bytes"].as_u64(),
        host_peak: result["host_peak_bytes"].as_u64(),
        ..not_run(context, case, system, "")
    })
}

/// What all runs so far measured, by layers, length and system.
///
/// # Errors
///
/// A result that cannot be read.
pub fn results(context: &Context) -> Result<Vec<RunResult>> {
    let mut results: Vec<RunResult> = Vec::new();
    let folder = context.out.join("runs/shape");
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path().join("result.json");
        if path.exists() {
            results.push(read_json(&path)?);
        }
    }
    results.retain(|result| result.is_tiny == context.is_tiny);
    let place = |system: &str| SYSTEMS.iter().position(|name| *name == system).map_or(0, |i| i + 1);
    results.sort_by_key(|result| {
        (std::cmp::Reverse(result.layers), result.length, place(&result.system))
    });
    Ok(results)
}

/// Model FLOPs of a step: causal attention counted once, nothing twice.
///
/// # Errors
///
/// As [`model_config`].
pub fn step_flop(context: &Context, length: usize, layers: usize) -> Result<f64> {
    Ok(model_tflos(&model_config(context, layers)?.arch, std::iter::once(length), length) * 1e12)
}

/// The rate of bf16 products that `ceilings` measured.
pub fn gemm_rate(context: &Context) -> Option<f64> {
    ["ceilings", "lease-ceilings"].iter().find_map(|name| {
        Section::read(&context.out, name)?.findings.data[crate::ceilings::GEMM_RATE].as_f64()
    })
}

/// The datasheet's rate of bf16 products for this card, FLOP/s; `None` on a CPU and for a card that no table of ours has.
pub fn datasheet_rate(context: &Context) -> Option<f64> {
    let tch::Device::Cuda(index) = context.device else { return None };
    let name = match crate::machine::card(context) {
        Some(card) => card.name,
        None => sterna_torch_sys::cuda::properties(index).ok()?.name,
    };
    sterna_train::observe::flops::datasheet_rate(&name)
}

/// The table of some runs, and what failed in them.
///
/// # Errors
///
/// As [`step_flop`].
pub fn findings(context: &Context, results: &[RunResult]) -> Result<Findings> {
    let head = [
        "tokens",
        "layers",
        "system",
        "step, s: shortest / median",
        "tokens/s",
        "MFU of datasheet / of measured",
        "device, GB",
        "host, GB",
        "loss, first / last",
        "ours is faster by",
        "how",
    ];
    let mut findings = Findings { tables: vec![Table::new(&head)], ..Findings::default() };
    let (rate, datasheet) = (gemm_rate(context), datasheet_rate(context));
    let mut data = Vec::new();
    for result in results {
        let flop = step_flop(context, result.length, result.layers)?;
        let mfu = |rate: f64| result.seconds().map(|(_, median)| flop / median / rate);
        let (of_measured, of_datasheet) = (rate.and_then(mfu), datasheet.and_then(mfu));
        let ratio = results
            .iter()
            .find(|other| {
                other.system == STERNA
                    && other.length == result.length
                    && other.layers == result.layers
            })
            .filter(|_| result.system != STERNA)
            .and_then(|ours| Some(result.seconds()?.1 / ours.seconds()?.1));
        findings.tables[0].rows.push(row(result, of_measured, of_datasheet, ratio));
        data.push(json!({
            "run": result, "model_flop": flop, "mfu_of_measured": of_measured, "mfu_of_datasheet": of_datasheet,
            "times_slower_than_sterna": ratio,
        }));
        // A baseline that is not there or does not fit is a result; ours has to run.
        let is_wrong =
            result.status.starts_with("failed") || (result.system == STERNA && !result.is_done());
        if is_wrong {
            findings.fail(&format!(
                "{} at {} tokens: {}",
                result.system,
                thousands(result.length),
                result.status
            ));
        }
    }
    findings.notes.push(
        "Full fine-tuning in bf16, one document of the exact length a step, every token a label, one warm-up step. FLOPs of the model: causal \
         attention counted once, no recompute. Of the median step. Device: what libtorch's allocator had taken at most; host: resident at \
         most. GB are 10^9 bytes."
            .to_owned(),
    );
    findings.notes.push(
        "Ours: fp32 masters and gradients, bf16 moments: 14 bytes a parameter with the weights; attention outputs are kept as far as memory \
         goes. Baselines: torch.optim.AdamW(fused=True) on bf16 weights and bf16 moments without fp32 masters, 8 bytes a parameter, gradients \
         freed between steps. A system builds on the one above it: gradient checkpointing of every layer; liger-kernel; DeepSpeed's tiled \
         MLP and tiled loss in place of liger; the same with the inputs of layers on the host."
            .to_owned(),
    );
    findings.data = json!(data);
    Ok(findings)
}

fn row(
    result: &RunResult,
    of_measured: Option<f64>,
    of_datasheet: Option<f64>,
    ratio: Option<f64>,
) -> Vec<String> {
    let dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let percent = |share: Option<f64>| dash(share.map(|share| format!("{:.1}%", share * 100.0)));
    let gigabytes =
        |bytes: Option<u64>| dash(bytes.map(|bytes| format!("{:.2}", bytes as f64 / 1e9)));
    let seconds = result.seconds();
    let time = match seconds {
        Some((_, only)) if result.has_warmup_only => format!("{only:.2}, the first step only"),
        Some((shortest, median)) => format!("{shortest:.2} / {median:.2}"),
        None => result.status.replace('|', "/"),
    };
    let speed =
        seconds.map(|(_, median)| thousands((result.length as f64 / median).round() as usize));
    let losses = result.losses.first().zip(result.losses.last());
    vec![
        thousands(result.length),
        result.layers.to_string(),
        result.system.clone(),
        time,
        dash(speed),
        format!("{} / {}", percent(of_datasheet), percent(of_measured)),
        gigabytes(result.device_peak),
        gigabytes(result.host_peak),
        dash(losses.map(|(first, last)| format!("{first:.3} / {last:.3}"))),
        dash(ratio.map(|ratio| format!("{ratio:.2}x"))),
        result.how.clone(),
    ]
}
