//! Broken files for every reader: `sterna-fuzz`, built and run.

use std::path::Path;

use anyhow::Result;

use crate::stage;

/// Runs the fuzzer with `args`; what it finds stays in `.sterna/fuzz/`.
///
/// # Errors
///
/// When it does not build, or has found something.
pub(crate) fn run(root: &Path, args: &[String]) -> Result<()> {
    let mut command = stage::cargo(root);
    command.args(["run", "--quiet", "--locked", "-p", "sterna-fuzz", "--"]).args(args);
    stage::run(&mut command)
}
