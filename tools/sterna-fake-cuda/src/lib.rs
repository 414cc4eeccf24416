//! A CUDA device of host memory.
//!
//! [`install`] loads a driver (`libcuda.so.1`) whose kernels are those of `sterna-torch-sys`, compiled by g++, and a library (`libtorch_cuda.so`) that registers itself in libtorch as the device type CUDA, as `libtorch_cuda` would. Code written for a GPU then
//! runs with `tch::Device::Cuda(0)`: each op is the CPU's kernel on the same memory, so that results are the CPU's bit for bit.
//!
//! What a real GPU would refuse is an error here: tensors of host and device in one op. What would make the host wait for it is
//! counted: [`host_syncs`]. Memory that nobody wrote reads as NaN. What is *not* noticed: host code that reads device memory by its address.

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    ptr::NonNull,
    sync::OnceLock,
};

use sterna_torch_sys::library::Library;

/// What is loaded as `libcuda.so.1`, as an absolute path.
const DRIVER: &str = env!("STERNA_FAKE_DRIVER");

/// What is loaded as `libnvidia-ml.so.1`, as an absolute path.
pub const NVML: &str = env!("STERNA_FAKE_NVML");

/// What is loaded as `libnvrtc.so.13`, as an absolute path.
const NVRTC: &str = env!("STERNA_FAKE_NVRTC");

/// What is loaded as `libtorch_cuda.so`, as an absolute path.
const LIBTORCH_CUDA: &str = env!("STERNA_FAKE_LIBTORCH_CUDA");

/// As `MAX_DEVICES` of `cpp/device.h`.
const MAX_DEVICES: usize = 16;

/// Bytes of device memory, in multiples of 512 for each tensor as with the real allocator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AllocatedBytes {
    /// What tensors hold now.
    pub current: u64,
    /// What they held at most.
    pub peak: u64,
}

type Visit = extern "C" fn(context: *mut c_void, what: *const c_char, len: usize, count: u64);

/// The functions of `cpp/device.cc` and `cpp/nvrtc.cc` that Rust calls.
struct Functions {
    set_num_devices: extern "C" fn(c_int),
    set_device_bytes: extern "C" fn(u64),
    allocated_bytes: extern "C" fn(c_int, *mut u64, *mut u64),
    host_syncs: extern "C" fn() -> u64,
    reset_host_syncs: extern "C" fn(),
    visit_host_syncs: extern "C" fn(context: *mut c_void, visit: Visit),
    num_compilations: extern "C" fn() -> u64,
}

/// Makes one fake device available, once in a process and before its first tensor: libtorch remembers whether there is CUDA from the first
/// time that it looks.
///
/// # Panics
///
/// If the library cannot be loaded, with the dynamic linker's words.
pub fn install() {
    install_devices(1);
}

/// As [`install`], with `num_devices` of them. A later call changes the number.
///
/// # Panics
///
/// As [`install`]; or if these are more than 16.
pub fn install_devices(num_devices: usize) {
    assert!(
        num_devices <= MAX_DEVICES,
        "there are at most {MAX_DEVICES} fake devices, and {num_devices} were asked for"
    );
    (functions().set_num_devices)(num_devices as c_int);
}

/// Gives each fake device so much memory from now on, instead of 16 GiB. What is in use already stays, and counts.
///
/// # Panics
///
/// As [`install`].
pub fn set_device_memory(bytes: u64) {
    (functions().set_device_bytes)(bytes);
}

/// What tensors of device `index` hold, by the statistics of `c10::DeviceAllocator`.
///
/// # Panics
///
/// As [`install`]; or if there is no such device.
pub fn allocated_bytes(index: usize) -> AllocatedBytes {
    assert!(index < MAX_DEVICES, "there is no fake device {index}");
    let (mut current, mut peak) = (0, 0);
    (functions().allocated_bytes)(index as c_int, &raw mut current, &raw mut peak);
    AllocatedBytes { current, peak }
}

/// How often the host would have waited for the device, in this process, since the last [`reset_host_syncs`]: values read back, copies
/// between host and device other than non-blocking ones of pinned memory, synchronisations of streams, events and devices.
///
/// # Panics
///
/// As [`install`].
pub fn host_syncs() -> u64 {
    (functions().host_syncs)()
}

/// Starts the count of [`host_syncs`] again at zero.
///
/// # Panics
///
/// As [`install`].
pub fn reset_host_syncs() {
    (functions().reset_host_syncs)();
}

/// What [`host_syncs`] counted: each op or call that waited, and how often it did.
///
/// # Panics
///
/// As [`install`].
pub fn host_sync_causes() -> Vec<(String, u64)> {
    extern "C" fn visit(context: *mut c_void, what: *const c_char, len: usize, count: u64) {
        // SAFETY: `context` is the vector below, borrowed by nobody else during the call; `what` has `len` bytes.
        let (causes, what) = unsafe {
            (
                &mut *context.cast::<Vec<(String, u64)>>(),
                std::slice::from_raw_parts(what.cast::<u8>(), len),
            )
        };
        causes.push((String::from_utf8_lossy(what).into_owned(), count));
    }
    let mut causes: Vec<(String, u64)> = Vec::new();
    (functions().visit_host_syncs)((&raw mut causes).cast(), visit);
    causes
}

/// How often this process has compiled the kernels, instead of finding them in the cache.
///
/// # Panics
///
/// As [`install`].
pub fn num_compilations() -> u64 {
    (functions().num_compilations)()
}

fn functions() -> &'static Functions {
    static LOADED: OnceLock<Functions> = OnceLock::new();
    LOADED.get_or_init(|| {
        open(DRIVER);
        open(NVML);
        let nvrtc = open(NVRTC);
        let device = open(LIBTORCH_CUDA);
        let symbol = |library: Library, name: &CStr| {
            let symbol = library.symbol(name);
            symbol.map_or_else(|error| panic!("{error}"), NonNull::as_ptr)
        };
        // SAFETY: each symbol is the function of `cpp/device.cc` or `cpp/nvrtc.cc` with this signature.
        unsafe {
            Functions {
                set_num_devices: std::mem::transmute::<*mut c_void, extern "C" fn(c_int)>(symbol(
                    device,
                    c"sterna_fake_cuda_set_num_devices",
                )),
                set_device_bytes: std::mem::transmute::<*mut c_void, extern "C" fn(u64)>(symbol(
                    device,
                    c"sterna_fake_cuda_set_device_bytes",
                )),
                allocated_bytes: std::mem::transmute::<
                    *mut c_void,
                    extern "C" fn(c_int, *mut u64, *mut u64),
                >(symbol(
                    device,
                    c"sterna_fake_cuda_allocated_bytes",
                )),
                host_syncs: std::mem::transmute::<*mut c_void, extern "C" fn() -> u64>(symbol(
                    device,
                    c"sterna_fake_cuda_host_syncs",
                )),
                reset_host_syncs: std::mem::transmute::<*mut c_void, extern "C" fn()>(symbol(
                    device,
                    c"sterna_fake_cuda_reset_host_syncs",
                )),
                visit_host_syncs: std::mem::transmute::<
                    *mut c_void,
                    extern "C" fn(*mut c_void, Visit),
                >(symbol(
                    device,
                    c"sterna_fake_cuda_visit_host_syncs",
                )),
                num_compilations: std::mem::transmute::<*mut c_void, extern "C" fn() -> u64>(
                    symbol(nvrtc, c"sterna_fake_nvrtc_num_compilations"),
                ),
            }
        }
    })
}

/// Loads one of our libraries.
fn open(library: &str) -> Library {
    // SAFETY: the libraries' constructors only register them in libtorch, which is linked into this process.
    unsafe { Library::open(library) }
        .unwrap_or_else(|error| panic!("cannot load `{library}`: {error}"))
}
