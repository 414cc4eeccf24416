//! Programs that a user would pick instead, run by `peers/peer.py` on the same card.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use sterna_bench::process::{self, End, Limits, Ranks};

use crate::context::Context;
use crate::record::read_json;

/// The names that the script knows, the strongest last.
pub const SYSTEMS: [&str; 4] = ["hf", "liger", "deepspeed", "deepspeed-offload"];

/// What the script is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Peer<'a> {
    /// One of [`SYSTEMS`].
    pub system: &'a str,
    /// `config.json` of the shape.
    pub config: &'a Path,
    /// Layers of it.
    pub layers: usize,
    /// Tokens; several are a search.
    pub lengths: &'a [usize],
    /// Steps that are not measured.
    pub warmup: usize,
    /// Steps that are.
    pub steps: usize,
    /// For log and result.
    pub folder: &'a Path,
    /// When it is ended.
    pub limit: Duration,
}

/// Of the limit of a search, what the last step may still take.
const LAST_STEP: f64 = 0.4;

impl Peer<'_> {
    /// Runs the script and returns its result, which has a `status` in any case.
    ///
    /// # Errors
    ///
    /// When python cannot be started or the log not be written.
    pub fn run(&self, context: &Context) -> Result<Value> {
        std::fs::create_dir_all(self.folder)?;
        let file = self.folder.join("peer.json");
        if file.exists() {
            std::fs::remove_file(&file)?;
        }
        let mut command = Command::new(&context.python);
        command.arg(context.peers.join("peer.py")).args(["--system", self.system]);
        command.arg("--config").arg(self.config).arg("--result").arg(&file);
        command.args(["--device", context.device_name(), "--layers", &self.layers.to_string()]);
        command.args(["--warmup", &self.warmup.to_string(), "--steps", &self.steps.to_string()]);
        let seconds = self.limit.as_secs_f64() * (1.0 - LAST_STEP);
        command.args(["--seconds", &format!("{seconds:.0}")]);
        command.arg("--lengths").args(self.lengths.iter().map(usize::to_string));
        command.env("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True");
        command.envs([("HF_HUB_OFFLINE", "1"), ("TOKENIZERS_PARALLELISM", "false")]);
        // DeepSpeed looks for a compiler at import otherwise.
        command.env("DS_ACCELERATOR", context.device_name());
        let limits = Limits { least_available: 0, time: Some(self.limit) };
        let watched =
            process::watch(&mut command, Ranks::Itself, &self.folder.join("log.txt"), limits)?;
        let mut result: Value = read_json(&file).unwrap_or_else(|_| json!({}));
        if watched.end != End::Done {
            // What it wrote before stands.
            result["status"] = json!(watched.end.to_string());
            result["timed_out"] = json!(watched.end == End::TimedOut);
        }
        result["wall_seconds"] = json!(watched.wall.as_secs_f64());
        Ok(result)
    }
}
