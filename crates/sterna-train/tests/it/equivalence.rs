//! The same data and seed give the same losses however the work is split over ranks, tiles and places.

use std::path::Path;

use serde_json::{Value, json};
use sterna_comm::RankEnv;
use sterna_testkit::{TestRank, spawn_ranks};
use sterna_train::{TrainOptions, train};

use crate::conformance::Recorder;
use crate::tiny;

/// Losses of a run, then the loss of an evaluation.
fn losses(folder: &Path, env: &RankEnv, name: &str, changes: &[(&str, Value)]) -> Vec<f64> {
    let mut recipe = tiny::recipe(folder, "llama");
    for (pointer, value) in changes {
        set(&mut recipe, pointer, value.clone());
    }
    let recipe = tiny::load(folder, &format!("{name}-{}", env.rank), &recipe);
    let mut recorder = Recorder::default();
    train(&recipe, env, TrainOptions::default(), &mut recorder)
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    let of_steps = recorder.iterations.iter().map(|metrics| metrics.loss);
    of_steps.chain(recorder.evals.iter().map(|metrics| metrics.loss)).collect()
}

fn set(recipe: &mut Value, path: &str, value: Value) {
    let mut place = recipe;
    for key in path.split('.') {
        place = &mut place[key];
    }
    *place = value;
}

fn assert_same(name: &str, actual: &[f64], expected: &[f64]) {
    assert_eq!(actual.len(), expected.len(), "{name}");
    for (step, (actual, expected)) in actual.iter().zip(expected).enumerate() {
        // fp32 sums in another order; the requirement is 1e-5 relative.
        assert!(
            (actual / expected - 1.0).abs() <= 1e-5,
            "{name}, step {step}: {actual} against {expected}"
        );
    }
}

/// One plain process against `world_size` ranks with each of `variants`. Every variant joins its ranks anew.
fn check(world_size: usize, plain: &[(&str, Value)], variants: &[(&str, &[(&str, Value)])]) {
    for (name, changes) in variants {
        spawn_ranks(world_size, |rank: &TestRank| {
            let env = RankEnv::from_env().expect("the environment of a rank");
            let own = rank.folder.join(env.rank.to_string());
            let expected = losses(&own, &RankEnv::single(), "plain", plain);
            assert!(expected[0] > expected[expected.len() - 1], "the loss falls: {expected:?}");
            assert_same(name, &losses(&own, &env, name, changes), &expected);
        });
    }
}

#[test]
fn places_and_tiles_change_nothing_in_one_process() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let env = RankEnv::single();
    let plain = losses(folder.path(), &env, "plain", &[]);
    let tiled = losses(folder.path(), &env, "tiled", &[("tiled_mlp_compute", json!(true))]);
    assert_same("tiled", &tiled, &plain);
    for (name, changes) in [
        ("offloaded", ("activation_checkpoint_cpu_offload", json!(true))),
        ("stage 3", ("deepspeed.zero_optimization", json!({"stage": 3}))),
        (
            "states offloaded",
            (
                "deepspeed.zero_optimization",
                json!({"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}),
            ),
        ),
    ] {
        // A place changes no sum: bit for bit.
        assert_eq!(losses(folder.path(), &env, name, &[changes]), plain, "{name}");
    }
    let graph = losses(
        folder.path(),
        &env,
        "graph",
        &[("model.disable_activation_checkpoint", json!(true))],
    );
    assert_same("graph kept", &graph, &plain);
}

#[test]
fn two_sequence_parallel_ranks_and_every_stage_are_one_rank() {
    let sp = |stage: u8| {
        vec![
            ("sequence_parallel_size", json!(2)),
            ("deepspeed.zero_optimization.stage", json!(stage)),
        ]
    };
    let stages = [sp(0), sp(1), sp(2), sp(3)];
    check(
        2,
        &[],
        &[
            ("sp 2, stage 0", &stages[0]),
            ("sp 2, stage 1", &stages[1]),
            ("sp 2, stage 2", &stages[2]),
            ("sp 2, stage 3", &stages[3]),
        ],
    );
}

#[test]
fn three_uneven_ranks_with_tiles_and_offload_are_one_rank() {
    let changes = [
        ("sequence_parallel_size", json!(3)),
        ("deepspeed.zero_optimization.stage", json!(3)),
        ("tiled_mlp_compute", json!(true)),
        ("activation_checkpoint_cpu_offload", json!(true)),
    ];
    check(3, &[], &[("sp 3, stage 3, tiled, offloaded", &changes)]);
}

#[test]
fn two_data_parallel_ranks_are_two_accumulated_micro_batches() {
    let plain = [("gradient_accumulation_steps", json!(2))];
    let dp: [(&str, Value); 1] = [("deepspeed.zero_optimization.stage", json!(3))];
    check(2, &plain, &[("dp 2, stage 3", &dp), ("dp 2, stage 0", &[])]);
}
