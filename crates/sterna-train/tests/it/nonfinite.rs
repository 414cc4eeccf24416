//! A step whose loss is NaN stops the run, is left out, or is made, as the recipe says.

use std::fs;
use std::path::Path;

use safetensors::SafeTensors;
use serde_json::{Value, json};
use sterna_checkpoint::Checkpoint;
use sterna_comm::RankEnv;
use sterna_testkit::{tiny_config, tiny_model};
use sterna_train::{IterationMetrics, TrainError, TrainOptions, train};

use crate::conformance::Recorder;
use crate::tiny;

/// The tiny model with NaN as the embedding of `~`, which is in one chat.
fn poisoned(folder: &Path) -> Value {
    let mut recipe = tiny::recipe(folder);
    let model = folder.join("model");
    let mut config = tiny_config("llama");
    // A tied head would be NaN for every token.
    config["tie_word_embeddings"] = json!(false);
    tiny_model(&model, &config, 7);
    let path = model.join("model.safetensors");
    let mut bytes = fs::read(&path).expect("readable");
    let (header_len, metadata) = SafeTensors::read_metadata(&bytes).expect("safetensors");
    let info = metadata.info("model.embed_tokens.weight").expect("there");
    let row_bytes = info.shape[1] * 4;
    // Three special tokens, then the characters from blank on.
    let row = 3 + usize::from(b'~' - b' ');
    let start = 8 + header_len + info.data_offsets.0 + row * row_bytes;
    bytes[start..start + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&path, bytes).expect("written");
    let chats = folder.join("chats.jsonl");
    let text = fs::read_to_string(&chats).expect("readable");
    fs::write(&chats, text.replacen("why?", "why~", 1)).expect("written");

    recipe["data"]["train_eval_split"] = json!([1.0, 0.0]);
    recipe["eval_interval"] = json!(0);
    recipe["exit_iteration"] = json!(0);
    recipe["checkpoint"] = json!({"output_dir": folder.join("ckpt"), "save_end_of_training": true});
    recipe
}

fn run(policy: &str) -> (Result<u64, TrainError>, Vec<IterationMetrics>, Option<Checkpoint>) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut recipe = poisoned(folder.path());
    recipe["on_nonfinite"] = json!(policy);
    let recipe = tiny::load(folder.path(), policy, &recipe);
    let mut recorder = Recorder::default();
    let summary = train(&recipe, &RankEnv::single(), &TrainOptions::default(), &mut recorder);
    let checkpoint = recorder.checkpoints.first().map(|dir| Checkpoint::open(dir).expect("good"));
    (summary.map(|summary| summary.num_steps), recorder.iterations, checkpoint)
}

#[test]
fn stop_ends_the_run_before_the_weights_change() {
    let (result, iterations, checkpoint) = run("stop");
    let error = result.expect_err("a loss is NaN").to_string();
    let step = iterations.len() + 1;
    assert_eq!(error, format!("loss is `NaN` at optimizer step `{step}`, and must be finite"));
    assert!(checkpoint.is_none());
}

#[test]
fn skip_leaves_the_step_out() {
    let (result, iterations, checkpoint) = run("skip");
    let num_steps = result.expect("the run goes on");
    let skipped: Vec<_> = iterations.iter().filter(|metrics| metrics.is_skipped).collect();
    assert_eq!(skipped.len(), 1);
    assert!(skipped[0].loss.is_nan() && skipped[0].iter < num_steps, "others follow it");
    assert!(iterations.iter().all(|metrics| metrics.is_skipped || metrics.loss.is_finite()));
    // Bias correction counts what was done.
    let manifest = checkpoint.expect("saved").manifest;
    assert_eq!((manifest.step, manifest.num_updates), (num_steps, num_steps - 1));
}

#[test]
fn warn_goes_on_with_what_is_left() {
    let (result, iterations, _) = run("warn");
    result.expect("the run goes on");
    let first = iterations.iter().position(|metrics| metrics.loss.is_nan()).expect("NaN");
    assert!(iterations[first..].iter().all(|metrics| metrics.loss.is_nan()));
    assert!(iterations.iter().all(|metrics| !metrics.is_skipped));
}

/// Some replies are not rendered as they are written, and the reference's search does not find them. Each chat is a step, and momentum
/// would move the weights.
#[test]
fn a_step_without_labels_leaves_everything_as_it_is() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut recipe = tiny::recipe(folder.path());
    let edit = |path: &str, from: &str, to: &str| {
        let path = folder.path().join(path);
        let text = fs::read_to_string(&path).expect("readable");
        assert!(text.contains(from), "{text}");
        fs::write(&path, text.replace(from, to)).expect("written");
    };
    edit(
        "model/tokenizer_config.json",
        "message['content']",
        "message['content']|replace('!', '.')",
    );
    edit("chats.jsonl", " is 1\"", " is 1!\"");
    recipe["data"]["label_mask"] = json!("reference");
    recipe["data"]["pack_samples"] = json!(false);
    recipe["data"]["train_eval_split"] = json!([1.0, 0.0]);
    recipe["eval_interval"] = json!(0);
    recipe["checkpoint"] =
        json!({"output_dir": folder.path().join("ckpt"), "save_end_of_training": true});
    recipe["exit_iteration"] = json!(0);
    let recipe = tiny::load(folder.path(), "searched", &recipe);
    let mut recorder = Recorder::default();
    train(&recipe, &RankEnv::single(), &TrainOptions::default(), &mut recorder).expect("trained");
    let skipped: Vec<bool> = recorder.iterations.iter().map(|step| step.is_skipped).collect();
    // i * i % 17 is 1 for 1, 16, 18, 33 and 35.
    assert_eq!(skipped.iter().filter(|is_skipped| **is_skipped).count(), 5, "{skipped:?}");
    assert!(recorder.iterations.iter().all(|step| step.is_skipped == (step.num_valid_tokens == 0)));
    let manifest = Checkpoint::open(&recorder.checkpoints[0]).expect("good").manifest;
    assert_eq!((manifest.step, manifest.num_updates), (40, 35));
}

#[test]
fn a_run_that_is_resumed_after_a_skipped_step_is_the_whole_run() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut recipe = poisoned(folder.path());
    recipe["on_nonfinite"] = json!("skip");
    let mut losses = |dir: &str, exit_iteration: usize| -> Vec<String> {
        recipe["exit_iteration"] = json!(exit_iteration);
        recipe["checkpoint"] = json!({
            "output_dir": folder.path().join(dir), "auto_resume": true, "save_end_of_training": true,
        });
        let recipe = tiny::load(folder.path(), dir, &recipe);
        let mut recorder = Recorder::default();
        train(&recipe, &RankEnv::single(), &TrainOptions::default(), &mut recorder)
            .expect("trained");
        recorder.iterations.iter().map(|metrics| metrics.loss.to_string()).collect()
    };
    let whole = losses("whole", 0);
    let skipped = whole.iter().position(|loss| loss == "NaN").expect("one is skipped");
    let parts = [losses("parts", skipped + 1), losses("parts", 0)].concat();
    assert_eq!(parts, whole);
}
