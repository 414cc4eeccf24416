//! Runs sections, each in a process and a time limit of its own, and writes the report after each.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use sterna_bench::machine;
use sterna_bench::process::{self, End, Limits, Ranks};

use crate::context::Context;
use crate::record::{Findings, Section, read_json, write_json};
use crate::report;
use crate::sections::Spec;

/// Of its limit, what a section plans with; the rest is for ending.
const PLANNED: f64 = 0.95;

/// Runs `specs` in turn; `tell` gets a line before and after each. Whether all passed.
///
/// # Errors
///
/// When a section cannot be started or the report not be written; that a section fails is no error.
pub fn run(
    context: &Context,
    specs: &[&Spec],
    systems: &[String],
    mut tell: impl FnMut(&str),
) -> Result<bool> {
    write_json(&context.out.join("machine.json"), &machine_facts(context))?;
    let mut all_passed = true;
    for spec in specs {
        tell(&format!("{}: {}, at most {} s", spec.name, spec.title, spec.limit().as_secs()));
        let section = one(context, spec, systems)?;
        write_json(&context.out.join(format!("sections/{}.json", spec.name)), &section)?;
        report::write(context)?;
        all_passed &= section.has_passed();
        let verdict = match &section.error {
            Some(error) => format!("FAILED: {error}"),
            None if section.has_passed() => match &section.findings.skipped {
                Some(why) => format!("skipped: {why}"),
                None => "passed".to_owned(),
            },
            None => format!("WRONG: {}", section.findings.failures.join("; ")),
        };
        tell(&format!("{}: {verdict} ({:.0} s)", spec.name, section.seconds));
    }
    Ok(all_passed)
}

/// Where a section's process leaves what it found.
pub fn findings_path(out: &Path, name: &str) -> PathBuf {
    out.join(format!("sections/{name}.findings.json"))
}

fn one(context: &Context, spec: &Spec, systems: &[String]) -> Result<Section> {
    let found = findings_path(&context.out, spec.name);
    // What an earlier run found is not this one's.
    if found.exists() {
        std::fs::remove_file(&found)?;
    }
    let folder = context.out.join("logs");
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make the folder `{}`", folder.display()))?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("section").arg(spec.name).args(systems);
    let seconds = spec.limit().as_secs_f64() * PLANNED;
    command.args(["--seconds", &format!("{seconds:.0}")]);
    command.arg("--out").arg(&context.out).arg("--inputs").arg(&context.inputs);
    command.arg("--sterna").arg(&context.sterna).arg("--python").arg(&context.python);
    command.arg("--peers").arg(&context.peers);
    if context.is_tiny {
        command.arg("--tiny");
    }
    let limits = Limits { least_available: 0, time: Some(spec.limit()) };
    let log = folder.join(format!("{}.txt", spec.name));
    let watched = process::watch(&mut command, Ranks::Itself, &log, limits)?;
    let findings: Option<Findings> = read_json(&found).ok();
    let error = match watched.end {
        End::Done if findings.is_none() => Some("it left no findings".to_owned()),
        End::Done => None,
        end => Some(end.to_string()),
    };
    Ok(Section {
        name: spec.name.to_owned(),
        title: spec.title.to_owned(),
        seconds: watched.wall.as_secs_f64(),
        error,
        findings: findings.unwrap_or_default(),
    })
}

/// What is to be known of the machine, the program and torch.
fn machine_facts(context: &Context) -> Value {
    // A bundle says which commit it was made of; git knows in a checkout.
    let made: Value = read_json(&context.inputs.join("../bundle.json")).unwrap_or_default();
    let mut facts = machine::facts(&context.inputs);
    if made["commit"].is_string() {
        facts["commit"] = made["commit"].clone();
    }
    facts["sterna"] = json!(machine::said(Command::new(&context.sterna).arg("--version")));
    let torch =
        "import sys, torch; print(f'Python {sys.version.split()[0]}, torch {torch.__version__}')";
    facts["torch"] = json!(machine::said(Command::new(&context.python).args(["-c", torch])));
    let query = ["--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"];
    facts["gpu"] = json!(machine::said(Command::new("nvidia-smi").args(query)));
    facts
}
