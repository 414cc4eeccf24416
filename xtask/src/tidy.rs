//! Rules of this repository that no compiler checks.
//!
//! Documentation and layering that nobody executes rot, so each rule here is run by `cargo xtask test`, and each has a
//! test that shows it can fail.

mod comments;
mod crates;
mod families;
mod locks;
mod text;

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::stage;

/// Checks every rule and prints every violation.
///
/// # Errors
///
/// Any violation; git or cargo missing.
pub(crate) fn run(root: &Path) -> Result<()> {
    let mut problems = Vec::new();

    let metadata =
        stage::output(stage::cargo(root).args(["metadata", "--format-version=1", "--locked"]))?;
    let metadata =
        serde_json::from_str(&metadata).context("`cargo metadata` did not write JSON")?;
    let graph = crates::Graph::from_metadata(&metadata)
        .context("`cargo metadata` lacks a field that tidy reads")?;
    problems.extend(crates::forbidden_edges(&graph));
    problems.extend(crates::torch_reached(&graph));
    let architecture = root.join("ARCHITECTURE.md");
    match std::fs::read_to_string(&architecture) {
        Ok(text) => problems.extend(crates::unnamed_or_unknown(&graph, &text)),
        Err(err) => problems.push(format!("{}: {err}", architecture.display())),
    }

    let lock =
        |path: &str| std::fs::read_to_string(root.join(path)).with_context(|| format!("`{path}`"));
    problems.extend(locks::differing(&lock("Cargo.lock")?, &lock(locks::SECOND)?));

    let files = files(root)?;
    let families = families::names(&files);
    for path in &files {
        let bytes =
            std::fs::read(root.join(path)).with_context(|| format!("cannot read `{path}`"))?;
        problems.extend(text::check(path, &bytes));
        problems.extend(families::named_elsewhere(path, &bytes, &families));
    }

    for problem in &problems {
        eprintln!("tidy: {problem}");
    }
    if !problems.is_empty() {
        bail!("{} violations of the rules in xtask/src/tidy", problems.len());
    }
    println!("tidy: {} files, {} crates", files.len(), graph.members().count());
    Ok(())
}

/// All files that git tracks or would track, as paths from `root`.
fn files(root: &Path) -> Result<Vec<String>> {
    let mut git = std::process::Command::new("git");
    git.current_dir(root).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let listed = stage::output(&mut git)?;
    let paths = listed.split_terminator('\0').map(str::to_owned);
    // A file deleted but not yet committed is still listed; a link to a folder is no file.
    Ok(paths.filter(|path| root.join(path).is_file()).collect())
}
