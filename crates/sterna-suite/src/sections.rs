//! What there is to run, and how long each may take.

use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use serde_json::json;

use crate::context::Context;
use crate::peer::SYSTEMS;
use crate::record::Findings;
use crate::shape::profile::FLAT;
use crate::shape::{Case, STERNA};
use crate::{attention, ceilings, equal, longest, ops, sanitizer, shape};

/// One section.
#[derive(Debug, Clone, Copy)]
pub struct Spec {
    /// On the command line.
    pub name: &'static str,
    /// In the report.
    pub title: &'static str,
    seconds: u64,
    work: Work,
}

#[derive(Debug, Clone, Copy)]
enum Work {
    /// Calls into the crates, or runs of `sterna`.
    Checks(fn(&Context) -> Result<Findings>),
    /// The shape at some lengths: tokens and measured steps; layers, ours alone.
    Shape {
        lengths: &'static [(usize, usize)],
        layers: usize,
        is_slope: bool,
    },
    Longest,
}

/// The quick suite: under ten minutes in all.
pub const QUICK: [Spec; 7] = [
    Spec {
        name: "ops",
        title: "Ops against double precision",
        seconds: 40,
        work: Work::Checks(ops::run),
    },
    Spec {
        name: "attention-ops",
        title: "Attention against double precision",
        seconds: 50,
        work: Work::Checks(ops::run_attention),
    },
    Spec {
        name: "ceilings",
        title: "Ceilings of the card",
        seconds: 30,
        work: Work::Checks(ceilings::run),
    },
    Spec {
        name: "attention",
        title: "Attention at head size 128",
        seconds: 60,
        work: Work::Checks(attention::run),
    },
    Spec {
        name: "equal",
        title: "The same numbers whatever computes them",
        seconds: 160,
        work: Work::Checks(equal::run),
    },
    Spec {
        name: "sanitizer",
        title: "Memory checker on the fused kernels",
        seconds: 90,
        work: Work::Checks(sanitizer::run),
    },
    Spec {
        name: "shape",
        title: "The 8B shape with 2 layers at 32K",
        seconds: 150,
        work: Work::Shape { lengths: &[(32_768, 2)], layers: 2, is_slope: false },
    },
];

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
    Spec {
        name: "longest",
        title: "The longest sequence that fits",
        seconds: LONGEST_COMMAND,
        work: Work::Longest,
    },
];

/// A machine is often lent for commands of 600 s: what this leaves is for the start of python, and for the report.
const LONGEST_COMMAND: u64 = 570;

const fn long(
    name: &'static str,
    title: &'static str,
    lengths: &'static [(usize, usize)],
    layers: usize,
    is_slope: bool,
) -> Spec {
    Spec { name, title, seconds: LONGEST_COMMAND, work: Work::Shape { lengths, layers, is_slope } }
}

/// The section of this name.
///
/// # Errors
///
/// A name that there is not, with those that there are.
pub fn find(name: &str) -> Result<&'static Spec> {
    QUICK.iter().chain(&LONG).find(|spec| spec.name == name).ok_or_else(|| {
        let names: Vec<&str> = QUICK.iter().chain(&LONG).map(|spec| spec.name).collect();
        anyhow!("no section is named `{name}`; there are {}", names.join(", "))
    })
}

impl Spec {
    /// How long it may take.
    pub fn limit(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }

    /// Whether it runs other programs beside ours.
    pub fn has_systems(&self) -> bool {
        matches!(self.work, Work::Longest | Work::Shape { is_slope: false, .. })
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
            Work::Longest => longest::run(context, &chosen),
            Work::Shape { lengths, layers, is_slope } => {
                let chosen = if is_slope { vec![STERNA] } else { chosen };
                let mut all = Findings::default();
                let mut data = Vec::new();
                for (i, &(length, steps)) in lengths.iter().enumerate() {
                    let case = Case {
                        // Powers of two in the same order, small.
                        length: if context.is_tiny { length >> 8 } else { length },
                        layers: layers.min(shape::all_layers(context)?),
                        steps,
                        profile: is_slope.then_some(FLAT),
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
