//! Ranks on other hosts: an ssh to each, with an agent of ours at its other end.

mod reporter;

use std::io::Write as _;
use std::ops::Range;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use sterna_launch::wire::{self, Prepare, Ready, Start, ToAgent};
use sterna_launch::{Node, SshOptions, quote};

use super::supervisor::{Event, Ranks};
use crate::report::{Exit, Failure};
use reporter::{Notes, Reporter};

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
    /// Reaches every host by ssh, and returns when all are ready, with what each of them said.
    ///
    /// # Errors
    ///
    /// Everything that hosts lack, for all of them; an interrupt.
    pub(super) fn connect(
        nodes: &[Node],
        options: &SshOptions,
        program: &Path,
        prepare: &Prepare,
        events: (&Sender<Event>, &Receiver<Event>),
    ) -> Result<(Self, Vec<Ready>), Failure> {
        let (answers, answered) = mpsc::channel();
        let mut agents = Vec::new();
        for (node, Node { host, ranks, .. }) in nodes.iter().enumerate() {
            let reporter = Reporter {
                host: host.clone(),
                ranks: ranks.clone(),
                ssh: options.by_hand(host),
                program: quote(&program.to_string_lossy()),
                prepare: prepare.clone(),
                events: events.0.clone(),
            };
            let mut ssh = Command::new("ssh");
            ssh.args(options.args(host, &agent_command(program)));
            let agent = Agent::start(ssh, node, reporter, answers.clone())?;
            agent.tell(&ToAgent::Prepare(prepare.clone()));
            agents.push(agent);
        }
        drop(answers);
        let (alive, ended) = mpsc::channel();
        let stdins: Vec<_> = agents.iter().map(|agent| Arc::clone(&agent.stdin)).collect();
        thread::spawn(move || keep_alive(&ended, &stdins));
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
            match events.try_recv() {
                Ok(Event::Signalled(signal)) => return Err(super::interrupted_by(signal)),
                // A host that was ready has left while another was not yet.
                Ok(Event::Lost { failure, .. }) => return Err(failure),
                Ok(Event::Ended { .. }) | Err(_) => {}
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
        node: usize,
        reporter: Reporter,
        answers: Sender<Answer>,
    ) -> Result<Self, Failure> {
        ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Signals that ask to stop are for us: an ssh that ended by one would take its ranks along before they have saved
        // anything. It inherits that we do not take them, and Ctrl-C does not reach it.
        ssh.process_group(0);
        let mut ssh = ssh.spawn().map_err(|err| {
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
fn keep_alive(ended: &Receiver<()>, stdins: &[Arc<Mutex<Option<ChildStdin>>>]) {
    while ended.recv_timeout(wire::PING) == Err(RecvTimeoutError::Timeout) {
        for stdin in stdins {
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
