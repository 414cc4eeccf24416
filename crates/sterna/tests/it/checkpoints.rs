//! `sterna checkpoint` and `sterna export`, and runs that are stopped by signals.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, ChildStderr, Command};

use insta::assert_snapshot;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::workspace::Workspace;

/// Checkpoints every 2 of 4 steps, and an export at the end.
const SAVING: [&str; 5] = [
    "train",
    "recipe.yaml",
    "--quiet",
    "--set",
    "checkpoint=[{output_dir: ckpt, save_every_n_steps: 2, auto_resume: true}, \
     {type: huggingface, output_dir: out, save_end_of_training: true}]",
];

fn train(workspace: &Workspace, args: &[&str]) -> String {
    let output = workspace.run(&[&SAVING[..], args].concat());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    text
}

/// Names and contents of all files.
fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap())
        })
        .collect();
    files.sort();
    files
}

#[test]
fn an_exported_checkpoint_is_the_export_of_the_run_byte_for_byte() {
    for dtype in ["fp32", "bf16"] {
        let workspace = Workspace::new();
        let dtype = format!("model.dtype={dtype}");
        train(
            &workspace,
            &["--set", "sequence_parallel_size=2", "--set", "train_iters=4", "--set", &dtype],
        );
        let output = workspace.run(&["export", "ckpt/checkpoint-4", "--out", "exported"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let (exported, of_run) =
            (files(&workspace.path("exported")), files(&workspace.path("out/tuned")));
        let names = |files: &[(String, Vec<u8>)]| -> Vec<String> {
            files.iter().map(|(name, _)| name.clone()).collect()
        };
        assert_eq!(names(&exported), names(&of_run));
        for ((name, exported), (_, of_run)) in exported.iter().zip(&of_run) {
            assert!(exported == of_run, "{dtype}: {name} differs");
        }
        // And the folder, written again, is the same once more.
        let output = workspace.run(&["export", "exported", "--out", "again"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(files(&workspace.path("again")) == exported, "{dtype}");
    }
}

#[test]
fn checkpoints_are_listed_and_verified() {
    let workspace = Workspace::new();
    train(&workspace, &["--set", "train_iters=4"]);
    let listed = workspace.show(&["checkpoint", "list", "ckpt"]);
    // The size depends on the manifest, the age on the machine.
    let rows: Vec<Vec<&str>> = listed
        .lines()
        .filter(|line| line.starts_with("checkpoint"))
        .map(|line| line.split_whitespace().take(3).collect())
        .collect();
    assert_eq!(
        rows,
        [["checkpoint", "step", "ranks"], ["checkpoint-4", "4", "1"], ["checkpoint-2", "2", "1"]]
    );
    let good = workspace.show(&["checkpoint", "verify", "ckpt/checkpoint-4"]);
    assert!(good.contains("ckpt/checkpoint-4: good, 4 files"), "{good}");
    let shard = workspace.path("ckpt/checkpoint-4/rank_00000.safetensors");
    let mut bytes = fs::read(&shard).unwrap();
    *bytes.last_mut().unwrap() ^= 4;
    fs::write(&shard, bytes).unwrap();
    fs::remove_file(workspace.path("ckpt/checkpoint-2/assets/tokenizer.json")).unwrap();
    let damaged = workspace.show(&["checkpoint", "verify", "ckpt"]);
    assert_snapshot!(without_hashes(&damaged), @r"
    exit status: 1
    ----- stdout -----
    ckpt/checkpoint-4: damaged
      `ckpt/checkpoint-4/rank_00000.safetensors` was changed or damaged since it was written: its SHA-256 is `[SHA-256]`, and its manifest says `[SHA-256]`
    ckpt/checkpoint-2: damaged
      `ckpt/checkpoint-2/assets/tokenizer.json` is missing
    ----- stderr -----
    error: `2` of `2` checkpoints are damaged

    hint: `auto_resume` leaves them out; delete them, or restore them from a copy
    ");
    let refused =
        workspace.show(&["checkpoint", "export", "ckpt/checkpoint-4", "--out", "exported"]);
    assert!(refused.contains("was changed or damaged since it was written"), "{refused}");
    assert!(!workspace.path("exported").exists());
    // A run says why it does not take the newest, and then that none is left.
    let output = workspace.run(&[&SAVING[..], &["--set", "train_iters=6"]].concat());
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("error: `ckpt` has checkpoints, and none of them can be resumed:"),
        "{text}"
    );
    assert!(text.contains("hint: to begin anew, give the entry another `output_dir`"), "{text}");
}

/// `text` with each SHA-256 replaced.
fn without_hashes(text: &str) -> String {
    text.split('`')
        .map(|part| {
            let is_hash = part.len() == 64 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
            if is_hash { "[SHA-256]" } else { part }
        })
        .collect::<Vec<_>>()
        .join("`")
}

#[test]
fn a_run_that_resumes_says_so_and_what_changed() {
    let workspace = Workspace::new();
    train(&workspace, &["--set", "train_iters=2"]);
    let text =
        train(&workspace, &["--set", "train_iters=4", "--set", "optimizer.learning_rate=5e-4"]);
    for part in [
        "Going on after step 2, from ckpt/checkpoint-2",
        "resuming `ckpt/checkpoint-2` with changes: `optimizer.learning_rate` was `0.001` and is `0.0005`; \
         `train_iters` was `2` and is `4`",
        "Checkpoint ckpt/checkpoint-4 is complete",
        "Train iter: 3/4",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    assert!(!text.contains("Train iter: 2/4"), "{text}");
}

/// Starts a run and returns when it has written `text` to stderr; what it has written so far is dropped.
fn start_and_see(command: &mut Command, text: &str) -> (Child, BufReader<ChildStderr>) {
    let mut run = command.spawn().unwrap();
    let mut stderr = BufReader::new(run.stderr.take().unwrap());
    let mut seen = String::new();
    while !seen.contains(text) {
        assert!(stderr.read_line(&mut seen).unwrap() > 0, "the run ended early:\n{seen}");
    }
    (run, stderr)
}

#[test]
fn the_kill_switch_stops_a_run_after_a_checkpoint() {
    let workspace = Workspace::new();
    let long = ["--set", "train_iters=100_000", "--set", "kill_switch_path=stop"];
    let mut command = workspace.sterna(&[&SAVING[..], &long].concat());
    let (mut run, mut stderr) = start_and_see(&mut command, "Train iter:      3/");
    workspace.write("stop", "");
    let mut text = String::new();
    stderr.read_to_string(&mut text).unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(0), "{text}");
    assert!(text.contains("*** Exiting training early because training found `stop`"), "{text}");
    let step = workspace.rows("metrics.jsonl").last().unwrap()["iter"].as_u64().unwrap();
    assert_eq!(sterna_checkpoint::list(&workspace.path("ckpt")).unwrap()[0].step, step);
}

#[test]
fn signals_stop_runs_on_one_and_on_two_ranks_after_a_checkpoint() {
    let two = ["--set", "sequence_parallel_size=2"];
    for (signal, code, args) in [
        (Signal::SIGTERM, 143, &[][..]),
        (Signal::SIGINT, 130, &two[..]),
        (Signal::SIGUSR1, 138, &[][..]),
    ] {
        let workspace = Workspace::new();
        let long = ["--set", "train_iters=100_000"];
        let mut command = workspace.sterna(&[&SAVING[..], &long, args].concat());
        let (mut run, mut stderr) = start_and_see(&mut command, "Train iter:      3/");
        kill(Pid::from_raw(run.id().cast_signed()), signal).unwrap();
        let mut text = String::new();
        stderr.read_to_string(&mut text).unwrap();
        assert_eq!(run.wait().unwrap().code(), Some(code), "{text}");
        let listed = sterna_checkpoint::list(&workspace.path("ckpt")).unwrap();
        let step = listed[0].step;
        assert!(step >= 3, "{text}");
        assert!(sterna_checkpoint::Checkpoint::open(&listed[0].dir).unwrap().verify().is_empty());
        // The step that was saved is the last one that was made.
        assert_eq!(workspace.rows("metrics.jsonl").last().unwrap()["iter"], step);
        let resumed = format!("Going on after step {step}, from ckpt/checkpoint-{step}");
        let until = format!("train_iters={}", step + 1);
        let text = train(&workspace, &[args, &["--set", &until]].concat());
        assert!(text.contains(&resumed), "{text}");
    }
}

#[test]
fn a_second_run_may_not_write_to_the_same_folder() {
    let workspace = Workspace::new();
    let mut command = workspace.sterna(&[&SAVING[..], &["--set", "train_iters=100_000"]].concat());
    let (mut run, _stderr) = start_and_see(&mut command, "Train iter:");
    let other = workspace.run(&SAVING);
    run.kill().unwrap();
    run.wait().unwrap();
    let text = String::from_utf8_lossy(&other.stderr);
    assert_eq!(other.status.code(), Some(1), "{text}");
    let expected =
        format!("error: another run writes checkpoints to `ckpt` (process {} on", run.id());
    assert!(text.contains(&expected), "{text}");
}

#[test]
fn a_single_rank_that_does_not_stop_in_time_is_ended() {
    let workspace = Workspace::new();
    let args = ["--set", "train_iters=100_000", "--stop-within", "0"];
    let mut command = workspace.sterna(&[&SAVING[..], &args].concat());
    let (mut run, _stderr) = start_and_see(&mut command, "Train iter:");
    kill(Pid::from_raw(run.id().cast_signed()), Signal::SIGTERM).unwrap();
    // By the signal itself, and not with its number as a status.
    assert_eq!(run.wait().unwrap().signal(), Some(Signal::SIGTERM as i32));
}

#[test]
fn ranks_are_not_started_again_where_it_would_end_in_the_same_way() {
    let workspace = Workspace::new();
    // Infinite weights after one step.
    let args = [
        "--set",
        "optimizer.learning_rate=1e38",
        "--set",
        "sequence_parallel_size=2",
        "--max-restarts",
        "2",
    ];
    let output = workspace.run(&[&SAVING[..], &args, &["--set", "train_iters=6"]].concat());
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("must be finite") && !text.contains("restart 1"), "{text}");
}
