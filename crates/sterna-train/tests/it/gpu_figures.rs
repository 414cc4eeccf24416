//! What a run on a device says of it (`sterna-fake-cuda`): memory by kind, time, what others use, and why there was no room.

use std::{fs, path::Path};

use serde_json::{Value, json};
use sterna_comm::RankEnv;
use sterna_data::{PrepareReport, Progress};
use sterna_plan::Plan;
use sterna_torch_sys::memory::{ByKind, MemoryKind};
use sterna_train::{
    DeviceChoice, EvalMetrics, IterationMetrics, Observer, Phase, Processor, TimelineLayer,
    TrainError, TrainOptions,
    observe::{gpus::BoardMemory, timeline::TIMELINE},
    train,
};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{filter::Targets, layer::Layer as _, layer::SubscriberExt as _};

use crate::conformance::Recorder;
use crate::equivalence::set;
use crate::fake_cuda::alone;
use crate::tiny;

/// Leaves the device so many bytes once everything is loaded.
struct Limit(u64);

impl Observer for Limit {
    fn on_tokenize(&mut self, _: Progress<'_>) {}

    fn on_reference(&mut self, _: usize, _: usize) {}

    fn on_start(&mut self, _: &Plan, _: &PrepareReport, _: u64, processor: &Processor) {
        let Processor::Gpu(gpu) = processor else { panic!("{processor:?}") };
        assert_eq!(gpu.properties.name, "Fake GPU");
        assert_eq!(gpu.driver_version.as_deref(), Some("580.00.00"));
        sterna_fake_cuda::set_device_memory(self.0);
    }
    fn on_iteration(&mut self, _: &IterationMetrics) {}
    fn on_eval(&mut self, _: &EvalMetrics) {}
    fn on_export(&mut self, _: &Path) {}
    fn on_resume(&mut self, _: &Path, _: u64) {}
    fn on_checkpoint(&mut self, _: &Path) {}
}

/// A recipe whose memory does not depend on how much the device has.
fn step_on_device(folder: &Path, observer: &mut dyn Observer) -> Result<(), Box<TrainError>> {
    let mut recipe = tiny::recipe(folder);
    set(&mut recipe, "train_iters", json!(1));
    set(&mut recipe, "memory", json!({"keep_attention": true}));
    set(&mut recipe, "train_log_iter_interval", json!(1));
    set(&mut recipe, "train_log_metrics_path", json!(folder.join("metrics.jsonl")));
    let recipe = tiny::load(folder, "recipe", &recipe);
    let options = TrainOptions { device: DeviceChoice::Cuda, ..TrainOptions::default() };
    train(&recipe, &RankEnv::single(), &options, observer).map(drop).map_err(Box::new)
}

#[test]
fn figures_of_a_device_add_up_and_its_limit_is_explained() {
    alone(|folder| {
        let layer = TimelineLayer::create(folder, 0, 1).expect("a timeline");
        let layer = layer.with_filter(Targets::new().with_target(TIMELINE, LevelFilter::TRACE));
        tracing::subscriber::set_global_default(tracing_subscriber::registry().with(layer))
            .expect("the first");
        let mut recorder = Recorder::default();
        step_on_device(folder, &mut recorder).expect("there is room");

        let metrics = &recorder.iterations[0];
        let device = metrics.device_memory.expect("a device");
        let of_phases = Phase::ALL.map(|phase| *metrics.phases.on_device(phase));
        let largest = of_phases.iter().map(ByKind::total).max();
        assert_eq!(largest, Some(device.allocated_peak), "the kinds are all that there is");
        for (phase, kind) in [
            (0, MemoryKind::Weights),
            (0, MemoryKind::KeptActivations),
            (1, MemoryKind::Attention),
            (1, MemoryKind::TileScratch),
            (2, MemoryKind::Gradients),
            (2, MemoryKind::Optimizer),
        ] {
            assert!(of_phases[phase][kind] > 0, "{} in {of_phases:?}", kind.name());
        }
        let board = BoardMemory { used: 4 << 30, total: 16 << 30 };
        assert_eq!(metrics.board_memory, Some(board));
        for phase in Phase::ALL {
            let time = metrics.phase_time.of(phase);
            let of_device = time.device.expect("measured");
            assert!(of_device > std::time::Duration::ZERO, "{time:?}");
        }
        let row = fs::read_to_string(folder.join("metrics.jsonl")).expect("a row");
        let row: Value = serde_json::from_str(row.lines().next().expect("a row")).expect("JSON");
        assert_eq!(row["device_memory"]["nvml_used"], json!(board.used));
        assert_eq!(
            row["device_memory"]["backward"]["attention"],
            json!(of_phases[1][MemoryKind::Attention])
        );
        assert!(row["phase_time"]["backward"]["device"].as_f64().is_some_and(|s| s > 0.0));

        check_timeline(&folder.join("rank0.json"));

        // One byte less than it needs: the allocation that reached the peak is refused, in the middle of the step.
        let error =
            step_on_device(folder, &mut Limit(device.allocated_peak - 1)).expect_err("no room");
        let text = error.to_string();
        assert!(matches!(*error, TrainError::OutOfMemory(_)), "{text}");
        for part in [
            "GPU `0` is out of memory: `",
            "were asked for, for ",
            ", by `",
            ", in iteration 1, ",
            "tensors hold ",
            "all processes together: 4.00 GiB of 16.00 GiB",
            "process 1 (this one or another, by its number outside of the container): 3.00 GiB",
        ] {
            assert!(text.contains(part), "`{part}` in {text}");
        }
        let hint = error.hint().expect("a hint");
        assert!(hint.contains("data.max_length: 48"), "{hint}");
    });
}

/// The GPU's track has the spans of the host's, and its counters the kinds.
fn check_timeline(path: &Path) {
    let events: Vec<Value> =
        serde_json::from_slice(&fs::read(path).expect("a file")).expect("JSON");
    let count = |category: &str, name: &str| {
        events.iter().filter(|event| event["cat"] == category && event["name"] == name).count()
    };
    for name in ["iteration", "forward", "backward", "step", "block", "attention", "mlp"] {
        assert!(count("device", name) > 0, "{name}");
        assert_eq!(count("device", name), count("stage", name), "{name}");
    }
    let named = |name: &'static str| events.iter().filter(move |event| event["name"] == name);
    assert!(named("device tensors").any(|event| event["args"]["attention"].as_u64() > Some(0)));
    assert!(named("device in use").all(|event| event["args"]["bytes"] == json!(4_u64 << 30)));
    assert!(named("device in use").count() > 0);
}
