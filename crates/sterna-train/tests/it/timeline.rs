//! Where memory and time went: the timeline file, the memory in the metrics, and that nothing is left over.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use serde_json::{Value, json};
use sterna_comm::RankEnv;
use sterna_plan::Plan;
use sterna_testkit::{TestRank, spawn_ranks};
use sterna_torch_sys::memory::{self, ByKind, MemoryKind};
use sterna_train::{
    EvalMetrics, IterationMetrics, Observer, TimelineLayer, TrainOptions,
    observe::timeline::TIMELINE, train,
};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{filter::Targets, layer::Layer as _, layer::SubscriberExt as _};

use crate::tiny;

/// What tensors hold after each step.
#[derive(Default)]
struct Live(Vec<ByKind>);

impl Observer for Live {
    fn on_tokenize(&mut self, _: sterna_data::Progress<'_>) {}

    fn on_reference(&mut self, _: usize, _: usize) {}

    fn on_start(
        &mut self,
        _: &Plan,
        _: &sterna_data::PrepareReport,
        _: u64,
        _: &sterna_train::Processor,
    ) {
    }
    fn on_iteration(&mut self, _: &IterationMetrics) {
        self.0.push(memory::usage().live);
    }
    fn on_eval(&mut self, _: &EvalMetrics) {}
    fn on_export(&mut self, _: &Path) {}
    fn on_resume(&mut self, _: &Path, _: u64) {}
    fn on_checkpoint(&mut self, _: &Path) {}
}

/// Trains the tiny model on two ranks that share everything and keep on disk, with a timeline of two of its four steps; returns
/// the file and the metrics of this rank 0, and what its tensors held after each step.
fn traced(rank: &TestRank) -> (Value, Vec<Value>, Vec<ByKind>) {
    let env = RankEnv::from_env().unwrap();
    let own = rank.folder.join(env.rank.to_string());
    let mut recipe = tiny::recipe(&own);
    recipe["model"]["dtype"] = json!("bf16");
    recipe["sequence_parallel_size"] = json!(2);
    recipe["deepspeed"]["zero_optimization"]["stage"] = json!(3);
    recipe["memory"] = json!({"inputs_on": "disk", "disk_dir": own.join("scratch"), "keep_inputs_every": 2, "keep_attention": true});
    recipe["train_log_iter_interval"] = json!(1);
    recipe["train_log_metrics_path"] = json!(own.join("metrics.jsonl"));
    let recipe = tiny::load(&own, "recipe", &recipe);

    let layer = TimelineLayer::create(&own, env.rank, 2).unwrap();
    let path = own.join(format!("rank{}.json", env.rank));
    let parse = || serde_json::from_slice::<Value>(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(parse().as_array().unwrap().len(), 1, "whole before the first step");
    let layer = layer.with_filter(Targets::new().with_target(TIMELINE, LevelFilter::TRACE));
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(layer)).unwrap();

    let mut live = Live::default();
    train(&recipe, &env, &TrainOptions::default(), &mut live).unwrap();
    let rows = std::fs::read_to_string(own.join("metrics.jsonl")).unwrap_or_default();
    let rows = rows.lines().map(|row| serde_json::from_str(row).unwrap()).collect();
    (parse(), rows, live.0)
}

#[test]
fn a_timeline_has_every_stage_inside_its_parent_ranks() {
    spawn_ranks(2, |rank| {
        let (events, ..) = traced(rank);
        let events = events.as_array().unwrap();
        let of_kind = |ph: &'static str| events.iter().filter(move |event| event["ph"] == ph);
        assert!(events.iter().all(|event| event["pid"] == json!(rank.rank)));

        let names: BTreeSet<&str> =
            of_kind("X").map(|event| event["name"].as_str().unwrap()).collect();
        let expected = [
            "all-to-all",
            "attention",
            "backward",
            "block",
            "block recompute",
            "block backward",
            "copy",
            "data",
            "embed",
            "forward",
            "gather",
            "iteration",
            "loss",
            "mlp",
            "qkv",
            "reduce",
            "step",
        ];
        assert_eq!(names, BTreeSet::from(expected));
        let steps: Vec<_> = of_kind("X").filter(|event| event["name"] == "iteration").collect();
        assert_eq!(steps.iter().map(|event| &event["args"]["iter"]).collect::<Vec<_>>(), [1, 2]);

        // Perfetto draws a child inside its parent only if it ends before it: to the nanosecond that the file has.
        let mut tracks: BTreeMap<u64, Vec<(f64, f64, &str)>> = BTreeMap::new();
        for event in of_kind("X") {
            let (start, duration) = (event["ts"].as_f64().unwrap(), event["dur"].as_f64().unwrap());
            let track = tracks.entry(event["tid"].as_u64().unwrap()).or_default();
            track.push((start, start + duration, event["name"].as_str().unwrap()));
        }
        assert_eq!(tracks.len(), 2, "this thread and that of the disk");
        for track in tracks.values_mut() {
            track.sort_by(|a, b| a.0.total_cmp(&b.0).then(b.1.total_cmp(&a.1)));
            let mut open: Vec<(f64, &str)> = Vec::new();
            for &(start, end, name) in track.iter() {
                while open.last().is_some_and(|(parent_end, _)| *parent_end <= start) {
                    open.pop();
                }
                if let Some((parent_end, parent)) = open.last() {
                    assert!(end <= parent_end + 1e-3, "`{name}` ends after `{parent}`");
                }
                open.push((end, name));
            }
        }
        for event in of_kind("X").filter(|event| event["name"] == "attention") {
            assert!(event["args"]["layer"].as_u64().unwrap() < 5, "{event}");
        }
        for name in ["all-to-all", "gather", "copy"] {
            let with_bytes = of_kind("X").filter(|event| event["name"] == name);
            assert!(
                with_bytes.clone().all(|event| event["args"]["bytes"].as_u64().is_some()),
                "{name}"
            );
        }
    });
}

#[test]
fn every_kind_of_memory_is_counted_and_given_back_ranks() {
    spawn_ranks(2, |rank| {
        let (events, rows, live) = traced(rank);
        let mut largest: BTreeMap<&str, u64> = BTreeMap::new();
        let events = events.as_array().unwrap();
        for event in events.iter().filter(|event| event["ph"] == "C") {
            for (name, bytes) in event["args"].as_object().unwrap() {
                // Nothing negative, or it would not be a `u64`.
                let largest = largest.entry(name).or_default();
                *largest = bytes.as_u64().unwrap().max(*largest);
            }
        }
        for kind in MemoryKind::ALL {
            assert!(largest[kind.name()] > 0, "{} of {largest:?}", kind.name());
        }

        assert_eq!(live.len(), 4);
        for after in &live {
            // Gloo's thread lets go of the last figures that were summed over the ranks, six doubles at most, a moment later.
            let is_same = |(kind, bytes): (MemoryKind, u64)| bytes.abs_diff(live[0][kind]) <= 48;
            assert!(after.iter().all(is_same), "a step leaves something behind: {live:?}");
        }
        for kind in [MemoryKind::KeptActivations, MemoryKind::Attention, MemoryKind::TileScratch] {
            assert_eq!(live[0][kind], 0, "{} outlives its step", kind.name());
        }

        assert_eq!(rows.is_empty(), rank.rank != 0, "rank 0 writes the metrics");
        for row in rows.iter().filter(|row| row.get("loss").is_some()) {
            for phase in ["forward", "backward", "step"] {
                let memory = row["memory"][phase].as_object().unwrap();
                let resident = memory["resident"].as_i64().unwrap();
                let parts: i64 = memory
                    .iter()
                    .filter(|(key, _)| *key != "resident")
                    .map(|(_, bytes)| bytes.as_i64().unwrap())
                    .sum();
                assert_eq!(parts, resident, "{phase}: {memory:?}");
                for state in [MemoryKind::Weights, MemoryKind::Gradients, MemoryKind::Optimizer] {
                    assert!(
                        memory[state.name()].as_u64().unwrap() >= live[0][state],
                        "{phase}: {memory:?}"
                    );
                }
            }
        }
    });
}
