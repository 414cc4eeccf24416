//! A resolved recipe as JSON: the keys of the recipe with every default filled in.

use serde_json::{Value, json};

use crate::recipe::{
    CheckpointKind, KeepAttention, LabelMask, LogLevel, LossAverage, MemoryOptions,
    NonFinitePolicy, Packing, PadTo, Place, Ramp, Ranks, Recipe, Sampling, Schedule, Source,
};

impl Recipe {
    /// The recipe with every default filled in, under its own keys. `null` is what depends on the model or the environment.
    pub fn to_json(&self) -> Value {
        json!({
            "type": "sft",
            "model": {
                "name_or_path": self.model.name_or_path,
                "dtype": self.model.dtype.torch_name(),
                "attn_implementation": self.model.attn_implementation.name(),
                "disable_activation_checkpoint": self.model.disable_activation_checkpoint,
                "hf_config_kwargs": self.model.hf_config_kwargs,
                "random_weights": self.model.random_weights,
                "save_name": self.model.save_name,
            },
            "tokenizer": { "name_or_path": self.tokenizer.name_or_path },
            "data": self.data_json(),
            "optimizer": {
                "learning_rate": self.optimizer.learning_rate,
                "weight_decay": self.optimizer.weight_decay,
                "betas": [self.optimizer.betas.0, self.optimizer.betas.1],
                "eps": self.optimizer.eps,
            },
            "scheduler": scheduler(&self.scheduler.schedule, self.scheduler.warmup_ratio),
            "deepspeed": {
                "zero_optimization": {
                    "stage": self.deepspeed.zero_stage.number(),
                    "offload_optimizer": { "device": match self.memory.optimizer_on {
                        Place::Device => "none",
                        Place::Host => "cpu",
                        Place::Disk => "nvme",
                    } },
                    "offload_param": { "device": device(self.deepspeed.offload_param) },
                },
                "gradient_clipping": self.deepspeed.gradient_clipping,
                "seq_parallel_communication_data_type": self.deepspeed.reduce_dtype.torch_name(),
                "data_types": { "grad_accum_dtype": self.deepspeed.grad_accum_dtype.torch_name() },
            },
            "memory": self.memory.to_json(),
            "logger": {
                "output_dir": self.logger.output_dir,
                "level": self.logger.level.map(level),
                "print_output_ranks": ranks(&self.logger.print_output_ranks),
                "file_output_ranks": ranks(&self.logger.file_output_ranks),
            },
            "checkpoint": self.checkpoint.iter().map(|entry| json!({
                "type": match entry.kind { CheckpointKind::HuggingFace => "huggingface", CheckpointKind::Sterna => "sterna" },
                "output_dir": entry.output_dir,
                "auto_resume": entry.auto_resume,
                "save_every_n_steps": entry.save_every_n_steps,
                "save_every_n_epochs": entry.save_every_n_epochs,
                "save_end_of_training": entry.save_end_of_training,
                "keep_last_n": entry.keep_last_n,
            })).collect::<Vec<_>>(),
            "micro_batch_size": self.micro_batch_size,
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
            "sequence_parallel_size": self.sequence_parallel_size,
            "loss_average": match self.loss_average { LossAverage::MicroBatch => "micro_batch", LossAverage::Token => "token" },
            "on_nonfinite": match self.on_nonfinite {
                NonFinitePolicy::Stop => "stop",
                NonFinitePolicy::Skip => "skip",
                NonFinitePolicy::Warn => "warn",
            },
            "activation_checkpoint_cpu_offload": self.activation_checkpoint_cpu_offload,
            "tiled_mlp_compute": self.tiled_mlp_compute,
            "epochs": self.epochs,
            "train_iters": self.train_iters,
            "exit_iteration": self.exit_iteration,
            "exit_iteration_this_run": self.exit_iteration_this_run,
            "min_iterations": self.min_iterations,
            "overfit_first_batch": self.overfit_first_batch,
            "kill_switch_path": self.kill_switch_path,
            "seed": self.seed,
            "eval_interval": self.eval_interval,
            "eval_on_start": self.eval_on_start,
            "train_log_iter_interval": usize::from(self.train_log_metrics),
            "train_log_metrics_path": self.train_log_metrics_path,
        })
    }

    fn data_json(&self) -> Value {
        let data = &self.data;
        json!({
            "sources": data.sources.iter().map(source).collect::<Vec<_>>(),
            "eval_sources": data.eval_sources.iter().map(source).collect::<Vec<_>>(),
            "train_eval_split": [data.train_eval_split.0, data.train_eval_split.1],
            "max_length": data.max_length,
            "packing": match data.packing { Packing::Reference => "reference", Packing::Global => "global" },
            "label_mask": match data.label_mask { LabelMask::Exact => "exact", LabelMask::Reference => "reference" },
            "num_proc": data.num_proc,
            "seed": data.seed,
            "cache_dir": data.cache_dir,
            "fail_on_missing_cache": data.fail_on_missing_cache,
            "div_length": data.div_length,
            "mask_inputs": data.mask_inputs,
            "always_max_length": data.always_max_length,
            "pad_to": match data.pad_to { PadTo::DivLength => "div_length", PadTo::MaxLength => "max_length" },
            "filter_samples": data.filter_samples,
            "pack_samples": data.pack_samples,
            "drop_last": data.drop_last,
            "fuse_positions_prob": data.fuse_positions_prob,
            "repeat_to_pack_max_length": data.repeat_to_pack_max_length,
            "ignore_empty_think": data.ignore_empty_think,
        })
    }
}

fn source(source: &Source) -> Value {
    let (ratio, count) = match source.sample {
        Sampling::All => (None, None),
        Sampling::Ratio(ratio) => (Some(ratio), None),
        Sampling::Count(count) => (None, Some(count)),
    };
    let roles = source
        .role_mapping
        .iter()
        .map(|(role, path)| (role.clone(), Value::String(path.to_string())));
    json!({
        "type": "huggingface_instruct",
        "name_or_path": source.name_or_path,
        "split": source.split,
        "kwargs": source.kwargs,
        "role_mapping": Value::Object(roles.collect()),
        "content_key": source.content_key,
        "sample_ratio": ratio,
        "sample_count": count,
        "sample_seed": source.sample_seed,
    })
}

fn scheduler(schedule: &Schedule, warmup_ratio: f64) -> Value {
    let (name, kwargs) = match *schedule {
        Schedule::Linear => ("linear", json!({})),
        Schedule::Cosine { num_cycles } => ("cosine", json!({ "num_cycles": num_cycles })),
        Schedule::CosineWithRestarts { num_cycles } => {
            ("cosine_with_restarts", json!({ "num_cycles": num_cycles }))
        }
        Schedule::Polynomial { lr_end, power } => {
            ("polynomial", json!({ "lr_end": lr_end, "power": power }))
        }
        Schedule::Constant => ("constant", json!({})),
        Schedule::ConstantWithWarmup => ("constant_with_warmup", json!({})),
        Schedule::InverseSqrt { timescale } => ("inverse_sqrt", json!({ "timescale": timescale })),
        Schedule::CosineWithMinLr { num_cycles, min_lr_rate } => {
            ("cosine_with_min_lr", json!({ "num_cycles": num_cycles, "min_lr_rate": min_lr_rate }))
        }
        Schedule::CosineWarmupWithMinLr { num_cycles, min_lr_rate, warmup_lr_rate } => (
            "cosine_warmup_with_min_lr",
            json!({ "num_cycles": num_cycles, "min_lr_rate": min_lr_rate, "warmup_lr_rate": warmup_lr_rate }),
        ),
        Schedule::WarmupStableDecay {
            num_warmup_steps,
            num_stable_steps,
            num_decay_steps,
            warmup_type,
            decay_type,
            min_lr_ratio,
            num_cycles,
        } => (
            "warmup_stable_decay",
            json!({
                "num_warmup_steps": num_warmup_steps,
                "num_stable_steps": num_stable_steps,
                "num_decay_steps": num_decay_steps,
                "warmup_type": ramp(warmup_type),
                "decay_type": ramp(decay_type),
                "min_lr_ratio": min_lr_ratio,
                "num_cycles": num_cycles,
            }),
        ),
    };
    json!({ "name": name, "warmup_ratio": warmup_ratio, "scheduler_specific_kwargs": kwargs })
}

fn ramp(ramp: Ramp) -> &'static str {
    match ramp {
        Ramp::Linear => "linear",
        Ramp::Cosine => "cosine",
        Ramp::OneMinusSqrt => "1-sqrt",
    }
}

fn device(is_on_host: bool) -> &'static str {
    if is_on_host { "cpu" } else { "none" }
}

fn level(level: LogLevel) -> &'static str {
    match level {
        LogLevel::Debug => "DEBUG",
        LogLevel::Info => "INFO",
        LogLevel::Warning => "WARNING",
        LogLevel::Error => "ERROR",
        LogLevel::Critical => "CRITICAL",
    }
}

fn ranks(ranks: &Ranks) -> Value {
    match ranks {
        Ranks::All => json!("*"),
        Ranks::List(ranks) => json!(ranks),
    }
}

impl MemoryOptions {
    fn to_json(&self) -> Value {
        json!({
            "keep_inputs_every": self.keep_inputs_every,
            "keep_attention": self.keep_attention.to_json(),
            "inputs_on": self.inputs_on.name(),
            "attention_on": self.attention_on.name(),
            "attention_head_groups": self.attention_head_groups,
            "attention_query_tile": self.attention_query_tile,
            "tile_bytes": self.tile_bytes,
            "expert_group_bytes": self.expert_group_bytes,
            "optimizer_on": self.optimizer_on.name(),
            "gradients_on": self.gradients_on.name(),
            "moments_dtype": self.moments_dtype.torch_name(),
            "disk_dir": self.disk_dir,
            "timeline_dir": self.timeline_dir,
            "timeline_steps": self.timeline_steps,
        })
    }
}

impl KeepAttention {
    /// The value of the key: a word, a flag or a number.
    pub(crate) fn to_json(self) -> Value {
        match self {
            Self::Auto => json!("auto"),
            Self::All => json!(true),
            Self::Blocks(0) => json!(false),
            Self::Blocks(number) => json!(number),
        }
    }
}
