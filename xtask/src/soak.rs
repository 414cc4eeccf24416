//! The fault test for longer than the suite runs it.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};

use crate::{inputs, libtorch, stage};

/// Kills when none are asked for: about twenty minutes on two cores.
const NUM_KILLS: u64 = 500;

const HELP: &str = "\
Kill ranks and launchers of a short run at random moments, also during saves, and compare what it ends with,
bit for bit, with the run that nobody disturbed

Usage: cargo xtask soak [--kills N] [--seed S]

  --kills N  How many (500)
  --seed S   Of the moments and victims, to repeat a soak; by default a new one
";

/// Runs the test with the kills and the seed that `args` ask for.
///
/// # Errors
///
/// When an argument cannot be read or the test fails.
pub(crate) fn run(root: &Path, args: &[String]) -> Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (mut kills, mut seed) = (NUM_KILLS, now.as_secs());
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut number = || -> Result<u64> {
            let text = args.next().with_context(|| format!("`{arg}` needs a number"))?;
            text.parse().with_context(|| format!("`{arg}` is `{text}`, required: a number"))
        };
        match arg.as_str() {
            "--kills" => kills = number()?,
            "--seed" => seed = number()?,
            "--help" | "-h" => {
                print!("{HELP}");
                return Ok(());
            }
            _ => bail!("unknown argument `{arg}`; `cargo xtask soak --help` lists them"),
        }
    }
    libtorch::install(root, libtorch::Flavor::Cpu)?;
    let real_inputs = inputs::fetch(root)?;
    stage::stage(&format!("{kills} kills with seed {seed}"), || {
        let mut command = stage::cargo(root);
        command.args([
            "test",
            "-p",
            "sterna",
            "--test",
            "it",
            "--locked",
            "--",
            "kills",
            "--nocapture",
        ]);
        command
            .env(inputs::VARIABLE, real_inputs)
            .env("STERNA_SOAK_KILLS", kills.to_string())
            .env("STERNA_SOAK_SEED", seed.to_string());
        stage::run(&mut command)
    })
}
