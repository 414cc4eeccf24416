//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use crate::targets::{self, Target};

/// What to do.
pub(crate) enum Command {
    Help,
    List,
    Supervise,
    /// One file through one target.
    Replay(PathBuf),
    /// What the supervisor starts.
    Work,
}

pub(crate) struct Args {
    pub(crate) command: Command,
    pub(crate) targets: Vec<&'static Target>,
    pub(crate) budget: Budget,
    pub(crate) seed: u64,
    pub(crate) keep: PathBuf,
    /// The one seed to start from, in place of the target's own.
    pub(crate) only: Option<PathBuf>,
    /// What one input may take.
    pub(crate) slowest: Duration,
}

/// When a target has had enough.
#[derive(Clone, Copy)]
pub(crate) enum Budget {
    Time(Duration),
    Inputs(u64),
}

impl Args {
    pub(crate) fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut args = Self {
            command: Command::Supervise,
            targets: Vec::new(),
            budget: Budget::Time(Duration::from_secs(10)),
            seed: 1,
            only: None,
            keep: PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../.sterna/fuzz")),
            // Generous: the code is not optimised and the machine may be busy.
            slowest: Duration::from_secs(20),
        };
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("`{word}` needs a value"));
            match word.as_str() {
                "-h" | "--help" => args.command = Command::Help,
                "--list" => args.command = Command::List,
                "--work" => args.command = Command::Work,
                "--replay" => args.command = Command::Replay(value()?.into()),
                "--keep" => args.keep = value()?.into(),
                "--only" => args.only = Some(value()?.into()),
                "--slowest" => args.slowest = Duration::from_secs(number(&value()?)?),
                "--seed" => args.seed = number(&value()?)?,
                "--inputs" => args.budget = Budget::Inputs(number(&value()?)?),
                "--seconds" => {
                    args.budget = Budget::Time(Duration::from_secs(number(&value()?)?));
                }
                name => {
                    let target = targets::ALL
                        .iter()
                        .chain([&targets::SELF_TEST])
                        .find(|target| target.name == name);
                    args.targets.push(target.ok_or_else(|| {
                        format!("no option or target is named `{name}`; `--list` lists the targets")
                    })?);
                }
            }
        }
        if args.targets.is_empty() {
            args.targets = targets::ALL.iter().collect();
        }
        Ok(args)
    }
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("`{text}` is no whole number"))
}
