//! Moments of the work that a GPU has been given.

use std::{cell::Cell, time::Duration};

use crate::{bridge::ffi, event::Event};

thread_local! {
    /// The GPU that this thread computes on.
    static DEVICE: Cell<Option<usize>> = const { Cell::new(None) };
}

pub(super) fn set_device(device_index: usize) {
    DEVICE.set(Some(device_index));
}

/// The GPU that this thread was given by [`super::set_device`].
pub fn current_device() -> Option<usize> {
    DEVICE.get()
}

/// A moment in the work of a GPU's current stream: it comes when all that was asked of the stream before has been done. Recording
/// one takes about a microsecond of the host, which does not wait.
pub struct Mark(Event);

impl std::fmt::Debug for Mark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Mark")
    }
}

impl Mark {
    /// On the current stream of GPU `device_index`.
    ///
    /// # Errors
    ///
    /// [`crate::Error::Torch`] if there is no such device, or if its context has failed.
    pub fn record(device_index: usize) -> Result<Self, crate::Error> {
        let stream = ffi::current_stream(device_index as i32)?;
        Ok(Self(Event::record_timed(&stream)?))
    }

    /// Lets this thread wait until the moment has come.
    ///
    /// # Errors
    ///
    /// [`crate::Error::Torch`] if work before it failed.
    pub fn wait(&self) -> Result<(), crate::Error> {
        Ok(ffi::wait_on_host(self.0.of_c10())?)
    }

    /// The time from another moment to this one, as the GPU measured it: to half a microsecond.
    ///
    /// # Errors
    ///
    /// [`crate::Error::Torch`] if one of them has not come.
    pub fn since(&self, start: &Self) -> Result<Duration, crate::Error> {
        let ms = ffi::elapsed_ms(start.0.of_c10(), self.0.of_c10())?;
        Ok(Duration::from_secs_f64(ms.max(0.0) / 1e3))
    }
}
