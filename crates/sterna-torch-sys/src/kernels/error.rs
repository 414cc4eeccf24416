use std::{
    io,
    path::{Path, PathBuf},
};

/// Why a CUDA kernel of ours cannot be compiled or launched.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// NVRTC is neither beside libtorch nor where the loader looks.
    #[error("NVRTC (`libnvrtc.so.13`) cannot be loaded from `{}` or the loader's path: {reason}", folder.display())]
    NoCompiler {
        /// Where the packages of libtorch would have it.
        folder: PathBuf,
        /// What was found missing.
        reason: String,
    },
    /// There is no GPU to run them on.
    #[error(transparent)]
    Cuda(#[from] crate::cuda::Error),
    /// NVRTC refuses the kernels.
    #[error("NVRTC cannot compile the kernels (`{file}`) for {arch}{}: {reason}\n{log}", kept_in(cache.as_deref()))]
    Compile {
        /// The source that includes all others, in `crates/sterna-torch-sys`; NVRTC's text names the one at fault.
        file: &'static str,
        /// What they were compiled for, as `sm_90`.
        arch: String,
        /// Where the result would have been kept, if anywhere.
        cache: Option<PathBuf>,
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
    pub(crate) fn driver(
        attempt: impl Into<String>,
    ) -> impl FnOnce(cudarc::driver::DriverError) -> Self {
        let attempt = attempt.into();
        move |error| Self::Driver { attempt, reason: error.to_string() }
    }

    /// The same, where the result would have been kept in `path`.
    pub(super) fn with_cache(self, path: &Path) -> Self {
        match self {
            Self::Compile { file, arch, reason, log, .. } => {
                Self::Compile { file, arch, cache: Some(path.to_owned()), reason, log }
            }
            other => other,
        }
    }

    /// What the reader can do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NoCompiler { .. } => {
                "NVRTC comes with libtorch's CUDA packages: install them beside libtorch, as its wheels do"
            }
            Self::Cuda(error) => return Some(error.hint()),
            Self::Cache { .. } => "name a folder on a disk with space that this user may write",
            Self::Compile { .. } | Self::Driver { .. } => return None,
        };
        Some(hint.to_owned())
    }
}

fn kept_in(cache: Option<&Path>) -> String {
    cache.map_or_else(String::new, |path| format!(", to be kept in `{}`", path.display()))
}
