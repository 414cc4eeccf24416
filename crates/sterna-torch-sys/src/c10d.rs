//! c10d: the store where ranks find each other, and collectives over Gloo (tensors of the host) and NCCL (tensors of GPUs).
//!
//! This is the engine as it is. What a program wants (groups of a mesh, errors that name the rank that failed, groups of
//! one rank) is in `sterna-comm`.

use std::{net::TcpListener, os::fd::IntoRawFd, time::Duration};

use tch::Tensor;

use crate::{bridge::ffi, cuda, error::Error, tensor::borrow};

/// How a reduction combines what the ranks bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReduceOp {
    /// The sum.
    Sum,
    /// The smallest value.
    Min,
    /// The largest value.
    Max,
}

impl From<ReduceOp> for ffi::ReduceOp {
    fn from(op: ReduceOp) -> Self {
        match op {
            ReduceOp::Sum => ffi::ReduceOp::Sum,
            ReduceOp::Min => ffi::ReduceOp::Min,
            ReduceOp::Max => ffi::ReduceOp::Max,
        }
    }
}

// SAFETY: c10d::TCPStore guards its one connection with a mutex held for the whole of each request, and
// c10d::PrefixStore only forwards; the reference count of the handle is atomic.
unsafe impl Send for ffi::Store {}
// SAFETY: as for Send; every method of sterna::Store is const and does no more than one such request.
unsafe impl Sync for ffi::Store {}
// SAFETY: a c10d::Backend is not tied to the thread that built it. It is not Sync: ProcessGroupGloo numbers its
// collectives with plain integers.
unsafe impl Send for ffi::ProcessGroup {}
// SAFETY: c10d::Work is completed by one thread and awaited by another by design, under its own mutex.
unsafe impl Send for ffi::Work {}

/// libtorch counts time limits in whole milliseconds, and takes zero for "forever".
fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX).max(1)
}

/// A key-value store over TCP: one process serves it, every rank is a client of it (`c10d::TCPStore`).
///
/// Requests on one `Store` wait for each other; [`Store::reconnected`] opens another connection.
pub struct Store(cxx::UniquePtr<ffi::Store>);

impl Store {
    /// Connects to the store at `host`, trying again until it is served. `timeout` also limits each later request.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] or [`Error::Connection`] if there is no server within `timeout`.
    pub fn connect(host: &str, port: u16, timeout: Duration) -> Result<Self, Error> {
        let no_server = -1;
        Ok(Self(ffi::tcp_store(host, port, no_server, milliseconds(timeout))?))
    }

    /// Serves the store to whoever can reach `listener`, and is its first client. `timeout` limits each request.
    ///
    /// Left to itself, libtorch would listen on every address of the machine.
    ///
    /// # Errors
    ///
    /// [`Error::Connection`] if `listener` has no address, or the store no thread to run on.
    pub fn serve(listener: TcpListener, timeout: Duration) -> Result<Self, Error> {
        let bound =
            listener.local_addr().map_err(|err| Error::Connection { message: err.to_string() })?;
        let listener = listener.into_raw_fd();
        Ok(Self(ffi::tcp_store(
            &bound.ip().to_string(),
            bound.port(),
            listener,
            milliseconds(timeout),
        )?))
    }

    /// The same store and connection, with `prefix/` before every key.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`] only.
    pub fn prefixed(&self, prefix: &str) -> Result<Self, Error> {
        Ok(Self(self.0.prefixed(prefix)?))
    }

    /// The same store through a connection of its own, so that its requests wait for nobody else's.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] or [`Error::Connection`] if the server does not answer.
    pub fn reconnected(&self) -> Result<Self, Error> {
        Ok(Self(self.0.reconnected()?))
    }

    /// Sets a key.
    ///
    /// # Errors
    ///
    /// [`Error::Connection`] if the server is gone.
    pub fn set(&self, key: &str, value: &[u8]) -> Result<(), Error> {
        Ok(self.0.set(key, value)?)
    }

    /// Reads a key, waiting until somebody has set it.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] if nobody sets it in time, [`Error::Connection`] if the server is gone.
    pub fn get(&self, key: &str) -> Result<Vec<u8>, Error> {
        Ok(self.0.get(key)?)
    }

    /// Sets a key that nobody has set, and returns the value it then has: the first writer's.
    ///
    /// # Errors
    ///
    /// [`Error::Connection`] if the server is gone.
    pub fn set_if_absent(&self, key: &str, value: &[u8]) -> Result<Vec<u8>, Error> {
        // c10d treats an absent key as equal to an empty expectation.
        Ok(self.0.compare_set(key, &[], value)?)
    }

    /// Adds to a counter that starts at zero, and returns its new value.
    ///
    /// # Errors
    ///
    /// [`Error::Connection`] if the server is gone.
    pub fn add(&self, key: &str, amount: i64) -> Result<i64, Error> {
        Ok(self.0.add(key, amount)?)
    }

    /// Whether somebody has set the key. Does not wait.
    ///
    /// # Errors
    ///
    /// [`Error::Connection`] if the server is gone.
    pub fn contains(&self, key: &str) -> Result<bool, Error> {
        Ok(self.0.contains(key)?)
    }
}

/// Where an engine listens for its peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A network interface by name, as in `GLOO_SOCKET_IFNAME`.
    Interface(String),
    /// An address or name of this machine.
    Address(String),
}

/// A group of ranks with an engine that moves their tensors (`c10d::ProcessGroupGloo`, `c10d::ProcessGroupNCCL`).
///
/// Every method is collective: all ranks of the group must make the same calls, in the same order. Each starts the
/// operation on another thread and returns; until [`Work::wait_for`] says so, nobody may touch the tensors.
///
/// Dropping it waits for the operations still under way, up to the time limit.
pub struct ProcessGroup(cxx::UniquePtr<ffi::ProcessGroup>);

impl ProcessGroup {
    /// Connects to every peer over Gloo. Collective over the `size` ranks that share `store`.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] or [`Error::Connection`] if a peer does not come within `timeout`, [`Error::Torch`] if this
    /// machine has no such endpoint.
    pub fn gloo(
        store: &Store,
        rank: usize,
        size: usize,
        timeout: Duration,
        endpoint: &Endpoint,
    ) -> Result<Self, Error> {
        let (interface, address) = match endpoint {
            Endpoint::Interface(name) => (name.as_str(), ""),
            Endpoint::Address(address) => ("", address.as_str()),
        };
        let timeout_ms = milliseconds(timeout);
        Ok(Self(ffi::gloo_process_group(
            &store.0,
            rank as i32,
            size as i32,
            timeout_ms,
            interface,
            address,
        )?))
    }

    /// Connects to every peer over NCCL, at the first operation. Collective over the `size` ranks that share `store`, each with a
    /// GPU of its own, its current one.
    ///
    /// Operations run on NCCL's own stream. [`Work::wait_for`] makes the current stream wait and not the host; NCCL's watchdog
    /// ends the process when an operation takes longer than `timeout`.
    ///
    /// # Errors
    ///
    /// Those of [`cuda::load`], [`cuda::Error::NoNccl`] and [`cuda::Error::Nccl`], within [`Error::Cuda`].
    pub fn nccl(store: &Store, rank: usize, size: usize, timeout: Duration) -> Result<Self, Error> {
        let constructor = cuda::nccl_constructor()?;
        let timeout_ms = milliseconds(timeout);
        // SAFETY: the address is that of `sterna_new_nccl_process_group` in a library that is never unloaded, compiled from the
        // declaration in cpp/nccl_library.h by the same build.
        let group = unsafe {
            ffi::nccl_process_group(
                &store.0,
                rank as i32,
                size as i32,
                timeout_ms,
                constructor.as_ptr(),
            )
        };
        Ok(Self(group?))
    }

    /// Ends what is under way over NCCL; the group is of no more use. Does nothing to Gloo, which cannot.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`] if NCCL refuses.
    pub fn abort(&self) -> Result<(), Error> {
        Ok(self.0.abort()?)
    }

    /// The same group, for another thread to [`abort`](Self::abort).
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`] only.
    pub fn shared(&self) -> Result<Self, Error> {
        Ok(Self(self.0.shared()?))
    }

    /// Fills `output` with every rank's `input`, in rank order.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`] for tensors that are not dense and contiguous.
    pub fn all_gather_into_tensor(&self, output: &Tensor, input: &Tensor) -> Result<Work, Error> {
        Ok(Work(self.0.all_gather_into_tensor(borrow(output), borrow(input))?))
    }

    /// Reduces the ranks' `input`s and leaves each rank its slice, in rank order.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`] for tensors that are not dense and contiguous.
    pub fn reduce_scatter_tensor(
        &self,
        output: &Tensor,
        input: &Tensor,
        op: ReduceOp,
    ) -> Result<Work, Error> {
        Ok(Work(self.0.reduce_scatter_tensor(borrow(output), borrow(input), op.into())?))
    }

    /// Replaces `tensor` on every rank by the reduction over the ranks.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`] for a tensor that is not dense and contiguous.
    pub fn all_reduce(&self, tensor: &Tensor, op: ReduceOp) -> Result<Work, Error> {
        Ok(Work(self.0.all_reduce(borrow(tensor), op.into())?))
    }

    /// Sends `input_splits[r]` rows of `input` to each rank `r`, receives `output_splits[r]` rows from it into `output`.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`] for tensors that are not dense and contiguous. Splits that do not add up to a tensor's first dim
    /// are the [`Work`]'s error.
    pub fn all_to_all_single(
        &self,
        output: &Tensor,
        input: &Tensor,
        output_splits: &[i64],
        input_splits: &[i64],
    ) -> Result<Work, Error> {
        let (output, input) = (borrow(output), borrow(input));
        Ok(Work(self.0.all_to_all_single(output, input, output_splits, input_splits)?))
    }

    /// Replaces `tensor` on every rank by that of rank `root` of the group.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`] for a tensor that is not dense and contiguous.
    pub fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<Work, Error> {
        Ok(Work(self.0.broadcast(borrow(tensor), root as i64)?))
    }

    /// Completes when every rank has called it.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`] if the operation cannot be started.
    pub fn barrier(&self) -> Result<Work, Error> {
        Ok(Work(self.0.barrier()?))
    }

    /// Gives the engine up without waiting for the operations still under way.
    ///
    /// Gloo cannot cancel them, and its destructor waits for them, so the engine stays in memory until the process ends.
    pub fn abandon(self) {
        std::mem::forget(self.0);
    }
}

/// An operation under way. It keeps its tensors alive.
#[must_use = "an operation is complete, and its error known, only after `wait_for`"]
pub struct Work(cxx::UniquePtr<ffi::Work>);

impl Work {
    /// Whether it has ended, well or not.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`] only.
    pub fn is_completed(&self) -> Result<bool, Error> {
        Ok(self.0.is_completed()?)
    }

    /// Waits for the end of the operation; `false` if it is still under way after `timeout`.
    ///
    /// # Errors
    ///
    /// The operation's own: [`Error::Connection`] if a peer is gone, [`Error::Timeout`] if one did not answer within the
    /// time limit of the group.
    pub fn wait_for(&self, timeout: Duration) -> Result<bool, Error> {
        Ok(self.0.wait_for(milliseconds(timeout))?)
    }
}
