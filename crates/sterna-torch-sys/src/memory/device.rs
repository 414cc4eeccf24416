//! The memory of tensors on a GPU: who has how much, as libtorch's allocator reports it.
//!
//! The allocator belongs to `libtorch_cuda`. It tells each block that it hands out or takes back to the profiler of the thread
//! that asks, and `cpp/device_books.cc` is that profiler, one that records nothing else. What threads without it do, those of NCCL,
//! is seen in the sums that come with every report: what they allocated counts as [`MemoryKind::Other`], what they freed is taken
//! from [`MemoryKind::Communication`].

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI32, Ordering::Relaxed},
    },
};

use super::{
    ByKind, CURRENT, MemoryKind,
    refusal::{self, Refusal},
};

/// The memory of tensors on this process's GPU, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeviceUsage {
    /// What tensors hold now.
    pub live: ByKind,
    /// What they held when the sum was largest since the last reset.
    pub peak: ByKind,
    /// What libtorch's allocator has taken from the device, with the blocks that wait for their next tensor.
    pub reserved: u64,
}

/// The GPU whose blocks are counted; -1 before one is chosen. A process computes on one.
static DEVICE: AtomicI32 = AtomicI32::new(-1);

static LEDGER: Mutex<Ledger> = Mutex::new(Ledger {
    blocks: BTreeMap::new(),
    by_kind: ByKind::NONE,
    allocated: 0,
    reserved: 0,
    peak: ByKind::NONE,
    peak_allocated: 0,
});

struct Ledger {
    /// Address to length and kind.
    blocks: BTreeMap<usize, (u64, MemoryKind)>,
    /// The sums over `blocks`.
    by_kind: ByKind,
    /// What the allocator says that tensors hold.
    allocated: u64,
    reserved: u64,
    peak: ByKind,
    peak_allocated: u64,
}

/// Counts the blocks of GPU `device_index` from now on.
pub(crate) fn count_on(device_index: i32) {
    DEVICE.store(device_index, Relaxed);
}

/// What tensors on the GPU hold now, and held at the peak. Nothing where no GPU was chosen.
pub fn device_usage() -> DeviceUsage {
    let ledger = lock();
    DeviceUsage { live: ledger.live(), peak: ledger.peak, reserved: ledger.reserved }
}

/// Starts looking for the peak anew.
pub(super) fn reset_peak() {
    let mut ledger = lock();
    ledger.peak = ledger.live();
    ledger.peak_allocated = ledger.allocated;
}

/// Says what the block at this address is for, if it is one of the GPU.
pub(super) fn retag(address: usize, kind: MemoryKind) {
    let mut ledger = lock();
    let Some((len, before)) = ledger.blocks.get_mut(&address) else { return };
    let (len, before) = (*len, std::mem::replace(before, kind));
    ledger.by_kind[before] -= len;
    ledger.by_kind[kind] += len;
}

/// A block was handed out, or taken back if `len` is negative; the sums are those after that. Called by libtorch.
pub(crate) fn on_block(address: usize, len: i64, allocated: u64, reserved: u64, device_index: i32) {
    if device_index != DEVICE.load(Relaxed) {
        return;
    }
    let mut ledger = lock();
    // What is handed out again was taken back by a thread that nobody listens to.
    if let Some((len, kind)) = ledger.blocks.remove(&address) {
        ledger.by_kind[kind] -= len;
    }
    if len > 0 {
        let (len, kind) = (len.unsigned_abs(), CURRENT.get());
        ledger.blocks.insert(address, (len, kind));
        ledger.by_kind[kind] += len;
    }
    (ledger.allocated, ledger.reserved) = (allocated, reserved);
    if allocated > ledger.peak_allocated {
        ledger.peak_allocated = allocated;
        ledger.peak = ledger.live();
    }
}

/// There is no room. Called by libtorch, before it throws.
pub(crate) fn on_refusal(asked: i64, allocated: u64, reserved: u64, device_index: i32) {
    if device_index != DEVICE.load(Relaxed) {
        return;
    }
    let live = lock().live();
    refusal::note(Refusal::new(
        Some(device_index.unsigned_abs() as usize),
        asked.unsigned_abs(),
        live,
        reserved.saturating_sub(allocated),
    ));
}

impl Ledger {
    /// Bytes by kind, whose sum is what the allocator says.
    fn live(&self) -> ByKind {
        let mut live = self.by_kind;
        let counted = live.total();
        live[MemoryKind::Other] += self.allocated.saturating_sub(counted);
        let mut freed = counted.saturating_sub(self.allocated);
        for kind in [MemoryKind::Communication].into_iter().chain(MemoryKind::ALL) {
            let taken = freed.min(live[kind]);
            live[kind] -= taken;
            freed -= taken;
        }
        live
    }
}

/// Nothing panics while it is locked.
fn lock() -> MutexGuard<'static, Ledger> {
    LEDGER.lock().unwrap_or_else(PoisonError::into_inner)
}
