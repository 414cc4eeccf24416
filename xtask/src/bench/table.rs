//! The results as Markdown.

use std::fmt::Write as _;

use serde_json::Value;
use sterna_bench::figures::thousands;

use super::case::{Case, System};
use super::options::Options;

/// The whole document.
pub(super) fn markdown(
    options: &Options,
    cases: &[Case],
    machine: &Value,
    versions: &Value,
) -> String {
    let mut text = format!("# {}\n\n", options.name);
    text += "SmolLM2-135M-Instruct, bf16, AdamW, full fine-tuning; one sequence of real chats a step, on the CPU.\n";
    text += "\n";
    text += &tables(options, cases);
    text += "## How to read it\n\n";
    text += READING;
    if !options.reference_lengths.is_empty() {
        text += READING_REFERENCE;
    }
    text += "\nPolicies:\n\n";
    for policy in &options.policies {
        let _ = writeln!(text, "- {}: {}", policy.name, policy.shown());
    }
    text += "\n## Where\n\n";
    text += &facts(options, machine, versions);
    text += "\n## Commands\n\nTyped in the root of the repository:\n\n```\n";
    for case in cases {
        for run in case.runs.iter().take(1) {
            let _ = writeln!(text, "{}", run.command);
        }
    }
    text += "```\n";
    text
}

/// One table for each input, under its title.
pub(super) fn tables(options: &Options, cases: &[Case]) -> String {
    let mut text = String::new();
    for &input in &options.inputs {
        let of_input: Vec<Case> =
            cases.iter().filter(|case| case.input == input).cloned().collect();
        let _ = write!(text, "## {}\n\n{}\n", input.title(), table(&of_input));
    }
    text
}

const READING: &str = "\
- length: the longest sequence that the recipe allows; tokens: those of data in a measured step, on average.
- peak: resident memory of a rank process as the kernel reports it (`VmHWM`), of the highest rank; libraries and start-up are in it. GB are 10^9 bytes, KB 10^3.
- one more token: by how much the peak grows from the next shorter length, for each token of the sequence. In brackets what `sterna check` predicts.
- step: seconds of forward, backward and optimizer; the fastest and the median of the measured steps, the first step of each run left out.
- tokens/s: tokens of data over the fastest step.
- loss: of the first step, before any update, and of the last.
";

const READING_REFERENCE: &str = "\
- reference / ours: its fastest step over ours, and its peak over that of our highest rank. It runs in one process, whatever our ranks.
- Both systems get the same weights, data and order of data, so the losses are equal up to the rounding of bf16: that is the check that they do the same work. Attention never crosses from one chat to another: the reference gives sdpa a mask of the whole sequence squared, made from the position ids.
";

const HEAD: &str = "\
| length | tokens | system | policy | peak, GB | one more token, KB | step, s | tokens/s | loss, first / last | reference / ours: time | memory |
|---:|---:|---|---|---:|---:|---:|---:|---:|---:|---:|
";

/// One table; `cases` are of one input.
fn table(cases: &[Case]) -> String {
    let mut text = HEAD.to_owned();
    for case in cases {
        text += &row(case, cases);
    }
    text
}

fn row(case: &Case, all: &[Case]) -> String {
    let (system, policy) = match (case.system, case.ranks) {
        (System::Reference, _) => ("reference".to_owned(), "-"),
        (System::Sterna, 1) => ("Sterna".to_owned(), policy_name(case)),
        (System::Sterna, ranks) => (format!("Sterna, sp {ranks}"), policy_name(case)),
    };
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let tokens = case.tokens_in(all);
    let counted = or_dash(tokens.map(|tokens| thousands(tokens.round() as usize)));
    let mut row = format!("| {} | {counted} | {system} | {policy} | ", thousands(case.length));
    if let Some(trouble) = case.trouble() {
        // A bar would end the cell.
        let _ = writeln!(row, "{} | | | | | | |", trouble.replace('|', "/"));
        return row;
    }
    let (growth, predicted) = case.growth(all);
    let mut growth = or_dash(growth.map(|bytes| format!("{:.1}", bytes / 1e3)));
    if let Some(bytes) = predicted {
        let _ = write!(growth, " ({:.1})", bytes / 1e3);
    }
    let seconds = case.step_seconds();
    let losses = case.losses().unwrap_or_default();
    let reference = case.reference(all).filter(|_| case.system == System::Sterna);
    let ratio =
        |of: &dyn Fn(&Case) -> Option<f64>| Some(format!("{:.2}", of(reference?)? / of(case)?));
    let cells = [
        or_dash(case.peak().map(|bytes| format!("{:.2}", bytes as f64 / 1e9))),
        growth,
        or_dash(seconds.map(|(min, median)| format!("{min:.2} / {median:.2}"))),
        or_dash(
            seconds
                .zip(tokens)
                .map(|((min, _), tokens)| thousands((tokens / min).round() as usize)),
        ),
        or_dash(
            losses
                .first()
                .zip(losses.last())
                .map(|(first, last)| format!("{first:.4} / {last:.4}")),
        ),
        or_dash(ratio(&|case| Some(case.step_seconds()?.0))),
        or_dash(ratio(&|case| Some(case.peak()? as f64))),
    ];
    let _ = writeln!(row, "{} |", cells.join(" | "));
    row
}

fn policy_name(case: &Case) -> &str {
    case.policy.as_ref().map_or("-", |policy| &policy.name)
}

fn facts(options: &Options, machine: &Value, versions: &Value) -> String {
    let said = |value: &Value| value.as_str().unwrap_or("unknown").to_owned();
    let memory = machine["memory_bytes"].as_f64().unwrap_or(0.0) / 1e9;
    let instructions: Vec<&str> = machine["instructions"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let busy = match options.busy {
        0 => String::new(),
        busy => format!("; {busy} other threads computed all the time"),
    };
    let mut text = format!(
        "- {}, {} cores ({}), {memory:.1} GB of memory, {}; commit {}; {}\n- CPU threads: {}; rounds: {}; measured steps of a run: {}, after 1 warm-up; load average before: {}{busy}\n- {}{}\n",
        said(&machine["cpu"]),
        machine["cores"],
        instructions.join(" "),
        said(&machine["kernel"]),
        said(&machine["commit"]),
        said(&machine["date"]),
        machine["threads"],
        options.rounds,
        options.steps,
        machine["load_before"],
        said(&machine["sterna"]),
        if options.binary.is_some() {
            ", a binary given with `--binary`"
        } else {
            ", built from the commit"
        },
    );
    if let Some(versions) = versions.as_object() {
        let versions: Vec<String> =
            versions.iter().map(|(name, version)| format!("{name} {}", said(version))).collect();
        let _ = writeln!(text, "- {}", versions.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::case::tests::case;
    use super::*;
    use sterna_bench::process::End;

    #[test]
    fn a_row_has_every_figure_and_its_ratio_to_the_reference() {
        let mut cases = vec![
            case(System::Reference, 4096, 6_500_000_000, &[32.0]),
            case(System::Sterna, 4096, 3_700_000_000, &[8.0, 10.0]),
            case(System::Reference, 16384, 1, &[1.0]),
            case(System::Sterna, 16384, 4_900_000_000, &[35.0]),
        ];
        cases[2].runs[0].watched.end = End::OutOfMemory;
        let text = table(&cases);
        let rows: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(
            rows,
            [
                "| 4,096 | 4,080 | reference | - | 6.50 | - | 32.00 / 32.00 | 128 | 2.5990 / 2.5320 | - | - |",
                "| 4,096 | 4,080 | Sterna | default | 3.70 | - | 8.00 / 9.00 | 510 | 2.5990 / 2.5100 | 4.00 | 1.76 |",
                "| 16,384 | 16,368 | reference | - | out of memory | | | | | | |",
                "| 16,384 | 16,368 | Sterna | default | 4.90 | 97.7 (50.0) | 35.00 / 35.00 | 468 | 2.5990 / 2.5350 | - | - |",
            ]
        );
        let columns = |line: &str| line.matches('|').count();
        assert!(text.lines().all(|line| columns(line) == columns(rows[0])), "{text}");
    }
}
