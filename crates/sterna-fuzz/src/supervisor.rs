//! Starts workers, and keeps what ended them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::args::{Args, Budget};
use crate::targets::Target;
use crate::worker::{CURRENT, GIVEN_UP, STALLED};

/// Findings of one target after which it is given up.
const MAX_FINDINGS: usize = 20;

/// Runs the targets in turn and returns the number of findings.
pub(crate) fn run(args: &Args) -> io::Result<usize> {
    println!(
        "{:<12} {:>9} {:>8} {:>8} {:>8}",
        "target", "inputs", "answers", "seconds", "findings"
    );
    let mut total = 0;
    for target in &args.targets {
        let start = Instant::now();
        let outcome = run_target(args, target)?;
        println!(
            "{:<12} {:>9} {:>8} {:>8.1} {:>8}",
            target.name,
            outcome.num_inputs,
            outcome.num_answers,
            start.elapsed().as_secs_f64(),
            outcome.findings.len()
        );
        for (what, path) in &outcome.findings {
            println!("  {what}\n    {path}");
        }
        total += outcome.findings.len();
    }
    Ok(total)
}

#[derive(Default)]
struct Outcome {
    num_inputs: u64,
    num_answers: u64,
    /// What happened, one for each place in the code, and the first input that made it happen.
    findings: BTreeMap<String, String>,
}

fn run_target(args: &Args, target: &Target) -> io::Result<Outcome> {
    let start = Instant::now();
    let mut outcome = Outcome::default();
    let mut seed = args.seed;
    while outcome.findings.len() < MAX_FINDINGS {
        let budget = match args.budget {
            Budget::Time(limit) => limit.checked_sub(start.elapsed()).map(Budget::Time),
            Budget::Inputs(limit) => {
                let rest = limit.saturating_sub(outcome.num_inputs);
                (rest > 0).then_some(Budget::Inputs(rest))
            }
        };
        let Some(budget) = budget else { break };
        let folder = work_folder()?;
        let output = Command::new(std::env::current_exe()?)
            .args(["--work", target.name, "--seed", &seed.to_string()])
            .args(["--slowest", &args.slowest.as_secs().to_string()])
            .args(match budget {
                Budget::Time(left) => ["--seconds".to_owned(), left.as_secs().max(1).to_string()],
                Budget::Inputs(left) => ["--inputs".to_owned(), left.to_string()],
            })
            .args(args.only.iter().flat_map(|path| [Path::new("--only"), path.as_path()]))
            .current_dir(folder.path())
            // The last line of what it writes is to say why it ended.
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .output()?;
        let stdout = String::from_utf8_lossy(&output.stdout);
        for line in stdout.lines() {
            match line.split_once(' ') {
                Some(("panic", rest)) => {
                    let (name, text) = rest.split_once(' ').unwrap_or((rest, ""));
                    keep(args, target, &mut outcome, text, &folder.path().join(name))?;
                }
                Some(("inputs", counts)) => {
                    let mut counts =
                        counts.split(" answers ").map(|count| count.parse().unwrap_or(0));
                    outcome.num_inputs += counts.next().unwrap_or(0);
                    outcome.num_answers = outcome.num_answers.max(counts.next().unwrap_or(0));
                }
                _ => {}
            }
        }
        if output.status.success() {
            break;
        }
        seed = seed.wrapping_add(0x1000);
        if output.status.code() == Some(i32::from(GIVEN_UP)) {
            continue;
        }
        let what = cause(output.status, &String::from_utf8_lossy(&output.stderr));
        keep(args, target, &mut outcome, &what, &folder.path().join(CURRENT))?;
        // At least the one that ended it.
        outcome.num_inputs += 1;
    }
    Ok(outcome)
}

/// A folder in memory where there is one: every input is a file.
fn work_folder() -> io::Result<tempfile::TempDir> {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }
}

/// Why a worker ended, in a line.
fn cause(status: ExitStatus, stderr: &str) -> String {
    if status.code() == Some(i32::from(STALLED)) {
        return "takes too long".to_owned();
    }
    let is_cause = |line: &&str| !line.trim().is_empty() && !line.starts_with("note:");
    let said = stderr.lines().rfind(is_cause).unwrap_or_default();
    match status.signal() {
        Some(signal) => format!("ended by signal {signal}: {said}"),
        None => format!("ended with {status}: {said}"),
    }
}

/// Saves an input unless one of its kind is saved already.
fn keep(
    args: &Args,
    target: &Target,
    outcome: &mut Outcome,
    what: &str,
    input: &Path,
) -> io::Result<()> {
    let what: String = what.chars().take(300).collect();
    // Numbers in a message vary with the input; the place in the code does not.
    let key = match what.split_once(".rs:") {
        Some((file, rest)) => format!("{file}.rs:{}", rest.split(' ').next().unwrap_or_default()),
        None => what.clone(),
    };
    if outcome.findings.keys().any(|known| known.starts_with(&key)) {
        return Ok(());
    }
    let folder = args.keep.join(target.name);
    fs::create_dir_all(&folder)?;
    let seconds = std::time::UNIX_EPOCH.elapsed().unwrap_or(Duration::ZERO).as_secs();
    let path = folder.join(format!("{seconds}-{}", outcome.findings.len()));
    fs::copy(input, &path)?;
    outcome.findings.insert(what, path.display().to_string());
    Ok(())
}
