use std::{io, path::PathBuf};

/// Why a CUDA kernel of ours cannot be compiled or launched.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// NVRTC is neither beside libtorch nor where the loader looks.
    #[error("NVRTC (`libnvrtc.so.13`) is neither in `{}` nor in the loader's path", folder.display())]
    NoCompiler {
        /// Where the packages of libtorch would have it.
        folder: PathBuf,
    },
    /// The system has no NVIDIA driver.
    #[error("the CUDA driver (`libcuda.so.1`) is not in the loader's path")]
    NoDriver,
    /// NVRTC refuses the kernels.
    #[error("NVRTC cannot compile the kernels for {arch}: {reason}\n{log}")]
    Compile {
        /// What they were compiled for, as `sm_90`.
        arch: String,
        /// The name of NVRTC's error.
        reason: String,
        /// NVRTC's text.
        log: String,
    },
    /// The driver refuses a call.
    #[error("the CUDA driver refuses to {attempt}: {reason}")]
    Driver {
        /// What was tried.
        attempt: String,
        /// The driver's text.
        reason: String,
    },
    /// The compiled kernels cannot be kept for the next start.
    #[error("`{}` cannot be written: {source}", path.display())]
    Cache {
        /// The file.
        path: PathBuf,
        /// The system's text.
        source: io::Error,
    },
}

impl Error {
    pub(super) fn driver(
        attempt: impl Into<String>,
    ) -> impl FnOnce(cudarc::driver::DriverError) -> Self {
        let attempt = attempt.into();
        move |error| Self::Driver { attempt, reason: error.to_string() }
    }

    /// What the reader can do about it, where that is known.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoCompiler { .. } => Some(
                "NVRTC comes with libtorch's CUDA packages: install them beside libtorch, as its wheels do",
            ),
            Self::NoDriver => {
                Some("install the NVIDIA driver; `nvidia-smi` shows whether it works")
            }
            Self::Cache { .. } => {
                Some("name a folder on a disk with space that this user may write")
            }
            Self::Compile { .. } | Self::Driver { .. } => None,
        }
    }
}
