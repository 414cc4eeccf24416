//! Signals that ask a launcher to end.

use std::io;
use std::process::{Child, Command};
use std::sync::mpsc::Sender;
use std::thread;

use nix::sys::signal::{SigSet, Signal};

use super::supervisor::Event;

/// SIGUSR1 is what SLURM sends before it takes the nodes away (`--signal=USR1@SECONDS`).
const ASK_TO_END: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGUSR1];

/// The signals that come as events, and no longer end this process.
pub(super) struct Signals(SigSet);

impl Signals {
    /// Waits for them in a thread; the caller's thread and those it starts no longer take them. A signal that whoever
    /// started us had us ignore, as nohup does SIGHUP, stays ignored.
    pub(super) fn forward(sender: Sender<Event>) -> nix::Result<Self> {
        // Where /proc is missing nothing is known to be ignored.
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let ignored = ignored_signals(&status);
        let signals: SigSet =
            ASK_TO_END.into_iter().filter(|signal| !is_in(ignored, *signal)).collect();
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

/// The mask of ignored signals in the text of `/proc/PID/status`; bit `n - 1` is signal `n` (man page `proc_pid_status`).
fn ignored_signals(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// Whether `mask` has `signal`.
fn is_in(mask: u64, signal: Signal) -> bool {
    mask >> (signal as i32 - 1) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_ignored_from_the_start_are_read_from_the_status_of_the_process() {
        // As /proc/self/status shows it under nohup: SIGHUP is 1, SIGPIPE (which Rust ignores) 13.
        let ignored = ignored_signals(
            "Name:\tsterna\nSigBlk:\t0000000000000002\nSigIgn:\t0000000000001001\n",
        );
        let has =
            [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM].map(|signal| is_in(ignored, signal));
        assert_eq!(has, [true, false, false]);
        assert_eq!(ignored_signals(""), 0);
    }
}
