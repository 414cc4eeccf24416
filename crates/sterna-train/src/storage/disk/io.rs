//! The thread that moves bytes between tensors and the scratch file, in the order in which it was asked to.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc},
    thread::{self, JoinHandle},
};

use sterna_model::stage::{Stage, num_bytes};
use sterna_torch_sys::{
    copies::OnHost,
    file::{read_tensor_at, write_tensor_at},
};
use tch::Tensor;

use super::{
    extents::{FreeList, Placed},
    reserve,
};
use crate::error::TrainError;

/// How many tensors wait to be written at most: the three that a block keeps (its input, attention's output and
/// log-sum-exp) are written while the next block computes.
pub(super) const MAX_WRITES: usize = 3;

/// A scratch file and its thread, shared by everything that has a place in the file.
#[derive(Debug)]
pub(super) struct Io {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// A tensor that is being filled.
#[derive(Debug)]
pub(super) struct Reading(mpsc::Receiver<Tensor>);

#[derive(Debug)]
struct Shared {
    file: File,
    dir: PathBuf,
    state: Mutex<State>,
    /// Something to do, or the end.
    asked: Condvar,
    /// A write has ended.
    written: Condvar,
}

#[derive(Debug)]
struct State {
    jobs: VecDeque<Job>,
    /// Writes not ended, the one under way included.
    num_writes: usize,
    free: FreeList,
    /// The first transfer that failed. What comes after it could only be wrong.
    failure: Option<Failure>,
    has_ended: bool,
}

#[derive(Debug)]
enum Job {
    Write {
        offset: u64,
        source: OnHost,
    },
    /// The filled tensor goes to the sender.
    Read {
        offset: u64,
        tensor: Tensor,
        reader: mpsc::SyncSender<Tensor>,
    },
}

#[derive(Debug, Clone)]
struct Failure {
    action: &'static str,
    offset: u64,
    bytes: u64,
    source: Arc<io::Error>,
}

impl Io {
    /// A thread for `file`, of which `reserved_bytes` can be used before it grows.
    pub(super) fn start(file: File, dir: PathBuf, reserved_bytes: u64) -> Arc<Self> {
        let state = State {
            jobs: VecDeque::new(),
            num_writes: 0,
            free: FreeList::new(reserved_bytes),
            failure: None,
            has_ended: false,
        };
        let shared = Arc::new(Shared {
            file,
            dir,
            state: Mutex::new(state),
            asked: Condvar::new(),
            written: Condvar::new(),
        });
        let of_thread = Arc::clone(&shared);
        let thread = thread::spawn(move || of_thread.serve());
        Arc::new(Self { shared, thread: Some(thread) })
    }

    pub(super) fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// Finds a place for `bytes`.
    pub(super) fn allocate(&self, bytes: u64) -> Result<u64, TrainError> {
        let mut state = self.shared.lock()?;
        let Placed { offset, growth } = state.free.allocate(bytes);
        if growth > 0
            && let Err(errno) = reserve(&self.shared.file, offset, bytes)
        {
            state.free.free(offset, bytes);
            let source = Arc::new(errno.into());
            return Err(self.shared.error(Failure { action: "reserve", offset, bytes, source }));
        }
        Ok(offset)
    }

    /// Gives back the place of `bytes` at `offset`.
    pub(super) fn free(&self, offset: u64, bytes: u64) {
        self.shared.state().free.free(offset, bytes);
    }

    /// Writes `source` at `offset` some time soon, when it is there.
    pub(super) fn write(&self, offset: u64, source: OnHost) -> Result<(), TrainError> {
        let mut state = self.shared.lock()?;
        while state.num_writes >= MAX_WRITES {
            state = self.shared.written.wait(state).unwrap_or_else(PoisonError::into_inner);
            self.shared.check(&state)?;
        }
        state.num_writes += 1;
        state.jobs.push_back(Job::Write { offset, source });
        self.shared.asked.notify_one();
        Ok(())
    }

    /// Fills `tensor` from `offset` some time soon.
    pub(super) fn read(&self, offset: u64, tensor: Tensor) -> Result<Reading, TrainError> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let mut state = self.shared.lock()?;
        state.jobs.push_back(Job::Read { offset, tensor, reader: sender });
        self.shared.asked.notify_one();
        Ok(Reading(receiver))
    }

    /// The tensor of `reading`, once it is filled.
    pub(super) fn wait(&self, reading: &Reading) -> Result<Tensor, TrainError> {
        reading.0.recv().or_else(|mpsc::RecvError| {
            self.shared.check(&self.shared.state())?;
            unreachable!("a reading is dropped only after a failure")
        })
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        {
            let mut state = self.shared.state();
            // Nobody is left who could read it.
            state.jobs.clear();
            state.has_ended = true;
        }
        self.shared.asked.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while the lock was held is reported by whoever had it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, unless a transfer has failed.
    fn lock(&self) -> Result<MutexGuard<'_, State>, TrainError> {
        let state = self.state();
        self.check(&state)?;
        Ok(state)
    }

    fn check(&self, state: &State) -> Result<(), TrainError> {
        state.failure.as_ref().map_or(Ok(()), |failure| Err(self.error(failure.clone())))
    }

    fn error(&self, Failure { action, offset, bytes, source }: Failure) -> TrainError {
        TrainError::Disk { action, dir: self.dir.clone(), offset, bytes, source }
    }

    /// The thread's life.
    fn serve(&self) {
        while let Some(job) = self.next_job() {
            match job {
                Job::Write { offset, source } => {
                    let bytes = num_bytes(source.tensor());
                    let stage = Stage::Copy.enter_with(None, bytes);
                    let result = source
                        .wait()
                        .map_err(io::Error::other)
                        .and_then(|()| write_tensor_at(&self.file, source.tensor(), offset));
                    drop((source, stage));
                    let mut state = self.state();
                    state.num_writes -= 1;
                    if let Err(source) = result {
                        state.fail("write", offset, bytes, source);
                    }
                    self.written.notify_all();
                }
                Job::Read { offset, mut tensor, reader } => {
                    let _stage = Stage::Copy.enter_with(None, num_bytes(&tensor));
                    match read_tensor_at(&self.file, &mut tensor, offset) {
                        // Nobody waits for a tensor that was dropped.
                        Ok(()) => drop(reader.send(tensor)),
                        // Then the reader is dropped, and whoever waits looks for the failure.
                        Err(source) => {
                            self.state().fail("read", offset, num_bytes(&tensor), source);
                            self.written.notify_all();
                        }
                    }
                }
            }
        }
    }

    fn next_job(&self) -> Option<Job> {
        let mut state = self.state();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            if state.has_ended {
                return None;
            }
            state = self.asked.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl State {
    fn fail(&mut self, action: &'static str, offset: u64, bytes: u64, source: io::Error) {
        self.failure = Some(Failure { action, offset, bytes, source: Arc::new(source) });
        self.jobs.clear();
        self.num_writes = 0;
    }
}
