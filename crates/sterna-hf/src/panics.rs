//! Panics of readers that are not ours.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `read`, and makes an error of a panic: some readers (tokenizers, Arrow, Parquet) panic on files that are damaged on
/// purpose, and a file of others must not end a run without saying which file it was.
///
/// What `read` borrows may be left half changed by a panic; drop it then.
///
/// # Errors
///
/// What the panic said.
pub fn catch_panic<T>(read: impl FnOnce() -> T) -> Result<T, ReaderPanicked> {
    catch_unwind(AssertUnwindSafe(read)).map_err(|payload| ReaderPanicked(message(&*payload)))
}

/// A reader panicked: the file is damaged in a way that it does not expect.
#[derive(Debug, thiserror::Error)]
#[error("the reader failed on damaged content: {0}")]
pub struct ReaderPanicked(String);

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no message").to_owned()
}
