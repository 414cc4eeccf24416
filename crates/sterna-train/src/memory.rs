//! What the operating system says of this process's memory.

use std::fs;

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
            process_peak: kib_field(&status, "VmHWM:"),
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

/// What this process's control group may still take, in bytes; `None` without a limit. Version 2 hierarchy.
fn control_group_left() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let read = |name: &str| -> Option<u64> {
        fs::read_to_string(format!("/sys/fs/cgroup{path}/{name}")).ok()?.trim().parse().ok()
    };
    // `memory.max` reads `max` without a limit, which is no number.
    Some(read("memory.max")?.saturating_sub(read("memory.current")?))
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
    fn this_process_has_a_size() {
        let memory = HostMemory::now();
        assert!(memory.process > 0 && memory.process_peak >= memory.process);
        assert!(memory.node_total > memory.process_peak);
    }
}
