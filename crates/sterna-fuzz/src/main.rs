//! Feeds broken files to everything that reads a file, and sees that none ends, stalls or bloats the process.
//!
//! `sterna-fuzz` runs each target in a process of its own ([`supervisor`]), which mutates valid files ([`mutate`]) and hands
//! them to the reader ([`worker`]). A panic is caught there; an abort, a stack overflow, an input that takes too long and one
//! that takes too much memory end that process, and the supervisor keeps the input and starts another. There is no coverage
//! feedback; in its place, an input that brings a new answer (an error of another text) becomes a seed.
//!
//! Run it as `cargo xtask fuzz [--seconds N] [TARGET]...`; the tests of this crate run each target for a moment.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line tool talks to its terminal"
)]

mod args;
mod mutate;
mod rng;
mod supervisor;
mod targets;
mod worker;

use std::process::ExitCode;

use args::{Args, Command};

const HELP: &str = "\
Feeds broken files to every reader of Sterna

Usage: sterna-fuzz [OPTIONS] [TARGET]...

Without a target, all run in turn. What breaks a reader is saved and makes the exit status 1.

Options:
  --seconds N   How long each target runs (default 10)
  --inputs N    How many inputs each target runs, whatever time that takes
  --slowest N   Seconds that one input may take (default 20)
  --seed N      Where the random numbers start (default 1); runs of one seed and one number of inputs are alike
  --keep DIR    Where inputs that break a reader are saved (default .sterna/fuzz)
  --only F      Starts from this file in place of the target's own; with `--inputs 1`, runs just it
  --replay F    Runs one file through one target, and says what it answers
  --list        Lists the targets
";

fn main() -> ExitCode {
    let args = match Args::parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(message) => {
            eprintln!("error: {message}\n\n{HELP}");
            return ExitCode::from(2);
        }
    };
    match args.command {
        Command::Help => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        Command::List => {
            for target in targets::ALL {
                println!("{:<12} {}", target.name, target.about);
            }
            ExitCode::SUCCESS
        }
        Command::Replay(ref file) => worker::replay(&args, file),
        Command::Work => worker::run(&args),
        Command::Supervise => match supervisor::run(&args) {
            Ok(0) => ExitCode::SUCCESS,
            Ok(_) => ExitCode::FAILURE,
            Err(err) => {
                eprintln!("error: {err}");
                ExitCode::from(2)
            }
        },
    }
}
