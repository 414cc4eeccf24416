//! Points in the work of a stream.

use std::sync::Arc;

use cxx::UniquePtr;

use crate::{Error, bridge::ffi};

/// What happens when everything that a stream had been given is done.
#[derive(Clone)]
pub(crate) struct Event(Arc<Recorded>);

struct Recorded(UniquePtr<ffi::Event>);

// SAFETY: an event belongs to a device and to no thread; the driver takes calls on it from any.
unsafe impl Send for Recorded {}
// SAFETY: it is recorded once, before anybody else has it; what is called later only reads it, and the driver allows that at once.
unsafe impl Sync for Recorded {}

impl Event {
    /// Without a time of its own, which is cheaper.
    pub(crate) fn record(stream: &ffi::Stream) -> Result<Self, Error> {
        Ok(Self(Arc::new(Recorded(ffi::record_event(stream, false)?))))
    }

    /// One whose time is kept.
    pub(crate) fn record_timed(stream: &ffi::Stream) -> Result<Self, Error> {
        Ok(Self(Arc::new(Recorded(ffi::record_event(stream, true)?))))
    }

    pub(crate) fn of_c10(&self) -> &ffi::Event {
        &self.0.0
    }
}
