//! `sterna data`.

use insta::assert_snapshot;
use serde_json::Value;

use crate::workspace::{RECIPE, Workspace};

#[test]
fn each_rank_gets_its_batches() {
    let workspace = Workspace::new();
    assert_snapshot!(workspace.show(&["data", "recipe.yaml", "--world-size", "2", "--steps", "3", "--out", "batches"]), @r"
    exit status: 0
    ----- stdout -----

    ----- stderr -----
    wrote 3 micro-batches for each of 2 ranks to batches
    ");
    let ranks = [0, 1].map(|rank| workspace.rows(&format!("batches/rank{rank}.jsonl")));
    for rows in &ranks {
        assert_eq!(rows.len(), 3);
        let keys: Vec<&String> = rows[0].as_object().unwrap().keys().collect();
        assert_eq!(keys, ["input_ids", "labels", "position_ids", "packed_sample_seqlens"]);
        assert_eq!(rows[0]["input_ids"][0].as_array().unwrap().len(), 256);
    }
    assert_ne!(ranks[0], ranks[1]);
}

#[test]
fn ranks_that_share_a_sequence_get_its_parts() {
    let workspace = Workspace::new();
    let whole = workspace.run(&["data", "recipe.yaml", "--steps", "1", "--out", "whole"]);
    assert!(whole.status.success());
    let split = [
        "data",
        "recipe.yaml",
        "--set",
        "sequence_parallel_size=2",
        "--steps",
        "1",
        "--out",
        "split",
    ];
    assert!(workspace.run(&split).status.success());
    let parts = [0, 1].map(|rank| workspace.rows(&format!("split/rank{rank}.jsonl")).remove(0));
    assert!(parts[0].get("labels").is_none());
    let ids = |row: &Value| row["input_ids"][0].as_array().unwrap().clone();
    assert_eq!(parts.each_ref().map(|part| ids(part).len()), [128, 128]);
    // The sampler hands out other samples for two ranks than for one; the first pack of rank 0 is the same.
    assert_eq!(
        [ids(&parts[0]), ids(&parts[1])].concat(),
        ids(&workspace.rows("whole/rank0.jsonl")[0])
    );
}

#[test]
fn missing_data_is_named() {
    let workspace = Workspace::new();
    workspace.write("bad.yaml", &RECIPE.replace("name_or_path: chats", "name_or_path: ./chatz"));
    assert_snapshot!(workspace.show(&["data", "bad.yaml", "--steps", "1", "--out", "batches"]), @r"
    exit status: 2
    ----- stdout -----

    ----- stderr -----
    error: `data.sources[0].name_or_path` is `./chatz`, which does not exist, required: a folder or file that is there, or a hub name such as `owner/name`
     --> bad.yaml:9:21
      |
    9 |       name_or_path: ./chatz
      |                     ^^^^^^^
      = hint: a relative path starts at the folder where sterna is called

    1 error in `bad.yaml`
    ");
    assert!(!workspace.path("batches").exists());
}

#[test]
fn no_data_left_is_said_with_the_number_of_samples_dropped() {
    let workspace = Workspace::new();
    let args =
        ["data", "recipe.yaml", "--set", "data.max_length=8", "--steps", "1", "--out", "batches"];
    assert_snapshot!(workspace.show(&args), @r"
    exit status: 2
    ----- stdout -----

    ----- stderr -----
    error: no data left: all `40` samples are longer than max_length `8` (shortest `46`, longest `49` tokens)

    hint: raise data.max_length
    ");
}
