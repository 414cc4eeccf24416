//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::Target;

pub(super) const HELP: &str = "\
Feed broken files to every reader of Sterna, with coverage as the guide

Usage: cargo xtask fuzz [OPTIONS] [TARGET]...

Without a target, all run in turn. What breaks a reader is saved in fuzz/artifacts/ and makes the exit status 1.
Inputs that reach new code stay in fuzz/corpus/, where the next run starts.

Options:
  --seconds N    How long each target runs (10)
  --replay FILE  Runs one file through one target, and says what it answers
  --self-test    Shows that what no reader may do is found
  --list         Lists the targets
";

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum What {
    Help,
    List,
    Fuzz,
    SelfTest,
    /// One file through one target.
    Replay(PathBuf),
}

#[derive(Debug)]
pub(super) struct Options {
    pub(super) what: What,
    /// For each target.
    pub(super) seconds: Duration,
    /// In their order.
    pub(super) chosen: Vec<Target>,
}

impl Options {
    /// Reads the command line; without names, all `targets` are chosen.
    ///
    /// # Errors
    ///
    /// What is no option and no target, values that are missing or no numbers, and a replay of other than one target.
    pub(super) fn parse(args: &[String], targets: &[Target]) -> Result<Self> {
        let (mut what, mut seconds, mut chosen) = (What::Fuzz, 10, Vec::new());
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().with_context(|| format!("`{arg}` needs a value"));
            match arg.as_str() {
                "-h" | "--help" => what = What::Help,
                "--list" => what = What::List,
                "--self-test" => what = What::SelfTest,
                "--replay" => what = What::Replay(value()?.into()),
                "--seconds" => {
                    let text = value()?;
                    let number = text.parse().ok().filter(|&seconds| seconds > 0);
                    seconds = number.with_context(|| {
                        format!("`--seconds` is `{text}`, required: a number from 1")
                    })?;
                }
                name => {
                    let target = targets.iter().find(|target| target.name == name);
                    chosen.push(target.cloned().with_context(|| {
                        format!("no option or target is named `{name}`; `--list` lists the targets")
                    })?);
                }
            }
        }
        if matches!(what, What::Replay(_)) && chosen.len() != 1 {
            bail!("`--replay` needs one target");
        }
        if chosen.is_empty() {
            chosen = targets.to_vec();
        }
        Ok(Self { what, seconds: Duration::from_secs(seconds), chosen })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options> {
        let targets =
            ["arrow", "recipe"].map(|name| Target { name: name.to_owned(), about: String::new() });
        Options::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>(), &targets)
    }

    #[test]
    fn targets_are_named_or_all() {
        assert_eq!(parse("").unwrap().chosen.len(), 2);
        let options = parse("--seconds 7 recipe").unwrap();
        assert_eq!((options.chosen[0].name.as_str(), options.seconds.as_secs()), ("recipe", 7));
        assert!(parse("recipes").unwrap_err().to_string().contains("`recipes`"));
    }

    #[test]
    fn values_are_checked() {
        for line in
            ["--seconds", "--seconds 0", "--seconds x", "--replay a", "--replay a arrow recipe"]
        {
            parse(line).unwrap_err();
        }
        assert_eq!(parse("--replay a arrow").unwrap().what, What::Replay("a".into()));
    }
}
