//! The agent: what the launcher starts on each host over ssh, to start the ranks there and to end with the launcher.

use std::io::{self, BufRead as _, Write as _};
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Instant;

use nix::sys::signal::Signal;
use sterna_launch::wire::{self, FromAgent, Prepare, Ready, Refusal, Start, ToAgent};

use super::local::{Listener, LocalRanks, Output, Said};
use super::signals::Signals;
use super::supervisor::Ranks as _;
use crate::env_vars;

/// What happens to an agent.
enum Happening {
    /// The launcher said something, or a line that is nothing this version knows.
    Told(Result<ToAgent, String>),
    /// The launcher has left.
    Left,
    /// One of the ranks has ended, and the launcher was told.
    Ended,
    /// Someone on this host asks everything to end: a reboot, a scheduler.
    Signalled,
}

/// Does what the launcher says over stdin, and says over stdout what its ranks do.
///
/// Returns when all ranks have ended, when the launcher closes stdin, and when nothing was heard of it for
/// [`wire::SILENCE`]. Ranks that still run are killed then. Whatever goes wrong is told to the launcher.
pub(crate) fn run() {
    // A greeting of the shell may have left its line open.
    let _ = io::stdout().lock().write_all(b"\n");
    let (sender, happenings) = mpsc::channel();
    let asked = sender.clone();
    let signals = match Signals::forward(move |_| asked.send(Happening::Signalled).is_ok()) {
        Ok(signals) => signals,
        Err(err) => return say(&FromAgent::Failed(format!("cannot wait for signals: {err}"))),
    };
    // A thread that was there before would still take them.
    listen(sender.clone());
    let Some(first) = next_told(&happenings) else { return };
    match prepare(first) {
        Err(refusal) => say(&FromAgent::Refused(refusal)),
        Ok(ready) => {
            say(&FromAgent::Ready(ready));
            if let Some(Ok(ToAgent::Start(start))) = next_told(&happenings) {
                supervise(start, &signals, &happenings, &sender);
            }
        }
    }
}

/// Reads what the launcher says, in a thread.
fn listen(sender: Sender<Happening>) {
    thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            let told = serde_json::from_str(&line).map_err(|_| line);
            if sender.send(Happening::Told(told)).is_err() {
                return;
            }
        }
        // A closed channel means that all is over anyway.
        let _ = sender.send(Happening::Left);
    });
}

/// What the launcher says next, other than that it is alive; `None` when it is not.
fn next_told(happenings: &Receiver<Happening>) -> Option<Result<ToAgent, String>> {
    loop {
        match happenings.recv_timeout(wire::SILENCE) {
            Ok(Happening::Told(Ok(ToAgent::Ping))) => {}
            Ok(Happening::Told(told)) => return Some(told),
            Ok(Happening::Left | Happening::Ended | Happening::Signalled) | Err(_) => return None,
        }
    }
}

/// Writes a line to the launcher. One that has left hears nothing; that is noticed by what it says.
fn say(message: &FromAgent) {
    let line = wire::to_line(message);
    let mut stdout = io::stdout().lock();
    let _ = stdout.write_all(line.as_bytes()).and_then(|()| stdout.flush());
}

/// Makes sure that everything is here as it is at the launcher's, in the launcher's working directory.
fn prepare(first: Result<ToAgent, String>) -> Result<Ready, Refusal> {
    let own = env!("CARGO_PKG_VERSION");
    let wrong_version = || Refusal::Version { found: own.to_owned() };
    let Prepare { version, dir, recipe, fingerprint } = match first {
        Ok(ToAgent::Prepare(prepare)) => prepare,
        Err(line) if wire::version_of(&line).is_some_and(|version| version != own) => {
            return Err(wrong_version());
        }
        Ok(_) | Err(_) => {
            let reason = "the agent does not understand its launcher".to_owned();
            return Err(Refusal::Other { reason });
        }
    };
    if version != own {
        return Err(wrong_version());
    }
    std::env::set_current_dir(&dir).map_err(|err| Refusal::Folder { reason: err.to_string() })?;
    let bytes =
        std::fs::read(&recipe).map_err(|err| Refusal::NoRecipe { reason: err.to_string() })?;
    let found = sterna_launch::fingerprint(&bytes);
    if found != fingerprint {
        return Err(Refusal::OtherRecipe { found });
    }
    let free_port = super::free_port()
        .map_err(|err| Refusal::Other { reason: format!("cannot find a free port: {err}") })?;
    Ok(Ready { address: address(), free_port })
}

/// The address by which the launcher reached this host: `SSH_CONNECTION` is the client's address and port, then ours.
fn address() -> Option<String> {
    let connection = std::env::var(env_vars::SSH_CONNECTION).ok()?;
    connection.split_whitespace().nth(2).map(str::to_owned)
}

/// Runs the ranks to their end.
fn supervise(
    start: Start,
    signals: &Signals,
    happenings: &Receiver<Happening>,
    sender: &Sender<Happening>,
) {
    let Start { args, ranks: node } = start;
    let program = match super::own_program() {
        Ok(program) => program,
        Err(failure) => return say(&FromAgent::Failed(failure.message().to_owned())),
    };
    let command = || {
        let mut command = Command::new(&program);
        command.args(&args);
        command
    };
    let sender = sender.clone();
    let listener: Listener = Arc::new(move |said| match said {
        Said::Line { rank, stream, line } => say(&FromAgent::Output { rank, stream, line }),
        Said::Ended { rank, status, report } => {
            let report = report.and_then(|report| serde_json::to_value(report).ok());
            say(&FromAgent::Ended { rank, status, report });
            // A closed channel means that all is over anyway.
            let _ = sender.send(Happening::Ended);
        }
    });
    let mut num_running = node.ranks.len();
    let ranks = match LocalRanks::start(
        &node,
        Output::Lines,
        command,
        |command| signals.spawn(command),
        &listener,
    ) {
        Ok(ranks) => ranks,
        Err(failure) => return say(&FromAgent::Failed(failure.message().to_owned())),
    };
    let mut heard = Instant::now();
    while num_running > 0 {
        let patience = wire::SILENCE.saturating_sub(heard.elapsed());
        match happenings.recv_timeout(patience) {
            Ok(Happening::Ended) => num_running -= 1,
            // They may save; the launcher hears how they end.
            Ok(Happening::Signalled) => ranks.signal(Signal::SIGTERM),
            Ok(Happening::Told(told)) => {
                heard = Instant::now();
                if let Ok(ToAgent::Signal(signal)) = told
                    && let Ok(signal) = Signal::try_from(signal)
                {
                    ranks.signal(signal);
                }
            }
            Ok(Happening::Left)
            | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                ranks.signal(Signal::SIGKILL);
                return;
            }
        }
    }
}
