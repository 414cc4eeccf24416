//! Losses and weights of whole runs against what arctic-training 0.8.0 with deepspeed 0.19.8 computed on a real model
//! and real chats, in fp32 (`tests/fixtures/conformance`).

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sterna_comm::RankEnv;
use sterna_hf::WeightFiles;
use sterna_testkit::real_inputs;
use sterna_train::{EvalMetrics, IterationMetrics, Observer, TrainOptions, train};
use tch::{Kind, Tensor};

/// Remembers what a run reports.
#[derive(Default)]
pub(crate) struct Recorder {
    pub(crate) iterations: Vec<IterationMetrics>,
    pub(crate) evals: Vec<EvalMetrics>,
    pub(crate) exports: Vec<PathBuf>,
    /// The checkpoint gone on from, and its step.
    pub(crate) resumed: Option<(PathBuf, u64)>,
    pub(crate) checkpoints: Vec<PathBuf>,
    /// Micro-batches that the reference model has seen.
    pub(crate) num_references: usize,
}

impl Observer for Recorder {
    fn on_tokenize(&mut self, _: sterna_data::Progress<'_>) {}

    fn on_reference(&mut self, _: usize, _: usize) {
        self.num_references += 1;
    }

    fn on_start(
        &mut self,
        _: &sterna_plan::Plan,
        _: &sterna_data::PrepareReport,
        _: u64,
        _: &sterna_train::Processor,
    ) {
    }

    fn on_iteration(&mut self, metrics: &IterationMetrics) {
        self.iterations.push(metrics.clone());
    }

    fn on_eval(&mut self, metrics: &EvalMetrics) {
        self.evals.push(metrics.clone());
    }

    fn on_export(&mut self, dir: &Path) {
        self.exports.push(dir.to_owned());
    }

    fn on_resume(&mut self, dir: &Path, step: u64) {
        self.resumed = Some((dir.to_owned(), step));
    }

    fn on_checkpoint(&mut self, dir: &Path) {
        self.checkpoints.push(dir.to_owned());
    }
}

#[test]
fn real_packed_run_is_the_reference_s() {
    check("packed-fp32", include_str!("../fixtures/conformance/packed-fp32.json"));
}

#[test]
fn real_unpacked_run_is_the_reference_s() {
    check("unpacked-fp32", include_str!("../fixtures/conformance/unpacked-fp32.json"));
}

/// Trains by the recipe of a conformance file and compares each step's loss and each tensor's way.
#[expect(clippy::print_stderr, reason = "how close it comes is worth reading")]
fn check(name: &str, conformance: &str) {
    let conformance: Value = serde_json::from_str(conformance).expect("valid JSON");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let model = real_inputs().join("SmolLM2-135M-Instruct");
    let mut recipe = conformance["recipe"].clone();
    recipe["model"]["name_or_path"] = json!(model);
    recipe["data"]["sources"][0]["name_or_path"] = json!(real_inputs().join("dialogues-english"));
    recipe["data"]["cache_dir"] = json!(folder.path().join("cache"));
    recipe["data"]["label_mask"] = json!("reference");
    recipe["train_log_metrics_path"] = json!(folder.path().join("metrics.jsonl"));
    recipe["checkpoint"] = json!({
        "type": "huggingface",
        "output_dir": folder.path().join("out"),
        "save_end_of_training": true,
    });
    let path = folder.path().join("recipe.yaml");
    std::fs::write(&path, recipe.to_string()).expect("written");
    let recipe = sterna_recipe::load(&path, &[]).unwrap_or_else(|error| panic!("{error}"));
    let mut recorder = Recorder::default();
    train(&recipe, &RankEnv::single(), &TrainOptions::default(), &mut recorder)
        .unwrap_or_else(|error| panic!("{name}: {error}"));

    let expected = conformance["metrics"].as_array().expect("a list");
    assert_eq!(recorder.iterations.len(), expected.len());
    for (actual, expected) in recorder.iterations.iter().zip(expected) {
        let expected_loss = expected["loss"].as_f64().expect("a number");
        let relative = (actual.loss / expected_loss - 1.0).abs();
        eprintln!(
            "{name} step {}: loss {} against {expected_loss}, relative {relative:.1e}",
            actual.iter, actual.loss
        );
        assert!(
            relative <= 1e-4,
            "{name} step {}: {} against {expected_loss}",
            actual.iter,
            actual.loss
        );
        assert_eq!(json!(actual.seqlen), expected["seqlen"]);
        assert_eq!(json!(actual.epoch), expected["epoch"]);
        assert_eq!(json!(actual.iter), expected["iter"]);
    }

    let initial = WeightFiles::open(&model).expect("readable");
    let last = WeightFiles::open(&recorder.exports[0]).expect("readable");
    let norms = conformance["delta_norm_and_norm"].as_object().expect("an object");
    let mut worst: f64 = 0.0;
    for (tensor, expected) in norms {
        let (initial, last) = (double(&initial, tensor), double(&last, tensor));
        let delta = (&last - initial).norm().double_value(&[]);
        let expected = expected[0].as_f64().expect("a number");
        let relative = (delta / expected - 1.0).abs();
        worst = worst.max(relative);
        assert!(
            relative <= 1e-3,
            "{name}: `{tensor}` moved by {delta}, and by {expected} in the reference"
        );
    }
    eprintln!("{name}: {} tensors, delta norms within {worst:.1e} relative", norms.len());
}

/// A tensor of a folder in double precision, flat.
pub(crate) fn double(files: &WeightFiles, name: &str) -> Tensor {
    let view = files.tensor(name).expect("the tensor");
    let kind = sterna_train::load::kind_of(view.dtype);
    let numel = view.shape.iter().product::<usize>() as i64;
    Tensor::from_data_size(&view.bytes(), &[numel], kind).to_kind(Kind::Double)
}
