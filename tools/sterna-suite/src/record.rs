//! What a section of the suite found, for people and for programs.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A table of the report.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// Names of the columns, with units.
    pub head: Vec<String>,
    /// Cells as people read them.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table with these columns.
    pub fn new(head: &[&str]) -> Self {
        Self { head: head.iter().map(|&name| name.to_owned()).collect(), rows: Vec::new() }
    }
}

/// What a section has to say.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Findings {
    /// What was measured.
    pub tables: Vec<Table>,
    /// What a reader must know to read the tables.
    pub notes: Vec<String>,
    /// What is not as it should be, one line each; the section has failed if there is any.
    pub failures: Vec<String>,
    /// Why nothing was measured, where that is nobody's fault.
    #[serde(default)]
    pub skipped: Option<String>,
    /// The figures of the tables, unrounded.
    pub data: Value,
}

impl Findings {
    /// Adds what is wrong: the first line of `why`, and the file that libtorch says it was raised in, since its texts go on for pages.
    pub fn fail(&mut self, why: &str) {
        const MOST: usize = 400;
        let mut line: String = why.lines().next().unwrap_or_default().chars().take(MOST).collect();
        let raised = why.lines().skip(1).find(|line| line.contains("Exception raised from"));
        if let Some(raised) = raised {
            line.push_str(" | ");
            line.extend(raised.trim().chars().take(MOST / 2));
        }
        self.failures.push(line);
    }
}

/// A section and how it went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Section {
    /// As on the command line.
    pub name: String,
    /// Its heading.
    pub title: String,
    /// From start to end.
    pub seconds: f64,
    /// Why there are no findings, or not all.
    pub error: Option<String>,
    /// What it found.
    pub findings: Findings,
}

impl Section {
    /// What the section of this name found when it was last run into the report's folder `out`.
    pub fn read(out: &Path, name: &str) -> Option<Self> {
        read_json(&out.join(format!("sections/{name}.json"))).ok()
    }

    /// How it went, in a line.
    pub fn verdict(&self) -> String {
        match &self.error {
            Some(error) => format!("FAILED: {error}"),
            None if self.has_passed() => match &self.findings.skipped {
                Some(why) => format!("skipped: {why}"),
                None => "passed".to_owned(),
            },
            None => {
                let failures = &self.findings.failures;
                let more = match failures.len() {
                    1 => String::new(),
                    count => format!(" (and {} more)", count - 1),
                };
                format!("WRONG: {}{more}", failures.first().map_or("", String::as_str))
            }
        }
    }

    /// Whether everything was measured and is as it should be.
    pub fn has_passed(&self) -> bool {
        self.error.is_none() && self.findings.failures.is_empty()
    }
}

/// Writes `value` to `path` as JSON, whole or not at all.
///
/// # Errors
///
/// When the folder cannot be written to.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)? + "\n";
    write_whole(path, &text)
}

/// Writes `text` to `path`, whole or not at all.
///
/// # Errors
///
/// When the folder cannot be written to.
pub fn write_whole(path: &Path, text: &str) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot make the folder `{}`", folder.display()))?;
    }
    let new = path.with_extension("new");
    fs::write(&new, text)
        .and_then(|()| fs::rename(&new, path))
        .with_context(|| format!("cannot write `{}`", path.display()))
}

/// Reads what [`write_json`] wrote.
///
/// # Errors
///
/// A missing file, or one that is something else.
pub fn read_json<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("`{}` is not as written", path.display()))
}
