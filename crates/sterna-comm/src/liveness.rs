//! Who is alive, and who failed first.
//!
//! Gloo notices that a connection was closed, but tells an address, not a rank; a rank whose peers are all alive and
//! only stuck notices nothing. So each rank runs one thread with a store connection of its own, which every second
//!
//! 1. writes a sign of life, with how many operations the rank has started: `beat/RANK`;
//! 2. reads whether somebody has reported a failure: `failure`, written once, so that the first report stands.
//!
//! Rank 0's thread also watches the others' signs of life, and reports a rank that has been silent for a minute. When an
//! operation fails on some rank, that rank's thread watches too, and a silence of seconds is enough. A rank that gives
//! up reports itself. The store's own loss means that its host is gone.
//!
//! A rank that learns of the failure says so: `heard`. The rank that serves the store stays until all have, or else a
//! rank that looks a second later would find the store gone and blame its host.
//!
//! Only this thread talks to the store, so no caller ever waits for a store that does not answer.

use std::{
    fmt,
    str::FromStr,
    sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
    time::{Duration, Instant},
};

use sterna_torch_sys::{Error as TorchError, c10d::Store};

use crate::error::Progress;

/// Time between two signs of life.
const INTERVAL: Duration = Duration::from_secs(1);
/// Silence after which a rank counts as dead, once an operation has failed.
const SILENCE_AFTER_ERROR: Duration = Duration::from_secs(4);
/// Silence after which a rank counts as dead although nothing has failed. A busy machine must never reach it.
const SILENCE: Duration = Duration::from_mins(1);
/// How long an operation that failed waits to learn whose fault it was: a silence, and two intervals to see it.
const INQUIRY: Duration = Duration::from_secs(7);
/// How long a rank that gives up waits for its report to be written.
const REPORTING: Duration = Duration::from_secs(2);
/// How long the rank that serves the store waits, at the end, for the others to leave.
const FAREWELL: Duration = Duration::from_secs(30);
/// How long it waits, after a failure, for the others to learn of it: each looks every [`INTERVAL`], or is gone.
const HEARING: Duration = Duration::from_secs(3);

const FAILURE_KEY: &str = "failure";
/// Counts the ranks that know the failure.
const HEARD_KEY: &str = "heard";
/// Counts the ranks that left without one.
const FAREWELL_KEY: &str = "left";

/// The first failure known to the job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// A rank gave up and said why.
    Reported {
        /// The rank in the world.
        rank: usize,
        /// Its reason.
        reason: String,
    },
    /// A rank stopped giving signs of life.
    Silent {
        /// The rank in the world.
        rank: usize,
        /// For how long, in milliseconds.
        silent_ms: u64,
    },
    /// The store is gone, and with it the process that served it.
    StoreLost {
        /// The rank that served it, or none if the launcher did.
        server: Option<usize>,
        /// libtorch's reason.
        reason: String,
    },
}

impl Failure {
    /// The rank that failed, where it is a rank.
    pub fn rank(&self) -> Option<usize> {
        match *self {
            Failure::Reported { rank, .. } | Failure::Silent { rank, .. } => Some(rank),
            Failure::StoreLost { server, .. } => server,
        }
    }

    /// Where to look.
    pub(crate) fn hint(&self) -> String {
        match self {
            Failure::Reported { rank, .. } => format!("the cause is in the log of rank {rank}"),
            Failure::Silent { rank, .. } | Failure::StoreLost { server: Some(rank), .. } => {
                format!(
                    "see how the process of rank {rank} ended: killed for memory (`dmesg`), by a signal, or with its machine; or \
                     whether the network to it is cut"
                )
            }
            Failure::StoreLost { server: None, .. } => "see how the launcher ended".to_owned(),
        }
    }

    fn encode(&self) -> String {
        match self {
            Failure::Reported { rank, reason } => format!("reported {rank} {reason}"),
            Failure::Silent { rank, silent_ms } => format!("silent {rank} {silent_ms}"),
            Failure::StoreLost { .. } => unreachable!("a lost store holds no report of its loss"),
        }
    }

    fn decode(text: &str) -> Option<Self> {
        let mut words = text.splitn(3, ' ');
        let (kind, rank, rest) = (words.next()?, words.next()?, words.next()?);
        let rank = rank.parse().ok()?;
        match kind {
            "reported" => Some(Failure::Reported { rank, reason: rest.to_owned() }),
            "silent" => Some(Failure::Silent { rank, silent_ms: rest.parse().ok()? }),
            _ => None,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Reported { rank, reason } => write!(f, "rank `{rank}` failed: {reason}"),
            Failure::Silent { rank, silent_ms } => {
                let seconds = *silent_ms as f64 / 1e3;
                write!(f, "rank `{rank}` has given no sign of life for {seconds:.1} s")
            }
            Failure::StoreLost { server: Some(rank), reason } => {
                write!(f, "rank `{rank}`, which serves the rendezvous store, is gone: {reason}")
            }
            Failure::StoreLost { server: None, reason } => {
                write!(f, "the launcher's rendezvous store is gone: {reason}")
            }
        }
    }
}

/// What a rank says of itself in its sign of life.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Beat {
    /// Differs from the one before.
    serial: u64,
    num_started: u64,
    last: String,
}

impl fmt::Display for Beat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.serial, self.num_started, self.last)
    }
}

impl FromStr for Beat {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut words = text.splitn(3, ' ');
        let serial = words.next().unwrap_or_default().parse()?;
        let num_started = words.next().unwrap_or_default().parse()?;
        Ok(Self { serial, num_started, last: words.next().unwrap_or_default().to_owned() })
    }
}

/// What the callers ask of the thread, and what it knows.
#[derive(Default)]
struct State {
    stop: bool,
    /// A failure of this rank, to be reported.
    report: Option<Failure>,
    /// An operation has failed, so silence means more.
    inquiry: bool,
    beat: Beat,
    /// The last progress read from each rank while watching.
    progress: Vec<Progress>,
    /// When the store had last answered all that the thread asked it.
    answered: Option<Instant>,
}

struct Shared {
    state: Mutex<State>,
    /// Notified on every request to the thread, and on its every finding.
    changed: Condvar,
    failure: OnceLock<Failure>,
    /// What to do at the first failure, see [`Liveness::at_failure`].
    rescues: Mutex<Vec<Rescue>>,
}

type Rescue = Box<dyn FnOnce() + Send>;

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is plain data, so a panic elsewhere leaves it usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, failure: Failure) {
        // Under the lock, so that a waiter cannot miss it between its look and its sleep.
        let _state = self.lock();
        if self.failure.set(failure).is_ok() {
            self.changed.notify_all();
        }
    }

    /// Does what is to be done at a failure.
    fn rescue(&self) {
        let rescues =
            std::mem::take(&mut *self.rescues.lock().unwrap_or_else(PoisonError::into_inner));
        for rescue in rescues {
            rescue();
        }
    }

    fn wait_for_failure(
        &self,
        mut state: MutexGuard<'_, State>,
        limit: Duration,
    ) -> Option<Failure> {
        let started = Instant::now();
        while self.failure.get().is_none() && started.elapsed() < limit {
            let left = limit.saturating_sub(started.elapsed());
            state =
                self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        self.failure.get().cloned()
    }
}

/// The thread that knows who is alive, as its rank sees it.
pub(crate) struct Liveness {
    shared: Arc<Shared>,
    thread: Option<thread::JoinHandle<()>>,
    /// For the farewell, when the thread has ended.
    store: Store,
    world_size: usize,
    rank: usize,
    /// The rank that serves the store, or none if the launcher does.
    server: Option<usize>,
}

impl Liveness {
    /// Starts giving signs of life, and returns when every rank does.
    pub(crate) fn start(
        store: Store,
        rank: usize,
        world_size: usize,
        launcher_serves_store: bool,
    ) -> Result<Self, TorchError> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            failure: OnceLock::new(),
            rescues: Mutex::default(),
        });
        let server = (!launcher_serves_store).then_some(0);
        let watcher = Watcher {
            store: store.reconnected()?,
            shared: Arc::clone(&shared),
            rank,
            server,
            seen: Vec::new(),
        };
        watcher.beat(&Beat::default())?;
        for peer in 0..world_size {
            watcher.read_beat(peer)?;
        }
        let thread = thread::Builder::new()
            .name("sterna-liveness".to_owned())
            .spawn(move || watcher.run(world_size))
            .expect("a process that starts can start one more thread");
        Ok(Self { shared, thread: Some(thread), store, world_size, rank, server })
    }

    fn serves_store(&self) -> bool {
        self.server == Some(self.rank)
    }

    /// The first failure known here.
    pub(crate) fn failure(&self) -> Option<&Failure> {
        self.shared.failure.get()
    }

    /// Has the thread do something as soon as it knows of a failure: set free a rank that waits for its device, which nothing
    /// else can interrupt.
    pub(crate) fn at_failure(&self, rescue: impl FnOnce() + Send + 'static) {
        self.shared.rescues.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(rescue));
        if self.failure().is_some() {
            self.shared.rescue();
        }
    }

    /// Notes that this rank starts an operation.
    pub(crate) fn started(&self, op: &'static str, group: &'static str) {
        let beat = &mut self.shared.lock().beat;
        beat.num_started += 1;
        beat.last.clear();
        beat.last.push_str(op);
        beat.last.push_str(" on ");
        beat.last.push_str(group);
    }

    /// Tells every rank that this one gives up, and waits until that is written.
    pub(crate) fn report(&self, reason: &str) {
        let mut state = self.shared.lock();
        state.report = Some(Failure::Reported { rank: self.rank, reason: reason.to_owned() });
        self.shared.changed.notify_all();
        self.shared.wait_for_failure(state, REPORTING);
    }

    /// Finds out whose fault the failure of an operation is. Takes seconds where nobody has reported anything.
    pub(crate) fn inquire(&self) -> Option<Failure> {
        let mut state = self.shared.lock();
        state.inquiry = true;
        self.shared.changed.notify_all();
        self.shared.wait_for_failure(state, INQUIRY).or_else(|| self.find_mute_store())
    }

    /// Where the network to the store's host is cut, nothing says so: the thread waits for an answer for as long as TCP
    /// tries, a quarter of an hour.
    fn find_mute_store(&self) -> Option<Failure> {
        let mute = self.shared.lock().answered?.elapsed();
        if mute > SILENCE_AFTER_ERROR {
            let reason = format!("it has not answered for {:.1} s", mute.as_secs_f64());
            self.shared.record(Failure::StoreLost { server: self.server, reason });
        }
        self.failure().cloned()
    }

    /// This rank's progress, then that of the ranks that are behind it; or everybody's, if none is.
    pub(crate) fn behind(&self) -> Vec<Progress> {
        let state = self.shared.lock();
        let own = Progress {
            rank: self.rank,
            num_started: state.beat.num_started,
            last: state.beat.last.clone(),
        };
        let others: Vec<_> =
            state.progress.iter().filter(|peer| peer.rank != self.rank).cloned().collect();
        let behind: Vec<_> =
            others.iter().filter(|peer| peer.num_started < own.num_started).cloned().collect();
        let mut result = vec![own];
        result.extend(if behind.is_empty() { others } else { behind });
        result
    }

    /// Waits for the other ranks to be done with the store, if this process serves it.
    fn say_farewell(&self) -> Result<(), TorchError> {
        self.store.add(FAREWELL_KEY, 1)?;
        let started = Instant::now();
        while self.serves_store()
            && self.store.add(FAREWELL_KEY, 0)? < self.world_size as i64
            && started.elapsed() < FAREWELL
        {
            if self.store.contains(FAILURE_KEY)? {
                return self.wait_until_heard();
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Waits for the other ranks to learn of the failure from the store, if this process serves it.
    fn wait_until_heard(&self) -> Result<(), TorchError> {
        // A silent rank hears nothing.
        let is_silent = matches!(self.failure(), Some(Failure::Silent { .. }));
        let num_ranks = (self.world_size - usize::from(is_silent)) as i64;
        let started = Instant::now();
        // A rank either hears of the failure or has left before it.
        while self.serves_store()
            && self.store.add(HEARD_KEY, 0)? + self.store.add(FAREWELL_KEY, 0)? < num_ranks
            && started.elapsed() < HEARING
        {
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Leaves the store, and returns when this process may end.
    fn leave(&mut self) -> Result<(), TorchError> {
        // After a failure the thread may wait for a store that does not answer: it ends with the process.
        if self.failure().is_none()
            && let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            return Ok(());
        }
        // The thread may have learned of a failure at the last moment.
        if self.failure().is_some() { self.wait_until_heard() } else { self.say_farewell() }
    }
}

impl Drop for Liveness {
    fn drop(&mut self) {
        if thread::panicking() && self.failure().is_none() {
            self.report("panicked");
        }
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
        if let Err(error) = self.leave() {
            tracing::debug!(%error, "the store was gone before this rank left");
        }
    }
}

/// The body of the thread.
struct Watcher {
    store: Store,
    shared: Arc<Shared>,
    rank: usize,
    server: Option<usize>,
    /// Each rank's last sign of life and when it was new here; empty while not watching.
    seen: Vec<(Beat, Instant)>,
}

impl Watcher {
    fn run(mut self, world_size: usize) {
        let failure = match self.watch(world_size) {
            Ok(Some(failure)) => failure,
            Ok(None) => return,
            Err(error) => Failure::StoreLost { server: self.server, reason: error.to_string() },
        };
        // Before anybody here knows, so that the process cannot end without having said it.
        if !matches!(failure, Failure::StoreLost { .. })
            && let Err(error) = self.store.add(HEARD_KEY, 1)
        {
            tracing::debug!(%error, "the store was gone before this rank said that it knows of the failure");
        }
        self.shared.record(failure);
        self.shared.rescue();
    }

    /// Returns at the first failure, or with none when told to stop.
    fn watch(&mut self, world_size: usize) -> Result<Option<Failure>, TorchError> {
        loop {
            let (beat, report, inquiry) = {
                let state = self.shared.lock();
                let state = if state.stop || state.report.is_some() {
                    state
                } else {
                    self.shared
                        .changed
                        .wait_timeout(state, INTERVAL)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                };
                if state.stop && state.report.is_none() {
                    return Ok(None);
                }
                let mut state = state;
                state.answered = Some(Instant::now());
                state.beat.serial += 1;
                (state.beat.clone(), state.report.take(), state.inquiry)
            };
            if let Some(failure) = report {
                return self.publish(failure).map(Some);
            }
            self.beat(&beat)?;
            if self.store.contains(FAILURE_KEY)? {
                let text = self.store.get(FAILURE_KEY)?;
                return Ok(Failure::decode(&String::from_utf8_lossy(&text)));
            }
            if inquiry || self.rank == 0 {
                let limit = if inquiry { SILENCE_AFTER_ERROR } else { SILENCE };
                if let Some(failure) = self.find_silent(world_size, limit)? {
                    return self.publish(failure).map(Some);
                }
            }
        }
    }

    fn beat(&self, beat: &Beat) -> Result<(), TorchError> {
        self.store.set(&format!("beat/{}", self.rank), beat.to_string().as_bytes())
    }

    fn read_beat(&self, rank: usize) -> Result<Beat, TorchError> {
        let text = self.store.get(&format!("beat/{rank}"))?;
        // Only ranks of this job write here, all by `Beat`'s own rules.
        Ok(String::from_utf8_lossy(&text).parse().unwrap_or_default())
    }

    /// Reports a failure, and returns the one that stands: another rank may have been first.
    fn publish(&self, failure: Failure) -> Result<Failure, TorchError> {
        let first = self.store.set_if_absent(FAILURE_KEY, failure.encode().as_bytes())?;
        Ok(Failure::decode(&String::from_utf8_lossy(&first)).unwrap_or(failure))
    }

    fn find_silent(
        &mut self,
        world_size: usize,
        limit: Duration,
    ) -> Result<Option<Failure>, TorchError> {
        let mut progress = Vec::with_capacity(world_size);
        for rank in 0..world_size {
            let beat = self.read_beat(rank)?;
            progress.push(Progress {
                rank,
                num_started: beat.num_started,
                last: beat.last.clone(),
            });
            let now = Instant::now();
            match self.seen.get_mut(rank) {
                None => self.seen.push((beat, now)),
                Some(seen) if seen.0 != beat => *seen = (beat, now),
                Some((_, since)) if rank != self.rank && now - *since > limit => {
                    let silent_ms = (now - *since).as_millis() as u64;
                    return Ok(Some(Failure::Silent { rank, silent_ms }));
                }
                Some(_) => {}
            }
        }
        self.shared.lock().progress = progress;
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_survive_the_store() {
        for failure in [
            Failure::Reported { rank: 12, reason: "out of memory: 3 bytes".to_owned() },
            Failure::Reported { rank: 0, reason: String::new() },
            Failure::Silent { rank: 3, silent_ms: 4200 },
        ] {
            assert_eq!(Failure::decode(&failure.encode()), Some(failure));
        }
    }

    #[test]
    fn signs_of_life_survive_the_store() {
        for last in ["", "all_reduce on world"] {
            let beat = Beat { serial: 9, num_started: 17, last: last.to_owned() };
            assert_eq!(beat.to_string().parse(), Ok(beat));
        }
    }
}
