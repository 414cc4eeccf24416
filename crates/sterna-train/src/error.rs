//! What can end a training run.

use std::{any::Any, io, path::PathBuf, sync::Arc};

use sterna_checkpoint::Error as CheckpointError;
use sterna_comm::CommError;
use sterna_data::Error as DataError;
use sterna_hf::Error as HfError;
use sterna_model::ModelError;
use sterna_ops::attention::NotFlash;
use sterna_recipe::Diagnostics;
use sterna_torch_sys::{Error as TorchError, products::UnknownProducts};

use crate::oom::OutOfMemory;

/// Why training, evaluation or an export ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// DoRA begins with norms of weights that are not there.
    #[error("`model.peft_config.use_dora` needs the model's weights, and they are drawn at random")]
    DoraOfRandomWeights,
    /// The recipe does not fit the model or the world size.
    #[error("{0}")]
    Plan(Diagnostics),
    /// The data could not be read or prepared.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The model's files could not be read, or the export could not be written.
    #[error(transparent)]
    Hf(#[from] HfError),
    /// The model's config cannot be used.
    #[error(transparent)]
    Config(#[from] sterna_arch::Error),
    /// A collective failed, mostly because another rank ended.
    #[error(transparent)]
    Comm(#[from] CommError),
    /// A block could not be computed.
    #[error(transparent)]
    Model(ModelError),
    /// The recipe names an attention kernel that does not take this model.
    #[error(transparent)]
    Attention(#[from] NotFlash),
    /// The environment asks for products that there are none of.
    #[error(transparent)]
    Products(#[from] UnknownProducts),
    /// libtorch refused a call or ran out of memory.
    #[error(transparent)]
    Torch(#[from] TorchError),
    /// A file of the run itself could not be written.
    #[error("cannot write `{}`", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A scratch file cannot be made.
    #[error("cannot make a scratch file in `{}`", dir.display())]
    ScratchFolder {
        /// The folder that the recipe names.
        dir: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A disk has less room than what is to be moved there.
    #[error(
        "the disk of `{}` has `{free_bytes}` bytes free, and a rank's scratch file needs `{needed_bytes}`",
        dir.display()
    )]
    ScratchSpace {
        /// The folder that the recipe names.
        dir: PathBuf,
        /// What was free.
        free_bytes: u64,
        /// What one rank needs.
        needed_bytes: u64,
    },
    /// A checkpoint cannot be read or written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A rank could not write its part of a checkpoint.
    #[error("rank `{rank}` could not write its part of the checkpoint of step `{step}`: {reason}")]
    SaveFailed {
        /// The rank.
        rank: usize,
        /// Optimizer steps done.
        step: u64,
        /// What it said.
        reason: String,
    },
    /// There are checkpoints, and this run can go on from none of them.
    #[error("`{}` has checkpoints, and none of them can be resumed:\n  {}", dir.display(), reasons.join("\n  "))]
    NoGoodCheckpoint {
        /// The entry's `output_dir`.
        dir: PathBuf,
        /// Each checkpoint and what is wrong with it, newest first.
        reasons: Vec<String>,
    },
    /// A checkpoint could not be read for a reason that is not its own.
    #[error("rank `{rank}` cannot read the checkpoint `{}`: {reason}", dir.display())]
    CheckpointUnreadable {
        /// The checkpoint.
        dir: PathBuf,
        /// The rank.
        rank: usize,
        /// What the system said there.
        reason: String,
    },
    /// A run that resumes nothing would write among the checkpoints of another.
    #[error("`{}` has checkpoints of an earlier run, until step `{step}`, and this run does not go on from them", dir.display())]
    UsedFolder {
        /// The entry's `output_dir`.
        dir: PathBuf,
        /// The newest checkpoint's step.
        step: u64,
    },
    /// The folder for checkpoints is not the same on all hosts.
    #[error("rank `{rank}` does not see what rank `0` wrote to `{}`", dir.display())]
    FolderNotShared {
        /// The entry's `output_dir`.
        dir: PathBuf,
        /// The rank that does not.
        rank: usize,
    },
    /// A tensor could not be moved to or from a scratch file.
    #[error("cannot {action} `{bytes}` bytes at offset `{offset}` of the scratch file in `{}`", dir.display())]
    Disk {
        /// `write`, `read`, or `reserve`.
        action: &'static str,
        /// The folder that the file was made in.
        dir: PathBuf,
        /// First byte.
        offset: u64,
        /// How many.
        bytes: u64,
        /// The system's reason. Shared, because each later call fails with it.
        source: Arc<io::Error>,
    },
    /// The data gives fewer micro-batches than one optimizer step takes.
    #[error(
        "the data gives `{num_micro_batches}` micro-batches to each of `{dp_size}` data-parallel groups, and one \
         optimizer step takes `{gradient_accumulation_steps}`"
    )]
    NoSteps {
        /// Micro-batches of all epochs for one data-parallel group.
        num_micro_batches: usize,
        /// Data-parallel groups.
        dp_size: usize,
        /// Micro-batches of a step.
        gradient_accumulation_steps: usize,
    },
    /// The reference model of `type: dpo` is not of the trained model's architecture.
    #[error("`ref_model` `{name}` has another architecture than the model that is trained")]
    OtherReference {
        /// Its name in the recipe.
        name: String,
    },
    /// The loss or the gradient norm of a step is not a finite number.
    #[error("{name} is `{value}` at optimizer step `{step}`, and must be finite")]
    NotFinite {
        /// `loss` or `gradient norm`.
        name: &'static str,
        /// What it is.
        value: f64,
        /// The step, from 1.
        step: u64,
    },
    /// A tensor operation failed.
    #[error("computing failed: {message}")]
    Panicked {
        /// libtorch's message, or the panic's.
        message: String,
        /// libtorch's operation, if it names one.
        op: Option<String>,
    },
    /// There was no memory for a tensor.
    #[error("{0}")]
    OutOfMemory(Box<OutOfMemory>),
    /// The ranks did not read the same recipe, model or data.
    #[error("ranks `{ranks:?}` have another recipe, model or data than rank `0`: {differences}")]
    RanksDisagree {
        /// The ranks that differ from rank 0.
        ranks: Vec<usize>,
        /// The keys that differ, with the values of two ranks.
        differences: String,
    },
    /// The kill switch was set before the first step.
    #[error("the kill switch `{}` exists, so nothing was trained", path.display())]
    KillSwitch {
        /// The file.
        path: PathBuf,
    },
    /// A GPU was asked for, and there is none that can be used.
    #[error("device `cuda` was asked for")]
    DeviceUnavailable {
        /// What is missing.
        source: sterna_torch_sys::cuda::Error,
    },
}

impl From<ModelError> for TrainError {
    /// What a block asked this crate for and did not get is an error of this crate.
    fn from(error: ModelError) -> Self {
        match error {
            ModelError::Caller(source) => match source.downcast::<TrainError>() {
                Ok(error) => *error,
                Err(source) => Self::Model(ModelError::Caller(source)),
            },
            other => Self::Model(other),
        }
    }
}

impl From<TrainError> for ModelError {
    /// The way of such an error through a block.
    fn from(error: TrainError) -> Self {
        match error {
            TrainError::Model(error) => error,
            other => Self::Caller(Box::new(other)),
        }
    }
}

impl TrainError {
    /// The error for a caught panic: libtorch's exceptions arrive as panics of tch.
    pub(crate) fn from_panic(panic: &(dyn Any + Send)) -> Self {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("a panic without a message");
        Self::Panicked {
            message: libtorch_reason(text).unwrap_or_else(|| text.trim().to_owned()),
            op: libtorch_op(text),
        }
    }

    /// Whether another rank failed, and this one only noticed: in a collective of its own or in one of a block.
    pub fn is_about_peer(&self) -> bool {
        matches!(
            self,
            Self::Comm(CommError::PeerFailed { .. })
                | Self::Model(ModelError::Comm(CommError::PeerFailed { .. }))
        )
    }

    /// What the reader can do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Data(error) => error.hint(),
            Self::Hf(error) => error.hint(),
            Self::Config(error) => error.hint(),
            Self::Comm(error) => error.hint(),
            Self::Model(error) => error.hint(),
            Self::Torch(error) => error.hint(),
            Self::Plan(_) | Self::Panicked { .. } => None,
            Self::Products(_) => {
                Some("unset it: the processor then decides, and says how in the first lines".to_owned())
            }
            Self::Attention(_) => Some(
                "set `model.attn_implementation: sdpa`: it takes the fastest exact kernel that there is for this model"
                    .to_owned(),
            ),
            Self::Io { .. } => Some("check the folder's permissions and the space left on its disk".to_owned()),
            Self::ScratchFolder { .. } => Some(
                "`memory.disk_dir` must be a folder that exists on every host and can be written".to_owned(),
            ),
            Self::ScratchSpace { .. } => Some(
                "free space, set `memory.disk_dir` to a folder on a larger disk, or keep less on disk; each rank of a \
                 host needs as much"
                    .to_owned(),
            ),
            Self::Checkpoint(error) => error.hint(),
            Self::SaveFailed { .. } => Some(
                "free space or mend the folder, and start again: `auto_resume` goes on from the checkpoint before, which is as it was"
                    .to_owned(),
            ),
            Self::NoGoodCheckpoint { .. } => Some(
                "to begin anew, give the entry another `output_dir` or move the checkpoints away; to go on, undo what changed"
                    .to_owned(),
            ),
            Self::CheckpointUnreadable { .. } => {
                Some("mend the file system or the permissions, and start again: nothing was changed".to_owned())
            }
            Self::UsedFolder { .. } => Some(
                "set `auto_resume: true` to go on from them, or give the entry another `output_dir`".to_owned(),
            ),
            Self::FolderNotShared { .. } => Some(
                "checkpoints need a folder that all hosts share, such as one on a network file system".to_owned(),
            ),
            Self::Disk { .. } => Some(
                "look for a full or failing disk in the system's log, or set `memory.disk_dir` to another one"
                    .to_owned(),
            ),
            Self::NoSteps { .. } => Some(
                "set `min_iterations` to repeat the data, or lower `gradient_accumulation_steps`, or use fewer ranks"
                    .to_owned(),
            ),
            Self::DoraOfRandomWeights => Some(
                "leave out `use_dora`, or `random_weights` and what changes the number of layers".to_owned(),
            ),
            Self::OtherReference { .. } => Some(
                "`ref_model` has to have the config of `model`, such as the checkpoint that training starts from"
                    .to_owned(),
            ),
            Self::NotFinite { .. } => Some(
                "lower `optimizer.learning_rate`, lengthen the warm-up, or train in `dtype: fp32` to see whether the \
                 values overflow; `on_nonfinite: skip` leaves such steps out"
                    .to_owned(),
            ),
            Self::OutOfMemory(error) => Some(error.hint()),
            Self::RanksDisagree { .. } => Some(
                "every host needs the same recipe, model folder, data files and version of sterna".to_owned(),
            ),
            Self::KillSwitch { .. } => Some("delete it, or set `kill_switch_path` to another file".to_owned()),
            Self::DeviceUnavailable { source } => Some(source.hint()),
        }
    }
}

/// The first line of libtorch's message, if `text` is how tch panics with one. What follows that line is libtorch's C++
/// stack.
fn libtorch_reason(text: &str) -> Option<String> {
    let quoted = text.strip_prefix("called `Result::unwrap()` on an `Err` value: Torch(\"")?;
    let quoted = quoted.strip_suffix("\")").unwrap_or(quoted);
    // The text is escaped as `{:?}` does.
    let first = quoted.split("\\n").find(|line| !line.trim().is_empty())?;
    Some(first.replace("\\\"", "\"").replace("\\'", "'").replace("\\\\", "\\").trim().to_owned())
}

/// The operation that was called, by libtorch's C++ stack: the outermost, which is the last.
fn libtorch_op(text: &str) -> Option<String> {
    let (_, after) = text.rsplit_once("at::_ops::")?;
    after.split_once("::").map(|(op, _)| op.to_owned())
}

#[cfg(test)]
mod tests {
    use tch::Tensor;

    use super::*;

    fn message_of(body: impl FnOnce() + std::panic::UnwindSafe) -> String {
        let panic = std::panic::catch_unwind(body).expect_err("the body panics");
        TrainError::from_panic(panic.as_ref()).to_string()
    }

    #[test]
    fn a_failed_tensor_operation_gives_the_first_line_of_libtorch() {
        let message = message_of(|| {
            let ones = |n: i64| Tensor::ones([n], (tch::Kind::Float, tch::Device::Cpu));
            let _ = ones(2) + ones(3);
        });
        assert_eq!(
            message,
            "computing failed: The size of tensor a (2) must match the size of tensor b (3) at non-singleton dimension 0"
        );
    }

    #[test]
    fn another_panic_keeps_its_lines() {
        assert_eq!(message_of(|| panic!("one\ntwo {}", 3)), "computing failed: one\ntwo 3");
    }
}
