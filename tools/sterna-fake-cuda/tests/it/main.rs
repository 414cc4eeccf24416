//! Integration tests of the fake device: what it computes, what it refuses, what it counts.

mod attention;
mod books;
mod copies;
mod device;
mod kernels;
mod linear;
mod memory;
mod ops;
mod syncs;

use std::sync::{Mutex, MutexGuard, PoisonError};

use tch::Device;

const GPU: Device = Device::Cuda(0);

/// Installs two devices and keeps other tests of this process off the counters for as long as the guard lives.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    let guard = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    sterna_fake_cuda::install_devices(2);
    sterna_fake_cuda::reset_host_syncs();
    guard
}
