//! What blocks keep, where it waits and how attention is cut change memory and time, never the numbers.

use serde_json::{Value, json};
use sterna_comm::RankEnv;
use sterna_torch_sys::memory::MemoryKind;
use sterna_train::{TrainOptions, observe::phases::Phase, train};

use crate::conformance::Recorder;
use crate::equivalence::{assert_same, check, figures};

#[test]
fn policies_change_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let env = RankEnv::single();
    let plain = figures(folder.path(), &env, "plain", &[]);
    // The same operations on the same numbers, wherever they wait and however often they are repeated: bit for bit.
    for memory in [
        json!({"keep_attention": false}),
        json!({"keep_attention": 2}),
        json!({"keep_attention": true, "attention_on": "host"}),
        json!({"keep_inputs_every": 2}),
        json!({"keep_inputs_every": 4, "keep_attention": false}),
        json!({"keep_inputs_every": 3, "keep_attention": 4}),
        json!({"keep_inputs_every": 100, "keep_attention": true}),
        json!({"inputs_on": "disk", "disk_dir": folder.path().join("scratch")}),
        json!({"attention_on": "disk", "disk_dir": folder.path().join("scratch")}),
        // A file, and nothing to put into it.
        json!({"attention_on": "disk", "keep_attention": false, "disk_dir": folder.path().join("scratch")}),
        json!({"optimizer_on": "disk", "inputs_on": "disk", "disk_dir": folder.path().join("scratch")}),
        json!({"inputs_on": "disk", "attention_on": "disk", "keep_inputs_every": 2, "keep_attention": 3,
               "disk_dir": folder.path().join("scratch")}),
    ] {
        let name = memory.to_string();
        assert_eq!(figures(folder.path(), &env, "policy", &[("memory", memory)]), plain, "{name}");
    }
    // Sums in another order.
    for memory in [
        json!({"attention_head_groups": 2}),
        json!({"attention_head_groups": 4, "keep_attention": false}),
        json!({"attention_head_groups": 3, "keep_inputs_every": 2, "keep_attention": 1}),
        json!({"attention_query_tile": 7}),
        json!({"attention_query_tile": 32, "attention_head_groups": 2, "keep_attention": false}),
        json!({"attention_query_tile": 20, "attention_on": "disk", "disk_dir": folder.path().join("scratch")}),
        json!({"tile_bytes": 1}),
    ] {
        let name = memory.to_string();
        assert_same(&name, &figures(folder.path(), &env, "policy", &[("memory", memory)]), &plain);
    }
    let left: Vec<_> = std::fs::read_dir(folder.path().join("scratch")).expect("made").collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn micro_batches_take_turns_on_disk() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let env = RankEnv::single();
    let gas = ("gradient_accumulation_steps", json!(3));
    let plain = figures(folder.path(), &env, "plain", std::slice::from_ref(&gas));
    let memory = json!({"inputs_on": "disk", "attention_on": "disk", "keep_inputs_every": 2,
                        "disk_dir": folder.path().join("scratch")});
    assert_eq!(figures(folder.path(), &env, "disk", &[gas, ("memory", memory)]), plain);
}

/// Bytes of kept activations when forward held most, with a policy.
fn held(memory: Value) -> u64 {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut recipe = crate::tiny::recipe(folder.path());
    recipe["memory"] = memory;
    recipe["exit_iteration"] = json!(2);
    let recipe = crate::tiny::load(folder.path(), "recipe", &recipe);
    let mut recorder = Recorder::default();
    train(&recipe, &RankEnv::single(), &TrainOptions::default(), &mut recorder).expect("trained");
    recorder.iterations[1].phases.of(Phase::Forward).tensors[MemoryKind::KeptActivations]
}

#[test]
fn policies_hold_less() {
    let all = held(json!({"keep_attention": true}));
    let recomputed = held(json!({"keep_attention": false}));
    let segments = held(json!({"keep_inputs_every": 5, "keep_attention": false}));
    // Inputs and outputs (with a log-sum-exp), inputs, one input: of four blocks when the fifth is at work.
    assert!(recomputed * 2 < all, "{recomputed} of {all}");
    assert_eq!(segments * 4, recomputed);
}

#[test]
fn policies_change_nothing_on_two_ranks() {
    let scratch = tempfile::tempdir().expect("a temporary folder");
    let split = |memory: Value| {
        vec![
            ("sequence_parallel_size", json!(2)),
            ("deepspeed.zero_optimization.stage", json!(3)),
            ("memory", memory),
        ]
    };
    let variants = [
        split(json!({"keep_inputs_every": 2, "keep_attention": false, "attention_head_groups": 2})),
        split(
            json!({"keep_inputs_every": 3, "inputs_on": "disk", "attention_on": "disk", "attention_query_tile": 16, "disk_dir": scratch.path()}),
        ),
    ];
    check(
        2,
        &[],
        &[("every 2nd, recomputed, grouped", &variants[0]), ("every 3rd, on disk", &variants[1])],
    );
}

#[test]
fn a_disk_without_room_is_refused_before_the_first_step() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut recipe = crate::tiny::recipe(folder.path());
    recipe["memory"] = json!({"inputs_on": "disk", "disk_dir": "/proc"});
    let recipe = crate::tiny::load(folder.path(), "recipe", &recipe);
    let error = sterna_train::train(
        &recipe,
        &RankEnv::single(),
        &sterna_train::TrainOptions::default(),
        &mut crate::conformance::Recorder::default(),
    )
    .expect_err("nothing can be written there");
    assert!(error.to_string().contains("`/proc`"), "{error}");
}
