//! The same numbers whatever computes them and wherever they wait: whole trainings of a tiny model, compared step by step.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use sterna_bench::metrics::Step;

use crate::context::Context;
use crate::recipe::{DONE, Trained, Training, write_documents};
use crate::record::{Findings, Section, Table, write_json};
use crate::run::findings_path;

/// The tiny model's steps.
const STEPS: usize = 4;

/// What one run may take: one that hangs costs no other.
const MOST: Duration = Duration::from_secs(40);

/// Largest relative differences of losses and of gradient norms.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    /// Of the first step.
    first: Differences,
    /// Of those after it.
    later: Differences,
}

/// fp32 sums in another order differ in the seventh digit. Adam's first update is nearly a sign: a gradient near zero that rounding turns
/// round moves its weight the other way, and the later steps start from there.
const TIGHT: Bounds = Bounds {
    first: Differences { loss: 1e-5, norm: 1e-4 },
    later: Differences { loss: 2e-4, norm: 2e-3 },
};

/// Each activation is rounded to 8 bits (2.0e-3) in both, at other places; a loss is the mean of many tokens, a norm is
/// a sum of squares that errors add to.
const LOOSE: Bounds = Bounds {
    first: Differences { loss: 2e-3, norm: 1e-2 },
    later: Differences { loss: 1e-2, norm: 1e-1 },
};

const REASONS: &str = "Largest relative difference in the first step, and over those after it. fp32 within 1e-5 (losses) and 1e-4 (norms), then \
2e-4 and 2e-3: sums in another order differ in the seventh digit. bf16 within 2e-3 and 1e-2, then 1e-2 and 1e-1: activations are rounded to 8 \
bits at other places, which the mean over tokens takes most of. Adam's first update is nearly a sign, so gradients near zero that rounding turns \
round move the later steps apart. 'Again' is the same run a second time: what differs there is the order of atomic additions.";

/// The runs of a lease, where a minute counts: both dtypes on both devices, and each way that things wait or are cut in once.
const OF_LEASE: [&str; 7] = [
    "fp32",
    "fp32 on the CPU",
    "bf16",
    "bf16 on the CPU",
    "all on the host",
    "optimizer on the host",
    "groups of heads, tiles of queries, small tiles",
];

/// One run that is compared with another.
struct Variant {
    name: &'static str,
    /// The name of the run that it must equal, its own if there is none.
    like: &'static str,
    bounds: Bounds,
    training: Training,
}

/// Runs and compares.
///
/// # Errors
///
/// When a program cannot be started or a file not be written.
pub fn run(context: &Context) -> Result<Findings> {
    compare(context, "equal", &variants(context)?)
}

/// As [`run`], with the runs that a lease has time for.
///
/// # Errors
///
/// As [`run`].
pub fn run_of_lease(context: &Context) -> Result<Findings> {
    let mut variants = variants(context)?;
    variants.retain(|variant| OF_LEASE.contains(&variant.name));
    compare(context, SECTION_OF_LEASE, &variants)
}

/// The name of the section with the runs of a lease.
pub const SECTION_OF_LEASE: &str = "lease-equal";

/// Why a larger model is not worth its time: bf16 does not train on the GPU, or far from what a CPU computes. A bound that is missed by
/// little is for a reader to judge, and a run that had no time says nothing.
pub fn why_not_larger(context: &Context) -> Option<String> {
    let section = Section::read(&context.out, SECTION_OF_LEASE)?;
    let rows = section.findings.data.as_array()?.clone();
    let row = |name: &str| rows.iter().find(|row| row["run"] == json!(name)).cloned();
    if let Some(failed) = row("bf16")?["failed"].as_str() {
        return Some(format!("training in bf16 failed: {failed}"));
    }
    let loss = row("bf16 on the CPU")?["differences"]["first"]["loss"].as_f64()?;
    let most = 10.0 * LOOSE.first.loss;
    (loss > most).then(|| format!("the first loss in bf16 differs from the CPU's by {loss:.1e}"))
}

/// Compares, and writes what is found after each run: a section whose time is up has what it found by then.
fn compare(context: &Context, section: &str, variants: &[Variant]) -> Result<Findings> {
    let mut findings = Findings { notes: vec![REASONS.to_owned()], ..Findings::default() };
    let mut table = Table::new(&[
        "run",
        "like",
        "loss, first / last",
        "loss differs by, first / later",
        "norm differs by",
        "",
        "s",
    ]);
    let mut runs: BTreeMap<&str, Trained> = BTreeMap::new();
    let mut data = Vec::new();
    for variant in variants {
        let trained = variant.training.run(&context.within(MOST))?;
        let seconds = trained.watched.wall.as_secs_f64();
        let like = variant.like;
        let status = trained.status(STEPS);
        if status != DONE {
            findings.fail(&format!("{}: {status}", variant.name));
            data.push(json!({"run": variant.name, "like": like, "failed": status}));
            let dash = || "-".to_owned();
            table.rows.push(vec![
                variant.name.to_owned(),
                like.to_owned(),
                dash(),
                dash(),
                dash(),
                status,
                format!("{seconds:.1}"),
            ]);
            continue;
        }
        let other = if like == variant.name { Some(&trained) } else { runs.get(like) };
        let (verdict, shown, row) = match other.map(|other| Differences::between(&trained, other)) {
            Some([first, later]) => {
                let bounds = variant.bounds;
                let is_right = first.is_within(bounds.first) && later.is_within(bounds.later);
                if !is_right {
                    findings.fail(&format!(
                        "{} and {like}: losses differ by {:.1e} in the first step (bound {:.0e}) and {:.1e} later ({:.0e}), norms by {:.1e} ({:.0e}) and {:.1e} ({:.0e})",
                        variant.name, first.loss, bounds.first.loss, later.loss, bounds.later.loss,
                        first.norm, bounds.first.norm, later.norm, bounds.later.norm
                    ));
                }
                let is_same = [first, later].iter().all(|it| it.loss == 0.0 && it.norm == 0.0);
                let verdict = match (is_right, is_same) {
                    (false, _) => "WRONG",
                    (true, true) => "same bits",
                    (true, false) => "ok",
                };
                let shown = [(first.loss, later.loss), (first.norm, later.norm)]
                    .map(|(first, later)| format!("{first:.1e} / {later:.1e}"));
                let row = json!({
                    "first": {"loss": first.loss, "norm": first.norm},
                    "later": {"loss": later.loss, "norm": later.norm},
                });
                (verdict.to_owned(), shown, row)
            }
            None => (format!("{like} failed"), ["-", "-"].map(str::to_owned), Value::Null),
        };
        let losses: Vec<f64> = trained.steps.iter().map(|step| step.loss).collect();
        data.push(json!({"run": variant.name, "like": like, "losses": losses, "differences": row, "seconds": seconds}));
        let [loss, norm] = shown;
        let first_and_last = format!("{:.4} / {:.4}", losses[0], losses[losses.len() - 1]);
        table.rows.push(vec![
            variant.name.to_owned(),
            like.to_owned(),
            first_and_last,
            loss,
            norm,
            verdict,
            format!("{seconds:.1}"),
        ]);
        runs.insert(variant.name, trained);
        findings.tables = vec![table.clone()];
        findings.data = json!(data);
        write_json(&findings_path(&context.out, section), &findings)?;
    }
    findings.tables = vec![table];
    findings.data = json!(data);
    Ok(findings)
}

/// The largest relative differences of two runs over some steps.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Differences {
    loss: f64,
    norm: f64,
}

impl Differences {
    /// In the first step, and over those after it.
    fn between(one: &Trained, other: &Trained) -> [Self; 2] {
        let relative = |a: f64, b: f64| {
            let difference = (a - b).abs() / b.abs();
            if difference.is_finite() { difference } else { f64::INFINITY }
        };
        let norm = |step: &Step| step.grad_norm.unwrap_or(f64::NAN);
        let mut of_steps = one.steps.iter().zip(&other.steps).map(|(a, b)| Self {
            loss: relative(a.loss, b.loss),
            norm: relative(norm(a), norm(b)),
        });
        let none = Self { loss: 0.0, norm: 0.0 };
        let first = of_steps.next().unwrap_or(none);
        let later = of_steps.fold(none, |most, it| Self {
            loss: most.loss.max(it.loss),
            norm: most.norm.max(it.norm),
        });
        [first, later]
    }

    fn is_within(self, bounds: Self) -> bool {
        self.loss <= bounds.loss && self.norm <= bounds.norm
    }
}

/// All runs; one of the other device's too where there are two.
fn variants(context: &Context) -> Result<Vec<Variant>> {
    let folder = context.out.join("runs/equal");
    let data = folder.join("chats.jsonl");
    write_documents(&data, &[128; 64])?;
    let device = context.device_name();
    let training = |name: &str, kind: &str, device, ranks, settings: &[(&str, Value)]| {
        let mut all = vec![
            ("model.dtype".to_owned(), json!(kind)),
            ("data.pack_samples".to_owned(), json!(true)),
            ("data.div_length".to_owned(), json!(64)),
        ];
        all.extend(settings.iter().map(|(path, value)| ((*path).to_owned(), value.clone())));
        Training {
            folder: folder.join(name.replace([' ', ',', ':'], "-")),
            model: context.inputs.join("tiny"),
            data: data.clone(),
            max_length: 512,
            steps: STEPS,
            settings: all,
            device,
            ranks,
        }
    };
    let mut variants: Vec<Variant> = Vec::new();
    let mut add = |name: &'static str,
                   kind,
                   like: Option<&'static str>,
                   device,
                   ranks,
                   settings: &[(&str, Value)]| {
        let bounds = if kind == "fp32" { TIGHT } else { LOOSE };
        let training = training(name, kind, device, ranks, settings);
        let like = like.unwrap_or(name);
        variants.push(Variant { name, like, bounds, training });
        name
    };
    let fp32 = add("fp32", "fp32", None, device, 1, &[]);
    add("fp32 again", "fp32", Some(fp32), device, 1, &[]);
    if device != "cpu" {
        add("fp32 on the CPU", "fp32", Some(fp32), "cpu", 1, &[]);
    }
    add("fp32, 2 ranks", "fp32", Some(fp32), device, 2, &[]);
    add(
        "fp32, 2 ranks, ZeRO 3, weights on the host",
        "fp32",
        Some(fp32),
        device,
        2,
        &[("deepspeed.zero_optimization", json!({"stage": 3, "offload_param": {"device": "cpu"}}))],
    );
    let bf16 = add("bf16", "bf16", None, device, 1, &[]);
    add("bf16 again", "bf16", Some(bf16), device, 1, &[]);
    if device != "cpu" {
        add("bf16 on the CPU", "bf16", Some(bf16), "cpu", 1, &[]);
    }
    let disk = json!(folder.join("disk"));
    std::fs::create_dir_all(folder.join("disk"))?;
    let policies: [(&'static str, Value); 8] = [
        ("all on the device", json!({"inputs_on": "device", "keep_attention": true})),
        ("all on the host", json!({"inputs_on": "host", "keep_attention": true})),
        ("all on disk", json!({"inputs_on": "disk", "keep_attention": true, "disk_dir": disk})),
        ("attention recomputed", json!({"keep_attention": false})),
        (
            "every second input, attention of one block",
            json!({"keep_inputs_every": 2, "keep_attention": 1}),
        ),
        (
            "groups of heads, tiles of queries, small tiles",
            json!({"attention_head_groups": 2, "attention_query_tile": 128, "tile_bytes": "64Ki"}),
        ),
        ("optimizer on the host", json!({"optimizer_on": "host"})),
        ("optimizer on disk", json!({"optimizer_on": "disk", "disk_dir": disk})),
    ];
    for (name, memory) in policies {
        add(name, "bf16", Some(bf16), device, 1, &[("memory", memory)]);
    }
    Ok(variants)
}
