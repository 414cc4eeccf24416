//! What the operating system says of this process's memory.

use std::{
    fs,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// The largest resident set before the last [`reset_peak`], bytes.
static PEAK_BEFORE: AtomicU64 = AtomicU64::new(0);

/// Resident memory of this process and of the machine, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HostMemory {
    /// Resident set of this process (`VmRSS`).
    pub process: u64,
    /// The largest resident set that this process ever had (`VmHWM`).
    pub process_peak: u64,
    /// Memory in use on the machine (`MemTotal - MemAvailable`).
    pub node: u64,
    /// Memory of the machine (`MemTotal`).
    pub node_total: u64,
}

impl HostMemory {
    /// Reads `/proc`. A figure that the system does not give is 0.
    pub fn now() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let node_total = kib_field(&meminfo, "MemTotal:");
        Self {
            process: kib_field(&status, "VmRSS:"),
            process_peak: kib_field(&status, "VmHWM:").max(PEAK_BEFORE.load(Relaxed)),
            node: node_total.saturating_sub(kib_field(&meminfo, "MemAvailable:")),
            node_total,
        }
    }

    /// Memory that this process could still get, in bytes: what the machine has left, or less if its control group
    /// (a container, a SLURM job) is limited.
    pub fn available(&self) -> u64 {
        let of_node = self.node_total - self.node;
        control_group_left().map_or(of_node, |left| left.min(of_node))
    }
}

/// Whether `needed` bytes fit into `left` beside a reserve: a plan counts tensors and is a bound from below. Libraries keep
/// programs and buffers of their own, and an allocator keeps free blocks: up to 1 GiB was seen, or a tenth of what is needed.
pub(crate) fn has_room(left: u64, needed: u64) -> bool {
    left >= needed.saturating_add(reserve(needed))
}

/// What stays free beside `needed` bytes.
pub(crate) fn reserve(needed: u64) -> u64 {
    const LEAST: u64 = 1 << 30;
    (needed / 10).max(LEAST)
}

/// Resident memory of this process by what is behind it, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Resident {
    /// Nothing: heaps, stacks, tensors (`RssAnon`).
    pub(crate) anonymous: u64,
    /// A file or shared memory (`RssFile`, `RssShmem`).
    pub(crate) of_files: u64,
    /// The largest of all together since [`reset_peak`] (`VmHWM`).
    pub(crate) peak: u64,
}

impl Resident {
    pub(crate) fn now() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        Self {
            anonymous: kib_field(&status, "RssAnon:"),
            of_files: kib_field(&status, "RssFile:") + kib_field(&status, "RssShmem:"),
            peak: kib_field(&status, "VmHWM:"),
        }
    }
}

/// Starts looking for the largest resident set anew; [`HostMemory::process_peak`] stays that of the whole run. Where the
/// system does not let a process do that, [`Resident::peak`] stays that of the whole run too.
pub(crate) fn reset_peak() {
    PEAK_BEFORE.fetch_max(Resident::now().peak, Relaxed);
    // "5" resets the peak: proc(5).
    let _refused = fs::write("/proc/self/clear_refs", "5");
}

/// What this process's control group may still take, in bytes; `None` without a limit. Version 2 hierarchy.
fn control_group_left() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let read = |name: &str| -> Option<u64> {
        fs::read_to_string(format!("/sys/fs/cgroup{path}/{name}")).ok()?.trim().parse().ok()
    };
    // Pages of files that nobody uses count as taken until someone else wants them.
    let stat = fs::read_to_string(format!("/sys/fs/cgroup{path}/memory.stat")).unwrap_or_default();
    let inactive = stat.lines().find_map(|line| line.strip_prefix("inactive_file "));
    let inactive = inactive.and_then(|bytes| bytes.trim().parse().ok()).unwrap_or(0);
    // `memory.max` reads `max` without a limit, which is no number.
    Some(read("memory.max")?.saturating_sub(read("memory.current")?.saturating_sub(inactive)))
}

/// The value of a `Name:   123 kB` line, in bytes.
fn kib_field(text: &str, name: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .map_or(0, |kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_in_bytes() {
        let text = "Name:\tx\nVmRSS:\t    2048 kB\nVmHWM:\t    4096 kB\n";
        assert_eq!(kib_field(text, "VmRSS:"), 2048 * 1024);
        assert_eq!(kib_field(text, "VmHWM:"), 4096 * 1024);
        assert_eq!(kib_field(text, "VmSwap:"), 0);
    }

    #[test]
    fn a_peak_is_forgotten_but_for_the_run() {
        let len = 64 << 20;
        drop(std::hint::black_box(vec![1_u8; len]));
        let before = HostMemory::now().process_peak;
        reset_peak();
        assert!(Resident::now().peak < before - (len / 2) as u64);
        assert!(HostMemory::now().process_peak >= before);
    }

    #[test]
    fn this_process_has_a_size() {
        let memory = HostMemory::now();
        assert!(memory.process > 0 && memory.process_peak >= memory.process);
        assert!(memory.node_total > memory.process_peak);
    }
}
