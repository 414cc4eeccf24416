//! The facts of a machine that a time means nothing without.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::process::field;

/// Facts about the machine and the checkout; what cannot be found out is null.
pub fn facts(root: &Path) -> Value {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    json!({
        "date": said(Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"])),
        "cpu": cpu_model(&cpuinfo),
        "cores": cores(),
        "instructions": instructions(&cpuinfo),
        "memory_bytes": field(&meminfo, "MemTotal"),
        "kernel": said(Command::new("uname").arg("-sr")),
        "commit": said(Command::new("git").current_dir(root).args(["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"])),
        "load_before": load(),
    })
}

/// Memory of the machine, in bytes.
pub fn memory_bytes() -> Option<u64> {
    field(&fs::read_to_string("/proc/meminfo").ok()?, "MemTotal")
}

/// Cores that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, Into::into)
}

/// Processes that wanted to run in the last minute, on average.
pub fn load() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse().ok()
}

fn cpu_model(cpuinfo: &str) -> Option<&str> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim())
}

/// The sets of instructions that decide how fast matrix products are, as the kernel names them.
fn instructions(cpuinfo: &str) -> Vec<&str> {
    const DECIDING: [&str; 7] =
        ["avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve"];
    let is_flags = |line: &&str| line.starts_with("flags") || line.starts_with("Features");
    let flags = cpuinfo.lines().find(is_flags).unwrap_or_default();
    flags.split_whitespace().filter(|flag| DECIDING.contains(flag)).collect()
}

/// What a command writes, if it succeeds.
pub fn said(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_of_the_first_core_is_found() {
        let text =
            "processor\t: 0\nmodel name\t: Some CPU @ 2GHz\nprocessor\t: 1\nmodel name\t: Other\n";
        assert_eq!(cpu_model(text), Some("Some CPU @ 2GHz"));
        assert_eq!(cpu_model(""), None);
    }

    #[test]
    fn instructions_are_named_that_products_are_made_of() {
        let text = "model name\t: Some CPU\nflags\t\t: fpu sse2 avx2 avx512f avx512_bf16\n";
        assert_eq!(instructions(text), ["avx2", "avx512f", "avx512_bf16"]);
        assert_eq!(instructions("Features\t: fp asimd bf16\n"), ["asimd", "bf16"]);
        assert!(instructions("").is_empty());
    }
}
