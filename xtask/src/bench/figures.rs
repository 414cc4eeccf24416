//! Which figures the results make.

use super::case::{Case, System};
use super::options::Options;
use super::plot::{Figure, Line, Panel};

/// Peak memory over length; how many bytes one more token takes stands at each line.
pub(super) fn memory(options: &Options, cases: &[Case]) -> Figure {
    let note = |line: &[&Case]| {
        let grows = line.iter().rev().find_map(|case| case.growth(cases).0);
        grows.map_or_else(String::new, |bytes| format!("+{:.0} KB a token", bytes / 1e3))
    };
    let value = |case: &Case| Some(case.peak()? as f64 / 1e9);
    Figure {
        title: "Peak memory of a training step".to_owned(),
        subtitle: subtitle("resident memory of a process"),
        panels: panels(options, cases, "GB", value, note),
    }
}

/// Tokens a second over length.
pub(super) fn speed(options: &Options, cases: &[Case]) -> Figure {
    let speed = |case: &Case| Some(case.tokens_in(cases)? / case.step_seconds()?.0);
    let note = |line: &[&Case]| {
        let last = line.iter().rev().find(|case| case.peak().is_some());
        let times = last.filter(|case| case.system == System::Sterna).and_then(|case| {
            let reference = case.reference(cases)?;
            Some(reference.step_seconds()?.0 / case.step_seconds()?.0)
        });
        times.map_or_else(String::new, |times| format!("{times:.1} x the reference"))
    };
    Figure {
        title: "Tokens trained on in a second".to_owned(),
        subtitle: subtitle("higher is better"),
        panels: panels(options, cases, "tokens/s", speed, note),
    }
}

fn subtitle(what: &str) -> String {
    format!("SmolLM2-135M, bf16, full fine-tuning on a CPU, one sequence a step; {what}")
}

fn panels(
    options: &Options,
    cases: &[Case],
    unit: &'static str,
    value: impl Fn(&Case) -> Option<f64>,
    note: impl Fn(&[&Case]) -> String,
) -> Vec<Panel> {
    let mut panels = Vec::new();
    for &input in &options.inputs {
        let of_input: Vec<&Case> = cases.iter().filter(|case| case.input == input).collect();
        let mut lines: Vec<Line> = Vec::new();
        for first in &of_input {
            let line: Vec<&Case> =
                of_input.iter().copied().filter(|case| case.is_of_line(first)).collect();
            if line[0].length != first.length {
                continue;
            }
            // A failure is no point; for lack of memory is a result.
            let is_known =
                |case: &&&Case| case.trouble().is_none_or(|trouble| trouble == "out of memory");
            let done = line.iter().filter(|case| !case.runs.is_empty()).filter(is_known);
            lines.push(Line {
                label: match first.system {
                    System::Reference => "arctic-training 0.8".to_owned(),
                    System::Sterna => format!("Sterna, {}", first.label()),
                },
                note: note(&line),
                is_reference: first.system == System::Reference,
                points: done.map(|case| (case.length, value(case))).collect(),
            });
        }
        let title = (options.inputs.len() > 1).then(|| input.title().to_owned());
        panels.push(Panel { title, unit, lines });
    }
    panels
}
