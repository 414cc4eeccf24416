//! What the machine is: what a report of it means nothing without, and whether its memory is what it says.

use std::process::Command;
use std::thread;

use anyhow::Result;
use serde::Deserialize;
use serde_json::json;
use sterna_bench::machine;
use sterna_torch_sys::cuda;

use crate::context::Context;
use crate::record::{Findings, Section, Table};

/// Asks and touches.
///
/// # Errors
///
/// None: what is wrong is among the findings.
pub fn run(context: &Context) -> Result<Findings> {
    let mut findings = Findings::default();
    let mut table = Table::new(&["what", "found"]);
    let mut add = |what: &str, found: Option<String>| {
        let found = found.map(|text| text.replace('\n', "; "));
        table.rows.push(vec![what.to_owned(), found.unwrap_or_else(|| "not told".to_owned())]);
    };
    let query = "--query-gpu=name,memory.total,memory.used,driver_version,clocks.sm,clocks.max.sm,power.limit,persistence_mode";
    add("GPU", machine::said(Command::new("nvidia-smi").args([query, "--format=csv,noheader"])));
    let limits = "ulimit -l; ulimit -v; ulimit -n";
    let limits = machine::said(Command::new("sh").args(["-c", limits]));
    add("limits: locked KiB, address space KiB, files", limits);
    add("cores", Some(machine::cores().to_string()));
    add("kernel", machine::said(Command::new("uname").arg("-sr")));
    add(
        "C library",
        machine::said(Command::new("ldd").arg("--version")).map(|text| first_line(&text)),
    );
    let sterna = machine::said(Command::new(&context.sterna).arg("--version"));
    if sterna.is_none() {
        findings.fail(&format!("`{} --version` does not run", context.sterna.display()));
    }
    add("sterna", sterna);
    let torch = "import sys, torch; print(sys.version.split()[0], torch.__version__, torch.version.cuda, torch.backends.cudnn.version())";
    let torch = machine::said(Command::new(&context.python).args(["-c", torch]));
    add("Python, torch, CUDA, cuDNN", torch);
    let transformers = "import transformers; print(transformers.__version__)";
    let transformers = machine::said(Command::new(&context.python).args(["-c", transformers]));
    add("transformers", transformers);
    let touched = if context.is_tiny { 64 << 20 } else { 16 << 30 };
    let before = memory();
    let (seconds, touched) = touch(touched);
    let after = memory();
    let gib = |bytes: Option<u64>| {
        bytes.map_or_else(|| "?".to_owned(), |bytes| format!("{:.2}", bytes as f64 / GIB))
    };
    add("memory, GiB: in all, available", Some(format!("{}, {}", gib(before.0), gib(before.1))));
    let what = format!("the same after {:.2} GiB were touched", touched as f64 / GIB);
    add(&what, Some(format!("{}, {}; touched in {seconds:.2} s", gib(after.0), gib(after.1))));
    let grows = before.0.zip(after.0).is_some_and(|(before, after)| after > before + (1 << 30));
    let counted = context.host_bytes.map_or_else(
        || "what it says is taken for all there is; `--host-bytes` says otherwise".to_owned(),
        |bytes| format!("{} GiB are taken for all there is (`--host-bytes`)", gib(Some(bytes))),
    );
    let grows_text =
        if grows { "The memory grows as it is used" } else { "The memory is as it says" };
    findings.notes.push(format!("{grows_text}: {counted}."));
    findings.tables = vec![table];
    let card = match context.device {
        tch::Device::Cuda(index) => Some(json!({
            "name": cuda::properties(index).map(|it| it.name).ok(),
            "free_bytes": cuda::memory(index).map(|it| it.free).ok(),
        })),
        _ => None,
    };
    findings.data = json!({
        "card": card, "touched_bytes": touched, "memory_total_before": before.0, "memory_total_after": after.0, "grows": grows, "touched_seconds": seconds,
    });
    Ok(findings)
}

/// The card, as the section of this name found it before anything ran.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Card {
    /// As its driver has it.
    pub name: String,
    /// Bytes that nobody had.
    pub free_bytes: u64,
}

/// What an earlier section [`run`] found of the card.
pub fn card(context: &Context) -> Option<Card> {
    let section = Section::read(&context.out, "machine")?;
    serde_json::from_value(section.findings.data["card"].clone()).ok()
}

const GIB: f64 = (1_u64 << 30) as f64;

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// All and available, bytes.
fn memory() -> (Option<u64>, Option<u64>) {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name| sterna_bench::process::field(&text, name);
    (field("MemTotal"), field("MemAvailable"))
}

/// Writes to each page of so many new bytes, on all cores, in pieces that a system with little memory so far does not refuse at once; the
/// seconds that takes, and the bytes. Then they are given back.
fn touch(bytes: usize) -> (f64, usize) {
    const PIECE: usize = 64 << 20;
    let started = std::time::Instant::now();
    let cores = machine::cores();
    let share = bytes.div_ceil(cores);
    let of_core = || {
        let mut pieces: Vec<Vec<u8>> = Vec::new();
        while pieces.len() * PIECE < share {
            let mut piece = Vec::new();
            if piece.try_reserve_exact(PIECE).is_err() {
                break;
            }
            piece.resize(PIECE, 1);
            pieces.push(piece);
        }
        pieces
    };
    let touched = thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(of_core)).collect();
        // All are held until the last has its share.
        let all: Vec<_> = threads.into_iter().filter_map(|thread| thread.join().ok()).collect();
        all.iter().flatten().map(Vec::len).sum()
    });
    (started.elapsed().as_secs_f64(), touched)
}
