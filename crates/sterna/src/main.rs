//! The `sterna` command: argv to plan to ranks to exit status. The program is called `sterna-engine`; `start/main.rs` is what users
//! start, and becomes this once it has found libtorch.
//!
//! The only crate that prints, exits or reads the command line. Data goes to stdout, everything else to stderr.

mod cli;
mod commands;
mod env_vars;
mod launch;
mod logging;
mod render;
mod report;
mod signals;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;

use cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(err) => {
            // Help and version go to stdout with status 0, mistakes to stderr with status 2. A closed pipe is no error.
            let _ = err.print();
            return ExitCode::from(u8::try_from(err.exit_code()).unwrap_or(2));
        }
    };
    let outcome = match &cli.command {
        Command::Train(args) => commands::train::run(args),
        Command::Launch(args) => commands::launch::run(args),
        Command::Check(args) => commands::check::run(args),
        Command::Data(args) => commands::data::run(args),
        Command::Checkpoint(args) => commands::checkpoint::run(&args.command),
        Command::Export(args) => commands::checkpoint::export(args),
        Command::Agent => {
            launch::agent::run();
            Ok(())
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !launch::child::report_to_launcher(&failure) {
                let _ = std::io::stderr().lock().write_all(failure.render().as_bytes());
            }
            ExitCode::from(&failure)
        }
    }
}
