//! The command line of the suite; `run.sh` of a bundle calls it.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line tool talks to its terminal"
)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use sterna_suite::context::{Context, choose_device};
use sterna_suite::record::write_json;
use sterna_suite::{ops, report, run, sections};

/// Prove and measure Sterna on this machine, and write a report
#[derive(Debug, Parser)]
#[command(name = "sterna-suite", version, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Every section of the quick suite, or those that are named, in under ten minutes
    Run {
        /// Sections, then for those that compare: which systems; none for the quick suite
        names: Vec<String>,
        #[command(flatten)]
        places: Places,
    },
    /// What sections there are
    List,
    /// Write the report again from what was found
    Report {
        #[command(flatten)]
        places: Places,
    },
    /// One section, in this process
    #[command(hide = true)]
    Section {
        name: String,
        systems: Vec<String>,
        /// How long it may plan with
        #[arg(long)]
        seconds: u64,
        #[command(flatten)]
        places: Places,
    },
    /// Every fused kernel once, for memory checkers
    #[command(hide = true)]
    Kernels,
}

#[derive(Debug, Args)]
struct Places {
    /// Folder for the report and everything that it is made of
    #[arg(long, default_value = "report")]
    out: PathBuf,
    /// Everything small, on the CPU where there is no GPU: shows that the suite works
    #[arg(long)]
    tiny: bool,
    /// Folder with the models' shapes and the tokenizer
    #[arg(long)]
    inputs: PathBuf,
    /// The program that is measured
    #[arg(long)]
    sterna: PathBuf,
    /// Folder with peer.py
    #[arg(long)]
    peers: PathBuf,
    /// A python3 that has torch and transformers
    #[arg(long, default_value = "python3")]
    python: PathBuf,
}

impl Places {
    fn context(self, seconds: u64) -> Result<Context> {
        let device = choose_device(self.tiny)?;
        Ok(Context {
            out: std::path::absolute(self.out)?,
            inputs: std::path::absolute(self.inputs)?,
            sterna: std::path::absolute(self.sterna)?,
            peers: std::path::absolute(self.peers)?,
            python: self.python,
            device,
            is_tiny: self.tiny,
            deadline: Instant::now() + Duration::from_secs(seconds),
        })
    }
}

fn main() -> ExitCode {
    // What a caller reads of a process that panicked is one line.
    std::panic::set_hook(Box::new(|panic| {
        let text = panic.to_string().replace('\n', " ");
        eprintln!("error: {text}");
    }));
    match start(Cli::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether everything passed.
fn start(command: Command) -> Result<bool> {
    match command {
        Command::List => {
            for spec in sections::QUICK.iter().chain(&sections::LONG) {
                let systems = if spec.has_systems() { " [SYSTEM]..." } else { "" };
                println!(
                    "{:<22} {}, at most {} s",
                    format!("{}{systems}", spec.name),
                    spec.title,
                    spec.limit().as_secs()
                );
            }
            Ok(true)
        }
        Command::Run { names, places } => {
            let context = places.context(0)?;
            let (specs, systems) = chosen(&names)?;
            let passed = run::run(&context, &specs, &systems, |line| println!("{line}"))?;
            println!("The report is {}", context.out.join("report.md").display());
            Ok(passed)
        }
        Command::Report { places } => {
            let context = places.context(0)?;
            report::write(&context)?;
            Ok(true)
        }
        Command::Section { name, systems, seconds, places } => {
            let context = places.context(seconds)?;
            let findings = sections::find(&name)?.run(&context, &systems)?;
            write_json(&run::findings_path(&context.out, &name), &findings)?;
            Ok(true)
        }
        Command::Kernels => {
            // On a CPU the checker would find nothing wrong with kernels that never ran.
            let device = choose_device(false)?;
            let failures = ops::fused(device);
            for failure in &failures {
                eprintln!("error: {failure}");
            }
            Ok(failures.is_empty())
        }
    }
}

/// The sections that `names` begin with, and the systems after them.
fn chosen(names: &[String]) -> Result<(Vec<&'static sections::Spec>, Vec<String>)> {
    let Some((first, rest)) = names.split_first() else {
        return Ok((sections::QUICK.iter().collect(), Vec::new()));
    };
    let mut specs = vec![sections::find(first)?];
    let mut systems = Vec::new();
    for name in rest {
        // A name behind the first system is one too, so that a mistake in it is said by the section.
        match sections::find(name) {
            Ok(spec) if systems.is_empty() => specs.push(spec),
            _ => systems.push(name.clone()),
        }
    }
    Ok((specs, systems))
}
