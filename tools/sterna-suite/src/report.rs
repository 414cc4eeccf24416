//! `report.md` and `report.json`: what all commands so far found, with what is required first.

use std::fmt::Write as _;

use anyhow::Result;
use serde_json::{Value, json};

use crate::context::Context;
use crate::lease;
use crate::longest;
use crate::record::{Section, Table, read_json, write_json, write_whole};
use crate::required;
use crate::sections::{self, LEASE, LEASE_2, Spec};
use crate::shape;

/// Writes both files.
///
/// # Errors
///
/// A result that cannot be read, or a folder that cannot be written to.
pub fn write(context: &Context) -> Result<()> {
    let machine: Value = read_json(&context.out.join("machine.json")).unwrap_or_default();
    let sections = sections(context);
    let requirements = required::all(context)?;
    let runs = shape::results(context)?;
    let searches = longest::results(context)?;
    let shape = shape::findings(context, &runs)?;
    write_json(
        &context.out.join("report.json"),
        &json!({
            "machine": machine,
            "is_tiny": context.is_tiny,
            "required": requirements,
            "sections": sections,
            "shape": shape.data,
            "longest": searches,
        }),
    )?;
    let mut text = heading(context, &machine);
    if is_of_lease(&sections) {
        // Once: what it asks of the plan takes seconds.
        let decisions = lease::decisions(context)?;
        text += "## What to mend\n\n";
        text += &markdown(&decisions);
        write_whole(&context.out.join("summary.txt"), &summary(&sections, &decisions))?;
    }
    text += "## What is required, and what was reached\n\n";
    if context.is_tiny {
        text += "A tiny run shows that the suite works. It has nothing to say here: the lengths below were not run.\n\n";
    }
    text += &markdown(&required::table(&requirements));
    text += "## Sections\n\n";
    text += &markdown(&overview(&sections));
    for section in &sections {
        // The runs of all such sections are in one table below.
        let has_own_table = section.name.ends_with("longest") || is_of_shape(&section.name);
        let _ = write!(text, "## {}\n\n", section.title);
        if let Some(error) = &section.error {
            let _ = write!(text, "**Failed:** {error}\n\n");
        }
        for failure in &section.findings.failures {
            let _ = writeln!(text, "- **wrong:** {failure}");
        }
        if !section.findings.failures.is_empty() {
            text.push('\n');
        }
        if has_own_table {
            text += "Its figures are in the tables at the end.\n\n";
            continue;
        }
        for table in &section.findings.tables {
            text += &markdown(table);
        }
        for note in &section.findings.notes {
            let _ = write!(text, "{note}\n\n");
        }
    }
    for (title, findings) in [
        ("All runs of the shape", shape),
        ("All searches for the longest sequence", longest::findings(&searches)),
    ] {
        if findings.tables.iter().all(|table| table.rows.is_empty()) {
            continue;
        }
        let _ = write!(text, "## {title}\n\n");
        for table in &findings.tables {
            text += &markdown(table);
        }
        for note in &findings.notes {
            let _ = write!(text, "{note}\n\n");
        }
    }
    text += &left(&sections);
    write_whole(&context.out.join("report.md"), &text)
}

/// What a call of a lease ends with: each section in a line, and the table that decides what to mend.
fn summary(sections: &[Section], decisions: &Table) -> String {
    // The end of an output is all that comes back of some machines.
    let cut = |text: &str| text.chars().take(300).collect::<String>();
    let mut text = String::new();
    for section in sections {
        let verdict = cut(&section.verdict());
        let _ = writeln!(text, "{} ({:.0} s): {verdict}", section.name, section.seconds);
    }
    for row in &decisions.rows {
        if let [what, measured, should, verdict, then] = row.as_slice() {
            let then = if verdict == "MEND" { format!("; look at {then}") } else { String::new() };
            let _ = writeln!(text, "{verdict:<5}{what}: {} [{should}]{then}", cut(measured));
        }
    }
    text
}

/// Whether a call of a lease has been run into this folder: a section that is of no other command.
fn is_of_lease(sections: &[Section]) -> bool {
    let has =
        |specs: &[Spec], section: &Section| specs.iter().any(|spec| spec.name == section.name);
    sections.iter().any(|section| {
        (has(&LEASE, section) || has(&LEASE_2, section)) && !has(&sections::QUICK, section)
    })
}

fn is_of_shape(name: &str) -> bool {
    name == "shape"
        || name.starts_with("long-")
        || name.starts_with("slope-")
        || ["lease-32k", "lease-slope", "lease-mixed"].contains(&name)
}

/// What has been run into this folder, in the order of [`sections::all`].
fn sections(context: &Context) -> Vec<Section> {
    sections::all().filter_map(|spec| Section::read(&context.out, spec.name)).collect()
}

fn heading(context: &Context, machine: &Value) -> String {
    let said = |key: &str| machine[key].as_str().unwrap_or("unknown").to_owned();
    let title = match machine["gpu"].as_str() {
        Some(gpu) => gpu.to_owned(),
        None => "a machine without a GPU".to_owned(),
    };
    let tiny = if context.is_tiny { ", tiny run" } else { "" };
    let memory = machine["memory_bytes"].as_f64().unwrap_or(0.0) / 1e9;
    format!(
        "# Sterna on {title}{tiny}\n\n- {}, commit {}; {}\n- {}, {} cores, {memory:.1} GB of memory; {}\n- {}\n\n",
        said("sterna"),
        said("commit"),
        said("date"),
        said("cpu"),
        machine["cores"],
        said("kernel"),
        said("torch"),
    )
}

fn overview(sections: &[Section]) -> Table {
    let mut table = Table::new(&["section", "", "s"]);
    for section in sections {
        let verdict = match (&section.error, section.findings.failures.len()) {
            (Some(error), _) => format!("FAILED: {error}"),
            (None, 0) => match &section.findings.skipped {
                Some(why) => format!("skipped: {why}"),
                None => "passed".to_owned(),
            },
            (None, count) => format!("{count} WRONG"),
        };
        table.rows.push(vec![section.title.clone(), verdict, format!("{:.0}", section.seconds)]);
    }
    table
}

/// The commands that have not been run into this folder.
fn left(sections: &[Section]) -> String {
    let names: Vec<&str> = sections::QUICK
        .iter()
        .chain(&sections::LONG)
        .map(|spec| spec.name)
        .filter(|name| sections.iter().all(|section| section.name != *name))
        .collect();
    if names.is_empty() {
        return String::new();
    }
    let mut text =
        "## Not run yet\n\nEach in ten minutes at most; results join this report:\n\n```\n"
            .to_owned();
    for name in names {
        let _ = writeln!(text, "bash run.sh {name}");
    }
    text + "```\n"
}

/// A table with a bar at each side.
fn markdown(table: &Table) -> String {
    let line = |cells: &[String]| {
        // A bar or a line break would end the cell.
        let cells: Vec<String> =
            cells.iter().map(|cell| cell.replace('|', "/").replace('\n', " ")).collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let mut text = line(&table.head);
    let _ = writeln!(text, "|{}", "---|".repeat(table.head.len()));
    for row in &table.rows {
        text += &line(row);
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_never_end_early() {
        let table = Table {
            head: vec!["what".to_owned(), "how".to_owned()],
            rows: vec![vec!["a|b".to_owned(), "two\nlines".to_owned()]],
        };
        assert_eq!(markdown(&table), "| what | how |\n|---|---|\n| a/b | two lines |\n\n");
    }
}
