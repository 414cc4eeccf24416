//! Starting one process a rank on this host, and ending all of them when one ends badly.
//!
//! Ranks are told who they are by torchrun's variables, so a rank that we start and one that torchrun starts run the same
//! code. They share our terminal; why a rank failed comes back through a file ([`child`]), so that it is said once and
//! the rank that failed first is told from those that only noticed.

pub(crate) mod child;

use std::io::{IsTerminal as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use std::os::unix::process::ExitStatusExt as _;

use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

use crate::env_vars;
use crate::report::{Exit, Failure};

/// How long the other ranks may take to say why, after one ended only because another did.
const GRACE_TO_EXPLAIN: Duration = Duration::from_secs(5);

/// How long a rank may take to end after SIGTERM, before SIGKILL.
const GRACE_TO_END: Duration = Duration::from_secs(3);

/// Where and how ranks meet.
pub(crate) struct Launch<'a> {
    /// Processes to start.
    pub(crate) world_size: usize,
    /// Address that rank 0 listens on.
    pub(crate) master_addr: &'a str,
    /// Port that rank 0 listens on; `None` takes a free one.
    pub(crate) master_port: Option<u16>,
    /// Threads of each rank; `None` leaves the environment as it is.
    pub(crate) num_threads: Option<usize>,
}

/// Starts this program once a rank with the arguments that it was started with, and waits for all.
///
/// # Errors
///
/// What the first rank that failed said, or how it ended; an interrupt.
pub(crate) fn run(launch: &Launch<'_>) -> Result<(), Failure> {
    let program = std::env::current_exe().map_err(|err| {
        Failure::new(Exit::Failed, format!("cannot find this program's own file: {err}"))
    })?;
    supervise(launch, || {
        let mut command = Command::new(&program);
        command.args(std::env::args_os().skip(1));
        command
    })
}

/// Threads for each of `world_size` ranks on this host; `None` when the user has decided.
pub(crate) fn threads_per_rank(world_size: usize) -> Option<usize> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    std::env::var_os(env_vars::OMP_NUM_THREADS).is_none().then(|| (cores / world_size).max(1))
}

/// What the launcher waits for.
enum Event {
    Ended { rank: usize, status: ExitStatus },
    Signalled(Signal),
}

/// Runs `command` once a rank and waits for all.
fn supervise(launch: &Launch<'_>, command: impl Fn() -> Command) -> Result<(), Failure> {
    let cannot = |what: &str, err: &dyn std::fmt::Display| {
        Failure::new(Exit::Failed, format!("cannot {what}: {err}"))
    };
    let reports = tempfile::Builder::new()
        .prefix("sterna-")
        .tempdir()
        .map_err(|err| cannot("make a temporary folder for the ranks' reports", &err))?;
    let port = match launch.master_port {
        Some(port) => port,
        None => free_port().map_err(|err| cannot("find a free port", &err))?,
    };
    let mut children = Vec::new();
    for rank in 0..launch.world_size {
        let mut command = command();
        command.stdin(Stdio::null());
        child::describe(&mut command, launch, rank, port, reports.path());
        // From this thread, which lives as long as the launcher: a rank is tied to the thread that started it.
        match command.spawn() {
            Ok(child) => children.push(child),
            Err(err) => {
                for child in &mut children {
                    // One that has ended is what we want.
                    let _ = child.kill();
                }
                return Err(cannot(&format!("start rank {rank}"), &err));
            }
        }
    }
    let (sender, events) = mpsc::channel();
    // After the ranks were started, or they would inherit our mask and not end on SIGTERM; before the threads that wait
    // for them, which must have it. A signal in between ends us, and the ranks with us.
    forward_signals(sender.clone()).map_err(|err| cannot("wait for signals", &err))?;
    let mut ranks = Ranks { pids: Vec::new() };
    for (rank, child) in children.into_iter().enumerate() {
        ranks.watch(child, rank, sender.clone());
    }
    drop(sender);
    let outcome = ranks.wait(&events, reports.path());
    if outcome.is_err() && std::io::stderr().is_terminal() {
        // A rank that ended suddenly has left its live line: what follows starts on a line of its own.
        let _ = std::io::stderr().write_all(b"\n");
    }
    outcome
}

/// Waits for signals that ask us to end, in a thread; the caller's thread and those it starts no longer take them.
/// A signal that whoever started us had us ignore, as nohup does SIGHUP, stays ignored.
fn forward_signals(sender: Sender<Event>) -> nix::Result<()> {
    // Where /proc is missing nothing is known to be ignored.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = ignored_signals(&status);
    let asks_to_end = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];
    let signals: SigSet =
        asks_to_end.into_iter().filter(|signal| !is_in(ignored, *signal)).collect();
    signals.thread_block()?;
    thread::spawn(move || {
        while let Ok(signal) = signals.wait() {
            if sender.send(Event::Signalled(signal)).is_err() {
                break;
            }
        }
    });
    Ok(())
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

/// A port that nobody listened on a moment ago.
fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// The processes that still run.
struct Ranks {
    /// `None` for a rank that has ended, so that a process that got its id since is never signalled.
    pids: Vec<Option<Pid>>,
}

/// A rank that ended badly, and what it left to say.
struct Casualty {
    rank: usize,
    failure: Failure,
    /// Whether this is worth showing: not the consequence of another rank's end or of our own signal.
    is_cause: bool,
}

impl Ranks {
    /// Reports the end of `child` as an event.
    fn watch(&mut self, mut child: Child, rank: usize, sender: Sender<Event>) {
        self.pids.push(Some(Pid::from_raw(child.id().cast_signed())));
        thread::spawn(move || {
            // A process of ours can always be waited for: nobody else does, and it is waited for once.
            if let Ok(status) = child.wait() {
                // A closed channel means that the launcher has made up its mind and is ending.
                let _ = sender.send(Event::Ended { rank, status });
            }
        });
    }

    /// Waits until every rank has ended. After a bad end or a signal, the rest is ended.
    fn wait(&mut self, events: &Receiver<Event>, reports: &Path) -> Result<(), Failure> {
        let mut casualties: Vec<Casualty> = Vec::new();
        let mut interrupted: Option<Signal> = None;
        let mut ending = Ending::No;
        while self.pids.iter().any(Option::is_some) {
            let event = match ending.deadline() {
                None => events.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(deadline) => {
                    events.recv_timeout(deadline.saturating_duration_since(Instant::now()))
                }
            };
            match event {
                Ok(Event::Ended { rank, status }) => {
                    self.pids[rank] = None;
                    // Ctrl-C reaches the ranks as well as us, and they may be faster.
                    if status.signal() == Some(Signal::SIGINT as i32) {
                        interrupted = interrupted.or(Some(Signal::SIGINT));
                    }
                    if !status.success() {
                        casualties.push(casualty(rank, status, reports, ending.signalled()));
                    }
                }
                Ok(Event::Signalled(signal)) if interrupted.is_none() => interrupted = Some(signal),
                // Someone asked a second time: at once.
                Ok(Event::Signalled(_)) => {
                    self.signal_all(Signal::SIGKILL);
                    ending = Ending::Killed;
                }
                Err(RecvTimeoutError::Timeout) => ending = self.escalate(&ending),
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if !ending.signalled()
                && (interrupted.is_some() || casualties.iter().any(|casualty| casualty.is_cause))
            {
                self.signal_all(Signal::SIGTERM);
                ending = Ending::Terminated { kill_at: Instant::now() + GRACE_TO_END };
            } else if matches!(ending, Ending::No) && !casualties.is_empty() {
                ending = Ending::Explaining { end_at: Instant::now() + GRACE_TO_EXPLAIN };
            }
        }
        if let Some(signal) = interrupted {
            let number = u8::try_from(signal as i32).unwrap_or_default();
            return Err(Failure::new(
                Exit::Interrupted(number),
                format!("interrupted by {signal}"),
            ));
        }
        let first_cause = casualties.iter().position(|casualty| casualty.is_cause).unwrap_or(0);
        match casualties.into_iter().nth(first_cause) {
            None => Ok(()),
            Some(Casualty { rank, failure, .. }) => Err(failure.of_rank(rank)),
        }
    }

    /// What follows when a deadline has passed.
    fn escalate(&self, ending: &Ending) -> Ending {
        match ending {
            Ending::Explaining { .. } => {
                self.signal_all(Signal::SIGTERM);
                Ending::Terminated { kill_at: Instant::now() + GRACE_TO_END }
            }
            Ending::No | Ending::Terminated { .. } | Ending::Killed => {
                self.signal_all(Signal::SIGKILL);
                Ending::Killed
            }
        }
    }

    fn signal_all(&self, signal: Signal) {
        for pid in self.pids.iter().flatten() {
            // A rank that has ended since is what we want.
            let _ = kill(*pid, signal);
        }
    }
}

/// How far we are in ending the ranks.
enum Ending {
    No,
    /// A rank ended because another did; the other is about to say why.
    Explaining {
        end_at: Instant,
    },
    /// SIGTERM was sent.
    Terminated {
        kill_at: Instant,
    },
    /// SIGKILL was sent.
    Killed,
}

impl Ending {
    fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Explaining { end_at } => Some(*end_at),
            Self::Terminated { kill_at } => Some(*kill_at),
            Self::No | Self::Killed => None,
        }
    }

    /// Whether a rank that ends by a signal may have got it from us.
    fn signalled(&self) -> bool {
        matches!(self, Self::Terminated { .. } | Self::Killed)
    }
}

/// Reads what the rank said, or says how it ended.
fn casualty(rank: usize, status: ExitStatus, reports: &Path, we_signalled: bool) -> Casualty {
    if let Some(failure) = child::read_report(reports, rank) {
        let is_cause = !failure.is_about_peer;
        return Casualty { rank, failure, is_cause };
    }
    let Some(signal) = status.signal() else {
        let code = status.code().unwrap_or_default();
        let message = format!("the process exited with code {code} and did not say why");
        return Casualty { rank, failure: Failure::new(Exit::Failed, message), is_cause: true };
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
    Casualty { rank, failure, is_cause: !we_signalled }
}

#[cfg(test)]
mod tests;
