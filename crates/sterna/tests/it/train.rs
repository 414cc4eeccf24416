//! `sterna train` on one process.

use insta::assert_snapshot;

use crate::workspace::{RECIPE, Workspace};

#[test]
fn one_process_trains_and_exports() {
    let workspace = Workspace::new();
    let output = workspace.run(&["train", "recipe.yaml"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    let lines: Vec<&str> = stderr.lines().filter(|line| line.contains("iter:")).collect();
    assert_eq!(lines.len(), 2, "{stderr}");
    assert!(lines[0].starts_with("Train iter: 1/2  50% | loss: "), "{stderr}");
    assert!(lines[1].contains(" | tok/s: ") && lines[1].contains(" | grad norm: "), "{stderr}");
    assert!(stderr.contains("*** Training finished normally."), "{stderr}");
    for file in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        assert!(workspace.path("out/tuned").join(file).is_file(), "{file}");
    }
    let iterations: Vec<_> =
        workspace.rows("metrics.jsonl").iter().map(|row| row["iter"].clone()).collect();
    assert_eq!(iterations, [1, 2]);
}

#[test]
fn evaluations_have_their_line_and_their_row() {
    let workspace = Workspace::new();
    let recipe =
        RECIPE.replace("train_iters: 2", "train_iters: 2\neval_on_start: true\neval_interval: 2");
    workspace.write(
        "eval.yaml",
        &recipe.replace("  max_length", "  train_eval_split: [0.8, 0.2]\n  max_length"),
    );
    let output = workspace.run(&["train", "eval.yaml"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let lines: Vec<&str> = stderr.lines().filter(|line| line.contains("Eval iter:")).collect();
    assert_eq!(lines.len(), 2, "{stderr}");
    assert!(lines[0].starts_with(" Eval iter: 0/2   0% | loss: "), "{stderr}");
    let losses: Vec<f64> = workspace
        .rows("metrics.jsonl")
        .iter()
        .filter_map(|row| row["loss/eval"].as_f64())
        .collect();
    assert_eq!(losses.len(), 2);
    assert!(losses[1] < losses[0], "{losses:?}");
}

#[test]
fn a_log_file_has_the_lines_of_the_run() {
    let workspace = Workspace::new();
    let set = [
        "train",
        "recipe.yaml",
        "--set",
        "logger.output_dir=logged",
        "--set",
        "logger.print_output_ranks=[1]",
    ];
    let output = workspace.run(&set);
    assert!(output.status.success());
    // Rank 0 is not among those that print.
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let log = workspace.read("logged/logs/rank_0.log");
    assert!(log.contains("Train iter: 2/2 100% | loss: "), "{log}");
}

#[test]
fn a_truncated_model_file_is_named_and_earlier_output_stays() {
    let workspace = Workspace::new();
    assert!(workspace.run(&["train", "recipe.yaml"]).status.success());
    let before = std::fs::read(workspace.path("out/tuned/model.safetensors")).unwrap();
    let weights = std::fs::read(workspace.path("model/model.safetensors")).unwrap();
    std::fs::write(workspace.path("model/model.safetensors"), &weights[..weights.len() - 100])
        .unwrap();
    assert_snapshot!(workspace.show(&["train", "recipe.yaml"]), @r"
    exit status: 2
    ----- stdout -----

    ----- stderr -----
    error: `model/model.safetensors` is cut off: it has `142700` bytes, its header requires `142800`

    hint: download the file again, it is incomplete
    ");
    assert_eq!(std::fs::read(workspace.path("out/tuned/model.safetensors")).unwrap(), before);
}

/// A machine without a driver is told so in words, where the loader of the system would say that a library is missing.
#[test]
fn cuda_without_a_driver_is_refused_in_a_sentence() {
    if std::path::Path::new("/dev/nvidiactl").exists() {
        return;
    }
    let workspace = Workspace::new();
    assert_snapshot!(workspace.show(&["train", "recipe.yaml", "--device", "cuda"]), @r"
    exit status: 2
    ----- stdout -----

    ----- stderr -----
    error: device `cuda` was asked for
      caused by: this machine has no NVIDIA driver: libcuda.so.1: cannot open shared object file: No such file or directory

    hint: use `--device cpu`, or install the driver (`nvidia-smi` shows whether it works); in a container, start it with its GPUs
    ");
}

#[test]
fn arguments_of_the_deepspeed_launcher_are_refused_with_a_reason() {
    let refused = |args: &[&str]| {
        let output = Workspace::new().run(&[&["train", "recipe.yaml"], args].concat());
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert_snapshot!(refused(&["--python_profile", "tottime"]), @r"
    error: `--python_profile` is about a Python script, and sterna runs none

    hint: profile the process itself, for example with `perf record -g sterna train RECIPE`
    ");
    assert_snapshot!(refused(&["--launcher", "slurm"]), @r"
    error: `--launcher` takes only `deepspeed`, which means this command's own launcher

    hint: leave it out, or start `sterna train RECIPE` under torchrun, srun or mpirun with torchrun's variables set
    ");
}

#[test]
fn defaults_of_the_deepspeed_launcher_may_be_typed_out() {
    let workspace = Workspace::new();
    let args = "train recipe.yaml --mode train --num_nodes 1 --node_rank 0 --launcher deepspeed --python_profile disable \
                --no_local_rank --no_ssh --launcher_args= --log_level info";
    let args: Vec<&str> = args.split(' ').collect();
    let output = workspace.run(&args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn processing_data_fills_the_cache_and_trains_nothing() {
    let workspace = Workspace::new();
    let output = workspace.run(&["train", "recipe.yaml", "--mode", "process-data"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(workspace.path("cache").is_dir());
    assert!(!workspace.path("metrics.jsonl").exists());
}
