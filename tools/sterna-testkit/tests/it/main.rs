//! The test helpers, tested.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod close;
mod ranks;
mod tiny_model;

/// The message of the panic that `body` ends in.
fn panic_message(body: impl FnOnce()) -> String {
    let payload = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_err();
    payload.downcast_ref::<String>().unwrap().clone()
}
