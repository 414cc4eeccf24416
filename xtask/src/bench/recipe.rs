//! The recipe of a run, the same for both systems.

use std::path::Path;

use serde_json::Value;

use super::options::Input;

/// What differs from recipe to recipe.
pub(super) struct Recipe<'a> {
    pub(super) model: &'a Path,
    /// A folder with chats.
    pub(super) data: &'a Path,
    /// For the data cache, metrics and log files.
    pub(super) run: &'a Path,
    pub(super) input: Input,
    pub(super) length: usize,
    pub(super) ranks: usize,
    pub(super) steps: usize,
    /// Whether Sterna reads it, or the reference.
    pub(super) is_ours: bool,
}

/// The name of the metrics file in the folder of a run.
pub(super) const METRICS: &str = "metrics.jsonl";

impl Recipe<'_> {
    /// The recipe as YAML.
    ///
    /// Sterna's has one key more: the reference finds the tokens to train on by text search, and to compare losses Sterna does
    /// here what it does.
    pub(super) fn to_yaml(&self) -> String {
        let Self { input, length, ranks, steps, .. } = self;
        let model = quoted(self.model);
        let data = quoted(self.data);
        let cache = quoted(&self.run.join("cache"));
        let metrics = quoted(&self.run.join(METRICS));
        let logs = quoted(self.run);
        // Without drop_last, the last chats of each thousand are a short pack of their own.
        let input = match input {
            Input::Packed => "pack_samples: true\n  drop_last: true",
            Input::Single => "pack_samples: false",
        };
        let label_mask = if self.is_ours { "\n  label_mask: reference" } else { "" };
        format!(
            "\
type: sft
model:
  name_or_path: {model}
  dtype: bf16
data:
  sources:
    - type: huggingface_instruct
      name_or_path: {data}
      split: train
      role_mapping: {{user: messages.role.user, assistant: messages.role.assistant}}
  max_length: {length}
  {input}
  num_proc: 1
  dl_num_workers: 1
  cache_dir: {cache}{label_mask}
micro_batch_size: 1
sequence_parallel_size: {ranks}
activation_checkpoint_cpu_offload: true
tiled_mlp_compute: true
deepspeed:
  zero_optimization: {{stage: 3}}
optimizer: {{type: cpu_adam, learning_rate: 1e-4}}
scheduler: {{name: constant, warmup_ratio: 0.0}}
train_iters: {steps}
train_log_metrics_path: {metrics}
logger:
  output_dir: {logs}
"
        )
    }
}

/// A path as a double-quoted YAML scalar, which JSON strings are.
fn quoted(path: &Path) -> String {
    Value::from(path.to_string_lossy()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_systems_read_the_same_recipe_but_for_the_label_search() {
        let recipe = |is_ours| {
            let recipe = Recipe {
                model: Path::new("models/m"),
                data: Path::new("chats"),
                run: Path::new("runs/a \"b\""),
                input: Input::Packed,
                length: 4096,
                ranks: 3,
                steps: 2,
                is_ours,
            };
            recipe.to_yaml()
        };
        let ours = recipe(true);
        assert_eq!(ours.replace("\n  label_mask: reference", ""), recipe(false));
        for line in [
            "  max_length: 4096",
            "  pack_samples: true",
            "  cache_dir: \"runs/a \\\"b\\\"/cache\"",
            "sequence_parallel_size: 3",
            "train_iters: 2",
        ] {
            assert!(ours.lines().any(|found| found == line), "{line} in\n{ours}");
        }
    }
}
