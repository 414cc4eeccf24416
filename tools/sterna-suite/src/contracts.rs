//! `contracts/contracts.py`: what is taken for granted of libtorch on a GPU, checked through python's torch before any engine runs.

use std::process::Command;

use anyhow::Result;
use serde::Deserialize;
use serde_json::{Value, json};
use sterna_bench::process::{self, End, Limits, Ranks};

use crate::context::Context;
use crate::record::{Findings, Table, read_json};

/// What the script writes of one contract.
#[derive(Debug, Deserialize)]
struct Contract {
    name: String,
    what: String,
    status: String,
    detail: String,
    seconds: f64,
}

/// Runs the script.
///
/// # Errors
///
/// When python cannot be started.
pub fn run(context: &Context) -> Result<Findings> {
    let mut findings = Findings::default();
    let folder = context.out.join("runs/contracts");
    std::fs::create_dir_all(&folder)?;
    let file = folder.join("contracts.json");
    if file.exists() {
        std::fs::remove_file(&file)?;
    }
    let mut torch = Command::new(&context.python);
    torch.args(["-c", "import torch"]);
    if context.is_tiny && !torch.output().is_ok_and(|output| output.status.success()) {
        findings.skipped = Some(format!("{} has no torch", context.python.display()));
        return Ok(findings);
    }
    let mut command = Command::new(&context.python);
    command.arg(context.contracts.join("contracts.py")).arg(&file);
    let limits = Limits { least_available: 0, time: Some(context.time_left()) };
    let watched = process::watch(&mut command, Ranks::Itself, &folder.join("log.txt"), limits)?;
    let contracts: Vec<Contract> = read_json(&file).unwrap_or_default();
    if watched.end != End::Done {
        let last = contracts.last().map_or("the first contract", |last| last.name.as_str());
        findings.fail(&format!("contracts.py after {last}: {}", watched.end));
    }
    let mut table = Table::new(&["contract", "", "detail", "s"]);
    for Contract { name, what, status, detail, seconds } in &contracts {
        if status == "broken" {
            findings.fail(&format!("{name}: {detail}"));
        }
        table.rows.push(vec![
            what.clone(),
            status.clone(),
            detail.clone(),
            format!("{seconds:.1}"),
        ]);
    }
    findings.tables = vec![table];
    let rows: Vec<Value> =
        contracts.iter().map(|it| json!({"name": it.name, "status": it.status})).collect();
    findings.data = json!(rows);
    Ok(findings)
}
