//! A run that is killed again and again ends where the run that nobody disturbed ends, bit for bit.
//!
//! `cargo xtask soak` makes more kills with other seeds.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::launch::children;
use crate::workspace::Workspace;

/// Kills of the test; `STERNA_SOAK_KILLS` asks for more.
const NUM_KILLS: usize = 50;
/// A kill comes after so many more steps at the latest: however fast the machine, the last kill comes before the last step.
const STEPS_A_KILL: usize = 25;
/// Steps that a kill which waits for a save may let pass.
const STEPS_A_SAVE: usize = 6;

const RANKS: usize = 2;

/// Numbers from 0 on, by splitmix64: a failed soak is repeated with its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % limit
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap())
}

fn args(num_steps: usize) -> Vec<String> {
    let checkpoint = "checkpoint=[{output_dir: ckpt, save_every_n_steps: 3, keep_last_n: 3, auto_resume: true}, \
                      {type: huggingface, output_dir: out, save_end_of_training: true}]";
    let mut args = vec!["train".to_owned(), "recipe.yaml".to_owned(), "--quiet".to_owned()];
    args.extend(["--max-restarts".to_owned(), "1000".to_owned()]);
    for set in [
        &format!("train_iters={num_steps}"),
        &format!("sequence_parallel_size={RANKS}"),
        "model.dtype=bf16",
        "memory={moments_dtype: bf16}",
        "scheduler={name: cosine, warmup_ratio: 0.1}",
        checkpoint,
    ] {
        args.extend(["--set".to_owned(), (*set).to_owned()]);
    }
    args
}

/// Starts the command, whose output nobody keeps.
fn start(workspace: &Workspace, args: &[String]) -> Child {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut command = workspace.sterna(&args);
    let log = fs::File::options().create(true).append(true).open(workspace.path("log")).unwrap();
    command.stdout(Stdio::null()).stderr(log);
    command.spawn().unwrap()
}

/// Whether a checkpoint is being written right now.
fn is_saving(folder: &Path) -> bool {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names = entries.map(|entry| entry.file_name());
    names.any(|name| name.to_string_lossy().ends_with(".incomplete"))
}

fn num_rows(workspace: &Workspace) -> usize {
    fs::read_to_string(workspace.path("metrics.jsonl")).map_or(0, |text| text.lines().count())
}

/// Whatever was killed when, a checkpoint that has its name is whole. One may be deleted while it is looked at.
fn assert_whole(folder: &Path) {
    for listed in sterna_checkpoint::list(folder).unwrap() {
        let problems = match sterna_checkpoint::Checkpoint::open(&listed.dir) {
            Ok(checkpoint) => checkpoint.verify(),
            Err(problem) => vec![problem],
        };
        assert!(problems.is_empty() || !listed.dir.exists(), "{problems:?}");
    }
}

/// Whether the ranks of `launcher` are at work.
fn has_ranks(launcher: &Child) -> bool {
    children(launcher.id()).len() == RANKS
}

#[test]
#[expect(clippy::print_stderr, reason = "what was killed when is worth reading")]
fn fifty_kills_of_ranks_and_launchers_change_not_a_bit() {
    let num_kills = number("STERNA_SOAK_KILLS", NUM_KILLS as u64) as usize;
    let seed = number("STERNA_SOAK_SEED", 1);
    let num_steps = num_kills * (STEPS_A_KILL + STEPS_A_SAVE);
    let (undisturbed, killed) = (Workspace::new(), Workspace::new());
    let args = args(num_steps);
    assert!(start(&undisturbed, &args).wait().unwrap().success(), "{}", undisturbed.read("log"));

    let mut random = Random(seed);
    let mut launcher = start(&killed, &args);
    let (mut of_rank, mut of_launcher, mut during_save) = (0, 0, 0);
    let started = Instant::now();
    let mut kills = 0;
    while kills < num_kills {
        let ended = launcher.try_wait().unwrap();
        assert!(
            ended.is_none(),
            "seed {seed}: {ended:?} after {kills} kills\n{}",
            killed.read("log")
        );
        // From the start of the processes through the first steps and saves.
        let delay = Duration::from_millis(random.below(2_500));
        let (wants_save, wants_launcher) = (random.below(3) == 0, random.below(4) == 0);
        let (rank, jitter) = (random.below(RANKS as u64) as usize, random.below(4));
        let (waiting, rows) = (Instant::now(), num_rows(&killed));
        while waiting.elapsed() < delay && num_rows(&killed) < rows + STEPS_A_KILL {
            thread::sleep(Duration::from_millis(2));
        }
        if wants_save {
            let patience = Instant::now();
            while !is_saving(&killed.path("ckpt")) && patience.elapsed() < Duration::from_secs(3) {
                thread::sleep(Duration::from_micros(200));
            }
            thread::sleep(Duration::from_millis(jitter));
        }
        let saving = is_saving(&killed.path("ckpt"));
        if wants_launcher {
            launcher.kill().unwrap();
            launcher.wait().unwrap();
            of_launcher += 1;
            launcher = start(&killed, &args);
        } else if has_ranks(&launcher) {
            kill(Pid::from_raw(children(launcher.id())[rank]), Signal::SIGKILL).unwrap();
            of_rank += 1;
        } else {
            continue;
        }
        assert_whole(&killed.path("ckpt"));
        kills += 1;
        during_save += usize::from(saving);
    }
    assert!(of_rank > 0 && of_launcher > 0 && during_save > 0);
    assert!(launcher.wait().unwrap().success(), "seed {seed}:\n{}", killed.read("log"));

    let weights =
        |workspace: &Workspace| fs::read(workspace.path("out/tuned/model.safetensors")).unwrap();
    assert!(weights(&killed) == weights(&undisturbed), "seed {seed}: the weights differ");
    let losses = |workspace: &Workspace| -> Vec<(u64, f64)> {
        let rows = workspace.rows("metrics.jsonl").into_iter();
        rows.map(|row: Value| (row["iter"].as_u64().unwrap(), row["loss"].as_f64().unwrap()))
            .collect()
    };
    // Each step once, and the same.
    assert_eq!(losses(&killed), losses(&undisturbed), "seed {seed}");
    assert!(!is_saving(&killed.path("ckpt")));
    let steps: Vec<u64> = sterna_checkpoint::list(&killed.path("ckpt"))
        .unwrap()
        .iter()
        .map(|listed| listed.step)
        .collect();
    assert_eq!(steps.len(), 3, "{steps:?}");
    let report = format!(
        "seed {seed}: {of_rank} kills of a rank, {of_launcher} of the launcher, {during_save} of them during a save, over {} steps in {:.0?}",
        num_steps,
        started.elapsed()
    );
    eprintln!("{report}");
}
