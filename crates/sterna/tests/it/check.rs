//! `sterna check`.

use insta::assert_snapshot;
use serde_json::Value;

use crate::workspace::{RECIPE, Workspace};

#[test]
fn a_plan_for_people() {
    assert_snapshot!(Workspace::new().show(&["check", "recipe.yaml", "--world-size", "2"]), @r"
    exit status: 0
    ----- stdout -----
    model  model: llama, 35.17 K parameters in 2 blocks, float32
    ranks  2 = 2 data-parallel x 1 sequence-parallel, on the CPU
    heads  4 query, 2 kv, 8 wide
    zero   stage 3: weights, gradients, optimizer state sharded over 2 ranks; gradients add up in float32 and travel in float32
    batch  1 row of up to 256 tokens, 256 on each rank; 2 micro-batches a step, up to 512 tokens
    tiles  projections whole, MLP whole, loss whole
    attn   all heads and tokens at once
    kept   the input of each block, the output of attention where there is room
    steps  2 optimizer steps

    units                  count      parameters    shard elements
      embedding                1           8_288             4_160
      block                    2           9_280             4_672
      norm and head            1           8_320             4_192

    memory of a rank                      device              host
      weights                          69.12 KiB                 -
      gathered weights                 73.00 KiB                 -
      gradients                        69.12 KiB                 -
      gradients of a unit              73.00 KiB                 -
      optimizer state                 138.25 KiB                 -
      kept activations                 64.00 KiB                 -
      attention of a block            200.00 KiB                 -
      residual stream                  80.00 KiB                 -
      tile scratch                    392.00 KiB                 -
      in all                            1.13 MiB                 -
      + attention outputs              72.00 KiB                 -

    notes
      optimizer.type
        the step runs where `offload_optimizer` puts the optimizer state, whatever the name
    ----- stderr -----
    ");
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
    assert_snapshot!(workspace.show(&["check", "bad.yaml"]), @r"
    exit status: 2
    ----- stdout -----

    ----- stderr -----
    error: unknown key `train_iter`
      --> bad.yaml:19:1
       |
    19 | train_iter: 2
       | ^^^^^^^^^^
       = hint: did you mean `train_iters`?

    error: `micro_batch_size` is `none`, required: an integer of at least 1
      --> bad.yaml:20:19
       |
    20 | micro_batch_size: none
       |                   ^^^^

    2 errors in `bad.yaml`
    ");
}

#[test]
fn errors_for_programs_are_json_on_stdout() {
    let workspace = Workspace::new();
    workspace.write("bad.yaml", &RECIPE.replace("train_iters: 2", "train_iter: 2"));
    let output = workspace.run(&["check", "bad.yaml", "--format", "json"]);
    assert_eq!(output.status.code(), Some(2));
    let errors: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(errors["errors"][0]["kind"], "unknown_key");
    assert_snapshot!(String::from_utf8_lossy(&output.stderr), @"error: `bad.yaml` cannot be trained: stdout has the errors");
}

#[test]
fn a_missing_recipe_is_named() {
    assert_snapshot!(Workspace::new().show(&["check", "no-such.yaml"]), @r"
    exit status: 2
    ----- stdout -----

    ----- stderr -----
    error: cannot read `no-such.yaml`: No such file or directory (os error 2)
     --> no-such.yaml
      = hint: the recipe is the first argument: a path to a YAML file

    1 error in `no-such.yaml`
    ");
}

#[test]
fn a_missing_model_is_named() {
    assert_snapshot!(Workspace::new().show(&["check", "recipe.yaml", "--set", "model.name_or_path=./no-such"]), @r"
    exit status: 2
    ----- stdout -----

    ----- stderr -----
    error: `model.name_or_path` is `./no-such`, which does not exist, required: a folder or file that is there, or a hub name such as `owner/name`
     --> --set
      |
      | model.name_or_path=./no-such
      |                    ^^^^^^^^^
      = hint: a relative path starts at the folder where sterna is called

    1 error in `recipe.yaml`
    ");
}

#[test]
fn a_wrong_override_is_shown() {
    assert_snapshot!(Workspace::new().show(&["check", "recipe.yaml", "--set", "data.max_lenght=1"]), @r"
    exit status: 2
    ----- stdout -----

    ----- stderr -----
    error: unknown key `data.max_lenght`
     --> --set
      |
      | data.max_lenght=1
      | ^^^^^^^^^^^^^^^
      = hint: did you mean `max_length`?

    1 error in `recipe.yaml`
    ");
}

#[test]
fn a_world_that_the_sequence_cannot_be_split_over_is_refused() {
    let args = ["check", "recipe.yaml", "--set", "sequence_parallel_size=2", "--world-size", "3"];
    assert_snapshot!(Workspace::new().show(&args), @r"
    exit status: 2
    ----- stdout -----

    ----- stderr -----
    error: `sequence_parallel_size` `2` does not divide the `3` ranks of this run, required: a number of ranks that is a multiple of it
     --> --set
      |
      | sequence_parallel_size=2
      |                        ^
      = hint: start 4 ranks, or set `sequence_parallel_size` to a divisor of 3

    1 error in `recipe.yaml`
    ");
}
