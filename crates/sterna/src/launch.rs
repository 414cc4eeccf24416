//! Starting the ranks of a run, here or on several hosts, and ending all of them when one ends badly.
//!
//! Ranks are told who they are by torchrun's variables, so a rank that we start and one that torchrun starts run the same
//! code. On this host ([`local`]) they share our terminal; on others ([`hosts`]) an agent of ours starts them and passes on
//! what they write. Why a rank failed comes back through a file ([`child`]), so that it is said once and the rank that
//! failed first is told from those that only noticed. What follows from a rank's end is decided in one place
//! ([`supervisor`]), wherever the rank ran.

pub(crate) mod agent;
pub(crate) mod child;
mod hosts;
mod local;
mod print;
pub(crate) mod resolve;
mod signals;
mod supervisor;

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::ops::Range;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use sterna_launch::wire::{NodeRanks, Prepare, Ready, Start};
use sterna_launch::{Job, Node, SshOptions};

use crate::env_vars;
use crate::report::{Exit, Failure};
use hosts::Hosts;
use local::{Listener, LocalRanks, Output, Said};
pub(crate) use print::print;
use signals::Signals;
use supervisor::{Again, Event, Setback, say};

/// How long after its loss a host is left alone before ranks are started there again: by then its agent has ended those
/// that were left, which would otherwise write to the same files.
const QUARANTINE: Duration = Duration::from_secs(70);

/// What to start.
pub(crate) struct Launch {
    /// Who runs which ranks.
    pub(crate) job: Job,
    pub(crate) place: Place,
    /// Address that rank 0 listens on, where it was said.
    pub(crate) master_addr: Option<String>,
    /// Port that rank 0 listens on; `None` takes a free one.
    pub(crate) master_port: Option<u16>,
    /// How often all ranks are started again after a failure.
    pub(crate) max_restarts: usize,
    /// How long ranks may take to save and end once they are asked to.
    pub(crate) stop_within: Duration,
    /// Whether to say nothing about starting ranks.
    pub(crate) quiet: bool,
    /// What stands after the program on the command line of each rank.
    pub(crate) rank_args: Vec<String>,
}

/// Which of the ranks are started from here, and how.
pub(crate) enum Place {
    /// Those of this host, which has this number.
    Here { node_rank: usize },
    /// Those of all hosts, each over ssh.
    Hosts {
        ssh: SshOptions,
        /// What must be the same on all hosts.
        prepare: Prepare,
        /// Variables for the ranks on top of those of their host.
        env: BTreeMap<String, String>,
    },
}

impl Launch {
    /// Whether this process may as well be the one rank there is.
    pub(crate) fn is_single_process(&self) -> bool {
        self.job.world_size() == 1
            && self.max_restarts == 0
            && matches!(self.place, Place::Here { .. })
    }
}

/// Starts this program as each rank and waits for all; again, if they fail and may be restarted.
///
/// # Errors
///
/// What the first rank that failed said, or how it ended; a host that cannot be reached or differs; an interrupt.
pub(crate) fn run(launch: &Launch) -> Result<(), Failure> {
    let (sender, events) = mpsc::channel();
    let asked = sender.clone();
    let signals = Signals::forward(move |signal| asked.send(Event::Signalled(signal)).is_ok())
        .map_err(|err| Failure::new(Exit::Failed, format!("cannot wait for signals: {err}")))?;
    let run = Run { launch, program: own_program()?, signals, sender, events };
    let mut restart_count = 0;
    loop {
        let Err(Setback { failure, again }) = run.attempt(restart_count) else {
            return Ok(());
        };
        // Whoever asked us to end while the last rank did wants no restart. What else came late is about that attempt.
        let is_wanted = asked_to_end(&run.events).is_none() && again != Again::Never;
        if !is_wanted || restart_count == launch.max_restarts {
            if std::io::stderr().is_terminal() {
                // A rank that ended suddenly has left its live line: what follows starts on a line of its own.
                let _ = std::io::stderr().write_all(b"\n");
            }
            return Err(failure);
        }
        restart_count += 1;
        let reason = failure.render();
        say(&format!("restart {restart_count} of {}: {}", launch.max_restarts, reason.trim_end()));
        if again == Again::WhenHostsAreEmpty {
            let seconds = QUARANTINE.as_secs();
            say(&format!("waiting {seconds} s, until no rank of before is left on any host"));
            run.wait(QUARANTINE)?;
        }
    }
}

/// What stays the same from one attempt to the next.
struct Run<'a> {
    launch: &'a Launch,
    program: PathBuf,
    signals: Signals,
    sender: Sender<Event>,
    events: Receiver<Event>,
}

impl Run<'_> {
    /// Starts all ranks once and waits for them.
    fn attempt(&self, restart_count: usize) -> Result<(), Setback> {
        match &self.launch.place {
            Place::Here { node_rank } => self.attempt_here(*node_rank, restart_count),
            Place::Hosts { ssh, prepare, env } => {
                self.attempt_on_hosts(ssh, prepare, env, restart_count)
            }
        }
    }

    fn attempt_here(&self, node_rank: usize, restart_count: usize) -> Result<(), Setback> {
        let Launch { job, master_addr, master_port, rank_args, stop_within, .. } = self.launch;
        let node = job.node(node_rank).map_err(|err| Failure::from_error(Exit::Usage, &err))?;
        let port = match *master_port {
            Some(port) => port,
            None => free_port().map_err(|err| {
                Failure::new(Exit::Failed, format!("cannot find a free port: {err}"))
            })?,
        };
        let addr = master_addr.as_deref().unwrap_or("127.0.0.1");
        let ranks = describe(job, node, (addr, port), restart_count, BTreeMap::new());
        if restart_count == 0 {
            self.announce_here(node_rank, &ranks);
        }
        let command = || {
            let mut command = Command::new(&self.program);
            command.args(rank_args);
            command
        };
        self.supervise_here(&ranks, command, *stop_within)
    }

    /// Runs `command` as each of `node`'s ranks.
    fn supervise_here(
        &self,
        node: &NodeRanks,
        command: impl Fn() -> Command,
        stop_within: Duration,
    ) -> Result<(), Setback> {
        let sender = self.sender.clone();
        let listener: Listener = Arc::new(move |said| match said {
            // Ranks of ours write for themselves.
            Said::Line { .. } => {}
            Said::Ended { rank, status, report } => {
                // A closed channel means that the launcher has made up its mind and is ending.
                let _ = sender.send(Event::Ended { rank, status, report });
            }
        });
        let spawn = |command: &mut Command| self.signals.spawn(command);
        let ranks = LocalRanks::start(node, Output::Ours, command, spawn, &listener)?;
        supervisor::wait(node.ranks.clone(), &self.events, &ranks, stop_within)
    }

    fn attempt_on_hosts(
        &self,
        ssh: &SshOptions,
        prepare: &Prepare,
        env: &BTreeMap<String, String>,
        restart_count: usize,
    ) -> Result<(), Setback> {
        let Launch { job, rank_args, stop_within, .. } = self.launch;
        if restart_count == 0 {
            self.announce_hosts();
        }
        let events = (&self.sender, &self.events);
        let connected = Hosts::connect(job.nodes(), ssh, &self.program, prepare, events);
        let (hosts, ready) = connected.map_err(|failure| match failure.exit {
            // Nothing has run yet: what is wrong is to be put right first.
            Exit::Failed if restart_count == 0 => Setback { failure, again: Again::Never },
            // The host that was lost may yet come back.
            Exit::Failed => Setback { failure, again: Again::WhenHostsAreEmpty },
            _ => failure.into(),
        })?;
        let (addr, port) = self.meeting_point(&ready)?;
        hosts.start(|node| Start {
            args: rank_args.clone(),
            ranks: describe(job, &job.nodes()[node], (&addr, port), restart_count, env.clone()),
        });
        supervisor::wait(0..job.world_size(), &self.events, &hosts, *stop_within)
    }

    /// Where rank 0 listens: on the first host, at the address by which we reached it.
    fn meeting_point(&self, ready: &[Ready]) -> Result<(String, u16), Failure> {
        let Launch { job, master_addr, master_port, .. } = self.launch;
        let (Some(first), Some(node)) = (ready.first(), job.nodes().first()) else {
            return Err(Failure::new(Exit::Failed, "there is no host"));
        };
        let port = master_port.unwrap_or(first.free_port);
        if let Some(addr) = master_addr {
            return Ok((addr.clone(), port));
        }
        let hint =
            "say with `--master_addr` by which address or name the other hosts reach the first";
        let Some(addr) = &first.address else {
            let message = format!(
                "`{}` does not know its address: sshd has not set SSH_CONNECTION",
                node.host
            );
            return Err(Failure::new(Exit::Usage, message).with_hint(hint.to_owned()));
        };
        let is_loopback = addr.parse().is_ok_and(|addr: IpAddr| addr.is_loopback());
        if is_loopback && job.nodes().len() > 1 {
            let message = format!(
                "`{}` is reached at {addr}, where the other hosts do not reach it",
                node.host
            );
            return Err(Failure::new(Exit::Usage, message).with_hint(format!(
                "{hint}, or write that into the hostfile instead of `{}`",
                node.host
            )));
        }
        Ok((addr.clone(), port))
    }

    fn announce_here(&self, node_rank: usize, node: &NodeRanks) {
        let Launch { job, quiet, .. } = self.launch;
        if *quiet {
            return;
        }
        let num_ranks = node.ranks.len();
        let mut threads = String::new();
        if std::env::var_os(env_vars::OMP_NUM_THREADS).is_none() {
            let n = child::threads_per_rank(num_ranks);
            threads = format!(", {n} CPU thread{} each", if n == 1 { "" } else { "s" });
        }
        let processes =
            format!("starting {num_ranks} process{}", if num_ranks == 1 { "" } else { "es" });
        if job.nodes().len() == 1 {
            say(&format!("{processes} on this host{threads}"));
        } else {
            say(&format!(
                "{processes} on this host, node {node_rank} of {}: {} of {}, which meet at {}:{}{threads}",
                job.nodes().len(),
                list_of_ranks(&node.ranks),
                node.world_size,
                node.master_addr,
                node.master_port,
            ));
        }
    }

    fn announce_hosts(&self) {
        let Launch { job, quiet, .. } = self.launch;
        if *quiet {
            return;
        }
        let num_hosts = job.nodes().len();
        let hosts = if num_hosts == 1 { "host" } else { "hosts" };
        say(&format!("starting {} ranks on {num_hosts} {hosts}:", job.world_size()));
        for Node { host, ranks, .. } in job.nodes() {
            say(&format!("  {host}: {}", list_of_ranks(ranks)));
        }
    }

    /// Waits, unless we are asked to end.
    fn wait(&self, time: Duration) -> Result<(), Failure> {
        let until = Instant::now() + time;
        loop {
            match self.events.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(Event::Signalled(signal)) => return Err(interrupted_by(signal)),
                Ok(Event::Ended { .. } | Event::Lost { .. }) => {}
                Err(_) => return Ok(()),
            }
        }
    }
}

/// What the ranks of `node` are told of themselves.
fn describe(
    job: &Job,
    node: &Node,
    (master_addr, master_port): (&str, u16),
    restart_count: usize,
    env: BTreeMap<String, String>,
) -> NodeRanks {
    NodeRanks {
        ranks: node.ranks.clone(),
        world_size: job.world_size(),
        master_addr: master_addr.to_owned(),
        master_port,
        restart_count,
        visible_devices: node.visible_devices.clone(),
        env,
    }
}

/// The first signal among the events that have come; the others are dropped.
fn asked_to_end(events: &Receiver<Event>) -> Option<Signal> {
    events.try_iter().find_map(|event| match event {
        Event::Signalled(signal) => Some(signal),
        Event::Ended { .. } | Event::Lost { .. } => None,
    })
}

fn interrupted_by(signal: Signal) -> Failure {
    let number = u8::try_from(signal as i32).unwrap_or_default();
    Failure::new(Exit::Interrupted(number), format!("interrupted by {signal}"))
}

fn list_of_ranks(ranks: &Range<usize>) -> String {
    match ranks.len() {
        1 => format!("rank {}", ranks.start),
        _ => format!("ranks {} to {}", ranks.start, ranks.end - 1),
    }
}

/// What starts a rank or an agent: the program that finds libtorch, which is not the same on every host, and becomes this one.
fn own_program() -> Result<PathBuf, Failure> {
    let engine = std::env::current_exe().map_err(|err| {
        Failure::new(Exit::Failed, format!("cannot find this program's own file: {err}"))
    })?;
    Ok(engine.with_file_name("sterna"))
}

/// A port that nobody listened on a moment ago.
fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?.local_addr()?.port())
}

#[cfg(test)]
mod tests;
