//! Runs sections, each in a process and a time limit of its own, and writes the report after each.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

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

/// Sections whose own process computes: what failed in one is run again with launches that wait, so that an illegal address is that of
/// the op that is named.
const RUN_AGAIN: [&str; 3] = ["ops", "attention-ops", "lease-equal"];

/// Runs `specs` in turn, within `seconds` in all if that is said; `tell` gets a line before and after each. Whether all passed.
///
/// After each, report, summary and archive have all that was found up to then.
///
/// # Errors
///
/// When a section cannot be started or the report not be written; that a section fails is no error.
pub fn run(
    context: &Context,
    specs: &[&Spec],
    systems: &[String],
    seconds: Option<u64>,
    mut tell: impl FnMut(&str),
) -> Result<bool> {
    write_json(&context.out.join("machine.json"), &machine_facts(context))?;
    let deadline = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut all_passed = true;
    for spec in specs {
        let left =
            deadline.map_or(Duration::MAX, |it| it.saturating_duration_since(Instant::now()));
        let limit = spec.limit().min(left);
        let section = if left < spec.least() {
            not_run(spec, "the time of this call is up")
        } else if let Some(why) = (spec.unless)(context) {
            not_run(spec, &why)
        } else {
            tell(&format!("{}: {}, at most {} s", spec.name, spec.title, limit.as_secs()));
            let mut section = one(context, spec, systems, limit, false)?;
            let left = deadline.map_or(limit, |it| it.saturating_duration_since(Instant::now()));
            if context.device.is_cuda()
                && RUN_AGAIN.contains(&spec.name)
                && has_device_error(&section)
                && left > spec.least()
            {
                let blocking = one(context, spec, systems, limit.min(left), true)?;
                let said = blocking.error.into_iter().chain(blocking.findings.failures);
                section
                    .findings
                    .failures
                    .extend(said.map(|line| format!("with launches that wait: {line}")));
            }
            section
        };
        write_json(&context.out.join(format!("sections/{}.json", spec.name)), &section)?;
        report::write(context)?;
        archive(context);
        all_passed &= section.has_passed();
        tell(&format!("{}: {} ({:.0} s)", spec.name, section.verdict(), section.seconds));
        // Not where it was ended, or had no memory to touch: the rest may still have something to say.
        if spec.ends_call && !section.findings.failures.is_empty() {
            tell("The rest is left out: without this it would say nothing.");
            break;
        }
    }
    Ok(all_passed)
}

fn not_run(spec: &Spec, why: &str) -> Section {
    let findings = Findings { skipped: Some(why.to_owned()), ..Findings::default() };
    Section {
        name: spec.name.to_owned(),
        title: spec.title.to_owned(),
        seconds: 0.0,
        error: None,
        findings,
    }
}

/// Whether the device, and not a number, a limit or the memory, is what is wrong.
fn has_device_error(section: &Section) -> bool {
    let is_of_device = |line: &String| {
        ["CUDA", "cuDNN", "CUBLAS"].iter().any(|it| line.contains(it))
            && !line.contains("out of memory")
    };
    section.error.iter().chain(&section.findings.failures).any(is_of_device)
}

/// Packs the report into one file, with the summary beside it. Nothing is lost if that fails: the folder is there.
fn archive(context: &Context) {
    let to = &context.archive;
    let _ = to.parent().map(std::fs::create_dir_all);
    let _ = std::fs::copy(context.out.join("summary.txt"), to.with_file_name("summary.txt"));
    let mut tar = Command::new("tar");
    tar.arg("czf").arg(to).args(["--exclude=./site", "--exclude=./runs/cache", "-C"]);
    let _ = tar.arg(&context.out).arg(".").stderr(std::process::Stdio::null()).status();
}

/// Where a section's process leaves what it found.
pub fn findings_path(out: &Path, name: &str) -> PathBuf {
    out.join(format!("sections/{name}.findings.json"))
}

fn one(
    context: &Context,
    spec: &Spec,
    systems: &[String],
    limit: Duration,
    is_blocking: bool,
) -> Result<Section> {
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
    let seconds = limit.as_secs_f64() * PLANNED;
    command.args(["--seconds", &format!("{seconds:.0}")]);
    command.arg("--out").arg(&context.out).arg("--inputs").arg(&context.inputs);
    command.arg("--sterna").arg(&context.sterna).arg("--python").arg(&context.python);
    command.arg("--baselines").arg(&context.baselines).arg("--contracts").arg(&context.contracts);
    if let Some(bytes) = context.host_bytes {
        command.args(["--host-bytes", &bytes.to_string()]);
    }
    if is_blocking {
        command.env("CUDA_LAUNCH_BLOCKING", "1");
    }
    if context.is_tiny {
        command.arg("--tiny");
    }
    let limits = Limits { least_available: 0, time: Some(limit) };
    let blocking = if is_blocking { "-blocking" } else { "" };
    let log = folder.join(format!("{}{blocking}.txt", spec.name));
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
