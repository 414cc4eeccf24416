//! A card that is there for 15 minutes: two calls of steps in the order of what they decide, and the table that says what to mend.
//!
//! The first call (`run lease`, at most six minutes) proves and measures; then what it showed is mended; the second (`run lease-2`)
//! measures the lengths that are claimed.

use std::fs;

use anyhow::Result;
use serde_json::{Value, json};
use sterna_bench::figures::thousands;
use sterna_bench::process::End;

use crate::attention::forward_flop;
use crate::context::Context;
use crate::cost::{Cut, Estimate, H200, Rates};
use crate::recipe::{DONE, Training, write_documents};
use crate::record::{Findings, Section, Table, read_json, write_json};
use crate::shape::profile::{FLAT, Profile};
use crate::shape::{self, Case, RunResult, STERNA, length};

/// What a leased machine's host gives, bytes, where neither the caller nor the machine says it: the memory of its virtual machine grows
/// from far less.
pub const HOST_BYTES: u64 = 128 << 30;

/// Tokens of the step that tile lengths are compared at.
const SHORT: usize = 32_768;

/// Tokens of the step that is claimed.
const LONG: usize = 131_072;

/// The budgets that are compared, as in a recipe: that of a CPU and that of a GPU.
const TILE_BYTES: [&str; 2] = ["128Mi", "1Gi"];

/// Two layers of the shape at 32K tokens with tiles of 128 MiB and of 1 GiB, and their timelines.
///
/// # Errors
///
/// When a program cannot be started or a file not be written.
pub fn tiles(context: &Context) -> Result<Findings> {
    let mut findings = Findings::default();
    let mut table =
        Table::new(&["tile_bytes", "step, s: shortest / median", "estimated, s", "device, GB"]);
    let case = Case {
        length: length(context, SHORT),
        layers: 2.min(shape::all_layers(context)?),
        steps: 2,
        profile: Some(FLAT),
    };
    let mut medians = Vec::new();
    for tile_bytes in TILE_BYTES {
        let folder = context.out.join(format!("runs/tiles/{tile_bytes}"));
        // A timeline of both, so that they stay alike.
        let settings = [
            ("memory.tile_bytes".to_owned(), json!(tile_bytes)),
            ("memory.timeline_dir".to_owned(), json!(folder.join("timeline"))),
            ("memory.timeline_steps".to_owned(), json!(2)),
        ];
        let result = shape::ours(context, case, &shape::model_folder(context), &folder, &settings)?;
        if !result.is_done() {
            findings.fail(&format!("tile_bytes {tile_bytes}: {}", result.status));
        }
        let estimate = estimate(context, case, Some(tile_bytes), FLAT);
        let seconds = result.seconds();
        table.rows.push(vec![
            tile_bytes.to_owned(),
            seconds.map_or(result.status.clone(), |(shortest, median)| {
                format!("{shortest:.3} / {median:.3}")
            }),
            estimate.map_or_else(|| "-".to_owned(), |it| format!("{:.3}", it.total())),
            result
                .device_peak
                .map_or_else(|| "-".to_owned(), |it| format!("{:.2}", it as f64 / 1e9)),
        ]);
        medians.push(seconds.map(|(_, median)| median));
    }
    findings.tables = vec![table];
    findings.notes.push(format!(
        "{} layers, {} tokens; timelines are in runs/tiles.",
        case.layers,
        thousands(case.length),
    ));
    findings.data = json!({"medians": medians});
    Ok(findings)
}

/// The whole shape in one process: a document of 32K tokens and two of 128K, a step each, in an order that the data decides. The first
/// step warms up.
///
/// # Errors
///
/// As [`tiles`].
pub fn mixed(context: &Context) -> Result<Findings> {
    let layers = shape::all_layers(context)?;
    let lens = [LONG, LONG, SHORT].map(|len| length(context, len));
    let case = Case { length: lens[0], layers, steps: lens.len() - 1, profile: None };
    let folder = context.out.join("runs/mixed");
    let data = folder.join("documents.jsonl");
    write_documents(&data, &lens)?;
    let model = shape::model_folder(context);
    let mut training = shape::training(context, case, &model, &folder, &data);
    let profile = Profile::choose(context, &training);
    training.settings.extend(profile.settings());
    let trained = training.run(context)?;
    fs::remove_file(&data).ok();
    let mut findings = Findings::default();
    let status = trained.status(lens.len());
    if status != DONE && trained.watched.end != End::TimedOut {
        findings.fail(&status);
    }
    for len in [length(context, SHORT), lens[0]] {
        let steps: Vec<_> =
            trained.steps.iter().skip(1).filter(|step| step.padded as usize == len).collect();
        let first_only = steps.is_empty();
        let steps = if first_only {
            trained.steps.iter().take(1).filter(|step| step.padded as usize == len).collect()
        } else {
            steps
        };
        let case = Case { length: len, ..case };
        let path = shape::folder(context, case, STERNA).join("result.json");
        // What another run has measured in more steps stays.
        let before: Option<RunResult> = read_json(&path).ok();
        let has_better = before
            .is_some_and(|it| it.is_done() && (first_only || it.step_seconds.len() > steps.len()));
        if steps.is_empty() || has_better {
            continue;
        }
        let result = RunResult {
            status: DONE.to_owned(),
            how: profile.name(),
            step_seconds: steps.iter().map(|step| step.seconds).collect(),
            has_warmup_only: first_only,
            losses: steps.iter().map(|step| step.loss).collect(),
            device_peak: steps.iter().filter_map(|step| step.device_reserved_peak).max(),
            host_peak: trained.host_peak(),
            ..shape::not_run(context, case, STERNA, "")
        };
        write_json(&path, &result)?;
    }
    if trained.steps.len() < 2 {
        findings.fail(&format!("{} steps ended: {status}", trained.steps.len()));
    }
    let results: Vec<RunResult> = shape::results(context)?
        .into_iter()
        .filter(|result| result.system == STERNA && result.layers == layers)
        .collect();
    let of_shape = shape::findings(context, &results)?;
    findings.tables = of_shape.tables;
    findings.notes = of_shape.notes;
    findings.data = json!({"status": status, "steps": trained.steps.len()});
    Ok(findings)
}

/// What a step of ours should take at the rates that were measured, or else at an H200's; `None` if there is no plan for it.
fn estimate(
    context: &Context,
    case: Case,
    tile_bytes: Option<&str>,
    profile: Profile,
) -> Option<Estimate> {
    let mut training = probe(context, case).ok()?;
    training.settings.extend(profile.settings());
    training
        .settings
        .extend(tile_bytes.map(|tile_bytes| ("memory.tile_bytes".to_owned(), json!(tile_bytes))));
    let tiles = training.planned(context)?["tiles"].clone();
    let tile = |name: &str| Some(tiles[name].as_u64()? as usize);
    let cut = Cut {
        qkv: tile("qkv")?,
        mlp: tile("mlp")?,
        head: tile("head")?,
        keeps_attention: profile.keeps_all_attention(case.layers),
    };
    let config = shape::model_config(context, case.layers).ok()?;
    Some(Estimate::of(&config, case.length, cut, rates(context)))
}

/// The rates of this card as far as the first call has measured them.
fn rates(context: &Context) -> Rates {
    if !context.device.is_cuda() {
        return H200;
    }
    let rows = data(context, "lease-attention")["rows"].as_array().cloned().unwrap_or_default();
    let attention = |key: &str, of_forward: f64| {
        let row = rows.last()?;
        Some(of_forward * forward_flop(row["tokens"].as_i64()?) / row[key].as_f64()?)
    };
    Rates {
        // What products of a step reach of the largest one's rate.
        products: shape::gemm_rate(context).map_or(H200.products, |rate| 0.9 * rate),
        attention_forward: attention("forward_seconds_median", 1.0)
            .unwrap_or(H200.attention_forward),
        attention_backward: attention("backward_seconds_median", 2.5)
            .unwrap_or(H200.attention_backward),
        memory: H200.memory,
    }
}

fn data(context: &Context, name: &str) -> Value {
    Section::read(&context.out, name).map(|section| section.findings.data).unwrap_or_default()
}

/// What decides what is mended next: each figure, what it should be by the cost model or by requirement, and what to look at if it is not.
///
/// # Errors
///
/// A result or config that cannot be read.
pub fn decisions(context: &Context) -> Result<Table> {
    let mut table = Table::new(&["what", "measured", "should be", "verdict", "then look at"]);
    let mut add = |what: &str, measured: String, should: String, verdict: &str, then: &str| {
        let cells = [what, &measured, &should, verdict, then];
        table.rows.push(cells.map(str::to_owned).to_vec());
    };
    let touched = data(context, "machine");
    if let (Some(bytes), Some(seconds)) =
        (touched["touched_bytes"].as_f64(), touched["touched_seconds"].as_f64())
    {
        let rate = bytes / seconds.max(1e-3) / (1_u64 << 30) as f64;
        let verdict = if context.is_tiny || rate >= 4.0 { "ok" } else { "MEND" };
        let then = "keep fewer attention outputs: 64 GiB of the host are taken at 128K";
        add(
            "memory of the host that is taken",
            format!("{rate:.1} GiB/s"),
            "4 GiB/s".to_owned(),
            verdict,
            then,
        );
    }
    for (name, what, then) in [
        ("machine", "the machine", "sections/machine.json"),
        (
            "contracts",
            "what is taken for granted of libtorch",
            "the file of each broken contract's operator",
        ),
        ("ops", "ops against fp64", "kernels/*.cu"),
        ("attention-ops", "attention against fp64", "cpp/cuda_attention.cc, attention/choice.rs"),
        ("lease-equal", "equal trainings", "the first run that differs: its log in runs/equal"),
        ("nccl", "NCCL in a world of one", "cpp/cuda/nccl.cc"),
    ] {
        let Some(section) = Section::read(&context.out, name) else {
            add(what, "not run".to_owned(), "passed".to_owned(), "open", then);
            continue;
        };
        let (measured, verdict) = match (&section.error, section.findings.failures.first()) {
            (Some(error), _) => (error.clone(), "MEND"),
            (None, Some(first)) => {
                (format!("{} wrong: {first}", section.findings.failures.len()), "MEND")
            }
            (None, None) => match section.findings.skipped {
                Some(why) => (format!("skipped: {why}"), "open"),
                None => ("passed".to_owned(), "ok"),
            },
        };
        add(what, measured, "passed".to_owned(), verdict, then);
    }
    ceilings(context, &mut add);
    if let [Some(short), Some(long)] =
        [0, 1].map(|i| data(context, "lease-tiles")["medians"][i].as_f64())
    {
        let ratio = short / long;
        let verdict = if ratio > 1.05 { "ok" } else { "MEND" };
        add(
            "2 layers at 32K: tiles of 128 MiB take longer by",
            format!("{ratio:.2}x"),
            "1.1 to 1.3x".to_owned(),
            verdict,
            "plan/tiles.rs: the default for a GPU",
        );
    }
    let layers = shape::all_layers(context)?;
    let results = shape::results(context)?;
    for (len, required) in [(SHORT, 0.42), (LONG, 0.45)] {
        let len = length(context, len);
        let case = Case { length: len, layers, steps: 1, profile: None };
        let profile = Profile::choose(context, &probe(context, case)?);
        let estimate = estimate(context, case, None, profile);
        let flop = shape::step_flop(context, len, layers)?;
        let mfu = |seconds: f64| shape::datasheet_rate(context).map(|rate| flop / seconds / rate);
        let found = results
            .iter()
            .find(|run| run.system == STERNA && run.length == len && run.layers == layers);
        let what = format!("{layers} layers at {} tokens", thousands(len));
        let should = estimate.map_or_else(
            || "no estimate".to_owned(),
            |it| {
                format!(
                    "{:.1} s by the cost model: products {:.1}, attention {:.1}, gradients {:.1}, pointwise {:.1}, optimizer {:.1}; MFU {:.0}% required",
                    it.total(), it.products, it.attention, it.gradients, it.pointwise, it.optimizer, required * 100.0
                )
            },
        );
        let then = "the timeline in runs/tiles, phase_time in metrics.jsonl";
        let Some((_, median)) = found.and_then(RunResult::seconds) else {
            let status = found.map_or_else(|| "not run".to_owned(), |run| run.status.clone());
            let verdict = if found.is_some() { "MEND" } else { "open" };
            add(&what, status, should, verdict, then);
            continue;
        };
        let share = mfu(median);
        let verdict = match share {
            Some(share) if share < required => "MEND",
            Some(_) => "ok",
            None => "open",
        };
        let shown = share.map_or_else(String::new, |share| format!(", MFU {:.1}%", share * 100.0));
        add(&what, format!("{median:.2} s{shown}"), should, verdict, then);
    }
    Ok(table)
}

const TERA: f64 = 1e12;

fn ceilings(context: &Context, add: &mut impl FnMut(&str, String, String, &str, &str)) {
    let rows = data(context, "lease-ceilings")["rows"].as_array().cloned().unwrap_or_default();
    let rate = |what: &str, index: usize| {
        let mut found = rows.iter().filter(|row| row["what"] == json!(what));
        found.nth(index)?["rate"].as_f64()
    };
    let mut check =
        |what: &str, found: Option<f64>, unit: f64, least: f64, name: &str, then: &str| {
            let Some(found) = found else { return };
            let verdict = if found / unit >= least { "ok" } else { "MEND" };
            let verdict = if context.is_tiny { "open" } else { verdict };
            add(
                what,
                format!("{:.0} {name}", found / unit),
                format!("{least:.0} {name}"),
                verdict,
                then,
            );
        };
    check(
        "largest bf16 product",
        rate("bf16 product", 0),
        TERA,
        700.0,
        "TFLOP/s",
        "the card itself",
    );
    for (index, least) in [(0, 350.0), (1, 600.0)] {
        let what = ["weight gradient, short tile", "weight gradient, long tile"][index];
        let found = rate("weight gradient of the MLP", index);
        check(
            what,
            found,
            TERA,
            least,
            "TFLOP/s",
            "linear.rs: addmm.dtype_out, or bf16 and an add",
        );
    }
    let found = rate("head and loss, without weight gradient", 1);
    check("head and loss, long tile", found, TERA, 500.0, "TFLOP/s", "kernels/cross_entropy.cu");
    for what in ["host to device, pinned", "device to host, pinned"] {
        check(what, rate(what, 0), 1e9, 40.0, "GB/s", "memory/block.rs: huge pages, the bus");
    }
}

/// A training to ask the plan about.
fn probe(context: &Context, case: Case) -> Result<Training> {
    let folder = context.out.join("runs/estimate");
    let data = folder.join("documents.jsonl");
    // The plan of a recipe whose data is missing is refused; how much of it there is plays no part.
    write_documents(&data, &[64])?;
    Ok(shape::training(context, case, &shape::model_folder(context), &folder, &data))
}
