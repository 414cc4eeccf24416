//! Signals that ask a run to stop: which they are, and what a rank does when one comes.

use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal, raise};
use sterna_train::Stop;

/// Ctrl-C, what launchers and schedulers send, a terminal that is closed, and what SLURM sends before it takes the nodes away
/// (`--signal=USR1@SECONDS`).
const ASK_TO_STOP: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGUSR1];

/// Signals of several kinds within this time are one request: schedulers and terminals send more than one.
const AT_ONCE: Duration = Duration::from_secs(1);

/// What was asked so far.
#[derive(Default)]
pub(crate) struct Asked(Option<(Signal, Instant)>);

impl Asked {
    /// Notes `signal`, and returns whether someone asks again with it.
    pub(crate) fn is_again(&mut self, signal: Signal) -> bool {
        let is_again = self.0.is_some_and(|(first, at)| first == signal || at.elapsed() > AT_ONCE);
        self.0.get_or_insert((signal, Instant::now()));
        is_again
    }
}

/// The signals that ask to stop. One that whoever started us had us ignore, as nohup does SIGHUP, stays ignored.
pub(crate) fn that_ask_to_stop() -> SigSet {
    // Where /proc is missing nothing is known to be ignored.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = ignored_signals(&status);
    ASK_TO_STOP.into_iter().filter(|signal| !is_in(ignored, *signal)).collect()
}

/// Who looks after a rank that is asked to stop.
#[derive(Clone, Copy)]
pub(crate) struct Care {
    /// Whether it has something to save, and so may take its time.
    pub(crate) saves: bool,
    /// Whether our launcher started it, and ends it when someone asks again or it takes too long.
    pub(crate) has_launcher: bool,
    /// How long it may take otherwise.
    pub(crate) stop_within: Duration,
}

/// Turns signals into requests to `stop`. A rank that saves nothing, or whose run does not heed requests yet, ends at once, as it
/// does when someone asks again or it takes too long.
///
/// Must be called before the process has other threads: they inherit which signals they do not take.
pub(crate) fn catch(stop: Stop, care: Care) -> nix::Result<()> {
    let signals = that_ask_to_stop();
    signals.thread_block()?;
    thread::spawn(move || {
        let mut asked = Asked::default();
        while let Ok(signal) = signals.wait() {
            let is_again = asked.is_again(signal) && !care.has_launcher;
            if !care.saves || !stop.is_heeded() || is_again {
                end(signals, signal);
            }
            if stop.signal().is_none() && !care.has_launcher {
                thread::spawn(move || {
                    thread::sleep(care.stop_within);
                    end(signals, signal);
                });
            }
            stop.request(signal as i32);
        }
    });
    Ok(())
}

/// Ends the process by `signal`, whose default does that.
#[expect(clippy::exit, reason = "nobody could be told otherwise")]
fn end(signals: SigSet, signal: Signal) {
    // Only this thread takes it.
    let _ = signals.thread_unblock().and_then(|()| raise(signal));
    // The first process of a container is not ended by its own signals.
    std::process::exit(128 + signal as i32);
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
