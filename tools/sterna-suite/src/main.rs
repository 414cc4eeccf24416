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
use sterna_suite::{lease, nccl, ops, report, run, sections};

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
        /// `lease` and `lease-2` are the calls of a machine that is lent for 15 minutes; else sections, then for those that compare: which
        /// systems; none for the quick suite
        names: Vec<String>,
        /// What all of them may take together
        #[arg(long)]
        seconds: Option<u64>,
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
    /// One check of NCCL, which may end the process
    #[command(hide = true)]
    Nccl { name: String },
}

#[derive(Debug, Args)]
struct Places {
    /// Folder for the report and everything that it is made of
    #[arg(long, default_value = "report")]
    out: PathBuf,
    /// The file to pack it into after each section; beside the folder by default
    #[arg(long)]
    archive: Option<PathBuf>,
    /// Everything small, on the CPU where there is no GPU: shows that the suite works
    #[arg(long)]
    tiny: bool,
    /// Folder with the models' shapes and the tokenizer
    #[arg(long)]
    inputs: PathBuf,
    /// The program that is measured
    #[arg(long)]
    sterna: PathBuf,
    /// Folder with baseline.py
    #[arg(long)]
    baselines: PathBuf,
    /// Folder with contracts.py
    #[arg(long)]
    contracts: PathBuf,
    /// What the host has, where it does not say it itself: bytes, or with Gi behind a number
    #[arg(long, value_parser = parse_bytes)]
    host_bytes: Option<u64>,
    /// A python3 that has torch and transformers
    #[arg(long, default_value = "python3")]
    python: PathBuf,
}

impl Places {
    fn context(self, seconds: u64) -> Result<Context> {
        let device = choose_device(self.tiny)?;
        let out = std::path::absolute(self.out)?;
        Ok(Context {
            archive: match self.archive {
                Some(archive) => std::path::absolute(archive)?,
                None => out.with_extension("tgz"),
            },
            out,
            inputs: std::path::absolute(self.inputs)?,
            sterna: std::path::absolute(self.sterna)?,
            baselines: std::path::absolute(self.baselines)?,
            contracts: std::path::absolute(self.contracts)?,
            host_bytes: self.host_bytes,
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
            for spec in sections::all() {
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
        Command::Run { names, seconds, places } => {
            let mut context = places.context(0)?;
            let (specs, systems, usual) = chosen(&names)?;
            if usual.is_some() && context.device.is_cuda() {
                context.host_bytes.get_or_insert(lease::HOST_BYTES);
            }
            let seconds = seconds.or(usual);
            let passed = run::run(&context, &specs, &systems, seconds, |line| println!("{line}"))?;
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
        Command::Nccl { name } => {
            println!("{}", nccl::check(&name)?);
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

/// What the host gives: a number, `128Gi`, `1Ti`.
fn parse_bytes(text: &str) -> Result<u64, String> {
    let (digits, shift) = match (text.strip_suffix("Gi"), text.strip_suffix("Ti")) {
        (Some(digits), _) => (digits, 30),
        (_, Some(digits)) => (digits, 40),
        _ => (text, 0),
    };
    let number: u64 = digits.parse().map_err(|_| "a number of bytes, or as 128Gi".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "no machine has so much".to_owned())
}

/// Sections, systems, and what all of them may take together, seconds.
type Chosen = (Vec<&'static sections::Spec>, Vec<String>, Option<u64>);

/// The sections that `names` begin with, and the systems after them; or those of a call of a lease.
fn chosen(names: &[String]) -> Result<Chosen> {
    let Some((first, rest)) = names.split_first() else {
        return Ok((sections::QUICK.iter().collect(), Vec::new(), None));
    };
    let [of_first, of_second] = sections::LEASE_SECONDS;
    match first.as_str() {
        "lease" if rest.is_empty() => {
            return Ok((sections::LEASE.iter().collect(), Vec::new(), Some(of_first)));
        }
        "lease-2" if rest.is_empty() => {
            return Ok((sections::LEASE_2.iter().collect(), Vec::new(), Some(of_second)));
        }
        _ => {}
    }
    let mut specs = vec![sections::find(first)?];
    let mut systems = Vec::new();
    for name in rest {
        // A name behind the first system is one too, so that a mistake in it is said by the section.
        match sections::find(name) {
            Ok(spec) if systems.is_empty() => specs.push(spec),
            _ => systems.push(name.clone()),
        }
    }
    Ok((specs, systems, None))
}
