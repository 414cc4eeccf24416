//! Defaults filled in and rules checked: from the recipe as typed to the recipe as meant.
//!
//! Every rule here needs the recipe alone. Those that need the model or the number of ranks are in `sterna-plan`.

mod causal;
mod checkpoint;
mod data;
mod deepspeed;
mod dpo;
mod memory;
mod peft;
mod scheduler;

use std::path::PathBuf;

use serde_json::Map;
use sterna_arch::DType;

use crate::{
    diagnostic::{Diagnostic, Kind},
    file::{
        At, DtypeWord, LoggerFile, ModelFile, ModelKind, ONE_MOE, OptimizerFile, OptimizerWord,
        Reader, RecipeFile,
    },
    recipe::{
        AttnImplementation, LoggerOptions, LossAverage, ModelOptions, NonFinitePolicy,
        OptimizerOptions, Ranks, Recipe, TokenizerOptions, Trainer,
    },
    source::RecipeSource,
};

/// The reader has been told what is wrong.
struct Reported;

/// The value of a key, or its default.
fn or<T: Clone>(field: Option<&At<T>>, default: T) -> T {
    field.map_or(default, |at| at.value.clone())
}

/// Fills in and checks; `None` when a required part is missing, which is reported.
pub(crate) fn resolve(file: &RecipeFile, reader: &mut Reader) -> Option<Recipe> {
    let trainer = or(file.kind.as_ref(), Trainer::Sft);
    let model = model(file, reader);
    let data = data::resolve(file, trainer, reader);
    let sequence_parallel_size = or(file.sequence_parallel_size.as_ref(), 1);
    let optimizer = optimizer(file.optimizer.as_ref().map(|at| &at.value), reader);
    let scheduler = scheduler::resolve(
        file.scheduler.as_ref().map(|at| &at.value),
        optimizer.learning_rate,
        reader,
    );
    let dtype = model.as_ref().map(|model| model.dtype);
    let deepspeed = deepspeed::resolve(file, dtype, sequence_parallel_size, reader);
    let memory = memory::resolve(file, reader);
    let logger = logger(file.logger.as_ref().map(|at| &at.value));
    let checkpoint = checkpoint::resolve(file.checkpoint.as_ref(), reader);
    arctic_moe(file, reader);
    if let Some(at) =
        file.wandb.as_ref().and_then(|at| at.value.enable.as_ref()).filter(|at| at.value)
    {
        let why = "metrics go to `train_log_metrics_path`; sending them to Weights & Biases is not there yet";
        reader.refuse(&at.path, at.span, "= `true`".to_owned(), why);
    }
    let train_log_metrics = metrics_interval(file, reader);
    let eval_interval =
        data.as_ref().map_or(0, |data| eval_interval(file, data.has_eval(), reader));
    let dpo = dpo::resolve(file, trainer, model.as_ref(), reader);
    let (model, data) = (model?, data?);
    let tokenizer = TokenizerOptions {
        name_or_path: file
            .tokenizer
            .as_ref()
            .and_then(|at| at.value.name_or_path.as_ref())
            .map(|name| name.value.clone())
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| model.name_or_path.clone()),
    };
    Some(Recipe {
        source: RecipeSource {
            path: PathBuf::new(),
            text: "".into(),
            overrides: [].into(),
            places: std::sync::Arc::default(),
        },
        trainer,
        model,
        tokenizer,
        data,
        dpo,
        optimizer,
        scheduler,
        deepspeed,
        memory,
        logger,
        checkpoint,
        micro_batch_size: or(file.micro_batch_size.as_ref(), 1),
        gradient_accumulation_steps: or(file.gradient_accumulation_steps.as_ref(), 1),
        sequence_parallel_size,
        loss_average: or(file.loss_average.as_ref(), LossAverage::MicroBatch),
        on_nonfinite: or(file.on_nonfinite.as_ref(), NonFinitePolicy::Stop),
        activation_checkpoint_cpu_offload: or(
            file.activation_checkpoint_cpu_offload.as_ref(),
            false,
        ),
        tiled_mlp_compute: or(file.tiled_mlp_compute.as_ref(), true),
        epochs: or(file.epochs.as_ref(), 1),
        train_iters: or(file.train_iters.as_ref(), 0),
        exit_iteration: or(file.exit_iteration.as_ref(), 0),
        exit_iteration_this_run: or(file.exit_iteration_this_run.as_ref(), 0),
        min_iterations: or(file.min_iterations.as_ref(), 0),
        overfit_first_batch: or(file.overfit_first_batch.as_ref(), false),
        kill_switch_path: or(file.kill_switch_path.as_ref(), "/tmp/at_kill_switch".to_owned())
            .into(),
        seed: or(file.seed.as_ref(), 42) as u64,
        eval_interval,
        eval_on_start: or(file.eval_on_start.as_ref(), false),
        train_log_metrics,
        train_log_metrics_path: or(
            file.train_log_metrics_path.as_ref(),
            "train-log-metrics.jsonl".to_owned(),
        )
        .into(),
        notes: Vec::new(),
    })
}

/// Reports that a required key was not typed; a wrong value was reported when it was read.
fn missing(reader: &mut Reader, path: &str, parent: &str, required: &str) {
    if reader.is_set(path) {
        return;
    }
    // The key that it belongs below may not be there either.
    let mut above = parent;
    let span = loop {
        match (reader.places.get(above), above.rfind(['.', '['])) {
            (Some(span), _) => break Some(*span),
            (None, Some(end)) => above = &above[..end],
            (None, None) => break None,
        }
    };
    reader.error(Diagnostic {
        kind: Kind::MissingKey,
        key_path: path.to_owned(),
        span,
        found: "missing".to_owned(),
        required: required.to_owned(),
        hint: None,
    });
}

/// Reports values that do not go together, at the place of one of them.
fn conflict(reader: &mut Reader, path: &str, found: String, required: &str, hint: Option<&str>) {
    let span = reader.places.get(path).copied();
    reader.error(Diagnostic {
        kind: Kind::Conflict,
        key_path: path.to_owned(),
        span,
        found,
        required: required.to_owned(),
        hint: hint.map(str::to_owned),
    });
}

/// Reports each of `paths`: a key that is set, but that only recipes of the type `required` have.
fn of_another_type<'a>(
    reader: &mut Reader,
    paths: impl IntoIterator<Item = Option<&'a String>>,
    trainer: Trainer,
    required: &str,
) {
    for path in paths.into_iter().flatten() {
        let found = format!("`{path}` is set and `type` is `{}`", trainer.name());
        conflict(reader, path, found, required, Some("remove it"));
    }
}

fn model(file: &RecipeFile, reader: &mut Reader) -> Option<ModelOptions> {
    let Some(section) = &file.model else {
        missing(
            reader,
            "model",
            "",
            "a mapping with `name_or_path`: a folder or a name on the hub",
        );
        return None;
    };
    let model: &ModelFile = &section.value;
    if let Some(at) = model.kind.as_ref().filter(|at| at.value == ModelKind::Liger) {
        reader.note(&at.path, "its fused kernels are what every model runs on here");
    }
    if let Some(at) = &model.attn_implementation {
        let text = "every name means exact attention; on a GPU `flash_attention_2` is that kernel and no other, and the other names are the fastest; a flash name makes metrics count each document";
        reader.note(&at.path, text);
    }
    let dtype = match model.dtype.as_ref().map(|at| (at, at.value)) {
        None => DType::BF16,
        Some((_, DtypeWord::Supported(dtype))) => dtype,
        Some((at, DtypeWord::Half)) => {
            let why = "fp16 training needs loss scaling, which is not there: use `bf16` or `fp32`";
            reader.refuse(&at.path, at.span, "= `fp16`".to_owned(), why);
            DType::BF16
        }
    };
    let Some(name) = &model.name_or_path else {
        missing(reader, "model.name_or_path", "model", "a folder or a name on the hub");
        return None;
    };
    if name.value.is_empty() {
        reader.error(Diagnostic::value(
            &name.path,
            name.span,
            "empty".to_owned(),
            "a folder or a name on the hub",
        ));
    }
    Some(ModelOptions {
        name_or_path: name.value.clone(),
        dtype,
        attn_implementation: or(model.attn_implementation.as_ref(), AttnImplementation::Sdpa),
        disable_activation_checkpoint: or(model.disable_activation_checkpoint.as_ref(), false),
        hf_config_kwargs: or(model.hf_config_kwargs.as_ref(), Map::new()),
        random_weights: or(model.random_weights.as_ref(), false),
        save_name: or(model.save_name.as_ref(), None),
        peft_config: peft::resolve(model, reader),
        adapter_name_or_path: or(model.adapter_name_or_path.as_ref(), None),
    })
}

fn optimizer(file: Option<&OptimizerFile>, reader: &mut Reader) -> OptimizerOptions {
    match file.and_then(|file| file.kind.as_ref()) {
        Some(at) if at.value == OptimizerWord::Moe => {
            let found = "is for expert-parallel ranks, which".to_owned();
            reader.refuse(&at.path, at.span, found, "use `fused_adam` or `cpu_adam`");
        }
        Some(at) => {
            reader.note(&at.path, "the step runs where `offload_optimizer` puts the optimizer state, whatever the name");
        }
        None => {}
    }
    let betas = file.and_then(|file| file.betas.as_ref());
    if let Some(at) = betas {
        let is_valid = |beta: f64| (0.0..1.0).contains(&beta);
        if !is_valid(at.value.0) || !is_valid(at.value.1) {
            let found = format!("`[{}, {}]`", at.value.0, at.value.1);
            reader.error(Diagnostic::value(
                &at.path,
                at.span,
                found,
                "two numbers of at least 0 and below 1",
            ));
        }
    }
    OptimizerOptions {
        learning_rate: or(file.and_then(|file| file.learning_rate.as_ref()), 5e-4),
        weight_decay: or(file.and_then(|file| file.weight_decay.as_ref()), 0.1),
        betas: or(betas, (0.9, 0.999)),
        eps: 1e-8,
    }
}

fn logger(file: Option<&LoggerFile>) -> LoggerOptions {
    let output_dir = file.and_then(|file| file.output_dir.as_ref()).map(|at| at.value.clone());
    LoggerOptions {
        output_dir: output_dir.filter(|dir| dir != "/dev/null").map(PathBuf::from),
        level: file.and_then(|file| file.level.as_ref()).map(|at| at.value),
        print_output_ranks: or(
            file.and_then(|file| file.print_output_ranks.as_ref()),
            Ranks::List(vec![0]),
        ),
        file_output_ranks: or(file.and_then(|file| file.file_output_ranks.as_ref()), Ranks::All),
    }
}

/// `arctic_moe`: the reference's own computation of experts, of which there is one here.
fn arctic_moe(file: &RecipeFile, reader: &mut Reader) {
    let Some(at) = &file.arctic_moe else { return };
    match at.value.to_json() {
        serde_json::Value::Bool(false) => {}
        serde_json::Value::String(word) if word == "auto" => {
            reader.note(&at.path, ONE_MOE);
        }
        _ => {
            let found = "is on, which".to_owned();
            reader.refuse(&at.path, at.span, found, ONE_MOE);
        }
    }
}

/// `train_log_iter_interval`: 1 is on, 0 is off, and there is nothing else in the reference.
fn metrics_interval(file: &RecipeFile, reader: &mut Reader) -> bool {
    let Some(at) = &file.train_log_iter_interval else { return true };
    if at.value > 1 {
        reader.error(Diagnostic::value(
            &at.path,
            at.span,
            format!("`{}`", at.value),
            "`1` (on) or `0` (off)",
        ));
    }
    at.value > 0
}

/// `eval_interval` is set exactly when there is evaluation data.
fn eval_interval(file: &RecipeFile, has_eval: bool, reader: &mut Reader) -> usize {
    let interval = or(file.eval_interval.as_ref(), 0);
    let at_end_only = file.eval_on_start.as_ref().filter(|at| at.value && !has_eval);
    if let Some(at) = at_end_only {
        let hint = "give `data.eval_sources` or `data.train_eval_split`";
        conflict(
            reader,
            &at.path.clone(),
            "`eval_on_start` is on without evaluation data".to_owned(),
            "evaluation data",
            Some(hint),
        );
    }
    if has_eval
        && interval == 0
        && (file.eval_interval.is_some() || !reader.is_set("eval_interval"))
    {
        let path = ["eval_interval", "data.eval_sources", "data.train_eval_split"]
            .into_iter()
            .find(|path| reader.is_set(path));
        let found = "there is evaluation data and `eval_interval` is 0".to_owned();
        let hint = Some("`eval_interval: 100` evaluates every 100 optimizer steps");
        conflict(reader, path.unwrap_or("data"), found, "an interval of at least 1", hint);
    } else if !has_eval && interval > 0 {
        let found = format!("`eval_interval` is `{interval}` and there is no evaluation data");
        let hint =
            Some("give `data.eval_sources` or `data.train_eval_split`, or remove `eval_interval`");
        conflict(reader, "eval_interval", found, "both or neither", hint);
    }
    interval
}
