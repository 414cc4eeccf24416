//! The same numbers whatever computes them and wherever they wait: whole trainings of a tiny model, compared step by step.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use crate::context::Context;
use crate::recipe::{DONE, Trained, Training, write_documents};
use crate::record::{Findings, Table};

/// The tiny model's steps.
const STEPS: usize = 4;

/// What one run may take: one that hangs costs no other.
const MOST: Duration = Duration::from_secs(40);

/// Largest relative differences of losses and of gradient norms.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    loss: f64,
    norm: f64,
}

/// fp32 sums in another order differ in the seventh digit, and each step starts from the difference of the one before.
const TIGHT: Bounds = Bounds { loss: 2e-5, norm: 2e-4 };

/// Each activation is rounded to 8 bits (2.0e-3) in both, at other places; a loss is the mean of many tokens, a norm is
/// a sum of squares that errors add to.
const LOOSE: Bounds = Bounds { loss: 5e-3, norm: 5e-2 };

const REASONS: &str = "Largest relative difference over the steps. fp32 within 2e-5 (losses) and 2e-4 (norms): sums in another order differ in the \
seventh digit, and each step starts from the difference of the one before. bf16 within 5e-3 and 5e-2: activations are rounded to 8 bits at other \
places, which the mean over tokens takes most of. 'Again' is the same run a second time: what differs there is the order of \
atomic additions.";

/// One run that is compared with another.
struct Variant {
    name: &'static str,
    /// Which run it must equal: index into the variants.
    like: usize,
    bounds: Bounds,
    training: Training,
}

/// Runs and compares.
///
/// # Errors
///
/// When a program cannot be started or a file not be written.
pub fn run(context: &Context) -> Result<Findings> {
    let variants = variants(context)?;
    let mut findings = Findings { notes: vec![REASONS.to_owned()], ..Findings::default() };
    let mut table = Table::new(&[
        "run",
        "like",
        "loss, first / last",
        "loss differs by",
        "norm differs by",
        "",
        "s",
    ]);
    let mut runs: Vec<Option<Trained>> = Vec::new();
    let mut data = Vec::new();
    for variant in &variants {
        let trained = variant.training.run(&context.within(MOST))?;
        let seconds = trained.watched.wall.as_secs_f64();
        let like = variants[variant.like].name;
        let status = trained.status(STEPS);
        if status != DONE {
            findings.fail(&format!("{}: {status}", variant.name));
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
            runs.push(None);
            continue;
        }
        let other = runs.get(variant.like).map_or(Some(&trained), Option::as_ref);
        let (verdict, shown, row) = match other.map(|other| Differences::between(&trained, other)) {
            Some(found) => {
                let is_right =
                    found.loss <= variant.bounds.loss && found.norm <= variant.bounds.norm;
                if !is_right {
                    findings.fail(&format!(
                        "{} and {like}: losses differ by {:.1e} (bound {:.0e}), norms by {:.1e} (bound {:.0e})",
                        variant.name, found.loss, variant.bounds.loss, found.norm, variant.bounds.norm
                    ));
                }
                let verdict = match (is_right, found.loss == 0.0 && found.norm == 0.0) {
                    (false, _) => "WRONG",
                    (true, true) => "same bits",
                    (true, false) => "ok",
                };
                let shown = [found.loss, found.norm].map(|x| format!("{x:.1e}"));
                (verdict.to_owned(), shown, json!({"loss": found.loss, "norm": found.norm}))
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
        runs.push(Some(trained));
    }
    findings.tables = vec![table];
    findings.data = json!(data);
    Ok(findings)
}

/// The largest relative differences of two runs over their steps.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Differences {
    loss: f64,
    norm: f64,
}

impl Differences {
    fn between(one: &Trained, other: &Trained) -> Self {
        let pairs = || one.steps.iter().zip(&other.steps);
        let relative = |a: f64, b: f64| {
            let difference = (a - b).abs() / b.abs();
            if difference.is_finite() { difference } else { f64::INFINITY }
        };
        let norm = |step: &sterna_bench::metrics::Step| step.grad_norm.unwrap_or(f64::NAN);
        Self {
            loss: pairs().map(|(a, b)| relative(a.loss, b.loss)).fold(0.0, f64::max),
            norm: pairs().map(|(a, b)| relative(norm(a), norm(b))).fold(0.0, f64::max),
        }
    }
}

/// All runs; one of the other device's too where there are two.
fn variants(context: &Context) -> Result<Vec<Variant>> {
    let folder = context.out.join("runs/equal");
    let data = folder.join("chats.jsonl");
    write_documents(&data, 128, 64)?;
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
                   like: Option<usize>,
                   device,
                   ranks,
                   settings: &[(&str, Value)]| {
        let bounds = if kind == "fp32" { TIGHT } else { LOOSE };
        let training = training(name, kind, device, ranks, settings);
        let like = like.unwrap_or(variants.len());
        variants.push(Variant { name, like, bounds, training });
        variants.len() - 1
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
