//! An operation under way.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sterna_torch_sys::{Error as TorchError, c10d};
use tch::TchError;

use crate::{
    error::{CommError, Site},
    group::Engine,
};

/// How often a wait looks up to see whether another rank has failed. Completion wakes it at once.
const LOOK_UP: Duration = Duration::from_millis(500);

/// What is left to do on this rank when the engine is done.
pub(crate) type Finish = Box<dyn FnOnce() -> Result<(), TchError> + Send>;

/// An operation under way. Its tensors belong to it until [`Work::wait`] returns.
#[must_use = "the output is complete, and an error known, only after `wait`"]
pub struct Work {
    pub(crate) op: &'static str,
    pub(crate) group: &'static str,
    /// None when there is nothing to wait for.
    pub(crate) running: Option<Running>,
    pub(crate) finish: Option<Finish>,
}

/// The engine's part of an operation.
pub(crate) struct Running {
    parts: Vec<c10d::Work>,
    engine: Arc<Engine>,
    started: Instant,
}

impl Running {
    pub(crate) fn new(parts: Vec<c10d::Work>, engine: Arc<Engine>) -> Self {
        Self { parts, engine, started: Instant::now() }
    }
}

impl Work {
    /// Waits until the operation is complete on this rank: its output may be read and its input overwritten.
    ///
    /// # Errors
    ///
    /// [`CommError::PeerFailed`] within seconds of another rank's death or report, [`CommError::Timeout`] when the time
    /// limit of [`crate::Comm::init`] has passed, [`CommError::Engine`] for anything else the engine says,
    /// [`CommError::Tensor`] if the result cannot be put together on this rank.
    pub fn wait(self) -> Result<(), CommError> {
        let Self { op, group, running, finish } = self;
        if let Some(running) = running {
            running.wait(op, group)?;
        }
        match finish {
            Some(finish) => finish().map_err(|source| CommError::Tensor { op, group, source }),
            None => Ok(()),
        }
    }
}

impl Running {
    fn wait(self, op: &'static str, group: &'static str) -> Result<(), CommError> {
        self.parts.iter().try_for_each(|part| self.wait_for_part(part, op, group))
    }

    fn wait_for_part(
        &self,
        part: &c10d::Work,
        op: &'static str,
        group: &'static str,
    ) -> Result<(), CommError> {
        let liveness = &self.engine.liveness;
        let site =
            || Site { op, group, rank: self.engine.world_rank, elapsed: self.started.elapsed() };
        loop {
            match part.wait_for(LOOK_UP) {
                Ok(true) => return Ok(()),
                Ok(false) => {
                    if let Some(failure) = liveness.failure() {
                        return Err(CommError::PeerFailed {
                            site: site(),
                            failure: failure.clone(),
                        });
                    }
                    if self.started.elapsed() < self.engine.timeout {
                        continue;
                    }
                    let site = site();
                    return Err(match liveness.inquire() {
                        Some(failure) => CommError::PeerFailed { site, failure },
                        None => CommError::Timeout { site, behind: liveness.behind() },
                    });
                }
                Err(source) => return Err(self.engine.explain(site(), source)),
            }
        }
    }
}

impl Engine {
    /// Finds out why the engine refused or gave up an operation.
    pub(crate) fn explain(&self, site: Site, source: TorchError) -> CommError {
        // A tensor the engine refuses says nothing about the other ranks.
        if matches!(source, TorchError::Torch { .. } | TorchError::OutOfMemory { .. }) {
            return CommError::Engine { site, source };
        }
        tracing::debug!(%site, %source, "an operation failed; asking who is alive");
        match self.liveness.inquire() {
            Some(failure) => CommError::PeerFailed { site, failure },
            None if matches!(source, TorchError::Timeout { .. }) => {
                CommError::Timeout { site, behind: self.liveness.behind() }
            }
            None => CommError::Engine { site, source },
        }
    }
}
