//! One process of libFuzzer, and what it says when it ends.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::UNIX_EPOCH;

use anyhow::{Context as _, Result, bail};

use super::{Place, SELF_TEST};

/// Seconds that an input may take. Generous: the machine may be busy.
const SLOWEST: u64 = 20;

/// Longest input that is tried, in bytes; long ones slow everything after them down.
const MAX_LEN: usize = 1 << 16;

/// libFuzzer's exit status when it is interrupted: so ends a process whose chat template was given up and is still at work.
const INTERRUPTED: i32 = 72;

/// A target, built.
pub(super) struct Program<'a> {
    pub(super) name: String,
    pub(super) binary: PathBuf,
    pub(super) place: &'a Place,
}

/// What one process came to.
#[derive(Debug, Default)]
pub(super) struct Ended {
    pub(super) num_inputs: u64,
    /// Of the code's graph: what libFuzzer calls `cov`.
    pub(super) num_edges: u64,
    /// Inputs that are worth keeping.
    pub(super) num_kept: u64,
    /// What ended it other than its time, and the input that did.
    pub(super) finding: Option<(String, PathBuf)>,
    pub(super) log: String,
}

impl Program<'_> {
    /// Fuzzes for some seconds, or until something is found.
    pub(super) fn fuzz(&self, seconds: u64) -> Result<Ended> {
        let fuzz = &self.place.fuzz;
        let words = fuzz.join("dictionaries").join(&self.name);
        let corpus = fuzz.join("corpus").join(&self.name);
        fs::create_dir_all(&corpus)?;
        let mut command = self.command(SLOWEST)?;
        command
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-max_len={MAX_LEN}"))
            .arg(corpus);
        // The program writes it when it starts, and libFuzzer refuses one without words.
        if self.name != SELF_TEST {
            command.arg(format!("-dict={}", words.display()));
        }
        self.run(command, None)
    }

    /// Runs one file; an answer is in the log.
    pub(super) fn replay(&self, input: &Path, slowest: u64) -> Result<Ended> {
        // libFuzzer takes a file that is not there for a success.
        if !input.is_file() {
            bail!("`{}` is no file", input.display());
        }
        let mut command = self.command(slowest)?;
        command.arg(input).env("STERNA_FUZZ_TELL", "1");
        self.run(command, Some(input))
    }

    fn command(&self, slowest: u64) -> Result<Command> {
        let artifacts = self.artifacts();
        fs::create_dir_all(&artifacts)?;
        let mut command = Command::new(&self.binary);
        command
            .arg(format!("-artifact_prefix={}/", artifacts.display()))
            .arg(format!("-timeout={slowest}"))
            // Address space is limited instead, which ends a process in the input that asks for too much.
            .args(["-rss_limit_mb=0", "-print_final_stats=1"])
            .env("TMPDIR", &self.place.scratch);
        Ok(command)
    }

    fn artifacts(&self) -> PathBuf {
        self.place.fuzz.join("artifacts").join(&self.name)
    }

    /// Runs to the end; `input` is the only one, where there is only one.
    fn run(&self, mut command: Command, input: Option<&Path>) -> Result<Ended> {
        let output = command
            .output()
            .with_context(|| format!("cannot start `{}`", self.binary.display()))?;
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        let mut ended = counts(&log);
        if !output.status.success() && output.status.code() != Some(INTERRUPTED) {
            let cause = cause(output.status, &log);
            let saved = log.lines().find_map(|line| line.split_once("Test unit written to "));
            let input = match (input, saved) {
                (Some(input), _) => input.to_owned(),
                (None, Some((_, path))) => PathBuf::from(path),
                (None, None) => self.keep_current().with_context(|| format!("{cause}\n{log}"))?,
            };
            ended.finding = Some((cause, input));
        }
        ended.log = log;
        Ok(ended)
    }

    /// Saves the input that a process died in without a word.
    fn keep_current(&self) -> Result<PathBuf> {
        let current = self.place.scratch.join("current");
        let time = UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
        let path = self.artifacts().join(format!("died-{time}"));
        fs::copy(&current, &path).with_context(|| format!("`{}`", current.display()))?;
        Ok(path)
    }
}

/// The last numbers of a log; a process that died has no final ones.
fn counts(log: &str) -> Ended {
    let mut ended = Ended::default();
    let number = |text: &str| -> Option<u64> {
        let digits = text.trim_start().split(|c: char| !c.is_ascii_digit()).next()?;
        digits.parse().ok()
    };
    for line in log.lines() {
        let after = |key: &str| line.split_once(key).and_then(|(_, rest)| number(rest));
        if let Some(count) = line.strip_prefix('#').and_then(number) {
            ended.num_inputs = count;
            ended.num_edges = after(" cov: ").unwrap_or(ended.num_edges);
            ended.num_kept = after(" corp: ").unwrap_or(ended.num_kept);
        } else if let Some(count) = after("stat::number_of_executed_units:") {
            ended.num_inputs = count;
        }
    }
    ended
}

/// Why a process ended, in a line.
fn cause(status: ExitStatus, log: &str) -> String {
    let said = log.lines().find_map(|line| {
        let said = line
            .strip_prefix("panic: ")
            .or_else(|| line.starts_with("memory allocation of").then_some(line));
        said.or_else(|| line.strip_prefix("SUMMARY: libFuzzer: "))
    });
    match (said, status.signal()) {
        (Some(said), _) => said.chars().take(300).collect(),
        // libFuzzer sees every other signal; its handler has no stack to run on after this.
        (None, Some(signal)) => {
            format!("ended by signal {signal}, without a word: too deep a stack?")
        }
        (None, None) => format!("ended with {status}"),
    }
}

/// The part of a cause that does not vary with the input: the place in the code, where there is one.
pub(super) fn place(cause: &str) -> &str {
    let end = cause.find(".rs:").map(|at| {
        let rest = &cause[at + 4..];
        at + 4 + rest.find(' ').unwrap_or(rest.len())
    });
    end.map_or(cause, |end| &cause[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
INFO: Seed: 1
#2\tINITED cov: 5 ft: 6 corp: 1/1b exec/s: 0 rss: 26Mb
#4096\tpulse  cov: 12 ft: 30 corp: 9/40b lim: 43 exec/s: 2048 rss: 27Mb
panic: panicked at crates/a/src/b.rs:7:9: | no 12
SUMMARY: libFuzzer: deadly signal
stat::number_of_executed_units: 5000
";

    #[test]
    fn a_log_is_counted_to_its_end() {
        let ended = counts(LOG);
        assert_eq!((ended.num_inputs, ended.num_edges, ended.num_kept), (5000, 12, 9));
        let died = counts(LOG.split("panic").next().unwrap_or_default());
        assert_eq!((died.num_inputs, died.num_edges, died.num_kept), (4096, 12, 9));
    }

    #[test]
    fn a_cause_is_what_was_said_last_or_the_signal() {
        let aborted = ExitStatus::from_raw(6);
        assert_eq!(cause(aborted, LOG), "panicked at crates/a/src/b.rs:7:9: | no 12");
        assert_eq!(cause(aborted, "SUMMARY: libFuzzer: timeout\n"), "timeout");
        assert!(cause(ExitStatus::from_raw(11), "").contains("signal 11"));
    }

    #[test]
    fn two_causes_at_one_place_are_one_finding() {
        assert_eq!(
            place("panicked at a/b.rs:7:9: | no 12"),
            place("panicked at a/b.rs:7:9: | no 13")
        );
        assert_ne!(place("panicked at a/b.rs:7:9: | no"), place("panicked at a/b.rs:8:9: | no"));
        assert_eq!(place("timeout"), "timeout");
    }
}
