//! The memory checker of CUDA on the fused kernels, where the tool is.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use serde_json::json;
use sterna_bench::process::{self, End, Limits, Ranks};

use crate::context::Context;
use crate::record::{Findings, Table};

/// What is checked for: wrong addresses, and threads that race for shared memory.
const TOOLS: [&str; 2] = ["memcheck", "racecheck"];

/// Folders that toolkits are installed to, where the tool is not on the PATH.
const PLACES: [&str; 3] = ["/usr/local/cuda/bin", "/usr/local/cuda-13.0/bin", "/opt/cuda/bin"];

/// Runs the fused kernels under each tool.
///
/// # Errors
///
/// When the tool is there and cannot be started.
pub fn run(context: &Context) -> Result<Findings> {
    let mut findings = Findings::default();
    let sanitizer = match find() {
        Some(sanitizer) if context.device.is_cuda() => sanitizer,
        found => {
            let why =
                if found.is_some() { "it needs a GPU" } else { "compute-sanitizer was not found" };
            findings.notes.push(format!(
                "Nothing was checked: {why}. It is looked for on the PATH and in {}.",
                PLACES.join(", ")
            ));
            findings.skipped = Some(why.to_owned());
            findings.data = json!({"found": found.is_some(), "checked": false});
            return Ok(findings);
        }
    };
    findings.tables = vec![Table::new(&["tool", "result"])];
    let mut data = Vec::new();
    for (i, tool) in TOOLS.into_iter().enumerate() {
        let share = context.time_left() / (TOOLS.len() - i) as u32;
        let result = check(&context.within(share), &sanitizer, tool)?;
        if result != CLEAN && result != UNFINISHED {
            findings.fail(&format!("{tool}: {result}"));
        }
        data.push(json!({"tool": tool, "result": result}));
        findings.tables[0].rows.push(vec![tool.to_owned(), result]);
    }
    findings.notes.push(
        "Every fused kernel, forward and backward, in bf16 and fp32, at the sizes of a tiny run."
            .to_owned(),
    );
    findings.data = json!({"found": true, "checked": true, "tools": data});
    Ok(findings)
}

const CLEAN: &str = "no errors";

/// The result where the time was up: the tools slow every kernel down, libtorch's too.
const UNFINISHED: &str = "did not finish, no errors so far";

fn check(context: &Context, sanitizer: &Path, tool: &str) -> Result<String> {
    let folder = context.out.join("runs/sanitizer");
    std::fs::create_dir_all(&folder)?;
    let mut command = Command::new(sanitizer);
    command.args(["--tool", tool, "--error-exitcode", "9"]);
    command.arg(std::env::current_exe()?).arg("kernels");
    let limits = Limits { least_available: 0, time: Some(context.time_left()) };
    let log = folder.join(format!("{tool}.txt"));
    let watched = process::watch(&mut command, Ranks::Itself, &log, limits)?;
    Ok(match watched.end {
        End::Done => CLEAN.to_owned(),
        end => {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            let has_found =
                |line: &&str| line.contains("ERROR SUMMARY") && !line.contains("SUMMARY: 0 errors");
            match text.lines().rev().find(has_found) {
                Some(summary) => summary.trim_start_matches('=').trim().to_owned(),
                None if end == End::TimedOut => UNFINISHED.to_owned(),
                // The kernels' numbers are wrong, or the tool refused.
                None => end.to_string(),
            }
        }
    })
}

fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(PLACES.map(PathBuf::from))
        .map(|folder| folder.join("compute-sanitizer"))
        .find(|program| program.is_file())
}
