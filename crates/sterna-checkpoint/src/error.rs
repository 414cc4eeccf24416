//! What can be wrong with a checkpoint, and what to do about it.

use std::io;
use std::path::PathBuf;

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that reading or writing a checkpoint can end with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The system refused to read a file or folder.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// What was being read.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The system refused to write a file or folder.
    #[error("cannot write `{}`", path.display())]
    Write {
        /// What was being written.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A folder has no manifest.
    #[error("`{}` is not a checkpoint: it has no `manifest.json`", dir.display())]
    NotACheckpoint {
        /// The folder.
        dir: PathBuf,
    },
    /// A manifest that cannot be used.
    #[error("`{}` is not a valid manifest: {reason}", path.display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A manifest of another format than this version reads.
    #[error("`{}` has format `{found}`, and this version of sterna reads format `{required}`", path.display())]
    Format {
        /// The manifest.
        path: PathBuf,
        /// The format it says.
        found: u64,
        /// The format read here.
        required: u32,
    },
    /// A file that the manifest lists is not there.
    #[error("`{}` is missing", path.display())]
    FileMissing {
        /// The file.
        path: PathBuf,
    },
    /// A file was cut off, or has grown.
    #[error("`{}` has `{found}` bytes, and its manifest says `{required}`", path.display())]
    FileSize {
        /// The file.
        path: PathBuf,
        /// Its bytes.
        found: u64,
        /// What the manifest says.
        required: u64,
    },
    /// A file has another content than when it was written.
    #[error("`{}` was changed or damaged since it was written: its SHA-256 is `{found}`, and its manifest says `{required}`", path.display())]
    FileContent {
        /// The file.
        path: PathBuf,
        /// Its hash.
        found: String,
        /// What the manifest says.
        required: String,
    },
    /// A shard's header does not fit the manifest.
    #[error("`{}`: tensor `{name}` is {found}, required: {required}", path.display())]
    Tensor {
        /// The shard.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What was found.
        found: String,
        /// What the manifest asks for.
        required: String,
    },
    /// A shard that is not a safetensors file.
    #[error("`{}` is not a safetensors file", path.display())]
    Safetensors {
        /// The shard.
        path: PathBuf,
        /// Where its header is wrong.
        source: safetensors::SafeTensorError,
    },
    /// Another run writes checkpoints to the same folder.
    #[error("another run writes checkpoints to `{}` ({holder})", dir.display())]
    Locked {
        /// The folder.
        dir: PathBuf,
        /// What that run wrote about itself.
        holder: String,
    },
    /// A folder of another program has the name of a checkpoint.
    #[error("`{}` is not a checkpoint of sterna", path.display())]
    NotOurs {
        /// The folder.
        path: PathBuf,
    },
    /// The export could not be written.
    #[error(transparent)]
    Hf(#[from] sterna_hf::Error),
}

impl Error {
    /// What the reader can do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::Read { .. } => "check the path and its permissions",
            Self::Write { .. } => {
                "check the folder's permissions and the space left on its disk; earlier checkpoints are as they were"
            }
            Self::NotACheckpoint { .. } => {
                "name a folder `checkpoint-STEP`; `sterna checkpoint list DIR` shows those in a folder"
            }
            Self::Manifest { .. }
            | Self::FileMissing { .. }
            | Self::FileSize { .. }
            | Self::FileContent { .. }
            | Self::Tensor { .. }
            | Self::Safetensors { .. } => {
                "use an earlier checkpoint: `sterna checkpoint verify DIR` says which are good; `auto_resume` takes the newest good one"
            }
            Self::Format { .. } => "read it with the version of sterna that wrote it",
            Self::Locked { .. } => {
                "give each run an `output_dir` of its own, or wait until the other has ended"
            }
            Self::NotOurs { .. } => {
                "give the entry an `output_dir` of its own: nothing of another program is touched"
            }
            Self::Hf(error) => return error.hint(),
        };
        Some(text.to_owned())
    }

    /// Whether the checkpoint itself is at fault, and not the machine that reads it.
    pub fn is_damage(&self) -> bool {
        !matches!(
            self,
            Self::Read { .. }
                | Self::Write { .. }
                | Self::Locked { .. }
                | Self::NotOurs { .. }
                | Self::Hf(_)
        )
    }
}
