//! Other work on the machine, made on purpose.

use std::hint;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

/// Threads that compute until this is dropped.
pub(super) struct Busy {
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Busy {
    pub(super) fn start(num_threads: usize) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let threads = (0..num_threads).map(|_| {
            let is_over = is_over.clone();
            thread::spawn(move || {
                let mut x = 0_u64;
                while !is_over.load(Ordering::Relaxed) {
                    // Some microseconds of arithmetic between two looks at the flag.
                    for i in 0..10_000 {
                        x = hint::black_box(x.wrapping_mul(6_364_136_223_846_793_005) + i);
                    }
                }
            })
        });
        Self { threads: threads.collect(), is_over }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // It cannot panic.
            let _ = thread.join();
        }
    }
}
