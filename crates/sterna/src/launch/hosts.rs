//! Ranks on other hosts: an ssh to each, with an agent of ours at its other end.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::ops::Range;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use sterna_launch::wire::{self, FromAgent, Prepare, Ready, Refusal, Start, Stream, ToAgent};
use sterna_launch::{Node, SshOptions, quote};

use super::supervisor::{Event, Ranks};
use crate::report::{Exit, Failure};

/// How long a host may take to say that everything is there. A file system that hangs must not hang us.
const ANSWER: Duration = Duration::from_mins(2);

/// How long agents may take to end once they are told to, before their ssh is killed.
const FAREWELL: Duration = Duration::from_secs(5);

/// Time between two looks at something that cannot wake us.
const LOOK: Duration = Duration::from_millis(20);

/// The command that an ssh runs on its host: nothing of the run is in it.
pub(super) fn agent_command(program: &Path) -> String {
    format!("exec {} agent", quote(&program.to_string_lossy()))
}

/// The agents of a run, in the order of the hosts.
pub(super) struct Hosts {
    agents: Vec<Agent>,
    /// Dropped, it ends the thread that says that we are alive.
    _alive: Sender<()>,
}

/// An agent and the ssh that leads to it.
struct Agent {
    host: String,
    ranks: Range<usize>,
    ssh: Arc<Mutex<Child>>,
    /// `None` once nothing more is to be said.
    stdin: Arc<Mutex<Option<ChildStdin>>>,
    reader: JoinHandle<()>,
}

/// What a host answers when it is asked whether everything is there.
struct Answer {
    node: usize,
    ready: Result<Ready, Failure>,
}

impl Hosts {
    /// Reaches every host by an ssh that `spawn` starts, and returns when all are ready, with what each of them said.
    ///
    /// # Errors
    ///
    /// Everything that hosts lack, for all of them; an interrupt.
    pub(super) fn connect(
        nodes: &[Node],
        options: &SshOptions,
        program: &Path,
        prepare: &Prepare,
        spawn: impl Fn(&mut Command) -> io::Result<Child>,
        events: (&Sender<Event>, &Receiver<Event>),
    ) -> Result<(Self, Vec<Ready>), Failure> {
        let (answers, answered) = mpsc::channel();
        let mut agents = Vec::new();
        for (node, Node { host, ranks, .. }) in nodes.iter().enumerate() {
            let reporter = Reporter {
                host: host.clone(),
                ranks: ranks.clone(),
                program: quote(&program.to_string_lossy()),
                prepare: prepare.clone(),
                events: events.0.clone(),
            };
            let mut ssh = Command::new("ssh");
            ssh.args(options.args(host, &agent_command(program)));
            let agent = Agent::start(ssh, &spawn, node, reporter, answers.clone())?;
            agent.tell(&ToAgent::Prepare(prepare.clone()));
            agents.push(agent);
        }
        drop(answers);
        let (alive, ended) = mpsc::channel();
        let stdins = agents.iter().map(|agent| Arc::clone(&agent.stdin)).collect();
        thread::spawn(move || keep_alive(&ended, stdins));
        let hosts = Self { agents, _alive: alive };
        let ready = hosts.await_answers(&answered, events.1)?;
        Ok((hosts, ready))
    }

    fn await_answers(
        &self,
        answered: &Receiver<Answer>,
        events: &Receiver<Event>,
    ) -> Result<Vec<Ready>, Failure> {
        let deadline = Instant::now() + ANSWER;
        let mut ready: Vec<Option<Ready>> = self.agents.iter().map(|_| None).collect();
        let mut failures: Vec<Option<Failure>> = self.agents.iter().map(|_| None).collect();
        let is_open = |ready: &[Option<Ready>], failures: &[Option<Failure>]| {
            ready.iter().zip(failures).any(|(ready, failure)| ready.is_none() && failure.is_none())
        };
        while is_open(&ready, &failures) && Instant::now() < deadline {
            match answered.recv_timeout(LOOK) {
                Ok(Answer { node, ready: Ok(answer) }) => ready[node] = Some(answer),
                Ok(Answer { node, ready: Err(failure) }) => failures[node] = Some(failure),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if let Some(signal) = super::asked_to_end(events) {
                return Err(super::interrupted_by(signal));
            }
        }
        for (node, agent) in self.agents.iter().enumerate() {
            if ready[node].is_none() && failures[node].is_none() {
                let message = format!("the host has not answered within {} s", ANSWER.as_secs());
                let failure = Failure::new(Exit::Failed, message)
                    .with_hint("see whether its file systems answer".to_owned());
                failures[node] = Some(failure.on_host(Some(&agent.host)));
            }
        }
        match Failure::all(failures.into_iter().flatten().collect()) {
            None => Ok(ready.into_iter().flatten().collect()),
            Some(failure) => Err(failure),
        }
    }

    /// Has each agent start its ranks: `start` says which.
    pub(super) fn start(&self, start: impl Fn(usize) -> Start) {
        for (node, agent) in self.agents.iter().enumerate() {
            agent.tell(&ToAgent::Start(start(node)));
        }
    }

    /// Ends every agent, and with it whatever rank still runs.
    fn end(&mut self) {
        for agent in &self.agents {
            agent.lock_stdin().take();
        }
        let deadline = Instant::now() + FAREWELL;
        for agent in self.agents.drain(..) {
            while !agent.reader.is_finished() && Instant::now() < deadline {
                thread::sleep(LOOK);
            }
            if !agent.reader.is_finished() {
                // An ssh that has ended is what we want.
                let _ = lock(&agent.ssh).kill();
            }
            // It has no panics to tell of.
            let _ = agent.reader.join();
        }
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        self.end();
    }
}

impl Ranks for Hosts {
    fn signal(&self, signal: Signal) {
        for agent in &self.agents {
            agent.tell(&ToAgent::Signal(signal as i32));
        }
    }

    fn host(&self, rank: usize) -> Option<&str> {
        let agent = self.agents.iter().find(|agent| agent.ranks.contains(&rank))?;
        Some(&agent.host)
    }
}

impl Agent {
    fn start(
        mut ssh: Command,
        spawn: impl Fn(&mut Command) -> io::Result<Child>,
        node: usize,
        reporter: Reporter,
        answers: Sender<Answer>,
    ) -> Result<Self, Failure> {
        ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Ctrl-C is for us: an ssh that ended by it would take its ranks along before they have saved anything.
        ssh.process_group(0);
        let mut ssh = spawn(&mut ssh).map_err(|err| {
            Failure::new(Exit::Failed, format!("cannot start `ssh`: {err}")).with_hint(
                "install the OpenSSH client, or start the ranks of each host there (`--no_ssh`)"
                    .to_owned(),
            )
        })?;
        let (Some(stdin), Some(stdout), Some(stderr)) =
            (ssh.stdin.take(), ssh.stdout.take(), ssh.stderr.take())
        else {
            return Err(Failure::new(Exit::Failed, "`ssh` has no pipes"));
        };
        let notes = Arc::new(Notes::new(&reporter.host));
        let (open, closed) = mpsc::channel();
        let taker = Arc::clone(&notes);
        thread::spawn(move || {
            let _open = open;
            super::local::read_lines(stderr, |line| taker.take(line));
        });
        let (host, ranks) = (reporter.host.clone(), reporter.ranks.clone());
        let ssh = Arc::new(Mutex::new(ssh));
        let waited_for = Arc::clone(&ssh);
        let reader = thread::spawn(move || {
            let end = || end_of(&waited_for, &closed);
            reporter.run(stdout, node, &notes, &answers, end);
        });
        Ok(Self { host, ranks, ssh, stdin: Arc::new(Mutex::new(Some(stdin))), reader })
    }

    fn lock_stdin(&self) -> MutexGuard<'_, Option<ChildStdin>> {
        lock(&self.stdin)
    }

    /// Says `message`. An ssh that has ended hears nothing, and tells by its end.
    fn tell(&self, message: &ToAgent) {
        write_to(&self.stdin, message);
    }
}

fn write_to(stdin: &Mutex<Option<ChildStdin>>, message: &ToAgent) {
    if let Some(stdin) = lock(stdin).as_mut() {
        let _ = stdin.write_all(wire::to_line(message).as_bytes()).and_then(|()| stdin.flush());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is locked here is whole whenever the lock is free.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says that we are alive until `ended` is closed.
fn keep_alive(ended: &Receiver<()>, stdins: Vec<Arc<Mutex<Option<ChildStdin>>>>) {
    while ended.recv_timeout(wire::PING) == Err(RecvTimeoutError::Timeout) {
        for stdin in &stdins {
            write_to(stdin, &ToAgent::Ping);
        }
    }
}

/// How `ssh`, whose stdout has ended, ends; all it has to say has been read then.
fn end_of(ssh: &Mutex<Child>, stderr_closed: &Receiver<()>) -> Option<ExitStatus> {
    let status = loop {
        match lock(ssh).try_wait() {
            Ok(None) => {}
            Ok(Some(status)) => break Some(status),
            Err(_) => break None,
        }
        thread::sleep(LOOK);
    };
    // A connection that ssh shares and leaves in the background keeps its stderr open.
    let _ = stderr_closed.recv_timeout(Duration::from_millis(500));
    status
}

/// What ssh and the remote shell write besides: the reason of a failure, or else passed on.
struct Notes {
    prefix: String,
    /// The lines so far, while it is open whether they are the reason of a failure.
    held: Mutex<Option<Vec<String>>>,
}

impl Notes {
    fn new(host: &str) -> Self {
        Self { prefix: format!("[{host}] "), held: Mutex::new(Some(Vec::new())) }
    }

    fn take(&self, line: String) {
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
struct Reporter {
    host: String,
    ranks: Range<usize>,
    /// Its path there, as a shell reads it.
    program: String,
    prepare: Prepare,
    events: Sender<Event>,
}

impl Reporter {
    fn run(
        self,
        stdout: ChildStdout,
        node: usize,
        notes: &Notes,
        answers: &Sender<Answer>,
        end: impl Fn() -> Option<ExitStatus>,
    ) {
        let mut stdout = BufReader::new(stdout);
        let ready = match self.next(&mut stdout, notes) {
            Some(FromAgent::Ready(ready)) => {
                notes.pass_on();
                Ok(ready)
            }
            Some(FromAgent::Refused(refusal)) => Err(self.refused(refusal)),
            Some(_) => {
                Err(self.failed("the agent has said something else than whether it is ready"))
            }
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
        while let Some(message) = self.next(&mut stdout, notes) {
            match message {
                FromAgent::Output { rank, stream, line } => {
                    print(stream, &format!("[rank {rank}] "), &line);
                }
                FromAgent::Ended { rank, status, report } => {
                    running.retain(|other| *other != rank);
                    let report = report.and_then(|report| serde_json::from_value(report).ok());
                    self.send(Event::Ended { rank, status, report });
                }
                FromAgent::Failed(message) => reason = Some(self.failed(&message)),
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

    /// The next message; what is none, such as a greeting of the remote shell, is passed on.
    fn next(&self, stdout: &mut BufReader<ChildStdout>, notes: &Notes) -> Option<FromAgent> {
        let mut line = Vec::new();
        loop {
            line.clear();
            match stdout.by_ref().read_until(b'\n', &mut line) {
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

    fn failed(&self, message: &str) -> Failure {
        Failure::new(Exit::Failed, message)
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
            Refusal::Other { reason } => return self.failed(&reason),
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
                    "`ssh -o BatchMode=yes {} true` must work here without a question; see the hostfile, `--ssh_port` and \
                     ~/.ssh/config",
                    self.host
                ),
            ),
            Some(126 | 127) => (
                format!("`{program}` does not start there"),
                format!(
                    "install the same build on every host, at the same path; `ssh {} {program} --version` shows what is wrong",
                    self.host
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
        let ranks = super::list_of_ranks(&self.ranks);
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
