//! `sterna check`.

use insta::assert_snapshot;
use serde_json::Value;

use crate::workspace::{RECIPE, Workspace};

#[test]
fn a_plan_for_people() {
    assert_snapshot!(Workspace::new().show(&["check", "recipe.yaml", "--world-size", "2"]), @"");
}

#[test]
fn a_plan_for_programs() {
    let output = Workspace::new().run(&["check", "recipe.yaml", "--format", "json"]);
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(plan["mesh"]["world_size"], 1);
}

#[test]
fn checking_writes_nothing() {
    let workspace = Workspace::new();
    let list = || {
        let mut names: Vec<_> = std::fs::read_dir(workspace.path(""))
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        names.sort();
        names
    };
    let before = list();
    assert!(workspace.run(&["check", "recipe.yaml"]).status.success());
    assert_eq!(list(), before);
}

#[test]
fn every_error_is_shown_with_its_line() {
    let workspace = Workspace::new();
    workspace.write(
        "bad.yaml",
        &RECIPE.replace("train_iters: 2", "train_iter: 2\nmicro_batch_size: none"),
    );
    assert_snapshot!(workspace.show(&["check", "bad.yaml"]), @"");
}

#[test]
fn errors_for_programs_are_json_on_stdout() {
    let workspace = Workspace::new();
    workspace.write("bad.yaml", &RECIPE.replace("train_iters: 2", "train_iter: 2"));
    let output = workspace.run(&["check", "bad.yaml", "--format", "json"]);
    assert_eq!(output.status.code(), Some(2));
    let errors: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(errors["errors"][0]["kind"], "unknown_key");
    assert_snapshot!(String::from_utf8_lossy(&output.stderr), @"");
}

#[test]
fn a_missing_recipe_is_named() {
    assert_snapshot!(Workspace::new().show(&["check", "no-such.yaml"]), @"");
}

#[test]
fn a_missing_model_is_named() {
    assert_snapshot!(Workspace::new().show(&["check", "recipe.yaml", "--set", "model.name_or_path=./no-such"]), @"");
}

#[test]
fn a_wrong_override_is_shown() {
    assert_snapshot!(Workspace::new().show(&["check", "recipe.yaml", "--set", "data.max_lenght=1"]), @"");
}

#[test]
fn a_world_that_the_sequence_cannot_be_split_over_is_refused() {
    let args = ["check", "recipe.yaml", "--set", "sequence_parallel_size=2", "--world-size", "3"];
    assert_snapshot!(Workspace::new().show(&args), @"");
}
