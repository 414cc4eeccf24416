//! The CUDA half of libtorch, loaded when a run asks for a GPU.
//!
//! Nothing here is linked against it: one binary starts on machines with and without a GPU, and what is missing is an
//! [`Error`] in words, where the loader of the system would end the process before `main`. Loaded libraries add themselves to
//! libtorch's dispatcher, after which a tensor can live on [`tch::Device::Cuda`].

mod mark;
mod properties;

pub use mark::{Mark, current_device};
pub use properties::{Properties, properties};

use std::{ptr::NonNull, sync::OnceLock};

use crate::{bridge::ffi, library::Library};

/// The driver, which comes with the system.
const DRIVER: &str = "libcuda.so.1";
/// libtorch's kernels, which bring the CUDA packages with them.
const LIBTORCH: &str = "libtorch_cuda.so";

/// The variables by which users tune libtorch's allocator; newer name first.
const ALLOCATOR_VARIABLES: [&str; 2] = ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"];

/// Segments of device memory that grow in place: without them, a long sequence leaves holes that no later tensor fits.
const ALLOCATOR_DEFAULTS: &str = "expandable_segments:True";

/// Why no GPU can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The system has no NVIDIA driver.
    #[error("this machine has no NVIDIA driver: {reason}")]
    NoDriver {
        /// The loader's text.
        reason: String,
    },
    /// There is a driver, and libtorch or a library it needs is missing.
    #[error("the CUDA libraries of libtorch cannot be loaded: {reason}")]
    NoLibraries {
        /// The loader's text.
        reason: String,
    },
    /// Everything is there but a GPU.
    #[error("the NVIDIA driver shows no GPU that this libtorch can use")]
    NoGpu,
    /// libtorch fails at its first use of the GPUs.
    #[error("libtorch cannot use the GPUs: {reason}")]
    Init {
        /// libtorch's text.
        reason: String,
    },
    /// This program was built without NCCL.
    #[error("this build has no NCCL, which ranks on several GPUs talk through")]
    NoNccl,
    /// NCCL's library, which the program carries in itself, cannot be loaded.
    #[error("NCCL's process group cannot be loaded: {reason}")]
    Nccl {
        /// The system's or the loader's text.
        reason: String,
    },
    /// libtorch refuses the settings of its allocator.
    #[error("libtorch's device allocator refuses `{settings}`: {reason}")]
    Allocator {
        /// What it was given.
        settings: &'static str,
        /// libtorch's text.
        reason: String,
    },
}

impl Error {
    /// What the reader can do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::NoDriver { .. } => {
                "use `--device cpu`, or install the driver (`nvidia-smi` shows whether it works); in a container, start it with \
                 its GPUs"
            }
            Self::NoLibraries { .. } => {
                "libtorch's wheel needs its CUDA packages beside it: `cargo xtask libtorch --cuda` fetches them; a Python \
                 environment with torch 2.11.0+cu130 has them too: set LIBTORCH to its folder `torch`"
            }
            Self::NoGpu | Self::Init { .. } => {
                "see what `nvidia-smi` and CUDA_VISIBLE_DEVICES say; the driver must be of CUDA 13"
            }
            Self::NoNccl => "build it with `--features cuda`, or use one GPU",
            Self::Nccl { .. } => {
                "this libtorch must be the one that Sterna was built with: torch 2.11.0 with its CUDA packages"
            }
            Self::Allocator { .. } => "see PYTORCH_CUDA_ALLOC_CONF in libtorch's documentation",
        }
        .to_owned()
    }
}

/// Makes a GPU the current one of this thread: the one that libraries use which are told of none, and whose memory
/// [`crate::memory::device_usage`] counts.
///
/// # Errors
///
/// [`crate::Error::Torch`] if there is no such device.
pub fn set_device(device_index: usize) -> Result<(), crate::Error> {
    ffi::set_device(device_index as i32)?;
    mark::set_device(device_index);
    crate::memory::count_on(device_index as i32);
    ffi::keep_device_books();
    Ok(())
}

/// Memory of a device, bytes. What libtorch's allocator holds beyond what tensors have is kept for the next ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeviceMemory {
    /// What tensors of this process have now.
    pub allocated: u64,
    /// The most that they had since [`reset_peak`].
    pub allocated_peak: u64,
    /// What libtorch's allocator has taken from the device.
    pub reserved: u64,
    /// The most that it had since [`reset_peak`].
    pub reserved_peak: u64,
    /// What nobody has, this process and others together.
    pub free: u64,
    /// All of it.
    pub total: u64,
}

/// The memory of GPU `device_index`.
///
/// # Errors
///
/// [`crate::Error::Torch`] if there is no such device.
pub fn memory(device_index: usize) -> Result<DeviceMemory, crate::Error> {
    let ffi::DeviceMemory { allocated, allocated_peak, reserved, reserved_peak, free, total } =
        ffi::device_memory(device_index as i32)?;
    Ok(DeviceMemory { allocated, allocated_peak, reserved, reserved_peak, free, total })
}

/// Starts looking for the peaks of [`memory`] anew.
///
/// # Errors
///
/// As [`memory`].
pub fn reset_peak(device_index: usize) -> Result<(), crate::Error> {
    Ok(ffi::reset_device_peak(device_index as i32)?)
}

/// Loads the driver and libtorch's CUDA libraries, and returns the number of GPUs, at least one.
///
/// The first call decides for the whole process. Unless the user's environment tunes libtorch's device allocator, it is set to
/// segments that grow. Matrix products in half precision are told to add partial sums in single precision: by default cuBLAS may round
/// them.
///
/// # Errors
///
/// The first thing that is missing.
pub fn load() -> Result<usize, Error> {
    static LOADED: OnceLock<Result<usize, Error>> = OnceLock::new();
    LOADED.get_or_init(load_once).clone()
}

fn load_once() -> Result<usize, Error> {
    // SAFETY: the driver's initialisers are made for programs that load it so.
    unsafe { Library::open(DRIVER) }.map_err(|reason| Error::NoDriver { reason })?;
    // SAFETY: those of libtorch's CUDA half add its kernels to the dispatcher, which is what it is loaded for.
    unsafe { Library::open(LIBTORCH) }.map_err(|reason| Error::NoLibraries { reason })?;
    if ALLOCATOR_VARIABLES.iter().all(|name| std::env::var_os(name).is_none()) {
        ffi::set_device_allocator(ALLOCATOR_DEFAULTS).map_err(|error| Error::Allocator {
            settings: ALLOCATOR_DEFAULTS,
            reason: crate::Error::from(error).to_string(),
        })?;
    }
    let count = tch::Cuda::device_count().max(0) as usize;
    if count == 0 {
        return Err(Error::NoGpu);
    }
    ffi::init_devices()
        .map_err(|error| Error::Init { reason: crate::Error::from(error).to_string() })?;
    Ok(count)
}

/// The function of `cpp/cuda/nccl.cc`.
///
/// # Errors
///
/// Those of [`load`]; [`Error::NoNccl`] in a build without the feature `cuda`, [`Error::Nccl`] if the library cannot be loaded.
pub(crate) fn nccl_constructor() -> Result<NonNull<libc::c_char>, Error> {
    load()?;
    load_nccl()
}

/// Loads NCCL's library from a file in memory, which the program carries in itself.
#[cfg(feature = "cuda")]
fn load_nccl() -> Result<NonNull<libc::c_char>, Error> {
    use std::{
        fs::File,
        io::Write as _,
        os::fd::{AsRawFd as _, FromRawFd as _},
    };

    const LIBRARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/libsterna_nccl.so"));

    let fail = |reason: String| Error::Nccl { reason };
    // SAFETY: the name ends with a zero, and the call returns a new descriptor or -1.
    let fd = unsafe { libc::memfd_create(c"sterna_nccl".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(fail(std::io::Error::last_os_error().to_string()));
    }
    // SAFETY: the descriptor was just made and belongs to nobody else.
    let mut file = unsafe { File::from_raw_fd(fd) };
    file.write_all(LIBRARY).map_err(|error| fail(error.to_string()))?;
    // SAFETY: the library is this program's own; it has no initialisers but those of the C++ library.
    let library = unsafe { Library::open(&format!("/proc/self/fd/{}", file.as_raw_fd())) };
    let function = library.and_then(|library| library.symbol(c"sterna_new_nccl_process_group"));
    function.map(NonNull::cast).map_err(fail)
}

#[cfg(not(feature = "cuda"))]
fn load_nccl() -> Result<NonNull<libc::c_char>, Error> {
    Err(Error::NoNccl)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where there is no driver, as on the machines of CI, the first missing thing is said in words.
    #[test]
    fn a_machine_without_a_driver_gets_a_sentence() {
        // SAFETY: as in `load_once`.
        if unsafe { Library::open(DRIVER) }.is_ok() {
            return;
        }
        let error = load().unwrap_err();
        assert!(matches!(error, Error::NoDriver { .. }), "{error}");
        assert!(
            error.to_string().starts_with("this machine has no NVIDIA driver: libcuda.so.1"),
            "{error}"
        );
    }

    /// `libtorch_cuda` and what it brings load without a GPU, and NCCL's library fits them.
    #[cfg(feature = "cuda")]
    #[test]
    fn nccl_loads_without_a_gpu() {
        // SAFETY: as in `load_once`.
        if let Err(reason) = unsafe { Library::open(LIBTORCH) } {
            panic!("{reason}");
        }
        assert!(load_nccl().is_ok());
    }
}
