//! Every key of a recipe, section by section.

use crate::{
    keys::{Affects, Key},
    recipe::{
        AttnImplementation, CheckpointKind, ControlTokens, DpoLoss, ExcessLength, KeepAttention,
        LabelMask, LogLevel, LossAverage, NonFinitePolicy, Packing, PadTo, Place, Ramp, Ranks,
        RowFormat, StoppingStrategy, TrainOn, Trainer, UnmappedRoles,
    },
    yaml::{Content, Node, join, scalar::Meaning},
};

use super::{
    reader::{At, Read, Reader, section},
    values::{
        CacheFsWord, DtypeWord, Flag, Fraction, HumanFloat, HumanInt, Int, List, Maybe, OneOrMany,
        OptimizerWord, Pair, Raw, Real, Text, Tree, Words,
    },
};

/// Which model factory of the reference a recipe names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ModelKind {
    HuggingFace,
    Liger,
}

/// Which data source of the reference a recipe names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SourceKind {
    HuggingFaceInstruct,
    HuggingFace,
    HuggingFaceCausal,
    Snowflake,
    ProjectGutenberg,
    Ultrafeedback,
}

/// Which scheduler factory of the reference a recipe names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SchedulerKind {
    HuggingFace,
    Wsd,
}

/// Where `DeepSpeed` moves a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OffloadDevice {
    None,
    Cpu,
    Nvme,
}

/// Why the reference's own computation of experts has nothing to turn on.
pub(crate) const ONE_MOE: &str = "experts are computed in one way, over tokens sorted by expert";

section! {
    /// The whole recipe.
    RecipeFile {
        "type" => kind: Trainer => Ranks,
        "model" => model: ModelFile => Ranks,
        "ref_model" => ref_model: ModelFile => Weights,
        "beta" => beta: HumanFloat => Numbers,
        "label_smoothing" => label_smoothing: HumanFloat => Numbers,
        "simpo_gamma" => simpo_gamma: HumanFloat => Numbers,
        "desirable_weight" => desirable_weight: HumanFloat => Numbers,
        "undesirable_weight" => undesirable_weight: HumanFloat => Numbers,
        "loss_type" => loss_type: OneOrMany<DpoLoss> => Numbers,
        "loss_weights" => loss_weights: List<HumanFloat> => Numbers,
        "tokenizer" => tokenizer: TokenizerFile => Host,
        "data" => data: DataFile => Inputs,
        "optimizer" => optimizer: OptimizerFile => Numbers,
        "scheduler" => scheduler: SchedulerFile => Numbers,
        "deepspeed" => deepspeed: DeepSpeedFile => Ranks,
        "memory" => memory: MemoryFile => Ranks,
        "logger" => logger: LoggerFile => Host,
        "wandb" => wandb: WandbFile => Host,
        "checkpoint" => checkpoint: OneOrMany<CheckpointFile> => Ranks,
        "micro_batch_size" => micro_batch_size: Int<1> => Numbers,
        "gradient_accumulation_steps" => gradient_accumulation_steps: Int<1> => Numbers,
        "sequence_parallel_size" => sequence_parallel_size: Int<1> => Numbers,
        "loss_average" => loss_average: LossAverage => Numbers,
        "on_nonfinite" => on_nonfinite: NonFinitePolicy => Numbers,
        "activation_checkpoint_cpu_offload" => activation_checkpoint_cpu_offload: Flag => Ranks,
        "tiled_mlp_compute" => tiled_mlp_compute: Flag => Ranks,
        "arctic_moe" => arctic_moe: Raw => Ranks,
        "epochs" => epochs: Int<0> => Numbers,
        "train_iters" => train_iters: HumanInt<0> => Numbers,
        "exit_iteration" => exit_iteration: Int<0> => Ranks,
        "exit_iteration_this_run" => exit_iteration_this_run: Int<0> => Ranks,
        "min_iterations" => min_iterations: HumanInt<0> => Numbers,
        "overfit_first_batch" => overfit_first_batch: Flag => Numbers,
        "kill_switch_path" => kill_switch_path: Text => Host,
        "seed" => seed: Int<0> => Numbers,
        "eval_interval" => eval_interval: HumanInt<0> => Ranks,
        "eval_on_start" => eval_on_start: Flag => Ranks,
        "train_log_iter_interval" => train_log_iter_interval: Int<0> => Host,
        "train_log_metrics_path" => train_log_metrics_path: Text => Host,
    }
    inert {
        "skip_validation": Flag => "a recipe is always checked",
        "eval_log_iter_interval": HumanInt<0> => "an evaluation writes one line, at its end",
        "loss_log_interval": HumanInt<0> => "the loss is in the metrics line of every optimizer step",
        "mem_profiler_dir": Text => "there is no memory profile to write",
        "mem_profiler_max_entries": HumanInt<1> => "there is no memory profile to write",
    }
    refused {
        "code" unless [] => "Python code cannot be loaded into this program",
        "expert_parallel_size" unless ["1"] => "every rank computes its own tokens, with all experts of a layer",
        "enable_arctic_moe_custom_optimization" unless ["false"] => ONE_MOE,
        "enable_routing_replay" unless ["false"] => "there is no recorded routing to replay; computing a block again chooses the same experts",
        "mem_profiler" unless ["null"] => "it is a tool of PyTorch's CUDA allocator; `sterna check` says what each rank needs",
        "reference_model_deepspeed" unless [] => "the reference model is sharded as the trained one",
        "ignore_label_index" unless ["-100"] => "what is not trained on is known from the messages",
        "local_rank" unless [] => "the launcher says which rank a process is",
        "global_rank" unless [] => "the launcher says which rank a process is",
        "world_size" unless [] => "the launcher says how many ranks there are",
    }
}

section! {
    /// `model`.
    ModelFile {
        "type" => kind: ModelKind => Ranks,
        "name_or_path" => name_or_path: Text => Weights,
        "dtype" => dtype: DtypeWord => Numbers,
        "attn_implementation" => attn_implementation: AttnImplementation => Ranks,
        "disable_activation_checkpoint" => disable_activation_checkpoint: Flag => Ranks,
        "hf_config_kwargs" => hf_config_kwargs: Tree => Inputs,
        "random_weights" => random_weights: Flag => Numbers,
        "save_name" => save_name: Maybe<Text> => Host,
        "peft_config" => peft_config: Raw => Numbers,
        "adapter_name_or_path" => adapter_name_or_path: Maybe<Text> => Weights,
    }
    inert {}
    refused {}
}

section! {
    /// `tokenizer`.
    TokenizerFile {
        "name_or_path" => name_or_path: Text => Host,
    }
    inert {
        "tokenize_kwargs": Tree => "only `type: causal` of the reference uses it",
    }
    refused {
        "type" unless ["huggingface"] => "`huggingface` is the only one",
    }
}

section! {
    /// `data`.
    DataFile {
        "type" => kind: Trainer => Ranks,
        "sources" => sources: List<SourceFile> => Host,
        "eval_sources" => eval_sources: List<SourceFile> => Host,
        "train_eval_split" => train_eval_split: Pair => Inputs,
        "max_length" => max_length: HumanInt<1> => Numbers,
        "packing" => packing: Packing => Inputs,
        "label_mask" => label_mask: LabelMask => Inputs,
        "num_proc" => num_proc: Int<1> => Host,
        "seed" => seed: Int<0> => Inputs,
        "cache_dir" => cache_dir: Text => Host,
        "fail_on_missing_cache" => fail_on_missing_cache: Flag => Host,
        "div_length" => div_length: HumanInt<1> => Ranks,
        "mask_inputs" => mask_inputs: Flag => Inputs,
        "always_max_length" => always_max_length: Flag => Inputs,
        "pad_to" => pad_to: PadTo => Numbers,
        "filter_samples" => filter_samples: Flag => Inputs,
        "excess_length" => excess_length: ExcessLength => Inputs,
        "stopping_strategy" => stopping_strategy: StoppingStrategy => Inputs,
        "pack_samples" => pack_samples: Flag => Inputs,
        "drop_last" => drop_last: Flag => Inputs,
        "fuse_positions_prob" => fuse_positions_prob: Fraction => Inputs,
        "repeat_to_pack_max_length" => repeat_to_pack_max_length: Flag => Inputs,
        "ignore_empty_think" => ignore_empty_think: Flag => Inputs,
        "train_on" => train_on: TrainOn => Inputs,
        "chat_template_kwargs" => chat_template_kwargs: Tree => Inputs,
        "control_tokens" => control_tokens: ControlTokens => Inputs,
    }
    inert {
        "dl_num_workers": Int<0> => "batches are put together in the training process, which reads them from the cache",
        "cache_fs_type": CacheFsWord => "an entry of the cache appears whole or not at all, so nodes may share the folder or not",
        "use_data_cache": Maybe<Flag> => "processed data is always cached",
        "cache_processed_data": Maybe<Flag> => "processed data is always cached",
    }
    refused {
        "max_prompt_length" unless [] => "prompts are not cut: a pair of which one side is longer than `max_length` is dropped and counted",
        "dpo_prompt_truncation_mode" unless [] => "prompts are not cut: a pair of which one side is longer than `max_length` is dropped and counted",
    }
}

section! {
    /// One entry of `data.sources`, written as a mapping.
    SourceKeys {
        "type" => kind: SourceKind => Host,
        "name_or_path" => name_or_path: Text => Host,
        "split" => split: Text => Host,
        "kwargs" => kwargs: Tree => Host,
        "split_mapping" => split_mapping: Words => Host,
        "format" => format: Maybe<RowFormat> => Host,
        "role_mapping" => role_mapping: Words => Host,
        "unmapped_roles" => unmapped_roles: UnmappedRoles => Host,
        "messages_key" => messages_key: Maybe<Text> => Host,
        "tools_key" => tools_key: Maybe<Text> => Host,
        "text_key" => text_key: Maybe<Text> => Host,
        "column" => column: Text => Host,
        "content_key" => content_key: Maybe<Text> => Host,
        "sample_ratio" => sample_ratio: Maybe<Real> => Host,
        "sample_count" => sample_count: Maybe<Int<0>> => Host,
        "sample_seed" => sample_seed: Int<0> => Host,
        "epochs" => epochs: Maybe<Real> => Host,
        "weight" => weight: Maybe<Real> => Host,
    }
    inert {}
    refused {
        "process" unless ["true"] => "`format: tokens` reads rows that are tokens already",
        "sql" unless [] => "it belongs to `type: snowflake`, which is not there yet",
        "table_name" unless [] => "it belongs to `type: snowflake`, which is not there yet",
        "dataset_uri" unless [] => "it belongs to `type: snowflake`, which is not there yet",
        "column_mapping" unless [] => "it belongs to `type: snowflake`, which is not there yet",
        "limit" unless [] => "it belongs to `type: snowflake`, which is not there yet",
        "batch_size" unless [] => "it belongs to `type: snowflake`, which is not there yet",
    }
}

/// One entry of `data.sources`: a mapping, or the short form `name` or `name:split`.
#[derive(Clone, Debug)]
pub(crate) struct SourceFile {
    pub(crate) path: String,
    pub(crate) keys: SourceKeys,
}

impl Read for SourceFile {
    type Value = Self;

    fn read(node: &Node, path: &str, reader: &mut Reader) -> Option<Self> {
        let keys = match &node.content {
            Content::Scalar(Meaning::Text(text)) => SourceKeys::from_short_form(text, node, path),
            Content::Mapping(_) => SourceKeys::read(node, path, reader)?,
            _ => {
                return reader.wrong(
                    node,
                    path,
                    "a data set name, `name:split`, or a mapping with `name_or_path`",
                );
            }
        };
        Some(Self { path: path.to_owned(), keys })
    }

    fn keys(path: &str, affects: Option<Affects>, out: &mut Vec<Key>) {
        SourceKeys::keys(path, affects, out);
    }
}

impl SourceKeys {
    /// `name` or `name:split`; a registered source name in front of the colon is a type, as in the reference.
    fn from_short_form(text: &str, node: &Node, path: &str) -> Self {
        let at = |value| At { value, path: join(path, "name_or_path"), span: node.span };
        let head = text.split(':').next().unwrap_or(text);
        let kind = match head {
            "huggingface_instruct" => Some(SourceKind::HuggingFaceInstruct),
            "huggingface" => Some(SourceKind::HuggingFace),
            "huggingface_causal" => Some(SourceKind::HuggingFaceCausal),
            "snowflake" => Some(SourceKind::Snowflake),
            "ProjectGutenbergSFT" => Some(SourceKind::ProjectGutenberg),
            "HuggingFaceH4/ultrafeedback_binarized" => Some(SourceKind::Ultrafeedback),
            _ => None,
        };
        Self {
            kind: kind.map(|value| At { value, path: join(path, "type"), span: node.span }),
            name_or_path: Some(at(text.to_owned())),
            split: None,
            kwargs: None,
            split_mapping: None,
            format: None,
            role_mapping: None,
            unmapped_roles: None,
            messages_key: None,
            tools_key: None,
            text_key: None,
            column: None,
            content_key: None,
            sample_ratio: None,
            sample_count: None,
            sample_seed: None,
            epochs: None,
            weight: None,
        }
    }
}

section! {
    /// `optimizer`.
    OptimizerFile {
        "type" => kind: OptimizerWord => Numbers,
        "learning_rate" => learning_rate: HumanFloat => Numbers,
        "weight_decay" => weight_decay: HumanFloat => Numbers,
        "betas" => betas: Pair => Numbers,
    }
    inert {}
    refused {}
}

section! {
    /// `scheduler`.
    SchedulerFile {
        "type" => kind: SchedulerKind => Numbers,
        "name" => name: Text => Numbers,
        "warmup_ratio" => warmup_ratio: Fraction => Numbers,
        "scheduler_specific_kwargs" => scheduler_specific_kwargs: CurveKwargs => Numbers,
        "num_warmup_steps" => num_warmup_steps: Int<0> => Numbers,
        "num_decay_steps" => num_decay_steps: Int<0> => Numbers,
        "min_lr_ratio" => min_lr_ratio: Fraction => Numbers,
        "learning_rate" => learning_rate: Maybe<Real> => Numbers,
    }
    inert {}
    refused {}
}

/// `scheduler.scheduler_specific_kwargs` as it stands: which keys it may have depends on the curve.
#[derive(Clone, Debug)]
pub(crate) struct CurveKwargs;

impl Read for CurveKwargs {
    type Value = Node;

    fn read(node: &Node, _path: &str, _reader: &mut Reader) -> Option<Node> {
        Some(node.clone())
    }

    fn keys(path: &str, affects: Option<Affects>, out: &mut Vec<Key>) {
        CurveFile::keys(path, affects, out);
    }
}

section! {
    /// `scheduler.scheduler_specific_kwargs`, whichever curve they are for.
    CurveFile {
        "num_cycles" => num_cycles: Real => Numbers,
        "lr_end" => lr_end: HumanFloat => Numbers,
        "power" => power: Real => Numbers,
        "timescale" => timescale: Int<1> => Numbers,
        "min_lr" => min_lr: HumanFloat => Numbers,
        "min_lr_rate" => min_lr_rate: Fraction => Numbers,
        "warmup_lr_rate" => warmup_lr_rate: Fraction => Numbers,
        "num_decay_steps" => num_decay_steps: Int<0> => Numbers,
        "num_stable_steps" => num_stable_steps: Int<0> => Numbers,
        "warmup_type" => warmup_type: Ramp => Numbers,
        "decay_type" => decay_type: Ramp => Numbers,
        "min_lr_ratio" => min_lr_ratio: Fraction => Numbers,
    }
    inert {}
    refused {}
}

section! {
    /// `memory`.
    MemoryFile {
        "keep_inputs_every" => keep_inputs_every: Int<1> => Ranks,
        "keep_attention" => keep_attention: KeepAttention => Ranks,
        "inputs_on" => inputs_on: Place => Ranks,
        "attention_on" => attention_on: Place => Ranks,
        "attention_head_groups" => attention_head_groups: Int<1> => Ranks,
        "attention_query_tile" => attention_query_tile: HumanInt<0> => Ranks,
        "tile_bytes" => tile_bytes: HumanInt<1> => Ranks,
        "expert_group_bytes" => expert_group_bytes: HumanInt<1> => Numbers,
        "optimizer_on" => optimizer_on: Place => Ranks,
        "gradients_on" => gradients_on: Place => Ranks,
        "moments_dtype" => moments_dtype: DtypeWord => Numbers,
        "disk_dir" => disk_dir: Maybe<Text> => Host,
        "timeline_dir" => timeline_dir: Maybe<Text> => Host,
        "timeline_steps" => timeline_steps: Int<1> => Host,
    }
    inert {}
    refused {}
}

const FLAT_UNITS: &str =
    "each block, or group of its experts, is one flat unit, gathered and reduced as a whole";
const EVERY_STEP: &str = "the metrics line comes every optimizer step";

section! {
    /// `deepspeed`.
    DeepSpeedFile {
        "zero_optimization" => zero_optimization: ZeroFile => Ranks,
        "gradient_clipping" => gradient_clipping: HumanFloat => Numbers,
        "seq_parallel_communication_data_type" => seq_parallel_communication_data_type: DtypeWord => Numbers,
        "communication_data_type" => communication_data_type: Maybe<DtypeWord> => Numbers,
        "data_types" => data_types: DataTypesFile => Numbers,
        "bf16" => bf16: Bf16File => Ranks,
        "train_batch_size" => train_batch_size: Raw => Ranks,
        "train_micro_batch_size_per_gpu" => train_micro_batch_size_per_gpu: Raw => Ranks,
        "gradient_accumulation_steps" => gradient_accumulation_steps: Raw => Ranks,
        "sequence_parallel_size" => sequence_parallel_size: Raw => Ranks,
    }
    inert {
        "steps_per_print": HumanInt<0> => EVERY_STEP,
        "wall_clock_breakdown": Flag => "the metrics have the time of each step",
        "memory_breakdown": Flag => "the metrics have the peak memory of each step",
        "dump_state": Flag => "`sterna check` prints what will run",
        "prescale_gradients": Flag => "gradients are averaged in fp32, which does not overflow",
        "gradient_predivide_factor": Real => "gradients are averaged in fp32, which does not overflow",
        "zero_allow_untested_optimizer": Flag => "there is one optimizer, AdamW",
        "zero_force_ds_cpu_optimizer": Flag => "there is one optimizer, AdamW",
        "disable_allgather": Flag => FLAT_UNITS,
        "dataloader_drop_last": Flag => "`data` decides how batches are made",
        "use_data_before_expert_parallelism": Flag => "there are no expert-parallel ranks",
        "activation_checkpointing": Tree => "each block is recomputed as a whole; `activation_checkpoint_cpu_offload` moves what is kept",
        "checkpoint": Tree => "it is about DeepSpeed's own checkpoints; the key `checkpoint` of the recipe says what is written",
        "aio": Tree => "a thread of its own reads ahead and writes behind",
        "comms_logger": Tree => "the metrics have the time of each step",
        "tensorboard": Tree => "metrics go to `train_log_metrics_path`",
        "csv_monitor": Tree => "metrics go to `train_log_metrics_path`",
        "flops_profiler": Tree => "the metrics have FLOPs by the reference's formula and by an honest one",
        "nebula": Tree => "exports are written to folders",
        "compile": Tree => "there is no graph to compile",
    }
    refused {
        "fp16" unless [] => "fp16 training needs loss scaling, which is not there: use `model.dtype: bf16` or `fp32`",
        "amp" unless [] => "use `model.dtype` to choose the format",
        "torch_autocast" unless [] => "use `model.dtype` to choose the format",
        "optimizer" unless [] => "the key `optimizer` of the recipe chooses it",
        "scheduler" unless [] => "the key `scheduler` of the recipe chooses it",
        "sparse_gradients" unless ["false"] => "all gradients are dense",
        "sparse_attention" unless [] => "attention is exact",
        "tensor_parallel" unless [] => "the axes are data and sequence",
        "pipeline" unless [] => "the axes are data and sequence",
        "curriculum_learning" unless [] => "every batch has the length of its samples",
        "data_efficiency" unless [] => "every batch has the length of its samples",
        "progressive_layer_drop" unless [] => "every block runs",
        "eigenvalue" unless [] => "it belongs to quantized training, which is not there",
        "compression_training" unless [] => "quantized training is not there",
        "quantize_training" unless [] => "quantized training is not there",
        "autotuning" unless [] => "`sterna check` says what a recipe needs",
        "elasticity" unless [] => "the number of ranks does not change during a run",
        "hybrid_engine" unless [] => "nothing is generated during training",
        "graph_harvesting" unless ["false"] => "there is no graph to capture",
        "wandb" unless [] => "the key `wandb` of the recipe is the place for it",
        "comet" unless [] => "metrics go to `train_log_metrics_path`",
    }
}

section! {
    /// `deepspeed.zero_optimization`.
    ZeroFile {
        "stage" => stage: HumanInt<0> => Ranks,
        "offload_optimizer" => offload_optimizer: Maybe<OffloadOptimizerFile> => Ranks,
        "offload_param" => offload_param: Maybe<OffloadParamFile> => Ranks,
    }
    inert {
        "contiguous_gradients": Flag => FLAT_UNITS,
        "reduce_scatter": Flag => FLAT_UNITS,
        "reduce_bucket_size": Maybe<Raw> => FLAT_UNITS,
        "use_multi_rank_bucket_allreduce": Flag => FLAT_UNITS,
        "allgather_partitions": Flag => FLAT_UNITS,
        "allgather_bucket_size": Raw => FLAT_UNITS,
        "overlap_comm": Maybe<Flag> => "the next unit is always fetched during the current one",
        "load_from_fp32_weights": Flag => "masters start from the weights in the dtype of the model, as there",
        "elastic_checkpoint": Flag => "an export has whole tensors",
        "sub_group_size": Raw => FLAT_UNITS,
        "stage3_prefetch_bucket_size": Raw => FLAT_UNITS,
        "stage3_param_persistence_threshold": Raw => FLAT_UNITS,
        "stage3_model_persistence_threshold": Raw => FLAT_UNITS,
        "stage3_max_live_parameters": Raw => FLAT_UNITS,
        "stage3_max_reuse_distance": Raw => FLAT_UNITS,
        "stage3_gather_16bit_weights_on_model_save": Flag => "an export always has whole tensors",
        "stage3_gather_fp16_weights_on_model_save": Flag => "an export always has whole tensors",
        "stage3_module_granularity_threshold": Raw => FLAT_UNITS,
        "stage3_use_all_reduce_for_fetch_params": Flag => FLAT_UNITS,
        "stage3_allgather_sequential": Flag => FLAT_UNITS,
        "stage3_partition_stream_chunk_size": Raw => FLAT_UNITS,
        "prefetch_bucket_size": Raw => FLAT_UNITS,
        "param_persistence_threshold": Raw => FLAT_UNITS,
        "model_persistence_threshold": Raw => FLAT_UNITS,
        "max_live_parameters": Raw => FLAT_UNITS,
        "max_reuse_distance": Raw => FLAT_UNITS,
        "gather_16bit_weights_on_model_save": Flag => "an export always has whole tensors",
        "module_granularity_threshold": Raw => FLAT_UNITS,
        "ignore_unused_parameters": Flag => "every parameter is used",
        "legacy_stage1": Flag => FLAT_UNITS,
        "round_robin_gradients": Flag => FLAT_UNITS,
        "memory_efficient_linear": Flag => "no weight is kept for the backward pass",
        "override_module_apply": Flag => "there are no Python modules",
        "pipeline_loading_checkpoint": Flag => "each rank reads only its part of the files",
        "log_trace_cache_warnings": Flag => "the order of units is fixed",
        "enable_sanity_checks": Flag => "shapes are always checked",
        "leaf_module": Tree => FLAT_UNITS,
    }
    refused {
        "cpu_offload" unless ["false", "null"] => "it is the old name: write `offload_optimizer: {device: cpu}`",
        "cpu_offload_param" unless ["false", "null"] => "it is the old name: write `offload_param: {device: cpu}`",
        "cpu_offload_use_pin_memory" unless ["false", "null"] => "it is the old name: use `offload_optimizer` and `offload_param`",
        "zero_hpz_partition_size" unless ["0", "1"] => "weights are sharded over all ranks",
        "mics_shard_size" unless ["-1"] => "weights are sharded over all ranks",
        "mics_hierarchical_params_gather" unless ["false"] => "weights are sharded over all ranks",
        "zero_quantized_weights" unless ["false"] => "weights travel as they are",
        "zero_quantized_nontrainable_weights" unless ["false"] => "weights travel as they are",
        "zero_quantized_gradients" unless ["false"] => "gradients travel as fp32 or bf16",
        "zeropp_loco_param" unless ["null"] => "gradients travel as fp32 or bf16",
        "zenflow" unless ["null"] => "every gradient is used in the step it belongs to",
        "save_muon_momentum_buffer_in_memory" unless ["false"] => "there is one optimizer, AdamW",
    }
}

const NO_NVME: &str = "weights are not moved to NVMe";
const STREAMED: &str = "state on disk is always read ahead and written behind, slice by slice";

section! {
    /// `deepspeed.zero_optimization.offload_optimizer`.
    OffloadOptimizerFile {
        "device" => device: OffloadDevice => Ranks,
        "nvme_path" => nvme_path: Maybe<Text> => Host,
    }
    inert {
        "pin_memory": Flag => "host memory that a GPU reads is always pinned",
        "buffer_count": Raw => STREAMED,
        "pipeline_read": Flag => STREAMED,
        "pipeline_write": Flag => STREAMED,
        "fast_init": Flag => STREAMED,
        "convert_grad_on_cpu": Flag => "gradients are fp32 before they are moved",
        "cpuadam_cores_perc": Raw => "the step uses the threads of its process",
    }
    refused {
        "ratio" unless ["1"] => "the optimizer state is moved as a whole",
        "super_offload" unless ["false"] => "the optimizer step is one pass over the shard",
    }
}

section! {
    /// `deepspeed.zero_optimization.offload_param`.
    OffloadParamFile {
        "device" => device: OffloadDevice => Ranks,
    }
    inert {
        "pin_memory": Flag => "host memory that a GPU reads is always pinned",
        "nvme_path": Maybe<Text> => NO_NVME,
        "buffer_count": Raw => NO_NVME,
        "buffer_size": Raw => NO_NVME,
        "max_in_cpu": Raw => NO_NVME,
    }
    refused {}
}

section! {
    /// `deepspeed.data_types`.
    DataTypesFile {
        "grad_accum_dtype" => grad_accum_dtype: Maybe<DtypeWord> => Numbers,
    }
    inert {}
    refused {}
}

section! {
    /// `deepspeed.bf16`.
    Bf16File {
        "enabled" => enabled: Raw => Ranks,
    }
    inert {
        "immediate_grad_update": Flag => "gradients are accumulated as soon as they exist",
        "check_grad_overflow": Flag => "a gradient norm that is not finite stops the run",
    }
    refused {
        "bf16_master_weights_and_grads" unless ["false"] => "masters are fp32",
        "bf16_optimizer_states" unless ["false"] => "masters are fp32; `memory.moments_dtype: bf16` makes the moments bf16",
    }
}

section! {
    /// `logger`.
    LoggerFile {
        "output_dir" => output_dir: Text => Host,
        "level" => level: LogLevel => Host,
        "print_output_ranks" => print_output_ranks: Ranks => Host,
        "file_output_ranks" => file_output_ranks: Ranks => Host,
    }
    inert {}
    refused {}
}

section! {
    /// `wandb`.
    WandbFile {
        "enable" => enable: Flag => Host,
    }
    inert {
        "entity": Maybe<Text> => "`wandb.enable` is off",
        "project": Maybe<Text> => "`wandb.enable` is off",
        "name": Maybe<Text> => "`wandb.enable` is off",
    }
    refused {}
}

section! {
    /// One entry of `checkpoint`.
    CheckpointFile {
        "type" => kind: CheckpointKind => Ranks,
        "output_dir" => output_dir: Text => Host,
        "enabled" => enabled: Flag => Ranks,
        "auto_resume" => auto_resume: Flag => Ranks,
        "save_every_n_steps" => save_every_n_steps: HumanInt<0> => Ranks,
        "save_every_n_epochs" => save_every_n_epochs: HumanInt<0> => Ranks,
        "save_end_of_training" => save_end_of_training: Flag => Ranks,
        "keep_last_n" => keep_last_n: Int<0> => Ranks,
    }
    inert {}
    refused {}
}
