//! Measures peak memory and time of training steps, ours and the reference's, and writes tables and plots.
//!
//! Nothing is trusted that a program says of its own memory: the peaks are the kernel's. That both do the same work is shown by
//! their losses.

mod busy;
mod case;
mod chats;
mod figures;
mod options;
mod plot;
mod policy;
mod recipe;
mod reference;
mod table;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use sterna_bench::process::{End, Limits, Ranks, Watched};
use sterna_bench::{machine, metrics, process};

use self::busy::Busy;
use self::case::{Case, Predicted, Run, System};
use self::options::{HELP, Input, Options};
use self::recipe::{METRICS, Recipe};
use self::reference::Reference;
use crate::{demo, inputs, libtorch, stage};

/// Where results go, from the workspace root, a folder for each name.
const RESULTS: &str = ".sterna/bench";

/// Where tokens are counted, in the folder of results.
const COUNT: &str = "data/count";

/// Runs the bench that `args` describe.
///
/// # Errors
///
/// Arguments that cannot be understood, a build or download that fails, and, after everything else was measured, a configuration
/// that failed other than for lack of memory.
pub(crate) fn run(root: &Path, args: &[String]) -> Result<()> {
    let Some(options) = Options::parse(args)? else {
        print!("{HELP}");
        return Ok(());
    };
    let bench = Bench::prepare(root, options)?;
    let cases = bench.measure()?;
    println!("\n{}", table::tables(&bench.options, &cases));
    println!("Results are in {}/", bench.folder.display());
    let failed: Vec<String> = cases
        .iter()
        .filter_map(|case| Some((case, case.trouble()?)))
        .filter(|(_, trouble)| trouble != "out of memory")
        .map(|(case, trouble)| {
            let runs = bench.folder.join("runs").join(case.folder());
            format!("{}: {trouble}; its log is in {}/", case.folder(), runs.display())
        })
        .collect();
    if !failed.is_empty() {
        bail!(
            "{} of {} configurations failed\n  {}",
            failed.len(),
            cases.len(),
            failed.join("\n  ")
        );
    }
    Ok(())
}

/// Everything that runs need.
struct Bench<'a> {
    root: &'a Path,
    options: Options,
    sterna: PathBuf,
    reference: Option<Reference>,
    model: PathBuf,
    chats: Vec<Vec<Value>>,
    /// Of the results, from the workspace root, as all paths in recipes are.
    folder: PathBuf,
    threads: usize,
    machine: Value,
}

impl<'a> Bench<'a> {
    /// Builds and fetches what is missing, and clears the folder of results.
    fn prepare(root: &'a Path, options: Options) -> Result<Self> {
        let threads = options.threads.unwrap_or_else(machine::cores);
        let mut machine = machine::facts(root);
        machine["threads"] = json!(threads);
        machine["busy_threads"] = json!(options.busy);
        let sterna = if let Some(binary) = &options.binary {
            let binary = std::path::absolute(binary)?;
            if !binary.is_file() {
                bail!("`--binary` is `{}`, which is no file", binary.display());
            }
            binary
        } else {
            stage::stage("libtorch", || libtorch::install(root, libtorch::Flavor::Cpu).map(drop))?;
            stage::stage("build sterna (release; a few minutes the first time)", || {
                demo::build(root)
            })?
        };
        machine["sterna"] = json!(machine::said(Command::new(&sterna).arg("--version")));
        let inputs = stage::stage("model and chats", || inputs::fetch(root))?;
        let reference = if options.reference_lengths.is_empty() {
            None
        } else {
            let venv = options.reference_venv.as_deref();
            Some(stage::stage("reference", || reference::install(root, venv))?)
        };
        let folder = Path::new(RESULTS).join(&options.name);
        if let Err(err) = fs::remove_dir_all(root.join(&folder))
            && err.kind() != std::io::ErrorKind::NotFound
        {
            return Err(err).with_context(|| format!("cannot remove `{}`", folder.display()));
        }
        Ok(Self {
            root,
            options,
            sterna,
            reference,
            model: from_root(root, &inputs.join("SmolLM2-135M-Instruct")),
            chats: chats::read(&inputs.join("dialogues-english/train.jsonl"))?,
            folder,
            threads,
            machine,
        })
    }

    /// Runs every configuration, round after round; results are written after each run.
    fn measure(&self) -> Result<Vec<Case>> {
        let mut cases = case::all(&self.options);
        let count = cases.len() * self.options.rounds;
        let mut done = 0;
        println!("==> {count} runs, each in a fresh process");
        let cores = machine::cores();
        if let Some(load) = machine::load().filter(|load| *load > 0.5 * cores as f64) {
            println!("    the load average is {load} on {cores} cores: do not believe the times");
        }
        for round in 0..self.options.rounds {
            for i in 0..cases.len() {
                done += 1;
                // What lacked memory once will again.
                if cases[i].trouble().is_some() {
                    continue;
                }
                let run = self.run(&mut cases[i], round)?;
                cases[i].runs.push(run);
                println!("    {done}/{count} {}", progress(&cases[i]));
                self.write(&cases)?;
            }
        }
        Ok(cases)
    }

    /// One run of one configuration.
    fn run(&self, case: &mut Case, round: usize) -> Result<Run> {
        let data = self.data(case)?;
        let is_ours = case.system == System::Sterna;
        let folder = self.folder.join("runs").join(case.folder());
        let folder = if round == 0 { folder } else { folder.join(format!("round-{}", round + 1)) };
        fs::create_dir_all(self.root.join(&folder))
            .with_context(|| format!("cannot make the folder `{}`", folder.display()))?;
        let recipe = folder.join("recipe.yaml");
        let text = Recipe {
            model: &self.model,
            data: &data,
            run: &folder,
            input: case.input,
            length: case.length,
            ranks: case.ranks,
            steps: self.options.steps + 1,
            is_ours,
        }
        .to_yaml();
        fs::write(self.root.join(&recipe), text)
            .with_context(|| format!("cannot write `{}`", recipe.display()))?;
        let mut command = match (&self.reference, &case.policy) {
            (Some(reference), None) => reference.train(&recipe, self.threads)?,
            (_, policy) => {
                let folder = folder.to_string_lossy();
                let settings =
                    policy.as_ref().map(|policy| policy.settings(&folder)).unwrap_or_default();
                if case.predicted.is_none() {
                    case.predicted = self.predict(&recipe, &settings);
                }
                let threads = (self.threads / case.ranks).max(1);
                let mut command = self.sterna("train", &recipe, &settings);
                command.env("OMP_NUM_THREADS", threads.to_string());
                command
            }
        };
        command.current_dir(self.root);
        let typed = self.typed(&command);
        let load_before = machine::load();
        let ranks = if is_ours { Ranks::Children } else { Ranks::Itself };
        let log = self.root.join(&folder).join("log.txt");
        let watched: Watched = {
            let _busy = Busy::start(self.options.busy);
            process::watch(&mut command, ranks, &log, Limits::default())?
        };
        let text = fs::read_to_string(self.root.join(&folder).join(METRICS)).unwrap_or_default();
        // Gigabytes, and rebuilt from the chats in seconds.
        fs::remove_dir_all(self.root.join(&folder).join("cache")).ok();
        Ok(Run { command: typed, watched, steps: metrics::steps(&text), load_before })
    }

    /// The folder with the chats for a configuration, in the format that its system reads; written if it is not there.
    fn data(&self, case: &Case) -> Result<PathBuf> {
        let rows = self.options.steps + 1;
        let name = format!("{}-{}", case.input.name(), case.length);
        let folder = self.folder.join("data").join(name);
        let here = self.root.join(&folder);
        if !here.join("train.jsonl").is_file() {
            let rows = match case.input {
                Input::Packed => chats::packed(&self.chats, case.length, rows),
                Input::Single => {
                    let count = |chat: &Vec<Value>| self.count_tokens(chat, case.length);
                    let rows = chats::single(&self.chats, case.length, rows, count)?;
                    fs::remove_dir_all(self.root.join(&self.folder).join(COUNT)).ok();
                    rows
                }
            };
            chats::write(&here, &rows)?;
        }
        match (&self.reference, case.system) {
            (Some(reference), System::Reference) => {
                reference.to_arrow(&here).map(|arrow| from_root(self.root, &arrow))
            }
            _ => Ok(folder),
        }
    }

    /// Tokens of one chat with the model's template, as `sterna data` counts them.
    fn count_tokens(&self, chat: &Vec<Value>, length: usize) -> Result<usize> {
        let folder = self.folder.join(COUNT);
        let here = self.root.join(&folder);
        chats::write(&here.join("chats"), std::slice::from_ref(chat))?;
        let recipe = folder.join("recipe.yaml");
        let text = Recipe {
            model: &self.model,
            data: &folder.join("chats"),
            run: &folder,
            input: Input::Single,
            // Room for a wrong guess: longer chats are left out.
            length: length * 8,
            ranks: 1,
            steps: 1,
            is_ours: true,
        }
        .to_yaml();
        fs::write(self.root.join(&recipe), text)
            .with_context(|| format!("cannot write `{}`", recipe.display()))?;
        let mut command = self.sterna("data", &recipe, &[]);
        command.current_dir(self.root).args(["--steps", "1", "--out"]).arg(folder.join("batches"));
        let output = command.output().context("cannot start sterna")?;
        if !output.status.success() {
            bail!("`sterna data` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let batch = fs::read_to_string(here.join("batches/rank0.jsonl"))
            .context("`sterna data` wrote no batch")?;
        let batch: Value = serde_json::from_str(batch.lines().next().unwrap_or_default())
            .context("a batch of `sterna data` is not JSON")?;
        let tokens = batch["packed_sample_seqlens"][0][0].as_u64();
        tokens.map(|tokens| tokens as usize).context("a batch of `sterna data` has no lengths")
    }

    /// What `sterna check` says of memory; nothing where it refuses the recipe, which the run will then tell.
    fn predict(&self, recipe: &Path, settings: &[String]) -> Option<Predicted> {
        let mut command = self.sterna("check", recipe, settings);
        let output = command.current_dir(self.root).args(["--format", "json"]).output().ok()?;
        Predicted::from_check(&serde_json::from_slice(&output.stdout).ok()?)
    }

    fn sterna(&self, what: &str, recipe: &Path, settings: &[String]) -> Command {
        let mut command = Command::new(&self.sterna);
        command.arg(what).arg(recipe);
        for setting in settings {
            command.arg("--set").arg(setting);
        }
        command
    }

    /// The command as one can type it in the workspace root.
    fn typed(&self, command: &Command) -> String {
        let mut words = Vec::new();
        let shown = [
            "OMP_NUM_THREADS",
            "DS_ACCELERATOR",
            "RANK",
            "LOCAL_RANK",
            "WORLD_SIZE",
            "LOCAL_SIZE",
            "MASTER_ADDR",
            "MASTER_PORT",
        ];
        for (name, value) in command.get_envs() {
            if let (Some(name), Some(value)) = (name.to_str(), value)
                && shown.contains(&name)
            {
                words.push(format!("{name}={}", value.display()));
            }
        }
        let program = from_root(self.root, Path::new(command.get_program()));
        words.push(program.display().to_string());
        words.extend(
            command
                .get_args()
                .map(|arg| from_root(self.root, Path::new(arg)).display().to_string()),
        );
        words.join(" ")
    }

    /// Writes tables, figures and results of the runs so far.
    fn write(&self, cases: &[Case]) -> Result<()> {
        let versions = self.reference.as_ref().map_or(&Value::Null, |found| &found.versions);
        let results = json!({
            "machine": self.machine,
            "reference": versions,
            "steps": self.options.steps,
            "rounds": self.options.rounds,
            "policies": self.options.policies.iter()
                .map(|policy| (policy.name.clone(), json!(policy.settings("{run}"))))
                .collect::<serde_json::Map<_, _>>(),
            "rows": cases.iter().map(|case| case.to_json(cases)).collect::<Vec<_>>(),
        });
        let done: Vec<Case> = cases.iter().filter(|case| !case.runs.is_empty()).cloned().collect();
        let files = [
            ("table.md", table::markdown(&self.options, &done, &self.machine, versions)),
            ("results.json", serde_json::to_string_pretty(&results)? + "\n"),
            ("bytes_per_token.svg", figures::memory(&self.options, &done).to_svg()),
            ("tokens_per_second.svg", figures::speed(&self.options, &done).to_svg()),
        ];
        for (name, text) in files {
            let path = self.folder.join(name);
            fs::write(self.root.join(&path), text)
                .with_context(|| format!("cannot write `{}`", path.display()))?;
        }
        Ok(())
    }
}

/// A path under the workspace root as seen from there; others as they are.
fn from_root(root: &Path, path: &Path) -> PathBuf {
    path.strip_prefix(root).unwrap_or(path).to_path_buf()
}

/// One line on a run that has just ended.
fn progress(case: &Case) -> String {
    let name = case.folder();
    let Some(run) = case.runs.last() else {
        return name;
    };
    let wall = stage::seconds(run.watched.wall);
    match &run.watched.end {
        End::Done => {
            let peak = run.peak().unwrap_or(0);
            let seconds = case.step_seconds().map_or(0.0, |(min, _)| min);
            format!("{name}: {seconds:.2} s a step, {:.2} GB at most ({wall})", peak as f64 / 1e9)
        }
        end => format!("{name}: {end} ({wall})"),
    }
}
