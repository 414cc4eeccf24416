//! Broken files for every reader: the programs of `fuzz/`, built with coverage and run.
//!
//! These are cargo-fuzz's programs and flags; cargo-fuzz itself is not needed. `-Cpasses` is a stable option of the compiler, so
//! coverage is too. Sanitizers are not, but there is hardly any unsafe code for them to watch.

mod options;
mod run;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use self::options::{HELP, Options, What};
use self::run::{Ended, Program};
use crate::{demo, stage};

/// What `cargo fuzz build --sanitizer none` passes (cargo-fuzz 0.13.2).
const RUSTFLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing \
    -Cllvm-args=-simplifycfg-branch-fold-threshold=0 \
    -Cllvm-args=-sanitizer-coverage-stack-depth -Cdebug-assertions -Ccodegen-units=1";

/// The program that does what no reader may do.
const SELF_TEST: &str = "self_test";

/// Times that one target is started again after a finding: the next process may well find the same.
const MAX_ENDS: usize = 20;

/// Builds and runs the targets that `args` name.
///
/// # Errors
///
/// Arguments that cannot be understood, a build that fails, and anything found.
pub(crate) fn run(root: &Path, args: &[String]) -> Result<()> {
    let targets = targets(root)?;
    let Options { what, seconds, chosen } = Options::parse(args, &targets)?;
    let Some(first) = chosen.first() else { bail!("`fuzz/fuzz_targets` has no target") };
    match what {
        What::Help => print!("{HELP}"),
        What::List => {
            for target in &targets {
                println!("{:<12} {}", target.name, target.about);
            }
        }
        What::SelfTest => self_test(&Place::build(root, &[SELF_TEST])?)?,
        What::Replay(input) => {
            let place = Place::build(root, &[&first.name])?;
            let ended = place.program(&first.name).replay(&input, 20)?;
            print!("{}", ended.log);
            if let Some((cause, _)) = ended.finding {
                bail!("`{}`: {cause}", input.display());
            }
        }
        What::Fuzz => {
            let names: Vec<&str> = chosen.iter().map(|target| target.name.as_str()).collect();
            fuzz(&Place::build(root, &names)?, &names, seconds)?;
        }
    }
    Ok(())
}

fn fuzz(place: &Place, names: &[&str], seconds: Duration) -> Result<()> {
    println!(
        "{:<12} {:>10} {:>8} {:>8} {:>8} {:>8} {:>8}",
        "target", "inputs", "inputs/s", "edges", "corpus", "seconds", "findings"
    );
    let mut total = 0;
    for name in names {
        let start = Instant::now();
        let mut sum = Ended::default();
        let mut findings: Vec<(String, PathBuf)> = Vec::new();
        let mut num_ends = 0;
        while num_ends < MAX_ENDS {
            let left = seconds.saturating_sub(start.elapsed()).as_secs();
            if left == 0 {
                break;
            }
            let ended = place.program(name).fuzz(left)?;
            sum.num_inputs += ended.num_inputs;
            sum.num_edges = sum.num_edges.max(ended.num_edges);
            sum.num_kept = ended.num_kept;
            if let Some((cause, input)) = ended.finding {
                num_ends += 1;
                if findings.iter().all(|(known, _)| run::place(known) != run::place(&cause)) {
                    findings.push((cause, input));
                }
            }
        }
        let time = start.elapsed().as_secs_f64();
        println!(
            "{name:<12} {:>10} {:>8.0} {:>8} {:>8} {time:>8.1} {:>8}",
            sum.num_inputs,
            sum.num_inputs as f64 / time,
            sum.num_edges,
            sum.num_kept,
            findings.len()
        );
        for (cause, input) in &findings {
            println!("  {cause}\n    {}", input.display());
        }
        total += findings.len();
    }
    if total > 0 {
        bail!("{total} findings; `cargo xtask fuzz --replay FILE TARGET` runs one again");
    }
    Ok(())
}

/// Shows that coverage leads to a panic behind four bytes, and that each thing that no reader may do is a finding.
fn self_test(place: &Place) -> Result<()> {
    let program = place.program(SELF_TEST);
    let corpus = place.fuzz.join("corpus").join(SELF_TEST);
    if corpus.is_dir() {
        // From nothing: what an earlier test kept is nearly there.
        fs::remove_dir_all(corpus)?;
    }
    let start = Instant::now();
    let ended = program.fuzz(60)?;
    expect("a panic behind four bytes", &ended, "as asked")?;
    println!("  after {} inputs, {}", ended.num_inputs, stage::seconds(start.elapsed()));
    for (word, cause) in
        [("-stack", "signal 11"), ("-memory", "memory allocation of"), ("-time", "timeout")]
    {
        let input = place.scratch.join(word);
        fs::write(&input, format!("seed{word}"))?;
        expect(word, &program.replay(&input, 2)?, cause)?;
    }
    Ok(())
}

fn expect(what: &str, ended: &Ended, cause: &str) -> Result<()> {
    match &ended.finding {
        Some((found, input)) if found.contains(cause) && input.is_file() => {
            println!("found {what}: {found}");
            Ok(())
        }
        other => bail!("{what} is to be found as `{cause}`, found {other:?}\n{}", ended.log),
    }
}

/// Where the programs are built and work.
struct Place {
    /// The folder `fuzz/`.
    fuzz: PathBuf,
    binaries: PathBuf,
    /// In memory where there is some: every input is a file. Removed in the end.
    scratch: PathBuf,
}

impl Place {
    fn build(root: &Path, names: &[&str]) -> Result<Self> {
        let fuzz = root.join("fuzz");
        let version = stage::output(Command::new("rustc").current_dir(&fuzz).arg("-vV"))?;
        let host = version.lines().find_map(|line| line.strip_prefix("host: "));
        let host = host.context("`rustc -vV` names no host")?;
        // With a `--target`, the flags are not for build scripts and macros.
        let mut cargo = stage::cargo(&fuzz);
        cargo.args(["build", "--quiet", "--release", "--locked", "--target", host]);
        cargo.args(names.iter().flat_map(|name| ["--bin", name])).env("RUSTFLAGS", RUSTFLAGS);
        stage::run(&mut cargo)?;
        let binaries = demo::target_directory(&fuzz)?.join(host).join("release");
        let memory = Path::new("/dev/shm");
        let temporary = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let scratch = temporary.join(format!("sterna-fuzz-{}", std::process::id()));
        fs::create_dir_all(&scratch)?;
        Ok(Self { fuzz, binaries, scratch })
    }

    fn program(&self, name: &str) -> Program<'_> {
        Program { binary: self.binaries.join(name), name: name.to_owned(), place: self }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.scratch);
    }
}

/// A target as `fuzz/fuzz_targets/` has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    name: String,
    /// The first line of its file.
    about: String,
}

/// All targets but the one that shows that things are found, by name.
fn targets(root: &Path) -> Result<Vec<Target>> {
    let folder = root.join("fuzz/fuzz_targets");
    let files = fs::read_dir(&folder).with_context(|| format!("`{}`", folder.display()))?;
    let mut targets = Vec::new();
    for file in files {
        let path = file?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).with_context(|| format!("`{}`", path.display()))?;
        let about = text.lines().next().unwrap_or_default().trim_start_matches("//! ").to_owned();
        if name != SELF_TEST {
            targets.push(Target { name, about });
        }
    }
    targets.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(targets)
}
