//! Signals that ask a rank to stop: finish the step, save, end.

use std::thread;

use nix::sys::signal::{SigSet, Signal, raise};
use sterna_train::Stop;

/// Ctrl-C, what launchers and schedulers send, and SLURM's early warning (`--signal=USR1@120`).
const ASK_TO_STOP: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGUSR1];

/// Turns the signals of [`ASK_TO_STOP`] into requests to `stop`. Until the run heeds those, and when the same signal comes
/// again, the process ends as it would have without us. A rank that our launcher started gets them from it and, in a terminal,
/// from Ctrl-C, so there it is the launcher who counts.
///
/// Must be called before the process has other threads: they inherit which signals they do not take.
pub(crate) fn catch(stop: Stop, has_launcher: bool) -> nix::Result<()> {
    let signals: SigSet = ASK_TO_STOP.into_iter().collect();
    signals.thread_block()?;
    thread::spawn(move || {
        let mut received = Vec::new();
        while let Ok(signal) = signals.wait() {
            let is_repeated = received.contains(&signal) && !has_launcher;
            if !stop.is_heeded() || is_repeated {
                // Only this thread takes it, and its default ends the process.
                let _ = signals.thread_unblock().and_then(|()| raise(signal));
            }
            received.push(signal);
            stop.request(signal as i32);
        }
    });
    Ok(())
}
