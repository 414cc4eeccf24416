//! What an agent, and the ssh that leads to it, say: an answer, events, output, or the reason why there is none.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::ops::Range;
use std::process::{ChildStdout, ExitStatus};
use std::sync::Mutex;
use std::sync::mpsc::Sender;

use sterna_launch::wire::{self, FromAgent, Prepare, Refusal, Stream};

use super::{Answer, lock};
use crate::launch::list_of_ranks;
use crate::launch::supervisor::Event;
use crate::report::{Exit, Failure};

/// What ssh and the remote shell write besides: the reason of a failure, or else passed on.
pub(super) struct Notes {
    prefix: String,
    /// The lines so far, while it is open whether they are the reason of a failure.
    held: Mutex<Option<Vec<String>>>,
}

impl Notes {
    pub(super) fn new(host: &str) -> Self {
        Self { prefix: format!("[{host}] "), held: Mutex::new(Some(Vec::new())) }
    }

    pub(super) fn take(&self, line: String) {
        match lock(&self.held).as_mut() {
            Some(held) => held.push(line),
            None => print(Stream::Stderr, &self.prefix, &line),
        }
    }

    /// Passes on what came so far, and from now on each line as it comes.
    fn pass_on(&self) {
        for line in lock(&self.held).take().unwrap_or_default() {
            print(Stream::Stderr, &self.prefix, &line);
        }
    }

    /// What came so far.
    fn held(&self) -> Vec<String> {
        lock(&self.held).take().unwrap_or_default()
    }
}

/// Writes a line with a prefix to stdout or stderr, either of which may be closed.
fn print(stream: Stream, prefix: &str, line: &str) {
    let text = format!("{prefix}{line}\n");
    let _ = match stream {
        Stream::Stdout => io::stdout().lock().write_all(text.as_bytes()),
        Stream::Stderr => io::stderr().lock().write_all(text.as_bytes()),
    };
}

/// Reads what an agent says, and tells it as answer, events and output.
pub(super) struct Reporter {
    pub(super) host: String,
    pub(super) ranks: Range<usize>,
    /// How a person reaches the host as we do.
    pub(super) ssh: String,
    /// Our program's path there, as a shell reads it.
    pub(super) program: String,
    pub(super) prepare: Prepare,
    pub(super) events: Sender<Event>,
}

impl Reporter {
    pub(super) fn run(
        self,
        stdout: ChildStdout,
        node: usize,
        notes: &Notes,
        answers: &Sender<Answer>,
        end: impl Fn() -> Option<ExitStatus>,
    ) {
        let mut stdout = BufReader::new(stdout);
        let ready = match next(&mut stdout, notes) {
            Some(FromAgent::Ready(ready)) => {
                notes.pass_on();
                Ok(ready)
            }
            Some(FromAgent::Refused(refusal)) => Err(self.refused(refusal)),
            Some(_) => Err(failed("the agent has said something else than whether it is ready")),
            None => Err(self.never_started(end(), notes.held())),
        };
        let is_ready = ready.is_ok();
        // Closed when another host made the launcher give up.
        let _ = answers
            .send(Answer { node, ready: ready.map_err(|err| err.on_host(Some(&self.host))) });
        if !is_ready {
            return;
        }
        let mut running: Vec<usize> = self.ranks.clone().collect();
        let mut reason = None;
        while let Some(message) = next(&mut stdout, notes) {
            match message {
                FromAgent::Output { rank, stream, line } => {
                    print(stream, &format!("[rank {rank}] "), &line);
                }
                FromAgent::Ended { rank, status, report } => {
                    running.retain(|other| *other != rank);
                    let report = report.and_then(|report| serde_json::from_value(report).ok());
                    self.send(Event::Ended { rank, status, report });
                }
                FromAgent::Failed(message) => reason = Some(failed(&message)),
                FromAgent::Ready(_) | FromAgent::Refused(_) => {}
            }
        }
        let status = end();
        if !running.is_empty() {
            let failure = reason.unwrap_or_else(|| self.lost(status));
            self.send(Event::Lost {
                ranks: self.ranks.clone(),
                failure: failure.on_host(Some(&self.host)),
            });
        }
    }

    fn send(&self, event: Event) {
        // A closed channel means that the launcher has made up its mind and is ending.
        let _ = self.events.send(event);
    }

    fn refused(&self, refusal: Refusal) -> Failure {
        let Prepare { version, dir, recipe, fingerprint } = &self.prepare;
        let (message, hint) = match refusal {
            Refusal::Version { found } => (
                format!("`{}` there is sterna {found}, required: {version}, as here", self.program),
                "install the same build on every host, at the same path".to_owned(),
            ),
            Refusal::Folder { reason } => (
                format!("cannot change to the working directory `{dir}`: {reason}"),
                "start from a folder that all hosts have, such as one of a shared file system"
                    .to_owned(),
            ),
            Refusal::NoRecipe { reason } => (
                format!("cannot read the recipe `{recipe}` in `{dir}`: {reason}"),
                "put the recipe in a folder that all hosts share, or copy it to each".to_owned(),
            ),
            Refusal::OtherRecipe { found } => (
                format!(
                    "the recipe `{recipe}` in `{dir}` is another one: its SHA-256 is {found}, required: {fingerprint}, as here"
                ),
                format!("copy `{recipe}` to that host"),
            ),
            Refusal::Other { reason } => return failed(&reason),
        };
        Failure::new(Exit::Usage, message).with_hint(hint)
    }

    /// ssh has ended before the agent said a word.
    fn never_started(&self, status: Option<ExitStatus>, notes: Vec<String>) -> Failure {
        let program = &self.program;
        let (message, hint) = match status.and_then(|status| status.code()) {
            Some(255) => (
                "ssh cannot reach the host".to_owned(),
                format!(
                    "`{} true` must work here without a question; see the hostfile, `--ssh_port` and ~/.ssh/config",
                    self.ssh
                ),
            ),
            Some(126 | 127) => (
                format!("`{program}` does not start there"),
                format!(
                    "install the same build on every host, at the same path; `{} {program} --version` shows what is wrong",
                    self.ssh
                ),
            ),
            code => (
                format!(
                    "the agent ended before it answered{}",
                    code.map(|code| format!(", with status {code}")).unwrap_or_default()
                ),
                format!(
                    "`ssh {} {program} --version` must print {}",
                    self.host, self.prepare.version
                ),
            ),
        };
        Failure::new(Exit::Failed, message).with_hint(hint).with_causes(notes)
    }

    /// ssh has ended before the ranks of its agent have.
    fn lost(&self, status: Option<ExitStatus>) -> Failure {
        let ranks = list_of_ranks(&self.ranks);
        let message = match status {
            Some(status) if status.code() == Some(255) => {
                format!(
                    "the connection to {ranks} is lost: the host or the network in between is gone"
                )
            }
            Some(status) => format!("the agent of {ranks} is gone ({status})"),
            None => format!("the connection to {ranks} is lost"),
        };
        Failure::new(Exit::Failed, message).with_hint(format!(
            "see whether the host is up and why it left; whatever is left of {ranks} there ends by itself within {} s",
            wire::SILENCE.as_secs()
        ))
    }
}

/// The next message; what is none, such as a greeting of the remote shell, is passed on.
fn next(stdout: &mut BufReader<ChildStdout>, notes: &Notes) -> Option<FromAgent> {
    let mut line = Vec::new();
    loop {
        line.clear();
        match stdout.read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return None,
            Ok(_) => {}
        }
        match serde_json::from_slice(&line) {
            Ok(message) => return Some(message),
            Err(_) if line.trim_ascii().is_empty() => {}
            Err(_) => notes.take(String::from_utf8_lossy(&line).trim_end().to_owned()),
        }
    }
}

fn failed(message: &str) -> Failure {
    Failure::new(Exit::Failed, message)
}
