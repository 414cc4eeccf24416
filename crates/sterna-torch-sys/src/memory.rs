//! The memory of tensors: who has how much, and for the CPU a cache of large blocks.
//!
//! [`install`] puts an allocator into libtorch. Each block remembers what it is for: the [`MemoryKind`] of the thread that
//! allocated it ([`scope`]), or a later [`retag`]. [`usage`] tells the bytes by kind, now and at the moment when their sum was
//! largest.
//!
//! [`pinned`] makes tensors that a GPU copies from and to on its own, which wait for their next tensor as well: pinning takes the driver
//! far longer than a copy.
//!
//! [`device_usage`] tells the same of the GPU that [`crate::cuda::set_device`] chose, whose allocator is libtorch's own.
//!
//! Blocks of 1 MiB and more are mappings of their own, and are kept for the next tensor of their
//! size (`cache.rs` says how many). libtorch's own allocator takes the memory of every tensor from glibc, which maps
//! and unmaps large ones anew each time, and leaves holes between the others. Smaller blocks go to the heap here as well.

mod ahead;
mod block;
mod cache;
mod device;
mod refusal;

use std::{
    cell::{Cell, RefCell},
    fmt::Write as _,
    marker::PhantomData,
    ops::{Index, IndexMut},
    ptr::NonNull,
    sync::{Mutex, MutexGuard, Once, PoisonError},
};

use tch::{Device, Kind, Tensor};

pub(crate) use self::device::{count_on, on_block, on_refusal};
pub use self::{
    ahead::PinnedAhead,
    device::{DeviceUsage, device_usage},
    refusal::{Place, Refusal, place, take_refusal},
};

use self::{
    block::{Block, Mapping},
    cache::Cache,
};
use crate::{bridge::ffi, tensor::borrow};

/// From this many bytes on a block is a mapping of its own.
const LARGE: usize = 1 << 20;

/// What a tensor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum MemoryKind {
    /// Weights: those at rest, those gathered for use, and a block's widened to single precision for its products.
    Weights,
    /// Gradients of weights.
    Gradients,
    /// Masters and moments, and what a step of the optimizer needs beside them.
    Optimizer,
    /// What forward keeps for backward.
    KeptActivations,
    /// Inputs and output of attention at full length, and their gradients.
    Attention,
    /// Intermediate values of one tile.
    TileScratch,
    /// What travels between ranks.
    Communication,
    /// Everything else.
    Other,
}

impl MemoryKind {
    /// All of them, in the order of [`ByKind`].
    pub const ALL: [Self; 8] = [
        Self::Weights,
        Self::Gradients,
        Self::Optimizer,
        Self::KeptActivations,
        Self::Attention,
        Self::TileScratch,
        Self::Communication,
        Self::Other,
    ];

    /// Its name in metrics and timelines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::Gradients => "gradients",
            Self::Optimizer => "optimizer",
            Self::KeptActivations => "kept_activations",
            Self::Attention => "attention",
            Self::TileScratch => "tile_scratch",
            Self::Communication => "communication",
            Self::Other => "other",
        }
    }
}

/// Bytes of tensors by what they are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ByKind([u64; MemoryKind::ALL.len()]);

impl ByKind {
    /// Nothing.
    const NONE: Self = Self([0; MemoryKind::ALL.len()]);

    /// The sum over kinds.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Each kind with its bytes.
    pub fn iter(&self) -> impl Iterator<Item = (MemoryKind, u64)> {
        MemoryKind::ALL.into_iter().zip(self.0)
    }
}

impl Index<MemoryKind> for ByKind {
    type Output = u64;

    fn index(&self, kind: MemoryKind) -> &u64 {
        &self.0[kind as usize]
    }
}

impl IndexMut<MemoryKind> for ByKind {
    fn index_mut(&mut self, kind: MemoryKind) -> &mut u64 {
        &mut self.0[kind as usize]
    }
}

/// The memory of tensors on the CPU, as far as they were allocated after [`install`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Bytes that tensors hold now.
    pub live: ByKind,
    /// Bytes that they held when the sum was largest since [`reset_peak`].
    pub peak: ByKind,
    /// Bytes of blocks that wait for their next tensor.
    pub cached: u64,
}

/// Makes libtorch allocate tensors on the CPU here. Once is enough; tensors that exist already stay where they are, uncounted.
pub fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(ffi::install_cpu_allocator);
}

/// Says what tensors are for that this thread allocates, until the result is dropped. Scopes nest.
#[must_use = "the scope ends when this is dropped"]
pub fn scope(kind: MemoryKind) -> Scope {
    Scope { before: CURRENT.replace(kind), _of_thread: PhantomData }
}

/// A time in which a thread allocates for one purpose ([`scope`]).
#[derive(Debug)]
pub struct Scope {
    before: MemoryKind,
    /// It belongs to the thread that made it.
    _of_thread: PhantomData<*const ()>,
}

impl Drop for Scope {
    fn drop(&mut self) {
        CURRENT.set(self.before);
    }
}

/// Says what an existing tensor is for from now on. All tensors that share its storage go with it.
///
/// Does nothing to memory that is not counted: a mapped file, a tensor older than [`install`], a device that was not chosen.
pub fn retag(tensor: &Tensor, kind: MemoryKind) {
    if tensor.defined() && tensor.device().is_cuda() {
        return device::retag(ffi::storage_address(borrow(tensor)), kind);
    }
    let Some(data) = NonNull::new(ffi::rust_block(borrow(tensor)).cast_mut()) else { return };
    // SAFETY: `rust_block` returns what `allocate` has handed out, and the tensor keeps it from being released.
    let mut block = unsafe { Block::from_data(data) };
    let mut ledger = lock();
    ledger.live[block.kind()] -= block.len() as u64;
    ledger.live[kind] += block.len() as u64;
    block.set_kind(kind);
}

/// An uninitialised tensor in memory of the host that is pinned: the driver copies to and from it while the host does other things.
///
/// `size` in elements. The first call makes libtorch allocate here ([`install`]). The thread has a current GPU ([`crate::cuda::set_device`]).
///
/// # Errors
///
/// [`crate::Error::OutOfMemory`] if the system has no memory left, or the driver refuses to pin it.
pub fn pinned(size: &[i64], kind: Kind) -> Result<Tensor, crate::Error> {
    install();
    let before = IS_PINNED.replace(true);
    let tensor = Tensor::f_empty(size, (kind, Device::Cpu));
    IS_PINNED.set(before);
    let unpinned = PIN_FAILURE.take();
    tensor.map_err(|error| crate::Error::OutOfMemory {
        message: unpinned.unwrap_or_else(|| error.to_string()),
    })
}

/// What tensors hold now, and held at the peak.
pub fn usage() -> Usage {
    let ledger = lock();
    Usage {
        live: ledger.live,
        peak: ledger.peak,
        cached: (ledger.cache.num_waiting() + ledger.pinned.num_waiting()) as u64,
    }
}

/// Starts looking for the peaks anew, those of the CPU and of the GPU, from what tensors hold now.
pub fn reset_peak() {
    let mut ledger = lock();
    ledger.peak = ledger.live;
    drop(ledger);
    device::reset_peak();
}

thread_local! {
    /// What this thread allocates for.
    static CURRENT: Cell<MemoryKind> = const { Cell::new(MemoryKind::Other) };
    /// Whether this thread allocates pinned memory.
    static IS_PINNED: Cell<bool> = const { Cell::new(false) };
    /// Why there was none, from libtorch's question to the end of [`pinned`].
    static PIN_FAILURE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// The books of the process for the CPU.
struct Ledger {
    live: ByKind,
    peak: ByKind,
    cache: Cache,
    /// Pinned mappings that wait.
    pinned: Cache,
    /// Lengths of those that are being made ahead ([`PinnedAhead`]).
    ahead: Vec<usize>,
}

static LEDGER: Mutex<Ledger> = Mutex::new(Ledger {
    live: ByKind::NONE,
    peak: ByKind::NONE,
    cache: Cache::cheap(),
    // A step needs as many again as the one before, and they are dear to make.
    pinned: Cache::dear(),
    ahead: Vec::new(),
});

/// Nothing panics while it is locked, and no tensor is allocated.
fn lock() -> MutexGuard<'static, Ledger> {
    LEDGER.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ledger {
    fn add(&mut self, kind: MemoryKind, len: usize) {
        self.live[kind] += len as u64;
        if self.live.total() > self.peak.total() {
            self.peak = self.live;
        }
    }

    /// Where mappings wait that are pinned, or are not.
    fn cache(&mut self, is_pinned: bool) -> &mut Cache {
        if is_pinned { &mut self.pinned } else { &mut self.cache }
    }
}

/// Memory for a tensor, or null. Called by libtorch.
pub(crate) fn allocate(len: usize) -> *mut u8 {
    let kind = CURRENT.get();
    let is_pinned = IS_PINNED.get();
    let block = if len < LARGE && !is_pinned {
        Block::from_heap(len, kind)
    } else {
        map(len, kind, is_pinned)
    };
    let Some(block) = block else { return std::ptr::null_mut() };
    lock().add(kind, len);
    block.into_data().as_ptr()
}

fn map(len: usize, kind: MemoryKind, is_pinned: bool) -> Option<Block> {
    let mapped_len = Block::mapped_len_for(len)?;
    let mut ledger = lock();
    if is_pinned {
        ledger = ahead::wait_for(ledger, mapped_len);
    }
    let (found, too_many) = ledger.cache(is_pinned).take(mapped_len);
    drop(ledger);
    drop(too_many);
    let new = || {
        if !is_pinned {
            return Mapping::new(mapped_len);
        }
        let pinned = Mapping::new_pinned(mapped_len);
        pinned.map_err(|reason| PIN_FAILURE.set(Some(reason))).ok()
    };
    let mapping = found.or_else(new).or_else(|| {
        // Unmapped, the blocks that wait leave room for this one. Pinned ones go only where the driver can be told of it.
        let may_unpin = is_pinned || crate::cuda::current_device().is_some();
        let mut ledger = lock();
        let pinned = if may_unpin { ledger.pinned.give_up() } else { Vec::new() };
        let all = (ledger.cache.give_up(), pinned);
        drop(ledger);
        drop(all);
        new()
    });
    let Some(mapping) = mapping else {
        lock().cache(is_pinned).not_taken(mapped_len);
        return None;
    };
    Some(Block::from_mapping(mapping, len, kind))
}

/// Takes memory back. Called by libtorch, from any thread.
///
/// # Safety
///
/// `data` comes from [`allocate`] and nobody uses it any more.
pub(crate) unsafe fn release(data: *mut u8) {
    let Some(data) = NonNull::new(data) else { return };
    // SAFETY: as the caller says; this is the one release.
    let block = unsafe { Block::from_data(data) };
    let (kind, len) = (block.kind(), block.len());
    let mapping = block.release();
    let mut ledger = lock();
    ledger.live[kind] -= len as u64;
    let too_many = mapping.map(|mapping| ledger.cache(mapping.is_pinned()).put(mapping));
    drop(ledger);
    drop(too_many);
}

/// What to say when there is no memory for `len` bytes. Called by libtorch.
pub(crate) fn refusal(len: usize) -> String {
    let Usage { live, cached, .. } = usage();
    refusal::note(Refusal::new(None, len as u64, live, cached));
    let mut text = format!(
        "can't allocate memory: a tensor of {len} bytes was asked for, and tensors hold {} bytes",
        live.total()
    );
    for (kind, bytes) in live.iter().filter(|(_, bytes)| *bytes > 0) {
        let _ = write!(text, ", {} {bytes}", kind.name());
    }
    text
}
