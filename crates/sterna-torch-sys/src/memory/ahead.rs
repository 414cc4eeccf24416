//! Pinned memory that is made before it is asked for.
//!
//! The system clears pinned pages and the driver notes where they are: seconds for each 10 GiB, in which a first step would have to wait
//! for every tensor that leaves the GPU. What a step will need is known before it begins, so another thread makes it, beside what the
//! run does up to then.

use std::{
    sync::{
        Arc, Condvar, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use super::{
    Ledger,
    block::{Block, Mapping},
    install, lock,
};
use crate::bridge::ffi;

/// Told when another mapping is there, or there will be none.
static MADE: Condvar = Condvar::new();

/// A thread that makes pinned memory, which [`super::pinned`] hands out. Ends with what it is at when dropped.
#[derive(Debug)]
pub struct PinnedAhead {
    has_to_end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl PinnedAhead {
    /// Starts making memory for tensors of `lens` bytes on the host, in this order, for copies of GPU `device_index`.
    ///
    /// A tensor that asks for one of these lengths waits for it. What cannot be made is left to the tensor that asks for it,
    /// which says why.
    pub fn start(device_index: usize, lens: &[usize]) -> Self {
        install();
        let lens: Vec<usize> = lens.iter().filter_map(|len| Block::mapped_len_for(*len)).collect();
        lock().ahead.extend(&lens);
        let has_to_end = Arc::new(AtomicBool::new(false));
        let thread = thread::Builder::new().name("pinned memory".to_owned()).spawn({
            let has_to_end = Arc::clone(&has_to_end);
            move || {
                // However this thread ends, nobody waits for it any more.
                let _promise = Promise;
                // A thread without a current device has no driver to pin for it.
                if ffi::set_device(device_index as i32).is_err() {
                    return;
                }
                for len in lens {
                    if has_to_end.load(Ordering::Relaxed) {
                        return;
                    }
                    let Ok(mapping) = Mapping::new_pinned(len) else { return };
                    let mut ledger = lock();
                    if let Some(at) = ledger.ahead.iter().position(|other| *other == len) {
                        ledger.ahead.remove(at);
                    }
                    ledger.pinned.add(mapping);
                    drop(ledger);
                    MADE.notify_all();
                }
            }
        });
        if thread.is_err() {
            // The system has no thread left: tensors make their own.
            drop(Promise);
        }
        Self { has_to_end, thread: thread.ok() }
    }
}

impl Drop for PinnedAhead {
    fn drop(&mut self) {
        self.has_to_end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // One that panicked has kept no promise, and tensors make their own.
            let _ = thread.join();
        }
    }
}

/// That more mappings will come. When it is dropped, none will.
struct Promise;

impl Drop for Promise {
    fn drop(&mut self) {
        lock().ahead.clear();
        MADE.notify_all();
    }
}

/// Waits while a mapping for `len` bytes is being made and none waits: of the longest micro-batch's, so that one for a shorter one may be
/// several times as long. One that is longer still is for another tensor.
pub(super) fn wait_for(
    mut ledger: MutexGuard<'static, Ledger>,
    len: usize,
) -> MutexGuard<'static, Ledger> {
    const MOST_TIMES: usize = 8;
    let is_for_it = |other: &usize| (len..=len.saturating_mul(MOST_TIMES)).contains(other);
    while ledger.ahead.iter().any(is_for_it) && !ledger.pinned.has(len) {
        ledger = MADE.wait(ledger).unwrap_or_else(PoisonError::into_inner);
    }
    ledger
}
