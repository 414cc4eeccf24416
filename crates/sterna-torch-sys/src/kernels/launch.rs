//! The kernels of each device, loaded at the first launch on it, and launches on libtorch's current stream.

use std::{
    collections::BTreeMap,
    ffi::{CString, c_void},
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use cudarc::driver::{
    result,
    sys::{self, CUcontext, CUdevice_attribute, CUfunction, CUmodule},
};
use tch::Tensor;

use super::{Compiler, Error, cache};
use crate::bridge::ffi;

static CACHE_FOLDER: Mutex<Option<PathBuf>> = Mutex::new(None);
static NVRTC_FOLDER: Mutex<Option<PathBuf>> = Mutex::new(None);
static DEVICES: Mutex<BTreeMap<usize, Device>> = Mutex::new(BTreeMap::new());

/// Keeps compiled kernels in this folder, made if it is missing. Without it, each process compiles: about a second.
///
/// Takes effect for devices on which no kernel of ours has run yet.
pub fn set_cache_dir(folder: PathBuf) {
    *CACHE_FOLDER.lock().unwrap_or_else(PoisonError::into_inner) = Some(folder);
}

/// Looks for NVRTC in this folder, instead of where libtorch's packages have it. Takes effect as [`set_cache_dir`].
pub fn set_nvrtc_dir(folder: PathBuf) {
    *NVRTC_FOLDER.lock().unwrap_or_else(PoisonError::into_inner) = Some(folder);
}

/// An argument of a kernel, of exactly the type that the kernel declares.
pub(super) enum Argument {
    Pointer(*mut c_void),
    Int64(i64),
    Uint64(u64),
    Float(f32),
    Double(f64),
}

impl Argument {
    /// The storage of a tensor from its first element on.
    pub(super) fn of(tensor: &Tensor) -> Self {
        Self::Pointer(tensor.data_ptr())
    }

    fn address(&mut self) -> *mut c_void {
        match self {
            Self::Pointer(value) => std::ptr::from_mut(value).cast(),
            Self::Int64(value) => std::ptr::from_mut(value).cast(),
            Self::Uint64(value) => std::ptr::from_mut(value).cast(),
            Self::Float(value) => std::ptr::from_mut(value).cast(),
            Self::Double(value) => std::ptr::from_mut(value).cast(),
        }
    }
}

/// What a kernel has to do. None needs a certain number of blocks: each block takes the next row, or the next elements,
/// until there are none.
#[derive(Debug, Clone, Copy)]
pub(super) enum Work {
    /// A block of so many threads for each of so many rows.
    Rows { rows: i64, threads: u32 },
    /// A thread for each of so many pieces, as far as the device holds them at once.
    Threads(i64),
}

/// A device with our kernels.
struct Device {
    context: CUcontext,
    module: CUmodule,
    functions: BTreeMap<String, CUfunction>,
    num_multiprocessors: u32,
}

// SAFETY: the handles are the driver's, which any thread may use; none is ever freed.
unsafe impl Send for Device {}

/// The multiprocessors of a device.
pub(super) fn num_multiprocessors(device: usize) -> Result<u32, Error> {
    with_device(device, |device| Ok(device.num_multiprocessors))
}

/// Launches `kernel` on libtorch's current stream of `device`.
///
/// # Safety
///
/// The arguments are those that the kernel declares, in number, type and order; each pointer is to memory of this device
/// that is as long as the kernel reads and writes for the sizes among the arguments, and that libtorch allocated or
/// recorded for its current stream, so that it is not reused before the kernel has ended.
pub(super) unsafe fn launch(
    kernel: &str,
    device_index: usize,
    work: Work,
    arguments: &mut [Argument],
) -> Result<(), crate::Error> {
    let stream = ffi::current_cuda_stream(device_index as i32)?;
    let mut addresses: Vec<*mut c_void> = arguments.iter_mut().map(Argument::address).collect();
    with_device(device_index, |device| {
        let (blocks, threads) = device.blocks_and_threads(work);
        if blocks == 0 {
            return Ok(());
        }
        let function = device.function(kernel)?;
        device.in_context(|| {
            // SAFETY: the caller vouches for the arguments, which live until the driver has copied them in this call; the
            // function is of a module of this context, which is never unloaded.
            unsafe {
                result::launch_kernel(
                    function,
                    (blocks, 1, 1),
                    (threads, 1, 1),
                    0,
                    stream as sys::CUstream,
                    &mut addresses,
                )
            }
            .map_err(Error::driver(format!("launch `{kernel}`")))
        })
    })?;
    Ok(())
}

fn with_device<T>(
    index: usize,
    body: impl FnOnce(&mut Device) -> Result<T, Error>,
) -> Result<T, Error> {
    // Nothing is left half done by a panic inside: a device is put in when it is whole.
    let mut devices = DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
    let device = match devices.entry(index) {
        std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
        std::collections::btree_map::Entry::Vacant(entry) => entry.insert(Device::load(index)?),
    };
    body(device)
}

impl Device {
    fn load(index: usize) -> Result<Self, Error> {
        // Loads the driver's library, which cudarc then finds by its name.
        crate::cuda::load()?;
        result::init().map_err(Error::driver("start"))?;
        let device = result::device::get(index as i32)
            .map_err(Error::driver(format!("open device {index}")))?;
        let attribute = |attribute| {
            // SAFETY: `device` comes from the driver.
            unsafe { result::device::get_attribute(device, attribute) }
                .map_err(Error::driver(format!("describe device {index}")))
        };
        let major = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let count = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let folder_of = |folder: &Mutex<Option<PathBuf>>| {
            folder.lock().unwrap_or_else(PoisonError::into_inner).clone()
        };
        let compiler = Compiler::load(folder_of(&NVRTC_FOLDER).as_deref())?;
        let arch = format!("sm_{major}{minor}");
        let (cubin, file) = cache::cubin(&compiler, &arch, folder_of(&CACHE_FOLDER).as_deref())?;
        let file = file.map_or_else(String::new, |file| format!(" from `{}`", file.display()));
        // SAFETY: `device` comes from the driver. The context is libtorch's own, and is never released.
        let context = unsafe { result::primary_ctx::retain(device) }
            .map_err(Error::driver(format!("share the context of device {index}")))?;
        let mut device = Self {
            context,
            module: std::ptr::null_mut(),
            functions: BTreeMap::new(),
            num_multiprocessors: count.unsigned_abs(),
        };
        device.module = device.in_context(|| {
            // SAFETY: the image is a whole one: it comes from NVRTC, or from the cache with the hash that it had then.
            unsafe { result::module::load_data(cubin.as_ptr().cast()) }
                .map_err(Error::driver(format!("load the kernels for {arch}{file}")))
        })?;
        Ok(device)
    }

    /// Runs `body` with this device's context as the thread's, and puts back the one that libtorch has chosen.
    fn in_context<T>(&self, body: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        // SAFETY: the context is retained for good.
        unsafe { sys::cuCtxPushCurrent_v2(self.context) }
            .result()
            .map_err(Error::driver("change the context"))?;
        let output = body();
        let mut popped = std::ptr::null_mut();
        // SAFETY: pops what was pushed above; `popped` is a pointer of this function.
        unsafe { sys::cuCtxPopCurrent_v2(&raw mut popped) }
            .result()
            .map_err(Error::driver("change the context back"))?;
        output
    }

    fn function(&mut self, kernel: &str) -> Result<CUfunction, Error> {
        if let Some(function) = self.functions.get(kernel) {
            return Ok(*function);
        }
        let name = CString::new(kernel).expect("the name of a kernel has no zero byte");
        // SAFETY: the module is loaded, and never unloaded.
        let function = unsafe { result::module::get_function(self.module, name) }
            .map_err(Error::driver(format!("find `{kernel}`")))?;
        self.functions.insert(kernel.to_owned(), function);
        Ok(function)
    }

    fn blocks_and_threads(&self, work: Work) -> (u32, u32) {
        match work {
            Work::Rows { rows, threads } => (rows.min(i64::from(i32::MAX)) as u32, threads),
            Work::Threads(num_threads) => {
                // A multiprocessor holds 2,048 threads.
                let (threads, at_once) = (256, i64::from(self.num_multiprocessors) * 8);
                (((num_threads + 255) / 256).min(at_once) as u32, threads)
            }
        }
    }
}
