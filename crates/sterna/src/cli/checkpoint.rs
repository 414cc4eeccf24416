//! Arguments of `sterna checkpoint` and `sterna export`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use sterna_arch::DType;

use super::Format;

/// List, check or export checkpoints.
///
/// A checkpoint is a folder `checkpoint-STEP` that an entry of `type: sterna` wrote: the whole state of training, to go on from.
#[derive(Debug, Args)]
pub(crate) struct Checkpoint {
    #[command(subcommand)]
    pub(crate) command: CheckpointCommand,
}

/// The word after `sterna checkpoint`.
#[derive(Debug, Subcommand)]
pub(crate) enum CheckpointCommand {
    List(List),
    Verify(Verify),
    Export(Export),
}

/// Show the checkpoints in a folder, newest first.
///
/// Reads manifests only; `verify` reads every byte.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sterna checkpoint list out
  sterna checkpoint list out --format json | jq '.[0].dir'")]
pub(crate) struct List {
    /// The `output_dir` of a checkpoint entry
    pub(crate) dir: PathBuf,

    /// How to print
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
}

/// Read every byte of checkpoints and compare it with what was written.
///
/// Ends with status 1 if one is damaged, and names the file.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sterna checkpoint verify out                 All checkpoints in a folder
  sterna checkpoint verify out/checkpoint-200  One")]
pub(crate) struct Verify {
    /// A checkpoint, or a folder of them
    pub(crate) dir: PathBuf,
}

/// Write a model as a folder that transformers, vLLM and others load.
///
/// From a checkpoint: its weights, config and tokenizer, without a training process. From a model folder: the same tensors under
/// the same names; without --dtype, what transformers saved comes out byte for byte. Of adapters: PEFT's folder from a checkpoint, and
/// with --merge the model with the adapters in its weights, from a checkpoint or from PEFT's folder.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sterna export out/checkpoint-200 --out my-model
  sterna export out/global_step_200 --merge --out my-model
  sterna export Llama-3.1-8B --out Llama-3.1-8B-fp32 --dtype fp32")]
pub(crate) struct Export {
    /// A checkpoint `checkpoint-STEP`, a model folder, or with --merge a folder of PEFT
    pub(crate) from: PathBuf,

    /// Folder to write; an earlier export in it is replaced
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,

    /// Add adapters to the weights of their base
    #[arg(long)]
    pub(crate) merge: bool,

    /// The base of --merge, if it is not where the adapters say
    #[arg(long, value_name = "MODEL", requires = "merge")]
    pub(crate) base: Option<String>,

    /// Type of the weights; by default that of the recipe, or of the model folder
    #[arg(long, value_enum)]
    pub(crate) dtype: Option<ExportDtype>,
}

/// The words that `model.dtype` of a recipe takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportDtype {
    /// Brain float
    #[value(alias = "bfloat16")]
    Bf16,
    /// Half precision
    #[value(alias = "float16")]
    Fp16,
    /// Single precision
    #[value(alias = "float32")]
    Fp32,
}

impl From<ExportDtype> for DType {
    fn from(dtype: ExportDtype) -> Self {
        match dtype {
            ExportDtype::Bf16 => Self::BF16,
            ExportDtype::Fp16 => Self::F16,
            ExportDtype::Fp32 => Self::F32,
        }
    }
}
