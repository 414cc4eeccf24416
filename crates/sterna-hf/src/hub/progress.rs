//! Downloads in the log: a line every few seconds, for files that take that long.

use std::time::{Duration, Instant};

use hf_hub::api::Progress;

const EVERY: Duration = Duration::from_secs(5);

/// Counts the bytes of one file.
pub(super) struct LoggedProgress {
    file: String,
    total_bytes: usize,
    done_bytes: usize,
    last_line: Instant,
}

impl LoggedProgress {
    pub(super) fn new() -> Self {
        Self { file: String::new(), total_bytes: 0, done_bytes: 0, last_line: Instant::now() }
    }
}

impl Progress for LoggedProgress {
    fn init(&mut self, size: usize, filename: &str) {
        filename.clone_into(&mut self.file);
        self.total_bytes = size;
        self.done_bytes = 0;
    }

    fn update(&mut self, size: usize) {
        self.done_bytes += size;
        if self.last_line.elapsed() >= EVERY {
            self.last_line = Instant::now();
            let megabytes = |bytes: usize| bytes / 1_000_000;
            tracing::info!(
                "downloading {}: {} of {} MB",
                self.file,
                megabytes(self.done_bytes),
                megabytes(self.total_bytes)
            );
        }
    }

    fn finish(&mut self) {}
}
