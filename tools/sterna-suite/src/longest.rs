//! The longest sequence that fits, by short probing steps.
//!
//! All are probed with packs of documents of 4,096 tokens: what a pack keeps and moves is that of one document of its length, and its
//! attention takes seconds instead of the better part of an hour. A baseline has no packs, so `baselines/baseline.py` cuts its attention.

use std::fs;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sterna_bench::figures::thousands;
use sterna_bench::process::End;

use crate::baseline::{Baseline, SYSTEMS};
use crate::context::Context;
use crate::recipe::{DONE, OUT_OF_MEMORY, write_documents};
use crate::record::{Findings, Table, read_json, write_json};
use crate::shape::profile::Profile;
use crate::shape::{Case, STERNA, all_layers, model_folder, training};

/// What was found of one system.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Longest {
    /// [`STERNA`] or one of [`SYSTEMS`].
    pub system: String,
    /// `done`, or why not.
    pub status: String,
    /// Tokens of the longest step that went through; 0 if none did.
    pub longest: usize,
    /// Tokens of the shortest that did not.
    pub shortest_that_does_not_fit: Option<usize>,
    /// Every step, as it was tried.
    pub tried: Value,
    /// As in [`crate::shape::RunResult`].
    pub is_tiny: bool,
}

/// The status of a search that the time ended.
const FAR: &str = "as far as the time went";

/// Tokens of a document of a probing pack.
const DOCUMENT: usize = 4096;

/// What lengths are told apart by, and how far they go, in tokens: ours, and the baselines' first, which they double.
struct Ladder {
    unit: usize,
    end: usize,
    baselines: Vec<usize>,
}

impl Ladder {
    fn of(context: &Context) -> Self {
        if context.is_tiny {
            Self { unit: 2 * DOCUMENT, end: 4 * DOCUMENT, baselines: vec![64, 128] }
        } else {
            let baselines = [1, 2, 4, 8, 16, 32].map(|times| times * 32_768).to_vec();
            Self { unit: 131_072, end: 4_194_304, baselines }
        }
    }
}

/// Searches for `systems`, each with an even share of what time is left.
///
/// # Errors
///
/// When a program cannot be started or a file not be written.
pub fn run(context: &Context, systems: &[&str]) -> Result<Findings> {
    for (i, &system) in systems.iter().enumerate() {
        let share = context.time_left() / (systems.len() - i) as u32;
        let context = context.within(share);
        let found = if system == STERNA { ours(&context)? } else { theirs(&context, system)? };
        write_json(&folder(&context, system).join("result.json"), &found)?;
    }
    Ok(findings(&results(context)?))
}

fn folder(context: &Context, system: &str) -> std::path::PathBuf {
    context.out.join("runs/longest").join(system)
}

/// Starts at the longest that the plan says fits, and goes on rung by rung to where steps begin or cease to fit.
fn ours(context: &Context) -> Result<Longest> {
    let ladder = Ladder::of(context);
    let mut tried: Vec<(usize, bool)> = Vec::new();
    let mut rows = Vec::new();
    let mut status = DONE.to_owned();
    let mut at = longest_planned(context, &ladder)?;
    loop {
        let (row, fits) = probe(context, at)?;
        rows.push(row.clone());
        let Some(fits) = fits else {
            row["status"].as_str().unwrap_or("failed").clone_into(&mut status);
            break;
        };
        tried.push((at, fits));
        let next = if fits { at + ladder.unit } else { at.saturating_sub(ladder.unit) };
        let is_known = tried.iter().any(|(length, _)| *length == next);
        // As long as the last one took, and a half.
        let needed = row["wall_seconds"].as_f64().unwrap_or(0.0) * 1.5;
        if next == 0 || next > ladder.end || is_known {
            break;
        }
        if context.time_left().as_secs_f64() < needed {
            FAR.clone_into(&mut status);
            break;
        }
        at = next;
    }
    let of = |fitted: bool| {
        tried.iter().filter(move |(_, fits)| *fits == fitted).map(|(length, _)| *length)
    };
    Ok(Longest {
        system: STERNA.to_owned(),
        status,
        longest: of(true).max().unwrap_or(0),
        shortest_that_does_not_fit: of(false).min(),
        tried: json!(rows),
        is_tiny: context.is_tiny,
    })
}

fn case(context: &Context, length: usize) -> Result<Case> {
    // One step is not measured, so it is all.
    Ok(Case { length, layers: all_layers(context)?, steps: 0, profile: None })
}

/// The longest rung that the plan says fits, the first if none does. A longer one needs more, so few have to be asked about.
fn longest_planned(context: &Context, ladder: &Ladder) -> Result<usize> {
    let folder = folder(context, STERNA).join("plan");
    let data = folder.join("documents.jsonl");
    write_documents(&data, &[DOCUMENT])?;
    let model = model_folder(context);
    let (mut fits, mut does_not) = (1, ladder.end / ladder.unit + 1);
    while fits + 1 < does_not {
        let middle = usize::midpoint(fits, does_not);
        let case = case(context, middle * ladder.unit)?;
        let training = training(context, case, &model, &folder, &data);
        *(if Profile::first_fitting(context, &training).is_some() {
            &mut fits
        } else {
            &mut does_not
        }) = middle;
    }
    Ok(fits * ladder.unit)
}

/// One step of one pack; whether it fits, or `None` if it failed for another reason.
fn probe(context: &Context, length: usize) -> Result<(Value, Option<bool>)> {
    let folder = folder(context, STERNA).join(length.to_string());
    let data = folder.join("documents.jsonl");
    write_documents(&data, &vec![DOCUMENT; length / DOCUMENT])?;
    let case = case(context, length)?;
    let model = model_folder(context);
    let mut training = training(context, case, &model, &folder, &data);
    training.settings.push(("data.pack_samples".to_owned(), json!(true)));
    training.settings.push(("data.packing".to_owned(), json!("global")));
    let profile = Profile::choose(context, &training);
    training.settings.extend(profile.settings());
    let trained = training.run(context)?;
    fs::remove_file(&data).ok();
    let status = trained.status(1);
    let fits = match status.as_str() {
        DONE => Some(true),
        OUT_OF_MEMORY => Some(false),
        _ => None,
    };
    // A search is as long as there is time; that a step had too little says nothing of the length.
    let status = if trained.watched.end == End::TimedOut { FAR.to_owned() } else { status };
    let row = json!({
        "length": length,
        "status": status,
        "fits": fits,
        "how": profile.name(),
        "seconds": trained.steps.first().map(|step| step.seconds),
        "tokens": trained.steps.first().and_then(|step| step.tokens),
        "wall_seconds": trained.watched.wall.as_secs_f64(),
        "device_peak_bytes": trained.device_peak(),
        "host_peak_bytes": trained.host_peak(),
    });
    Ok((row, fits))
}

fn theirs(context: &Context, system: &str) -> Result<Longest> {
    let lengths = Ladder::of(context).baselines;
    let folder = folder(context, system);
    let baseline = Baseline {
        system,
        config: &model_folder(context).join("config.json"),
        layers: all_layers(context)?,
        lengths: &lengths,
        warmup: 0,
        steps: 1,
        folder: &folder,
        limit: context.time_left(),
    };
    let result = baseline.run(context)?;
    let tried = result["tried"].clone();
    // One that was ended in a step has said what fitted before.
    let of = |fitted: bool| -> Vec<usize> {
        let all = tried.as_array().cloned().unwrap_or_default();
        let all = all.iter().filter(|row| row["fits"] == json!(fitted));
        all.filter_map(|row| row["length"].as_u64()).map(|length| length as usize).collect()
    };
    Ok(Longest {
        system: system.to_owned(),
        status: if result["timed_out"] == json!(true) {
            FAR.to_owned()
        } else {
            result["status"].as_str().unwrap_or("failed: it wrote no result").to_owned()
        },
        longest: of(true).into_iter().max().unwrap_or(0),
        shortest_that_does_not_fit: of(false).into_iter().min(),
        tried,
        is_tiny: context.is_tiny,
    })
}

/// What all searches so far found, ours first.
///
/// # Errors
///
/// A result that cannot be read.
pub fn results(context: &Context) -> Result<Vec<Longest>> {
    let mut results: Vec<Longest> = Vec::new();
    for system in [STERNA].into_iter().chain(SYSTEMS) {
        let path = folder(context, system).join("result.json");
        if path.exists() {
            results.push(read_json(&path)?);
        }
    }
    results.retain(|result| result.is_tiny == context.is_tiny);
    Ok(results)
}

/// The table of the searches, and what failed in them.
pub fn findings(results: &[Longest]) -> Findings {
    let head = [
        "system",
        "longest that fits, tokens",
        "shortest that does not",
        "steps tried",
        "how it ended",
    ];
    let mut findings = Findings { tables: vec![Table::new(&head)], ..Findings::default() };
    for result in results {
        let shown = |length: usize| if length == 0 { "none".to_owned() } else { thousands(length) };
        findings.tables[0].rows.push(vec![
            result.system.clone(),
            shown(result.longest),
            result.shortest_that_does_not_fit.map_or_else(|| "not found".to_owned(), thousands),
            result.tried.as_array().map_or(0, Vec::len).to_string(),
            result.status.replace('|', "/"),
        ]);
        if result.status.starts_with("failed") {
            findings.fail(&format!("{}: {}", result.system, result.status));
        }
    }
    findings.notes.push(
        "One step of a pack of documents of 4,096 tokens, which keeps and moves what one document of that length does, for ours and for baselines, \
         whose attention is cut into such documents. Ours are told apart by 131,072 tokens, baselines by 32,768. Each stays within the card and \
         the host of this machine: a baseline that leaves less than 3 GiB of the host does not fit."
            .to_owned(),
    );
    findings.data = json!(results);
    findings
}
