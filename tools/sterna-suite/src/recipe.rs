//! Recipes and data of the suite's own trainings.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use sterna_bench::metrics::{self, Step};
use sterna_bench::process::{self, End, Limits, Ranks, Watched};

use crate::context::Context;

/// Tokens of a chat beside its text. The tokenizer has one for each of the four markers, and one for each character.
const MARKUP: usize = 4 + "user\n\nassistant\n\n".len();

/// Writes a chat of exactly so many tokens for each of `lens` to `path`, for the tokenizer of `inputs/tokenizer`.
///
/// # Errors
///
/// When the folder cannot be written to.
pub fn write_documents(path: &Path, lens: &[usize]) -> Result<()> {
    let line = |(row, len): (usize, &usize)| chat(row, len.saturating_sub(MARKUP + 1).max(1));
    let lines: Vec<String> = lens.iter().enumerate().map(line).collect();
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, lines.join("\n") + "\n")
        .with_context(|| format!("cannot write `{}`", path.display()))
}

/// A chat whose answer has `answer_len` characters, others in each row: a generator of Lehmer draws them.
fn chat(row: usize, answer_len: usize) -> String {
    let mut state = row as u64 * 7919 + 1;
    let mut next = || {
        state = state * 48_271 % 0x7fff_ffff;
        char::from(b' ' + (state % 95) as u8)
    };
    let answer: String = (0..answer_len).map(|_| next()).collect();
    json!({"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]})
        .to_string()
}

/// With fewer bytes available a run is ended, before the system ends it or something else: pinned memory is nobody's to the system.
/// 0 where the machine does not say how much there is.
pub fn least_available(context: &Context) -> u64 {
    if context.host_bytes.is_some() { 0 } else { 3 << 30 }
}

/// The status of what went through.
pub const DONE: &str = "done";

/// The status of what lacked memory, which is a result.
pub const OUT_OF_MEMORY: &str = "out of memory";

/// A training of the suite: what is set on top of a small recipe, and how the program is started.
#[derive(Debug, Clone)]
pub struct Training {
    /// The folder for recipe, log, metrics and what the run leaves.
    pub folder: PathBuf,
    /// A folder with `config.json`.
    pub model: PathBuf,
    /// A file of chats.
    pub data: PathBuf,
    /// Tokens of the longest sequence.
    pub max_length: usize,
    /// Optimizer steps.
    pub steps: usize,
    /// Dotted key and value, on top of the rest.
    pub settings: Vec<(String, Value)>,
    /// `cpu` or `cuda`.
    pub device: &'static str,
    /// Processes.
    pub ranks: usize,
}

/// What a training left.
#[derive(Debug, Clone)]
pub struct Trained {
    /// How it ended, and the peaks of its ranks.
    pub watched: Watched,
    /// From its metrics file.
    pub steps: Vec<Step>,
}

impl Trained {
    /// The highest resident memory of any rank, in bytes.
    pub fn host_peak(&self) -> Option<u64> {
        let seen = self.watched.peaks.iter().map(|peak| peak.resident).max();
        seen.max(self.steps.iter().filter_map(|step| step.peak).max())
    }

    /// The most that the allocator of the GPU had taken in any step, in bytes; what a longer sequence needs to be free.
    pub fn device_peak(&self) -> Option<u64> {
        self.steps.iter().filter_map(|step| step.device_reserved_peak).max()
    }

    /// `done`, or how else it ended; fewer than `steps` in its metrics are a failure.
    pub fn status(&self, steps: usize) -> String {
        match &self.watched.end {
            End::Done if self.steps.len() < steps => {
                format!("failed: {} of {steps} steps are in its metrics", self.steps.len())
            }
            end => end.to_string(),
        }
    }
}

impl Training {
    /// The recipe, as JSON, which is YAML.
    fn recipe(&self, context: &Context) -> Value {
        let mut recipe = json!({
            "type": "sft",
            "model": {"name_or_path": self.model, "random_weights": true},
            "tokenizer": {"name_or_path": context.inputs.join("tokenizer")},
            "data": {
                "sources": [{
                    "type": "huggingface_instruct",
                    "name_or_path": self.data,
                    "split": "train",
                    "role_mapping": {"user": "messages.role.user", "assistant": "messages.role.assistant"},
                }],
                // Of all runs: compiled kernels lie there too.
                "cache_dir": context.out.join("runs/cache"),
                "num_proc": 1,
                "max_length": self.max_length,
                // Every token counts, as in the programs that this is measured beside.
                "mask_inputs": false,
            },
            "optimizer": {"learning_rate": 1e-4},
            "scheduler": {"name": "constant", "warmup_ratio": 0.0},
            "deepspeed": {"zero_optimization": {"stage": 0}},
            "sequence_parallel_size": self.ranks,
            "train_iters": self.steps,
            "train_log_metrics_path": self.folder.join("metrics.jsonl"),
            "logger": {"output_dir": self.folder, "level": "INFO"},
        });
        for (path, value) in &self.settings {
            set(&mut recipe, path, value.clone());
        }
        recipe
    }

    /// Writes the recipe and returns its path.
    ///
    /// # Errors
    ///
    /// When the folder cannot be written to.
    pub fn write(&self, context: &Context) -> Result<PathBuf> {
        fs::create_dir_all(&self.folder)
            .with_context(|| format!("cannot make the folder `{}`", self.folder.display()))?;
        let path = self.folder.join("recipe.yaml");
        fs::write(&path, format!("{:#}\n", self.recipe(context)))
            .with_context(|| format!("cannot write `{}`", path.display()))?;
        Ok(path)
    }

    /// Trains, as a user would: `sterna train RECIPE --device DEVICE`.
    ///
    /// # Errors
    ///
    /// When the program cannot be started or a file not be written; that it fails is not an error.
    pub fn run(&self, context: &Context) -> Result<Trained> {
        let recipe = self.write(context)?;
        let metrics = self.folder.join("metrics.jsonl");
        // A run goes on behind the metrics that are there.
        if metrics.exists() {
            fs::remove_file(&metrics)?;
        }
        let mut command = Command::new(&context.sterna);
        // Said, since without it there is a rank for each GPU.
        command.arg("train").arg(recipe).args(["--num_gpus", &self.ranks.to_string()]);
        command.args(["--device", self.device]);
        command.env("HF_HUB_OFFLINE", "1");
        let limits =
            Limits { least_available: least_available(context), time: Some(context.time_left()) };
        let log = self.folder.join("log.txt");
        let watched = process::watch(&mut command, Ranks::Children, &log, limits)?;
        let text = fs::read_to_string(&metrics).unwrap_or_default();
        Ok(Trained { watched, steps: metrics::steps(&text) })
    }

    /// What `sterna check` says of memory; `None` where it refuses the recipe, which the run will then tell.
    pub fn predicted(&self, context: &Context) -> Option<Predicted> {
        Predicted::from_check(&self.planned(context)?)
    }

    /// The plan of `sterna check`; `None` where it refuses the recipe.
    pub fn planned(&self, context: &Context) -> Option<Value> {
        static KNOWN: Mutex<BTreeMap<String, Option<Value>>> = Mutex::new(BTreeMap::new());
        let key = self.recipe(context).to_string();
        let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(plan) = known().get(&key) {
            return plan.clone();
        }
        let plan = self.asked_plan(context);
        known().insert(key, plan.clone());
        plan
    }

    fn asked_plan(&self, context: &Context) -> Option<Value> {
        let recipe = self.write(context).ok()?;
        let mut command = Command::new(&context.sterna);
        command.arg("check").arg(recipe).args(["--format", "json", "--device", self.device]);
        let output = command.output().ok().filter(|output| output.status.success())?;
        serde_json::from_slice(&output.stdout).ok()
    }
}

/// Bytes that the plan of `sterna check` counts for one rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Predicted {
    /// On the GPU, without what the run decides to keep of attention.
    pub device: u64,
    /// On the host.
    pub host: u64,
    /// Of the attention output of one block, where memory decides how many blocks keep theirs.
    pub kept_attention: u64,
    /// Blocks.
    pub layers: u64,
}

impl Predicted {
    fn from_check(check: &Value) -> Option<Self> {
        let kept_attention = check["memory"]["kept_attention_bytes"].as_u64()?;
        let layers = check["model"]["num_hidden_layers"].as_u64()?;
        let mut predicted = Self { device: 0, host: 0, kept_attention, layers };
        for row in check["memory"]["rows"].as_array()? {
            predicted.device += row["device_bytes"].as_u64()?;
            predicted.host += row["host_bytes"].as_u64()?;
        }
        Some(predicted)
    }
}

/// Sets `path`, as `a.b.c`, in a mapping of mappings.
fn set(recipe: &mut Value, path: &str, value: Value) {
    let mut at = recipe;
    for key in path.split('.') {
        at = &mut at[key];
    }
    *at = value;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_has_its_length_in_tokens() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("chats.jsonl");
        write_documents(&path, &[512; 3]).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let rows: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(rows.len(), 3);
        assert_ne!(rows[0], rows[1]);
        for row in rows {
            // As the template of inputs/tokenizer joins them, a token for each character and each marker.
            let mut tokens = 0;
            for message in row["messages"].as_array().unwrap() {
                let role = message["role"].as_str().unwrap();
                let content = message["content"].as_str().unwrap();
                tokens += 1 + role.len() + 1 + content.chars().count() + 1 + 1;
            }
            assert_eq!(tokens, 512);
        }
    }

    #[test]
    fn settings_reach_into_mappings_that_are_not_there_yet() {
        let mut recipe = json!({"model": {"dtype": "bf16"}});
        set(&mut recipe, "model.hf_config_kwargs.num_hidden_layers", json!(2));
        set(&mut recipe, "model.dtype", json!("fp32"));
        assert_eq!(
            recipe,
            json!({"model": {"dtype": "fp32", "hf_config_kwargs": {"num_hidden_layers": 2}}})
        );
    }
}
