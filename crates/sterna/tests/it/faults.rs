//! A run that is killed again and again ends where the run that nobody disturbed ends, bit for bit.
//!
//! `cargo xtask soak` makes more kills with other seeds.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::launch::children;
use crate::workspace::Workspace;

/// Kills of the test, four of each kind; `STERNA_SOAK_KILLS` asks for more.
const NUM_KILLS: usize = 16;
/// A kill comes after so many more steps at the latest: however fast the machine, the last kill comes before the last step.
const STEPS_A_KILL: usize = 15;
/// A kill in a save waits for the next one, which comes within three steps, so many times at most.
const TRIES_A_SAVE: usize = 12;
/// Steps that these tries may take in the mean of all kills.
const STEPS_A_SAVE: usize = 15;

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

/// When the checkpoint that is being written was last added to. One that a kill left behind stays until its step is saved again.
fn saving_since(folder: &Path) -> Option<SystemTime> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let incomplete =
        entries.filter(|entry| entry.file_name().to_string_lossy().ends_with(".incomplete"));
    incomplete.filter_map(|entry| entry.metadata().ok()?.modified().ok()).max()
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

/// The ranks of `launcher`, if all are at work.
fn ranks(launcher: &Child) -> Option<Vec<i32>> {
    let ranks = children(launcher.id());
    (ranks.len() == RANKS).then_some(ranks)
}

/// Whether a process stands still because of a signal; `None` if it has ended.
fn is_stopped(process: i32) -> Option<bool> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    match rest.chars().next()? {
        'T' => Some(true),
        'Z' | 'X' => None,
        _ => Some(false),
    }
}

fn signal_all(processes: &[i32], signal: Signal) {
    for process in processes {
        // One may have ended by itself.
        let _ = kill(Pid::from_raw(*process), signal);
    }
}

/// Waits until all of them stand still; false if one has ended.
fn stand_still(processes: &[i32]) -> bool {
    signal_all(processes, Signal::SIGSTOP);
    processes.iter().all(|process| {
        loop {
            match is_stopped(*process) {
                Some(true) => return true,
                Some(false) => thread::sleep(Duration::from_micros(200)),
                None => return false,
            }
        }
    })
}

/// Waits for a save that begins from now on, and stops the ranks in the middle of it. A save may be over before all of them stand
/// still; then it is the next one's turn.
fn stopped_in_a_save(launcher: &mut Child, folder: &Path) -> Vec<i32> {
    for _ in 0..TRIES_A_SAVE {
        let from = SystemTime::now();
        while saving_since(folder).is_none_or(|since| since < from) {
            assert!(
                launcher.try_wait().unwrap().is_none(),
                "the run ended before a kill in a save"
            );
            thread::sleep(Duration::from_micros(200));
        }
        if let Some(ranks) = ranks(launcher) {
            if stand_still(&ranks) && saving_since(folder).is_some_and(|since| since >= from) {
                return ranks;
            }
            signal_all(&ranks, Signal::SIGCONT);
        }
    }
    panic!("of {TRIES_A_SAVE} saves, each was over before the ranks stood still");
}

#[test]
#[expect(clippy::print_stderr, reason = "what was killed when is worth reading")]
fn kills_of_ranks_and_launchers_change_not_a_bit() {
    let num_kills = number("STERNA_SOAK_KILLS", NUM_KILLS as u64) as usize;
    let seed = number("STERNA_SOAK_SEED", 1);
    let num_steps = num_kills * (STEPS_A_KILL + STEPS_A_SAVE);
    let (undisturbed, killed) = (Workspace::new(), Workspace::new());
    let args = args(num_steps);
    assert!(start(&undisturbed, &args).wait().unwrap().success(), "{}", undisturbed.read("log"));

    let mut random = Random(seed);
    let mut launcher = start(&killed, &args);
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
        let rank = random.below(RANKS as u64) as usize;
        let (waiting, rows) = (Instant::now(), num_rows(&killed));
        while waiting.elapsed() < delay && num_rows(&killed) < rows + STEPS_A_KILL {
            thread::sleep(Duration::from_millis(2));
        }
        // The four kinds take turns: a rank or the launcher, whenever it is or in the middle of a save.
        let (is_of_launcher, is_in_save) = (kills % 4 >= 2, kills % 2 == 1);
        let victims = match (is_in_save, is_of_launcher) {
            (true, _) => stopped_in_a_save(&mut launcher, &killed.path("ckpt")),
            // With ranks or before they are there.
            (false, true) => Vec::new(),
            (false, false) => match ranks(&launcher) {
                Some(ranks) => ranks,
                // Just being started again.
                None => continue,
            },
        };
        if is_of_launcher {
            launcher.kill().unwrap();
            launcher.wait().unwrap();
            launcher = start(&killed, &args);
        } else if kill(Pid::from_raw(victims[rank]), Signal::SIGKILL).is_ok() {
            signal_all(&victims, Signal::SIGCONT);
        } else {
            // It has ended by itself, after the kill before.
            continue;
        }
        assert_whole(&killed.path("ckpt"));
        kills += 1;
    }
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
    assert!(saving_since(&killed.path("ckpt")).is_none());
    let steps: Vec<u64> = sterna_checkpoint::list(&killed.path("ckpt"))
        .unwrap()
        .iter()
        .map(|listed| listed.step)
        .collect();
    assert_eq!(steps.len(), 3, "{steps:?}");
    let report = format!(
        "seed {seed}: {num_kills} kills, half of the launcher, half in a save, over {num_steps} steps in {:.0?}",
        started.elapsed()
    );
    eprintln!("{report}");
}
