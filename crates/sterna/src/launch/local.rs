//! Ranks on this host, as processes of ours: the launcher's own, or an agent's.

use std::io::{self, BufRead as _, BufReader, Read};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use sterna_launch::wire::{NodeRanks, Status, Stream};
use tempfile::TempDir;

use super::child;
use super::supervisor::Ranks;
use crate::report::{Exit, Failure};

/// A longer line is taken in pieces.
const MAX_LINE: u64 = 64 << 10;

/// How long a rank's last lines may take after its end. Only a process that it left behind holds its streams open.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What ranks do.
pub(super) enum Said {
    /// One wrote a line.
    Line { rank: usize, stream: Stream, line: String },
    /// One has ended.
    Ended { rank: usize, status: Status, report: Option<Failure> },
}

/// Is told what ranks do, from several threads.
pub(super) type Listener = Arc<dyn Fn(Said) + Send + Sync>;

/// Where ranks write to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Output {
    /// To our own stdout and stderr.
    Ours,
    /// To the listener, line by line.
    Lines,
}

/// The ranks of this host.
pub(super) struct LocalRanks {
    running: Arc<Running>,
    /// Where failing ranks say why.
    _reports: TempDir,
}

/// The ranks that have not ended.
#[derive(Default)]
struct Running(Mutex<Vec<Pid>>);

impl Running {
    fn lock(&self) -> MutexGuard<'_, Vec<Pid>> {
        // The list is whole whenever the lock is free.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signal(&self, signal: Signal) {
        for pid in self.lock().iter() {
            // One that is ending is what we want.
            let _ = kill(*pid, signal);
        }
    }

    /// Waits for the end of `child`, which nobody can signal from the moment on when its id may be another's.
    fn wait(&self, child: &mut Child) -> io::Result<ExitStatus> {
        let pid = Pid::from_raw(child.id().cast_signed());
        waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)?;
        let mut running = self.lock();
        running.retain(|other| *other != pid);
        child.wait()
    }
}

impl LocalRanks {
    /// Starts the ranks of `node` as `command`, by `spawn`. Call it from a thread that lives as long as they: a rank is tied to the
    /// thread that started it.
    ///
    /// # Errors
    ///
    /// If one cannot be started; those that were are killed.
    pub(super) fn start(
        node: &NodeRanks,
        output: Output,
        command: impl Fn() -> Command,
        spawn: impl Fn(&mut Command) -> io::Result<Child>,
        listener: &Listener,
    ) -> Result<Self, Failure> {
        let cannot = |what: &str, err: &dyn std::fmt::Display| {
            Failure::new(Exit::Failed, format!("cannot {what}: {err}"))
        };
        let reports = tempfile::Builder::new()
            .prefix("sterna-")
            .tempdir()
            .map_err(|err| cannot("make a temporary folder for the ranks' reports", &err))?;
        let running = Arc::new(Running::default());
        for rank in node.ranks.clone() {
            let mut command = command();
            command.stdin(Stdio::null());
            if output == Output::Lines {
                command.stdout(Stdio::piped()).stderr(Stdio::piped());
            }
            child::describe(&mut command, node, rank, reports.path());
            match spawn(&mut command) {
                Ok(child) => {
                    running.lock().push(Pid::from_raw(child.id().cast_signed()));
                    watch(child, rank, Arc::clone(&running), reports.path(), Arc::clone(listener));
                }
                Err(err) => {
                    running.signal(Signal::SIGKILL);
                    return Err(cannot(&format!("start rank {rank}"), &err));
                }
            }
        }
        Ok(Self { running, _reports: reports })
    }
}

impl Ranks for LocalRanks {
    fn signal(&self, signal: Signal) {
        self.running.signal(signal);
    }

    fn host(&self, _rank: usize) -> Option<&str> {
        None
    }
}

/// Tells `listener` what `child` writes and how it ends.
fn watch(mut child: Child, rank: usize, running: Arc<Running>, reports: &Path, listener: Listener) {
    let (open, closed) = mpsc::channel();
    if let Some(stdout) = child.stdout.take() {
        forward(stdout, rank, Stream::Stdout, Arc::clone(&listener), open.clone());
    }
    if let Some(stderr) = child.stderr.take() {
        forward(stderr, rank, Stream::Stderr, Arc::clone(&listener), open.clone());
    }
    drop(open);
    let reports = reports.to_owned();
    thread::spawn(move || {
        let waited = running.wait(&mut child);
        await_last_words(&closed);
        let status = match waited {
            Ok(exit) => status_of(exit),
            // A process of ours can always be waited for: nobody else does, and it is waited for once.
            Err(_) => Status::Code(1),
        };
        listener(Said::Ended { rank, status, report: child::read_report(&reports, rank) });
    });
}

/// Returns when both streams have ended, or after [`LAST_WORDS`].
fn await_last_words(closed: &Receiver<()>) {
    // Nothing is ever sent: the channel closes when both threads have dropped their end.
    let _ = closed.recv_timeout(LAST_WORDS);
}

/// Hands each line of `stream` to `listener`.
fn forward(
    stream: impl Read + Send + 'static,
    rank: usize,
    kind: Stream,
    listener: Listener,
    open: Sender<()>,
) {
    thread::spawn(move || {
        let _open = open;
        read_lines(stream, |line| listener(Said::Line { rank, stream: kind, line }));
    });
}

/// Calls `take` with each line of `stream`, without its end, until there are no more.
pub(super) fn read_lines(stream: impl Read, mut take: impl FnMut(String)) {
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        match stream.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => break,
            Ok(_) => {
                let text = String::from_utf8_lossy(&line);
                take(text.trim_end_matches(['\n', '\r']).to_owned());
            }
        }
    }
}

fn status_of(exit: ExitStatus) -> Status {
    match (exit.code(), exit.signal()) {
        (Some(code), _) => Status::Code(code),
        (None, signal) => Status::Signal(signal.unwrap_or_default()),
    }
}
