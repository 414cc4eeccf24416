//! A request to stop, from wherever signals are received.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicI32, Ordering::Relaxed},
};

/// Whether a run was asked to stop, and by which signal. Clones share the request.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<State>);

#[derive(Debug, Default)]
struct State {
    /// 0 is none.
    signal: AtomicI32,
    is_heeded: AtomicBool,
}

impl Stop {
    /// Asks the run to finish its step, save, and end. The first signal stands.
    pub fn request(&self, signal: i32) {
        // Whoever was first has asked already.
        let _ = self.0.signal.compare_exchange(0, signal, Relaxed, Relaxed);
    }

    /// The signal, if one asked.
    pub fn signal(&self) -> Option<i32> {
        match self.0.signal.load(Relaxed) {
            0 => None,
            signal => Some(signal),
        }
    }

    /// Whether the run looks at requests by now. Before it does there is nothing to save, and a signal may end the process.
    pub fn is_heeded(&self) -> bool {
        self.0.is_heeded.load(Relaxed)
    }

    /// From here on the run looks at requests.
    pub(crate) fn heed(&self) {
        self.0.is_heeded.store(true, Relaxed);
    }
}
