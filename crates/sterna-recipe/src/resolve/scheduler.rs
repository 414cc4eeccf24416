//! `scheduler`: the curves of transformers' `get_scheduler`, each with the arguments that it takes.

use crate::{
    diagnostic::{Diagnostic, Kind},
    file::{At, CurveFile, Read, Reader, SchedulerFile, SchedulerKind, nearest},
    recipe::{Ramp, Schedule, SchedulerOptions},
};

use super::{conflict, missing, or};

/// Curve names with the arguments they take.
const CURVES: [(&str, &[&str]); 10] = [
    ("linear", &[]),
    ("cosine", &["num_cycles"]),
    ("cosine_with_restarts", &["num_cycles"]),
    ("polynomial", &["lr_end", "power"]),
    ("constant", &[]),
    ("constant_with_warmup", &[]),
    ("inverse_sqrt", &["timescale"]),
    ("cosine_with_min_lr", &["num_cycles", "min_lr", "min_lr_rate"]),
    ("cosine_warmup_with_min_lr", &["num_cycles", "min_lr", "min_lr_rate", "warmup_lr_rate"]),
    (
        "warmup_stable_decay",
        &[
            "num_decay_steps",
            "num_stable_steps",
            "warmup_type",
            "decay_type",
            "min_lr_ratio",
            "num_cycles",
        ],
    ),
];

const KWARGS: &str = "scheduler.scheduler_specific_kwargs";

pub(super) fn resolve(
    file: Option<&SchedulerFile>,
    learning_rate: f64,
    reader: &mut Reader,
) -> SchedulerOptions {
    let Some(file) = file else {
        return SchedulerOptions { warmup_ratio: 0.1, schedule: Schedule::Linear };
    };
    if let Some(at) = file.learning_rate.as_ref().filter(|at| at.value.is_some()) {
        conflict(
            reader,
            &at.path,
            "`scheduler.learning_rate` is the old place of the learning rate".to_owned(),
            "`optimizer.learning_rate`",
            Some("move it there"),
        );
    }
    let is_wsd = file.kind.as_ref().is_some_and(|at| at.value == SchedulerKind::Wsd);
    let schedule = if is_wsd { wsd(file, reader) } else { curve(file, learning_rate, reader) };
    SchedulerOptions {
        warmup_ratio: or(file.warmup_ratio.as_ref(), 0.1),
        schedule: schedule.unwrap_or(Schedule::Linear),
    }
}

/// `type: wds`: the step counts stand in the section itself.
fn wsd(file: &SchedulerFile, reader: &mut Reader) -> Option<Schedule> {
    for key in ["num_warmup_steps", "num_decay_steps"] {
        missing(reader, &format!("scheduler.{key}"), "scheduler", "a number of optimizer steps");
    }
    for key in ["name", "warmup_ratio"] {
        if reader.is_set(&format!("scheduler.{key}")) {
            reader.note(
                &format!("scheduler.{key}"),
                "`type: wds` has its own curve and counts warm-up in steps",
            );
        }
    }
    if let Some(at) = &file.scheduler_specific_kwargs {
        conflict(
            reader,
            &at.path,
            "`type: wds` takes no `scheduler_specific_kwargs`".to_owned(),
            "its own keys",
            None,
        );
    }
    Some(Schedule::WarmupStableDecay {
        num_warmup_steps: Some(file.num_warmup_steps.as_ref()?.value),
        num_stable_steps: None,
        num_decay_steps: file.num_decay_steps.as_ref()?.value,
        warmup_type: Ramp::Linear,
        decay_type: Ramp::Cosine,
        min_lr_ratio: or(file.min_lr_ratio.as_ref(), 0.0),
        num_cycles: 0.5,
    })
}

fn curve(file: &SchedulerFile, learning_rate: f64, reader: &mut Reader) -> Option<Schedule> {
    for (key, is_set) in [
        ("num_warmup_steps", file.num_warmup_steps.is_some()),
        ("num_decay_steps", file.num_decay_steps.is_some()),
        ("min_lr_ratio", file.min_lr_ratio.is_some()),
    ] {
        if is_set {
            let hint = "with `name: warmup_stable_decay`, put it into `scheduler_specific_kwargs`";
            let found = format!("`scheduler.{key}` is a key of `type: wds`");
            conflict(reader, &format!("scheduler.{key}"), found, "`type: wds`", Some(hint));
        }
    }
    let typed = file.name.as_ref();
    let name = typed.map_or("linear", |at| at.value.as_str());
    let Some((name, allowed)) = CURVES.iter().find(|(known, _)| *known == name) else {
        unknown_curve(typed?, reader);
        return None;
    };
    let kwargs = kwargs(file, name, allowed, reader)?;
    schedule(name, &kwargs, learning_rate, reader)
}

fn unknown_curve(at: &At<String>, reader: &mut Reader) {
    if at.value == "reduce_lr_on_plateau" {
        let why =
            "it reacts to an evaluation loss, and the rate here is a function of the step alone";
        reader.refuse(&at.path, at.span, "= `reduce_lr_on_plateau`".to_owned(), why);
        return;
    }
    let names: Vec<_> = CURVES.iter().map(|(name, _)| format!("`{name}`")).collect();
    let mut error = Diagnostic::value(
        &at.path,
        at.span,
        format!("`{}`", at.value),
        format!("one of {}", names.join(", ")),
    );
    if let Some(name) = nearest(&at.value, CURVES.iter().map(|(name, _)| *name)) {
        error = error.with_hint(format!("did you mean `{name}`?"));
    }
    reader.error(error);
}

/// The arguments of a curve, all known and all its own.
fn kwargs(
    file: &SchedulerFile,
    name: &str,
    allowed: &[&str],
    reader: &mut Reader,
) -> Option<CurveFile> {
    let empty = crate::yaml::parse("{}", crate::source::Origin::File, &mut Vec::new()).ok()?;
    let node = file.scheduler_specific_kwargs.as_ref().map_or(&empty, |at| &at.value);
    let kwargs = CurveFile::read(node, KWARGS, reader)?;
    let mut known = Vec::new();
    CurveFile::keys("", None, &mut known);
    let known = known.into_iter().map(|key| key.path);
    for key in known.filter(|key| !allowed.contains(&key.as_str())) {
        let path = format!("{KWARGS}.{key}");
        if let Some(span) = reader.places.get(&path).copied() {
            let takes = if allowed.is_empty() {
                "no arguments".to_owned()
            } else {
                format!("only {}", allowed.join(", "))
            };
            reader.error(Diagnostic {
                kind: Kind::Conflict,
                key_path: path,
                span: Some(span),
                found: format!("the curve `{name}` has no argument `{key}`"),
                required: takes,
                hint: None,
            });
        }
    }
    Some(kwargs)
}

fn schedule(
    name: &str,
    kwargs: &CurveFile,
    learning_rate: f64,
    reader: &mut Reader,
) -> Option<Schedule> {
    let num_cycles = or(kwargs.num_cycles.as_ref(), 0.5);
    Some(match name {
        "cosine" => Schedule::Cosine { num_cycles },
        "cosine_with_restarts" => {
            Schedule::CosineWithRestarts { num_cycles: restarts(kwargs, reader)? }
        }
        "polynomial" => polynomial(kwargs, learning_rate, reader),
        "constant" => Schedule::Constant,
        "constant_with_warmup" => Schedule::ConstantWithWarmup,
        "inverse_sqrt" => {
            Schedule::InverseSqrt { timescale: kwargs.timescale.as_ref().map(|at| at.value) }
        }
        "cosine_with_min_lr" => Schedule::CosineWithMinLr {
            num_cycles,
            min_lr_rate: min_lr_rate(name, kwargs, learning_rate, reader)?,
        },
        "cosine_warmup_with_min_lr" => Schedule::CosineWarmupWithMinLr {
            num_cycles,
            min_lr_rate: min_lr_rate(name, kwargs, learning_rate, reader)?,
            warmup_lr_rate: kwargs.warmup_lr_rate.as_ref().map(|at| at.value),
        },
        "warmup_stable_decay" => {
            missing(
                reader,
                &format!("{KWARGS}.num_decay_steps"),
                KWARGS,
                "a number of optimizer steps",
            );
            Schedule::WarmupStableDecay {
                num_warmup_steps: None,
                num_stable_steps: kwargs.num_stable_steps.as_ref().map(|at| at.value),
                num_decay_steps: kwargs.num_decay_steps.as_ref()?.value,
                warmup_type: or(kwargs.warmup_type.as_ref(), Ramp::Linear),
                decay_type: or(kwargs.decay_type.as_ref(), Ramp::Cosine),
                min_lr_ratio: or(kwargs.min_lr_ratio.as_ref(), 0.0),
                num_cycles,
            }
        }
        _ => Schedule::Linear,
    })
}

/// `num_cycles` of restarts counts them: a whole number.
fn restarts(kwargs: &CurveFile, reader: &mut Reader) -> Option<usize> {
    let Some(at) = &kwargs.num_cycles else { return Some(1) };
    if at.value.fract() != 0.0 || at.value < 1.0 {
        reader.error(Diagnostic::value(
            &at.path,
            at.span,
            format!("`{}`", at.value),
            "a whole number of restarts, at least 1",
        ));
        return None;
    }
    Some(at.value as usize)
}

/// The end of a polynomial lies below its start.
fn polynomial(kwargs: &CurveFile, learning_rate: f64, reader: &mut Reader) -> Schedule {
    let lr_end = or(kwargs.lr_end.as_ref(), 1e-7);
    if lr_end >= learning_rate {
        let path = if kwargs.lr_end.is_some() {
            format!("{KWARGS}.lr_end")
        } else {
            "optimizer.learning_rate".to_owned()
        };
        let found = format!(
            "`lr_end` is `{lr_end:e}` and `optimizer.learning_rate` is `{learning_rate:e}`"
        );
        conflict(reader, &path, found, "an end below the start", None);
    }
    Schedule::Polynomial { lr_end, power: or(kwargs.power.as_ref(), 1.0) }
}

/// `min_lr` as a fraction of the peak, or `min_lr_rate`: exactly one is given.
fn min_lr_rate(
    name: &str,
    kwargs: &CurveFile,
    learning_rate: f64,
    reader: &mut Reader,
) -> Option<f64> {
    match (&kwargs.min_lr, &kwargs.min_lr_rate) {
        (None, Some(rate)) => Some(rate.value),
        (Some(min), None) if learning_rate > 0.0 => Some(min.value / learning_rate),
        (Some(min), None) => {
            let found = format!("`min_lr` is `{}` and `optimizer.learning_rate` is 0", min.value);
            conflict(reader, &min.path, found, "a learning rate above 0", None);
            None
        }
        (Some(min), Some(_)) => {
            conflict(
                reader,
                &min.path,
                "`min_lr` and `min_lr_rate` are both given".to_owned(),
                "one of them",
                None,
            );
            None
        }
        (None, None) => {
            let is_wrong = ["min_lr", "min_lr_rate"]
                .iter()
                .any(|key| reader.is_set(&format!("{KWARGS}.{key}")));
            if !is_wrong {
                let found = format!("the curve `{name}` has no end");
                let hint = "for example `scheduler_specific_kwargs: {min_lr_rate: 0.1}`";
                conflict(reader, "scheduler.name", found, "`min_lr` or `min_lr_rate`", Some(hint));
            }
            None
        }
    }
}
