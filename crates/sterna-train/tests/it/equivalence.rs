//! The same data and seed give the same losses however the work is split over ranks, tiles and places.

use std::path::Path;

use serde_json::{Value, json};
use sterna_comm::RankEnv;
use sterna_testkit::{TestRank, spawn_ranks};
use sterna_train::{TrainOptions, train};

use crate::conformance::Recorder;
use crate::tiny;

/// Every figure of a run that must not depend on how it is split: loss and gradient norm of each step (AdamW forgives
/// a gradient of the wrong scale, its norm does not), and the loss of each evaluation.
pub(crate) fn figures(
    folder: &Path,
    env: &RankEnv,
    name: &str,
    changes: &[(&str, Value)],
) -> Vec<f64> {
    let mut recipe = tiny::recipe(folder);
    for (pointer, value) in changes {
        set(&mut recipe, pointer, value.clone());
    }
    let recipe = tiny::load(folder, &format!("{name}-{}", env.rank), &recipe);
    let mut recorder = Recorder::default();
    train(&recipe, env, &TrainOptions::default(), &mut recorder)
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(!recorder.iterations.is_empty() && !recorder.evals.is_empty());
    let of_steps = recorder.iterations.iter().flat_map(|metrics| [metrics.loss, metrics.grad_norm]);
    of_steps.chain(recorder.evals.iter().map(|metrics| metrics.loss)).collect()
}

pub(crate) fn set(recipe: &mut Value, path: &str, value: Value) {
    let mut place = recipe;
    for key in path.split('.') {
        place = match key.parse::<usize>() {
            Ok(idx) => &mut place[idx],
            Err(_) => &mut place[key],
        };
    }
    *place = value;
}

pub(crate) fn assert_same(name: &str, actual: &[f64], expected: &[f64]) {
    assert_eq!(actual.len(), expected.len(), "{name}");
    for (idx, (actual, expected)) in actual.iter().zip(expected).enumerate() {
        // fp32 sums in another order; the requirement is 1e-5 relative.
        let relative = (actual / expected - 1.0).abs();
        assert!(relative <= 1e-5, "{name}, figure {idx}: {actual} against {expected}");
    }
}

/// One plain process against `world_size` ranks with each of `variants`. Every variant joins its ranks anew.
pub(crate) fn check(
    world_size: usize,
    plain: &[(&str, Value)],
    variants: &[(&str, &[(&str, Value)])],
) {
    for (name, changes) in variants {
        spawn_ranks(world_size, |rank: &TestRank| {
            let env = RankEnv::from_env().expect("the environment of a rank");
            let own = rank.folder.join(env.rank.to_string());
            let expected = figures(&own, &RankEnv::single(), "plain", plain);
            assert!(expected[0] > expected[expected.len() - 1], "the loss falls: {expected:?}");
            assert_same(name, &figures(&own, &env, name, changes), &expected);
        });
    }
}

#[test]
fn places_change_nothing_in_one_process() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let env = RankEnv::single();
    let plain = figures(folder.path(), &env, "plain", &[]);
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
        assert_eq!(figures(folder.path(), &env, name, &[changes]), plain, "{name}");
    }
    for dtype in ["fp32", "bf16"] {
        let dtype = ("model.dtype", json!(dtype));
        let figures = |name: &str, memory: Value| {
            figures(folder.path(), &env, name, &[dtype.clone(), ("memory", memory)])
        };
        let dir = folder.path();
        for moments in ["fp32", "bf16"] {
            let in_memory = figures("moments", json!({"moments_dtype": moments}));
            let on_disk =
                json!({"moments_dtype": moments, "optimizer_on": "disk", "disk_dir": dir});
            assert_eq!(figures("on disk", on_disk), in_memory, "{dtype:?} {moments}");
        }
    }
    let graph = figures(
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

#[test]
fn four_ranks_of_both_axes_are_one_rank() {
    // A refill hands each of the four ranks one pack; both sequence-parallel groups work through their two in one step.
    let one_step = [("exit_iteration", json!(1)), ("eval_interval", json!(1))];
    let plain = [vec![("gradient_accumulation_steps", json!(4))], one_step.to_vec()].concat();
    let both = [
        vec![("gradient_accumulation_steps", json!(2)), ("sequence_parallel_size", json!(2))],
        vec![("deepspeed.zero_optimization.stage", json!(3))],
        one_step.to_vec(),
    ]
    .concat();
    check(4, &plain, &[("dp 2 x sp 2, stage 3", &both)]);
}

#[test]
fn token_average_is_the_same_over_ranks_and_differs_from_the_default() {
    let token = ("loss_average", json!("token"));
    let gas = ("gradient_accumulation_steps", json!(2));
    check(
        2,
        &[gas.clone(), token.clone()],
        &[("token average, dp 2", std::slice::from_ref(&token))],
    );
    let folder = tempfile::tempdir().expect("a temporary folder");
    let env = RankEnv::single();
    let by_micro_batch = figures(folder.path(), &env, "micro-batch", std::slice::from_ref(&gas));
    let by_token = figures(folder.path(), &env, "token", &[gas, token]);
    assert!(
        (by_token[1] / by_micro_batch[1] - 1.0).abs() > 1e-4,
        "{by_token:?}, {by_micro_batch:?}"
    );
}

#[test]
fn bf16_follows_fp32() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let env = RankEnv::single();
    let fp32 = figures(folder.path(), &env, "fp32", &[]);
    for grad_accum_dtype in ["fp32", "bf16"] {
        let changes = [
            ("model.dtype", json!("bf16")),
            ("deepspeed.data_types", json!({"grad_accum_dtype": grad_accum_dtype})),
        ];
        let bf16 = figures(folder.path(), &env, "bf16", &changes);
        for (actual, expected) in bf16.iter().zip(&fp32) {
            // Eight bits of significand, over a few steps of training.
            assert!((actual / expected - 1.0).abs() < 0.05, "{actual} against {expected}");
        }
    }
}

#[test]
fn two_ranks_with_other_data_are_told_so() {
    spawn_ranks(2, |rank: &TestRank| {
        let env = RankEnv::from_env().expect("the environment of a rank");
        let own = rank.folder.join(env.rank.to_string());
        let recipe = tiny::recipe(&own);
        if env.rank == 1 {
            let chats = own.join("chats.jsonl");
            let text = std::fs::read_to_string(&chats).expect("readable").replace("why", "how");
            std::fs::write(&chats, text).expect("written");
        }
        let recipe = tiny::load(&own, "recipe", &recipe);
        let error = train(&recipe, &env, &TrainOptions::default(), &mut Recorder::default())
            .expect_err("rank 1 has other chats");
        let text = error.to_string();
        let said = "ranks `[1]` have another recipe, model or data than rank `0`: `";
        assert!(text.starts_with(said) && text.contains("`training data` is "), "{text}");
    });
}

#[test]
fn two_ranks_with_other_keys_are_told_which() {
    spawn_ranks(2, |rank: &TestRank| {
        let env = RankEnv::from_env().expect("the environment of a rank");
        let own = rank.folder.join(env.rank.to_string());
        let mut recipe = tiny::recipe(&own);
        // None of them changes a sample, and each what the ranks compute or when they meet.
        if env.rank == 1 {
            recipe["min_iterations"] = json!(1000);
            recipe["model"]["attn_implementation"] = json!("flash_attention_2");
            recipe["data"]["div_length"] = json!(48);
        }
        let recipe = tiny::load(&own, "recipe", &recipe);
        let error = train(&recipe, &env, &TrainOptions::default(), &mut Recorder::default())
            .expect_err("rank 1 has another recipe");
        let text = error.to_string();
        for key in ["data.div_length", "min_iterations", "model.attn_implementation"] {
            assert!(text.contains(&format!("`{key}` is ")), "{key} is not in {text}");
        }
    });
}
