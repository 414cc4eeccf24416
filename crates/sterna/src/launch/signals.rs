//! Signals that ask a launcher to end its ranks.

use std::io;
use std::process::{Child, Command};
use std::sync::mpsc::Sender;
use std::thread;

use nix::sys::signal::SigSet;

use super::supervisor::Event;
use crate::signals::that_ask_to_stop;

/// The signals that come as events, and no longer end this process.
pub(super) struct Signals(SigSet);

impl Signals {
    /// Waits for them in a thread; the caller's thread and those it starts no longer take them.
    pub(super) fn forward(sender: Sender<Event>) -> nix::Result<Self> {
        let signals = that_ask_to_stop();
        signals.thread_block()?;
        let waited_for = signals;
        thread::spawn(move || {
            while let Ok(signal) = waited_for.wait() {
                if sender.send(Event::Signalled(signal)).is_err() {
                    break;
                }
            }
        });
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
