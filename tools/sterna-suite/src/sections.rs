//! What there is to run, and how long each may take.

use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use serde_json::json;

use crate::baseline::SYSTEMS;
use crate::context::Context;
use crate::record::Findings;
use crate::shape::profile::FLAT;
use crate::shape::{Case, STERNA};
use crate::{
    attention, ceilings, contracts, equal, lease, longest, machine, nccl, ops, sanitizer, shape,
};

/// One section.
#[derive(Debug, Clone, Copy)]
pub struct Spec {
    /// On the command line.
    pub name: &'static str,
    /// In the report.
    pub title: &'static str,
    seconds: u64,
    /// Whether what comes after it is not worth its time if it fails.
    pub ends_call: bool,
    /// Says why this one is to be left out, if it is.
    pub unless: fn(&Context) -> Option<String>,
    /// With less time left, seconds, it is not begun.
    least: u64,
    work: Work,
}

#[derive(Debug, Clone, Copy)]
enum Work {
    /// Calls into the crates, or runs of `sterna`.
    Checks(fn(&Context) -> Result<Findings>),
    /// The shape at some lengths: tokens and measured steps; layers, ours alone. With two layers that is a slope.
    Shape { lengths: &'static [(usize, usize)], layers: usize, is_alone: bool },
    /// The search, of all systems or of ours.
    Longest { is_alone: bool },
}

const fn spec(name: &'static str, title: &'static str, seconds: u64, work: Work) -> Spec {
    Spec { name, title, seconds, ends_call: false, unless: |_| None, least: 8, work }
}

const fn checks(
    name: &'static str,
    title: &'static str,
    seconds: u64,
    run: fn(&Context) -> Result<Findings>,
) -> Spec {
    spec(name, title, seconds, Work::Checks(run))
}

/// The quick suite: under ten minutes in all.
pub const QUICK: [Spec; 7] = [
    checks("ops", "Ops against double precision", 40, ops::run),
    checks("attention-ops", "Attention against double precision", 50, ops::run_attention),
    checks("ceilings", "Ceilings of the card", 30, ceilings::run),
    checks("attention", "Attention at head size 128", 60, attention::run),
    checks("equal", "The same numbers whatever computes them", 160, equal::run),
    checks("sanitizer", "Memory checker on the fused kernels", 90, sanitizer::run),
    spec(
        "shape",
        "The 8B shape with 2 layers at 32K",
        150,
        Work::Shape { lengths: &[(32_768, 2)], layers: 2, is_alone: false },
    ),
];

/// The first call of a lease: what must be right, then the figure that is claimed, then what explains it. The limits are those of a step
/// that hangs.
pub const LEASE: [Spec; 10] = [
    Spec { ends_call: true, ..checks("machine", "The machine", 45, machine::run) },
    checks("contracts", "What is taken for granted of libtorch", 45, contracts::run),
    QUICK[0],
    QUICK[1],
    checks(
        equal::SECTION_OF_LEASE,
        "The same numbers, in the runs of a lease",
        75,
        equal::run_of_lease,
    ),
    Spec {
        unless: equal::why_not_larger,
        ..spec(
            "lease-32k",
            "Llama-3.1-8B at 32K, ours",
            90,
            Work::Shape { lengths: &[(32_768, 2)], layers: 32, is_alone: true },
        )
    },
    checks("lease-ceilings", "Ceilings that decide a step", 40, ceilings::run_of_lease),
    checks("lease-attention", "Attention of a step", 40, attention::run_of_lease),
    Spec {
        unless: equal::why_not_larger,
        ..checks("lease-tiles", "Lengths of tiles, 2 layers at 32K", 70, lease::tiles)
    },
    checks("nccl", "NCCL in a world of one", 50, nccl::run),
];

/// The second call.
pub const LEASE_2: [Spec; 3] = [
    checks("lease-mixed", "Llama-3.1-8B at 128K and at 32K in one process", 200, lease::mixed),
    spec(
        "lease-slope",
        "Bytes a token: 2 layers at 256K and 512K, a step each",
        100,
        Work::Shape { lengths: &[(262_144, 0), (524_288, 0)], layers: 2, is_alone: true },
    ),
    Spec {
        // A step near the longest takes so long, with its start.
        least: 130,
        ..spec(
            "lease-longest",
            "The longest sequence that fits, as far as the time goes",
            200,
            Work::Longest { is_alone: true },
        )
    },
];

/// What a call may take, seconds, where the caller does not say how much is left: of 900, two starts of the machine take up to 240.
pub const LEASE_SECONDS: [u64; 2] = [340, 270];

/// A command each, at most ten minutes.
pub const LONG: [Spec; 7] = [
    long("long-32k", "Llama-3.1-8B at 32K", &[(32_768, 3)], 32, false),
    long("long-64k", "Llama-3.1-8B at 64K", &[(65_536, 2)], 32, false),
    long("long-128k", "Llama-3.1-8B at 128K", &[(131_072, 1)], 32, false),
    long("long-256k", "Llama-3.1-8B at 256K", &[(262_144, 1)], 32, false),
    long(
        "slope-512k",
        "Bytes a token: 2 layers at 256K and 512K",
        &[(262_144, 1), (524_288, 1)],
        2,
        true,
    ),
    long("slope-1m", "Bytes a token: 2 layers at 1M", &[(1_048_576, 1)], 2, true),
    spec(
        "longest",
        "The longest sequence that fits",
        LONGEST_COMMAND,
        Work::Longest { is_alone: false },
    ),
];

/// A machine is often lent for commands of 600 s: what this leaves is for the start of python, and for the report.
const LONGEST_COMMAND: u64 = 570;

const fn long(
    name: &'static str,
    title: &'static str,
    lengths: &'static [(usize, usize)],
    layers: usize,
    is_alone: bool,
) -> Spec {
    spec(name, title, LONGEST_COMMAND, Work::Shape { lengths, layers, is_alone })
}

/// The section of this name.
///
/// # Errors
///
/// A name that there is not, with those that there are.
pub fn find(name: &str) -> Result<&'static Spec> {
    all().find(|spec| spec.name == name).ok_or_else(|| {
        let names: Vec<&str> = all().map(|spec| spec.name).collect();
        anyhow!("no section is named `{name}`; there are {}", names.join(", "))
    })
}

/// Every section once.
pub fn all() -> impl Iterator<Item = &'static Spec> {
    let of_lease = LEASE.iter().filter(|spec| QUICK.iter().all(|other| other.name != spec.name));
    QUICK.iter().chain(of_lease).chain(&LEASE_2).chain(&LONG)
}

impl Spec {
    /// How long it may take.
    pub fn limit(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }

    /// With less time left it is not begun.
    pub fn least(&self) -> Duration {
        Duration::from_secs(self.least)
    }

    /// Whether it runs other programs beside ours.
    pub fn has_systems(&self) -> bool {
        matches!(self.work, Work::Longest { is_alone: false } | Work::Shape { is_alone: false, .. })
    }

    /// Measures; `systems` are all of them, if empty.
    ///
    /// # Errors
    ///
    /// A system that there is not; what the section returns.
    pub fn run(&self, context: &Context, systems: &[String]) -> Result<Findings> {
        let known: Vec<&'static str> = [STERNA].into_iter().chain(SYSTEMS).collect();
        for system in systems {
            if !self.has_systems() || !known.contains(&system.as_str()) {
                bail!(
                    "`{}` cannot run `{system}`; systems are {}, for sections that compare",
                    self.name,
                    known.join(", ")
                );
            }
        }
        let chosen: Vec<&str> = known
            .into_iter()
            .filter(|name| systems.is_empty() || systems.iter().any(|system| system == name))
            .collect();
        match self.work {
            Work::Checks(run) => run(context),
            Work::Longest { is_alone: true } => longest::run(context, &[STERNA]),
            Work::Longest { is_alone: false } => longest::run(context, &chosen),
            Work::Shape { lengths, layers, is_alone } => {
                let chosen = if is_alone { vec![STERNA] } else { chosen };
                let mut all = Findings::default();
                let mut data = Vec::new();
                for (i, &(length, steps)) in lengths.iter().enumerate() {
                    let case = Case {
                        length: shape::length(context, length),
                        layers: layers.min(shape::all_layers(context)?),
                        steps,
                        profile: (is_alone && layers == 2).then_some(FLAT),
                    };
                    let found = shape::run(context, case, &chosen)?;
                    all.failures.extend(found.failures);
                    all.tables.extend(found.tables);
                    if i == 0 {
                        all.notes = found.notes;
                    }
                    data.push(found.data);
                }
                all.data = json!(data);
                Ok(all)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quick_suite_and_each_long_command_end_within_ten_minutes() {
        let quick: u64 = QUICK.iter().map(|spec| spec.seconds).sum();
        assert!(quick < 590, "{quick}");
        assert!(LONG.iter().all(|spec| spec.seconds < 580));
    }

    #[test]
    fn names_are_found_and_others_are_told_of_them() {
        assert_eq!(find("ops").unwrap().title, "Ops against double precision");
        let error = find("opps").unwrap_err().to_string();
        assert!(error.contains("`opps`") && error.contains("long-128k"), "{error}");
    }
}
