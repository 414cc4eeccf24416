//! Programs that a user would pick instead, run by `baselines/baseline.py` on the same card.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};
use sterna_bench::process::{self, End, Limits, Ranks, Watched};

use crate::context::Context;
use crate::recipe::least_available;
use crate::record::{read_json, write_json};

/// The names that the script knows, the strongest last.
pub const SYSTEMS: [&str; 5] = ["hf", "liger", "liger-offload", "deepspeed", "deepspeed-offload"];

/// What the script is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Baseline<'a> {
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

impl Baseline<'_> {
    /// Runs the script and returns its result, which has a `status` in any case.
    ///
    /// A search that was ended for lack of the host's memory is started again, and goes on below the length at which that was.
    ///
    /// # Errors
    ///
    /// When python cannot be started or a file not be written.
    pub fn run(&self, context: &Context) -> Result<Value> {
        std::fs::create_dir_all(self.folder)?;
        let file = self.folder.join("baseline.json");
        if file.exists() {
            std::fs::remove_file(&file)?;
        }
        let start = Instant::now();
        loop {
            let watched = self.start(context, &file, self.limit.saturating_sub(start.elapsed()))?;
            let mut result: Value = read_json(&file).unwrap_or_else(|_| json!({}));
            if watched.end == End::OutOfMemory && did_not_fit(&mut result) {
                write_json(&file, &result)?;
                continue;
            }
            if watched.end != End::Done {
                // What it wrote before stands.
                result["status"] = json!(watched.end.to_string());
                result["timed_out"] = json!(watched.end == End::TimedOut);
            }
            result["wall_seconds"] = json!(start.elapsed().as_secs_f64());
            return Ok(result);
        }
    }

    /// Runs the script once, for at most `limit`.
    fn start(&self, context: &Context, file: &Path, limit: Duration) -> Result<Watched> {
        let mut command = Command::new(&context.python);
        command.arg(context.baselines.join("baseline.py")).args(["--system", self.system]);
        command.arg("--config").arg(self.config).arg("--result").arg(file);
        command.args(["--device", context.device_name(), "--layers", &self.layers.to_string()]);
        command.args(["--warmup", &self.warmup.to_string(), "--steps", &self.steps.to_string()]);
        let seconds = limit.as_secs_f64() * (1.0 - LAST_STEP);
        command.args(["--seconds", &format!("{seconds:.0}")]);
        command.arg("--lengths").args(self.lengths.iter().map(usize::to_string));
        command.env("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True");
        command.envs([("HF_HUB_OFFLINE", "1"), ("TOKENIZERS_PARALLELISM", "false")]);
        // DeepSpeed looks for a compiler at import otherwise.
        command.env("DS_ACCELERATOR", context.device_name());
        let limits = Limits { least_available: least_available(context), time: Some(limit) };
        process::watch(&mut command, Ranks::Itself, &self.folder.join("log.txt"), limits)
    }
}

/// Counts the length that a search was trying when it was ended as one that does not fit; whether there was one.
fn did_not_fit(result: &mut Value) -> bool {
    let Some(length) = result["trying"].as_u64() else {
        return false;
    };
    result["trying"] = Value::Null;
    if let Some(tried) = result["tried"].as_array_mut() {
        tried
            .push(json!({"length": length, "fits": false, "how": "ended for lack of host memory"}));
        return true;
    }
    false
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tch::Device;

    use super::*;

    /// What `baseline.py` of `script`, for `sh`, leaves of a search over 64 and 128 tokens.
    fn search(script: &str) -> Value {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_owned();
        fs::write(path.join("baseline.py"), script).unwrap();
        let context = Context {
            out: path.clone(),
            archive: path.clone(),
            inputs: path.clone(),
            sterna: path.clone(),
            baselines: path.clone(),
            contracts: path.clone(),
            python: "sh".into(),
            device: Device::Cpu,
            host_bytes: None,
            is_tiny: true,
            deadline: Instant::now() + Duration::from_mins(1),
        };
        let baseline = Baseline {
            system: "liger-offload",
            config: &path,
            layers: 1,
            lengths: &[64, 128],
            warmup: 0,
            steps: 1,
            folder: &path.join("run"),
            limit: Duration::from_secs(30),
        };
        baseline.run(&context).unwrap()
    }

    #[test]
    fn a_search_killed_at_a_length_goes_on_and_that_length_does_not_fit() {
        // The result is behind `--result`, the sixth word. The second process finds what the first was killed at.
        let result = search(
            r#"
            if [ ! -e "$6" ]; then
                echo '{"tried": [{"length": 64, "fits": true}], "trying": 128}' > "$6"
                kill -9 $$
            fi
            grep -q '"trying": null' "$6" || exit 3
            sed -i '1s/{/{"status": "done",/' "$6"
            "#,
        );
        assert_eq!(result["status"], "done", "{result}");
        assert_eq!(result["tried"][1]["fits"], false, "{result}");
        assert_eq!(result["tried"][1]["length"], 128, "{result}");
    }

    #[test]
    fn one_killed_outside_of_a_step_is_out_of_memory_and_not_started_again() {
        let result = search(r#"[ -e "$6" ] && exit 3; echo '{"tried": []}' > "$6"; kill -9 $$"#);
        assert_eq!(result["status"], "out of memory", "{result}");
    }
}
