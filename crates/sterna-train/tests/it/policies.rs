//! What blocks keep, where it waits and how attention is cut change memory and time, never the numbers.

use serde_json::{Value, json};
use sterna_comm::RankEnv;

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
        sterna_train::TrainOptions::default(),
        &mut crate::conformance::Recorder::default(),
    )
    .expect_err("nothing can be written there");
    assert!(error.to_string().contains("`/proc`"), "{error}");
}
