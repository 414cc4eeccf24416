//! What is to be measured, from the command line.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use super::policy::{self, Policy};

pub(super) const HELP: &str = "\
Peak memory and time of training steps, over sequence lengths, ranks and policies

Usage: cargo xtask bench memory [OPTIONS]
       cargo xtask bench step [OPTIONS]

Each configuration runs in a fresh process: SmolLM2-135M-Instruct in bf16, fine-tuned on real chats,
one full sequence a step. The first step is a warm-up. Peaks are what the kernel reports of each rank
process; times are those of the metrics files. `memory` and `step` differ in defaults only:

                    memory                                 step
  --policies        default,recompute,segments,smallest    default
  --steps           1                                      3

Options:
  --lengths LIST    Sequence lengths in tokens [default: 4096,16384]
  --input LIST      packed: many short chats in a sequence, each attends to itself only;
                    single: one chat as long as the sequence [default: packed]
  --sp LIST         Ranks that share a sequence [default: 1]
  --policies LIST   What is kept for the backward and how attention runs; names from below, or your own:
                    NAME:KEY=VALUE+KEY=VALUE, with keys of the recipe
  --steps N         Measured steps of a run, after the warm-up
  --rounds N        Runs of each configuration, each round through all of them [default: 1]
  --threads N       CPU threads, divided over the ranks [default: all cores]
  --busy N          Keep N other threads computing while a run goes on, as on a machine that is shared
  --reference       Run arctic-training beside it on the same model, data and lengths, one process on the CPU;
                    it is installed into .sterna/reference (about 2 GB to download, once)
  --reference-lengths LIST
                    The same, at these lengths only: it takes minutes a step at 16,384 tokens
  --reference-venv DIR
                    A virtual environment that has arctic-training, instead of .sterna/reference
  --binary FILE     The sterna to measure, instead of a release build of this checkout
  --name NAME       Results go to .sterna/bench/NAME/ and replace what is there [default: memory or step]

Results, written after every run so that an interrupted bench keeps what it has: table.md, results.json,
bytes_per_token.svg, tokens_per_second.svg; and under runs/ the recipe, log and metrics of each run.

Examples:
  cargo xtask bench memory
  cargo xtask bench step --reference --lengths 4096 --rounds 2
  cargo xtask bench memory --lengths 2048,8192 --sp 1,3 --policies default,wide:memory.tile_bytes=512Mi
";

/// What a sequence is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Input {
    /// Many chats, none of which attends to another.
    Packed,
    /// One chat.
    Single,
}

impl Input {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Packed => "packed",
            Self::Single => "single",
        }
    }

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Packed => "Many chats in a sequence",
            Self::Single => "One chat as long as the sequence",
        }
    }
}

/// The command line, with defaults filled in.
#[derive(Debug, PartialEq)]
pub(super) struct Options {
    pub(super) name: String,
    pub(super) lengths: Vec<usize>,
    pub(super) inputs: Vec<Input>,
    pub(super) ranks: Vec<usize>,
    pub(super) policies: Vec<Policy>,
    pub(super) steps: usize,
    pub(super) rounds: usize,
    pub(super) threads: Option<usize>,
    /// Threads that compute beside each run.
    pub(super) busy: usize,
    /// Lengths at which the reference runs.
    pub(super) reference_lengths: Vec<usize>,
    pub(super) reference_venv: Option<PathBuf>,
    pub(super) binary: Option<PathBuf>,
}

impl Options {
    /// `None` when help is asked for.
    ///
    /// # Errors
    ///
    /// What cannot be understood, named; and combinations that would measure nothing.
    pub(super) fn parse(args: &[String]) -> Result<Option<Self>> {
        if args.iter().any(|arg| matches!(arg.as_str(), "-h" | "--help" | "help")) {
            return Ok(None);
        }
        let Some((kind, rest)) = args.split_first() else {
            bail!("say what to measure: `memory` or `step`; `cargo xtask bench --help` tells more");
        };
        let (policies, steps) = match kind.as_str() {
            "memory" => ("default,recompute,segments,smallest", 1),
            "step" => ("default", 3),
            _ => bail!("found `{kind}`, required is `memory` or `step`"),
        };
        let mut options = Self {
            name: kind.clone(),
            lengths: vec![4096, 16384],
            inputs: vec![Input::Packed],
            ranks: vec![1],
            policies: policy::parse(policies)?,
            steps,
            rounds: 1,
            threads: None,
            busy: 0,
            reference_lengths: Vec::new(),
            reference_venv: None,
            binary: None,
        };
        let mut everywhere = false;
        let mut rest = rest.iter();
        while let Some(arg) = rest.next() {
            let (option, inline) = match arg.split_once('=') {
                Some((option, value)) => (option, Some(value.to_owned())),
                None => (arg.as_str(), None),
            };
            if option == "--reference" && inline.is_none() {
                everywhere = true;
                continue;
            }
            let mut value = || {
                inline.clone().or_else(|| rest.next().cloned()).with_context(|| {
                    format!("`{option}` needs a value; `cargo xtask bench --help` shows which")
                })
            };
            match option {
                "--lengths" => options.lengths = numbers(option, &value()?)?,
                "--input" | "--inputs" => options.inputs = inputs(&value()?)?,
                "--sp" => options.ranks = numbers(option, &value()?)?,
                "--policies" | "--policy" => options.policies = policy::parse(&value()?)?,
                "--steps" => options.steps = number(option, &value()?)?,
                "--rounds" => options.rounds = number(option, &value()?)?,
                "--threads" => options.threads = Some(number(option, &value()?)?),
                "--busy" => options.busy = number(option, &value()?)?,
                "--reference-lengths" => {
                    options.reference_lengths = numbers(option, &value()?)?;
                }
                "--reference-venv" => options.reference_venv = Some(value()?.into()),
                "--binary" => options.binary = Some(value()?.into()),
                "--name" => options.name = value()?,
                _ => bail!("no option is named `{arg}`; `cargo xtask bench --help` lists them"),
            }
        }
        if everywhere && options.reference_lengths.is_empty() {
            options.reference_lengths.clone_from(&options.lengths);
        }
        options.check()?;
        Ok(Some(options))
    }

    fn check(&self) -> Result<()> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if self.name.is_empty() || self.name.starts_with('.') || !self.name.chars().all(is_plain) {
            bail!(
                "`--name` is `{}`; it names a folder: letters, digits, `-`, `_` and `.`",
                self.name
            );
        }
        if let Some(short) = self.lengths.iter().find(|length| **length < 256) {
            bail!("`--lengths` has {short}; a chat needs at least 256 tokens");
        }
        if let Some(other) =
            self.reference_lengths.iter().find(|length| !self.lengths.contains(length))
        {
            bail!("`--reference-lengths` has {other}, which is not in `--lengths`");
        }
        if self.reference_venv.is_some() && self.reference_lengths.is_empty() {
            bail!(
                "`--reference-venv` without `--reference` or `--reference-lengths` runs no reference"
            );
        }
        Ok(())
    }
}

fn number(option: &str, text: &str) -> Result<usize> {
    match text.trim().replace('_', "").parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => bail!("`{option}` has `{text}`; required is a whole number above 0"),
    }
}

/// Numbers in ascending order, each once.
fn numbers(option: &str, text: &str) -> Result<Vec<usize>> {
    let mut numbers: Vec<usize> =
        text.split(',').map(|item| number(option, item)).collect::<Result<_>>()?;
    numbers.sort_unstable();
    numbers.dedup();
    Ok(numbers)
}

fn inputs(text: &str) -> Result<Vec<Input>> {
    let mut inputs = Vec::new();
    for item in text.split(',') {
        let input = match item.trim() {
            "packed" => Input::Packed,
            "single" => Input::Single,
            other => bail!("`--input` has `{other}`; required is `packed`, `single`, or both"),
        };
        if !inputs.contains(&input) {
            inputs.push(input);
        }
    }
    Ok(inputs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Option<Options>, String> {
        let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        Options::parse(&args).map_err(|err| format!("{err:#}"))
    }

    #[test]
    fn lists_are_sorted_and_the_reference_follows_the_lengths() {
        let options =
            parse("step --lengths=8_192,512,512 --reference --input single,packed --sp 3,1")
                .unwrap()
                .unwrap();
        assert_eq!(options.name, "step");
        assert_eq!(options.lengths, [512, 8192]);
        assert_eq!(options.reference_lengths, [512, 8192]);
        assert_eq!(options.inputs, [Input::Single, Input::Packed]);
        assert_eq!(options.ranks, [1, 3]);
        assert_eq!(options.steps, 3);
        let few = parse("memory --reference-lengths 4096 --reference").unwrap().unwrap();
        assert_eq!(few.reference_lengths, [4096]);
        assert_eq!(few.policies.len(), 4);
        assert_eq!(parse("memory --help"), Ok(None));
    }

    #[test]
    fn every_error_names_what_was_found() {
        let error = |line: &str| parse(line).unwrap_err();
        assert!(error("").contains("`memory` or `step`"));
        assert_eq!(error("speed"), "found `speed`, required is `memory` or `step`");
        assert!(error("step --length 4").contains("no option is named `--length`"));
        assert!(error("step --lengths").contains("`--lengths` needs a value"));
        assert!(error("step --steps 0").contains("`--steps` has `0`"));
        assert!(error("step --lengths 4k").contains("`--lengths` has `4k`"));
        assert!(error("step --input long").contains("`--input` has `long`"));
        assert!(error("step --name ../x").contains("it names a folder"));
        assert!(error("step --reference-lengths 512").contains("not in `--lengths`"));
        assert!(error("step --reference-venv v").contains("runs no reference"));
        assert!(error("step --policies fast").contains("`fast`"));
    }
}
