//! Waiting for ranks, wherever they run, and ending all of them when one ends badly or someone asks for it.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::ops::Range;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use sterna_launch::wire::Status;

use crate::report::{Exit, Failure};
use crate::signals::Asked;

/// How long the other ranks may take to say why, after one ended only because another did.
const GRACE_TO_EXPLAIN: Duration = Duration::from_secs(5);

/// How long a killed rank may take to be gone. Only one whose host does not answer, or that waits for a broken disk,
/// takes longer, and waiting for it helps nobody.
const GRACE_TO_VANISH: Duration = Duration::from_secs(10);

/// What a launcher waits for.
pub(super) enum Event {
    /// A rank has ended, and what it left to say.
    Ended { rank: usize, status: Status, report: Option<Failure> },
    /// Nothing more will be heard of these ranks.
    Lost { ranks: Range<usize>, failure: Failure },
    /// Someone asks us to end.
    Signalled(Signal),
}

/// Ranks that run.
pub(super) trait Ranks {
    /// Sends `signal` to each that has not ended.
    fn signal(&self, signal: Signal);

    /// Where `rank` runs, if that is worth saying.
    fn host(&self, rank: usize) -> Option<&str>;
}

/// Why ranks did not do what they were started for.
pub(super) struct Setback {
    pub(super) failure: Failure,
    pub(super) again: Again,
}

/// Whether, and when, the same could be tried again.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    /// It would fail again, or nobody wants it.
    Never,
    Now,
    /// Ranks may still run on a host of which nothing is heard.
    WhenHostsAreEmpty,
}

impl From<Failure> for Setback {
    fn from(failure: Failure) -> Self {
        let may_succeed = failure.exit == Exit::Failed && !failure.recurs;
        let again = if may_succeed { Again::Now } else { Again::Never };
        Self { failure, again }
    }
}

/// A rank that ended badly, or ranks that were lost.
struct Casualty {
    failure: Failure,
    /// Whether this is worth showing: not the consequence of another rank's end or of our own signal.
    is_cause: bool,
}

/// How far we are in ending the ranks.
#[derive(Clone, Copy)]
enum Ending {
    No,
    /// A rank ended because another did; the other is about to say why.
    Explaining {
        end_at: Instant,
    },
    /// Someone asked: SIGTERM was sent, and ranks may save what they have done.
    Stopping {
        kill_at: Instant,
    },
    /// SIGKILL was sent.
    Killed {
        give_up_at: Instant,
    },
}

impl Ending {
    fn deadline(self) -> Option<Instant> {
        match self {
            Self::No => None,
            Self::Explaining { end_at } => Some(end_at),
            Self::Stopping { kill_at } => Some(kill_at),
            Self::Killed { give_up_at } => Some(give_up_at),
        }
    }

    /// Whether a rank that ends by a signal may have got it from us.
    fn signalled(self) -> bool {
        matches!(self, Self::Stopping { .. } | Self::Killed { .. })
    }
}

/// Waits until each of `running` has ended.
///
/// After a bad end the rest is killed: without their peer they can do nothing more, and they must not try to save a
/// state that is only partly there. Asked to end, ranks get SIGTERM and `stop_within` to save; asked twice, or too slow,
/// they are killed.
///
/// # Errors
///
/// What the first rank that failed said, or how it ended; an interrupt.
pub(super) fn wait(
    running: Range<usize>,
    events: &Receiver<Event>,
    ranks: &dyn Ranks,
    stop_within: Duration,
) -> Result<(), Setback> {
    let mut running: BTreeSet<usize> = running.collect();
    let mut casualties: Vec<Casualty> = Vec::new();
    let mut interrupted: Option<Signal> = None;
    let mut ending = Ending::No;
    let mut has_lost_some = false;
    let mut asked = Asked::default();
    while !running.is_empty() {
        let event = match ending.deadline() {
            None => events.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(deadline) => {
                events.recv_timeout(deadline.saturating_duration_since(Instant::now()))
            }
        };
        match event {
            Ok(Event::Ended { rank, status, report }) => {
                running.remove(&rank);
                // Ctrl-C reaches the ranks as well as us, and they may be faster.
                interrupted = interrupted.or(interruption(status, report.as_ref()));
                if !status.is_success() {
                    let mut casualty = casualty(status, report, ending.signalled());
                    casualty.failure = casualty.failure.of_rank(rank).on_host(ranks.host(rank));
                    casualties.push(casualty);
                }
            }
            Ok(Event::Lost { ranks, failure }) => {
                has_lost_some = true;
                running.retain(|rank| !ranks.contains(rank));
                casualties.push(Casualty { failure, is_cause: true });
            }
            Ok(Event::Signalled(signal)) if !asked.is_again(signal) => {
                interrupted = interrupted.or(Some(signal));
            }
            // Someone asked again: at once, and then without us.
            Ok(Event::Signalled(_)) if matches!(ending, Ending::Killed { .. }) => break,
            Ok(Event::Signalled(_)) => ending = kill(ranks),
            Err(RecvTimeoutError::Timeout) => match ending {
                Ending::Killed { .. } => break,
                _ => ending = kill(ranks),
            },
            Err(RecvTimeoutError::Disconnected) => break,
        }
        let is_at_work = matches!(ending, Ending::No | Ending::Explaining { .. });
        if is_at_work && interrupted.is_some() {
            ranks.signal(Signal::SIGTERM);
            ending = Ending::Stopping { kill_at: Instant::now() + stop_within };
        } else if is_at_work && casualties.iter().any(|casualty| casualty.is_cause) {
            ending = kill(ranks);
        } else if matches!(ending, Ending::No) && !casualties.is_empty() {
            ending = Ending::Explaining { end_at: Instant::now() + GRACE_TO_EXPLAIN };
        }
    }
    if !running.is_empty() {
        let list: Vec<String> = running.iter().map(ToString::to_string).collect();
        say(&format!("ranks that have not confirmed their end: {}", list.join(", ")));
    }
    let may_leave_ranks = has_lost_some || !running.is_empty();
    outcome(casualties, interrupted).map_err(|failure| match Setback::from(failure) {
        Setback { failure, again: Again::Now } if may_leave_ranks => {
            Setback { failure, again: Again::WhenHostsAreEmpty }
        }
        setback => setback,
    })
}

fn kill(ranks: &dyn Ranks) -> Ending {
    ranks.signal(Signal::SIGKILL);
    Ending::Killed { give_up_at: Instant::now() + GRACE_TO_VANISH }
}

/// The signal that a rank ended by or because of, if it asked for an end.
fn interruption(status: Status, report: Option<&Failure>) -> Option<Signal> {
    match (report.map(|report| report.exit), status) {
        (Some(Exit::Interrupted(signal)), _) => Signal::try_from(i32::from(signal)).ok(),
        (_, Status::Signal(signal)) if signal == Signal::SIGINT as i32 => Some(Signal::SIGINT),
        _ => None,
    }
}

fn outcome(casualties: Vec<Casualty>, interrupted: Option<Signal>) -> Result<(), Failure> {
    let first_cause = casualties.iter().position(|casualty| casualty.is_cause);
    if let Some(signal) = interrupted {
        // All may have been at their end anyway.
        if casualties.is_empty() {
            return Ok(());
        }
        let failure = super::interrupted_by(signal);
        let saved = || {
            let is_saved = |failure: &&Failure| matches!(failure.exit, Exit::Interrupted(_));
            casualties.iter().map(|casualty| &casualty.failure).find(is_saved)
        };
        return Err(match (first_cause, saved()) {
            (Some(first), _) => failure.caused_by(&casualties[first].failure),
            (None, Some(saved)) => failure.explained_by(saved),
            (None, None) => failure,
        });
    }
    match casualties.into_iter().nth(first_cause.unwrap_or(0)) {
        None => Ok(()),
        Some(casualty) => Err(casualty.failure),
    }
}

/// What the rank said, or how it ended.
fn casualty(status: Status, report: Option<Failure>, we_signalled: bool) -> Casualty {
    if let Some(failure) = report {
        let is_interrupt = matches!(failure.exit, Exit::Interrupted(_));
        return Casualty { is_cause: !failure.is_about_peer && !is_interrupt, failure };
    }
    let signal = match status {
        Status::Signal(signal) => signal,
        Status::Code(code) => {
            let message = format!("the process exited with code {code} and did not say why");
            // A rank that we asked to end says in the way of shells that it did.
            let did_as_told = we_signalled && code == 128 + Signal::SIGTERM as i32;
            let failure = Failure::new(Exit::Failed, message);
            return Casualty { failure, is_cause: !did_as_told };
        }
    };
    let name = Signal::try_from(signal).map_or("unknown", Signal::as_str);
    let message = format!("the process was ended by signal {signal} ({name})");
    let hint = match Signal::try_from(signal) {
        Ok(Signal::SIGKILL) => Some(
            "someone killed it, or the system did because memory ran out (`dmesg | grep -i oom` tells); \
             `sterna check` shows what a rank needs",
        ),
        _ => None,
    };
    let failure = Failure::new(Exit::Failed, message).with_hint(hint.map(str::to_owned));
    // SIGINT was typed, and is told as an interrupt.
    Casualty { failure, is_cause: !we_signalled && signal != Signal::SIGINT as i32 }
}

/// Writes a line of the launcher to stderr, which may be closed.
pub(super) fn say(line: &str) {
    let _ = std::io::stderr().lock().write_all(format!("{line}\n").as_bytes());
}
