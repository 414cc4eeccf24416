//! Signals that ask a launcher to end its ranks.

use std::io;
use std::process::{Child, Command};
use std::thread;

use nix::sys::signal::{SigSet, Signal};

use crate::signals::that_ask_to_stop;

/// The signals that come as events, and no longer end this process.
pub(super) struct Signals(SigSet);

impl Signals {
    /// Waits for them in a thread, which gives each to `send` until that returns `false`; the caller's thread and those it starts no
    /// longer take them.
    pub(super) fn forward(send: impl Fn(Signal) -> bool + Send + 'static) -> nix::Result<Self> {
        let signals = that_ask_to_stop();
        signals.thread_block()?;
        let waited_for = signals;
        thread::spawn(move || while waited_for.wait().is_ok_and(&send) {});
        Ok(Self(signals))
    }

    /// Starts `command`, which must not inherit our mask: it would not end on SIGTERM. A signal that arrives meanwhile
    /// ends this process, and what it has started ends with it.
    pub(super) fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        self.0.thread_unblock()?;
        let started = command.spawn();
        self.0.thread_block()?;
        started
    }
}
