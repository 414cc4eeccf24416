//! Sterna's chores, run as `cargo xtask TASK`.
//!
//! A clean checkout needs Rust, a C++ compiler and python3 with pip; every task fetches what else it needs and says so.
//! Rust rather than make or shell, so that chores are type-checked, tested and the same on every machine.
//! Depends on nothing of ours that reaches libtorch: it must build before that is there.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line tool talks to its terminal"
)]

mod bench;
mod demo;
mod fuzz;
mod gpu_bundle;
mod inputs;
mod libtorch;
mod portable;
mod soak;
mod stage;
mod test;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

use crate::libtorch::Flavor;

const HELP: &str = "\
Sterna's chores

Usage: cargo xtask TASK

Tasks:
  demo              Fine-tune a real small model on real chats, the sequence split over three
                    processes; fetches libtorch, the model and the chats first. Start here
  test [FILTER]...  Format, tidy, lints, docs and all tests, cheapest first; this is what CI runs.
                    With arguments, only the tests that match: they go to `cargo nextest run`
                    (or to `cargo test`, where nextest is not installed)
  test --large      The tests with tensors of more than 2^31 elements: 9 GB of memory, some minutes
  soak              Kill a short run hundreds of times at random, and compare what it ends with bit for bit
  bench KIND        Measure peak memory (`memory`) or time (`step`) over lengths, ranks and policies, beside
                    the reference if you like; `cargo xtask bench --help` tells more
  gpu-bundle        Make one folder, .sterna/gpu-bundle/, that proves and measures everything on a machine with
                    a GPU: copy it there and run its run.sh
  fuzz [--seconds N] [TARGET]...
                    Feed broken files to every reader, or to some, for N seconds each (10 if not said), with
                    coverage as the guide; `cargo xtask fuzz --help` tells more
  tidy              The rules of this repository that no compiler checks: crate edges, written architecture,
                    TODOs, fixtures
  libtorch [--cuda] Put libtorch where the build looks for it, .libtorch/; with --cuda also what it and
                    `--features cuda` need for NVIDIA GPUs
  inputs            Put the real model and chats that the demo and some tests read into .sterna/inputs/

What a task downloads stays in .libtorch/ and .sterna/ of the checkout, and is not downloaded again.
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("error: {err}");
            for cause in err.chain().skip(1) {
                eprintln!("  caused by: {cause}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> Result<()> {
    let root = workspace_root()?;
    let (task, rest) = match args.split_first() {
        None => ("help", args),
        Some((task, rest)) => (task.as_str(), rest),
    };
    if !matches!(task, "test" | "bench" | "soak" | "fuzz" | "libtorch") && !rest.is_empty() {
        bail!("`{task}` takes no arguments, found `{}`", rest.join(" "));
    }
    match task {
        "demo" => demo::run(&root),
        "test" => test::run(&root, rest),
        "bench" => bench::run(&root, rest),
        "soak" => soak::run(&root, rest),
        "fuzz" => fuzz::run(&root, rest),
        "tidy" => tidy::run(&root),
        "libtorch" => {
            let flavor = match rest {
                [] => Flavor::Cpu,
                [flag] if flag == "--cuda" => Flavor::Cuda,
                _ => bail!("`libtorch` takes `--cuda` or nothing, found `{}`", rest.join(" ")),
            };
            libtorch::install(&root, flavor).map(drop)
        }
        "gpu-bundle" => gpu_bundle::run(&root),
        "inputs" => inputs::fetch(&root).map(drop),
        "help" | "-h" | "--help" => {
            print!("{HELP}");
            Ok(())
        }
        _ => bail!("no task is named `{task}`; `cargo xtask` lists them"),
    }
}

/// The folder of the workspace's `Cargo.toml`, found from this package's own folder.
fn workspace_root() -> Result<PathBuf> {
    let package = std::env::var_os("CARGO_MANIFEST_DIR")
        .context("CARGO_MANIFEST_DIR is not set: run this through `cargo xtask`")?;
    let root = Path::new(&package).parent().context("the package `xtask` has no parent folder")?;
    Ok(root.to_path_buf())
}
