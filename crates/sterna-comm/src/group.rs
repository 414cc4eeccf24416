//! A set of ranks and the operations among them.

use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use sterna_torch_sys::{
    Error as TorchError,
    c10d::{self, ProcessGroup, ReduceOp},
};
use tch::{Device, Kind, TchError, Tensor};

use crate::{
    error::{CommError, Site},
    liveness::Liveness,
    work::{Running, Work},
};

/// The connections of one group. Groups of the same ranks share one.
pub(crate) struct Engine {
    /// Gloo, for tensors of the host. Empty only while being dropped. The lock keeps the order of operations the same for all
    /// ranks' counters.
    process_group: Mutex<Option<ProcessGroup>>,
    /// NCCL, for tensors of GPUs, where each rank has one of its own ([`crate::Comm::connect_gpus`]).
    gpus: OnceLock<Mutex<ProcessGroup>>,
    pub(crate) liveness: Arc<Liveness>,
    pub(crate) world_rank: usize,
    pub(crate) timeout: Duration,
}

impl Engine {
    pub(crate) fn new(
        process_group: ProcessGroup,
        liveness: Arc<Liveness>,
        world_rank: usize,
        timeout: Duration,
    ) -> Self {
        Self {
            process_group: Mutex::new(Some(process_group)),
            gpus: OnceLock::new(),
            liveness,
            world_rank,
            timeout,
        }
    }

    /// Lets tensors of GPUs travel over `nccl`, which is aborted when the job fails.
    pub(crate) fn connect_gpus(&self, nccl: ProcessGroup) -> Result<(), TorchError> {
        let to_abort = nccl.shared()?;
        self.liveness.at_failure(move || {
            if let Err(error) = to_abort.abort() {
                tracing::debug!(%error, "NCCL was not aborted");
            }
        });
        assert!(self.gpus.set(Mutex::new(nccl)).is_ok(), "GPUs are connected once");
        Ok(())
    }

    /// Whether tensors of GPUs travel from GPU to GPU.
    pub(crate) fn connects_gpus(&self) -> bool {
        self.gpus.get().is_some()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let process_group =
            self.process_group.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        // After a failure some operation may never end, and the engine's own end would wait for it.
        if (self.liveness.failure().is_some() || std::thread::panicking())
            && let Some(process_group) = process_group
        {
            process_group.abandon();
        }
    }
}

/// A set of ranks and the operations among them. See the crate's documentation for the laws they obey.
///
/// Ranks are counted within the group. All tensors must be contiguous. In a group of one, nothing is sent: an operation
/// copies its input to its output.
#[derive(Clone)]
pub struct Group {
    pub(crate) name: &'static str,
    pub(crate) rank: usize,
    pub(crate) size: usize,
    /// None for a group of one.
    pub(crate) engine: Option<Arc<Engine>>,
}

impl Group {
    /// The name used in errors: `world`, `sp` or `dp`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// This process's number in the group.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Number of ranks in the group.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Replaces `tensor` on every rank by the reduction of all ranks' tensors. All ranks get the same bits.
    ///
    /// # Communication
    ///
    /// Each rank sends about twice the tensor, in a ring.
    ///
    /// # Numerics
    ///
    /// Sums are rounded to the tensor's dtype after every rank.
    ///
    /// # Errors
    ///
    /// [`CommError::NotContiguous`], and those of [`Work::wait`].
    pub fn all_reduce_(&self, tensor: &Tensor, op: ReduceOp) -> Result<(), CommError> {
        const OP: &str = "all_reduce_";
        self.check_contiguous(OP, "tensor", tensor)?;
        if self.is_staged(tensor) {
            return self
                .staged(OP, tensor, tensor, |host, _| {
                    self.start(OP, Device::Cpu, |engine| engine.all_reduce(host, op))
                })?
                .wait();
        }
        self.start(OP, tensor.device(), |engine| engine.all_reduce(tensor, op))?.wait()
    }

    /// Fills `output` with every rank's `input`, in rank order.
    ///
    /// # Shapes
    ///
    /// `output` has the group's size times the elements of `input`, and its dtype: `[n/w, ..] -> [n, ..]`.
    ///
    /// # Communication
    ///
    /// Over NCCL, its all-gather. Over Gloo, one broadcast from each rank, all under way together. Each rank receives
    /// `(w-1)/w` of `output`.
    ///
    /// # Memory
    ///
    /// None besides the arguments: what arrives is written to its place in `output`. c10d's all-gather over Gloo fills
    /// a second tensor of the size of `output` first. `input` may be this rank's slice of `output`.
    ///
    /// # Errors
    ///
    /// [`CommError::NotContiguous`], [`CommError::DTypeMismatch`], [`CommError::NumelMismatch`], [`CommError::Tensor`] if
    /// `input` cannot be copied to its place; those of [`Work::wait`].
    pub fn all_gather_into_tensor(
        &self,
        output: &Tensor,
        input: &Tensor,
    ) -> Result<Work, CommError> {
        const OP: &str = "all_gather_into_tensor";
        self.check_pair(OP, output, input)?;
        self.check_numel(OP, output, input.numel() as i64 * self.size as i64)?;
        if self.engine.is_none() {
            return self.copied(OP, output, input);
        }
        if self.is_staged(output) {
            return self.staged(OP, output, input, |output, input| {
                self.all_gather_into_tensor(output, input)
            });
        }
        if output.device().is_cuda() {
            return self
                .start(OP, output.device(), |engine| engine.all_gather_into_tensor(output, input));
        }
        let fail = |source| self.tensor_error(OP, source);
        // Detached, because what happens here is no part of any graph.
        let input = self.flat(OP, input)?.f_detach().map_err(fail)?;
        let output = self.flat(OP, output)?.f_detach().map_err(fail)?;
        if input.numel() == 0 {
            return Ok(Work { op: OP, group: self.name, running: None, finish: None });
        }
        let mut slices = output.f_split(input.numel() as i64, 0).map_err(fail)?;
        // This rank sends from its input, so the copy to its own slice needs not come first.
        let mut own = std::mem::replace(&mut slices[self.rank], input.shallow_clone());
        let work = self.start_all(OP, output.device(), |engine| {
            slices.iter().enumerate().map(|(root, slice)| engine.broadcast(slice, root)).collect()
        })?;
        own.f_copy_(&input).map_err(fail)?;
        Ok(work)
    }

    /// Reduces the ranks' `input`s and leaves each rank its slice, in rank order.
    ///
    /// # Shapes
    ///
    /// `input` has the group's size times the elements of `output`, and its dtype: `[n, ..] -> [n/w, ..]`.
    ///
    /// # Communication
    ///
    /// Over NCCL, its reduce-scatter. Over Gloo, one all-to-all; each rank sends `(w-1)/w` of `input`. Gloo has no
    /// reduce-scatter of its own: c10d's does an
    /// all-reduce of a copy of `input`, which sends twice as much, and it cannot be interrupted.
    ///
    /// # Memory
    ///
    /// One more tensor of the size of `input` until [`Work::wait`] returns.
    ///
    /// # Numerics
    ///
    /// Over Gloo, the slices are added in one pass over the ranks, with bf16 and fp16 accumulated in fp32 and rounded once. NCCL
    /// rounds to the tensor's dtype after every rank.
    ///
    /// # Errors
    ///
    /// [`CommError::NotContiguous`], [`CommError::DTypeMismatch`], [`CommError::NumelMismatch`], [`CommError::Tensor`] if
    /// the buffer cannot be allocated; those of [`Work::wait`].
    pub fn reduce_scatter_tensor(
        &self,
        output: &Tensor,
        input: &Tensor,
        op: ReduceOp,
    ) -> Result<Work, CommError> {
        const OP: &str = "reduce_scatter_tensor";
        self.check_pair(OP, output, input)?;
        let numel = input.numel() as i64;
        let size = self.size as i64;
        if numel % size != 0 || output.numel() as i64 != numel / size {
            return Err(CommError::NumelMismatch {
                op: OP,
                group: self.name,
                found: output.numel() as i64,
                required: numel / size,
            });
        }
        if self.engine.is_none() {
            return self.copied(OP, output, input);
        }
        if self.is_staged(output) {
            return self.staged(OP, output, input, |output, input| {
                self.reduce_scatter_tensor(output, input, op)
            });
        }
        if output.device().is_cuda() {
            return self.start(OP, output.device(), |engine| {
                engine.reduce_scatter_tensor(output, input, op)
            });
        }
        let (output, input) = (self.flat(OP, output)?, self.flat(OP, input)?);
        let received = input.f_empty_like().map_err(|source| self.tensor_error(OP, source))?;
        let splits = vec![numel / size; self.size];
        let mut work = self.start(OP, input.device(), |engine| {
            engine.all_to_all_single(&received, &input, &splits, &splits)
        })?;
        work.finish = Some(Box::new(move || reduce_rows(&output, &received, size, op)));
        Ok(work)
    }

    /// Sends a run of rows of `input` to each rank and receives one from each into `output`, both in rank order.
    ///
    /// # Shapes
    ///
    /// `input` is `[sum(input_splits), ..]`, `output` is `[sum(output_splits), ..]`, with the same trailing shape and
    /// dtype. Rank `r` receives `input_splits[r]` rows, which must be its `output_splits` entry for this rank. Empty
    /// runs are allowed.
    ///
    /// # Communication
    ///
    /// Each rank sends `input` but for its own run, to each peer directly.
    ///
    /// # Errors
    ///
    /// [`CommError::NotContiguous`], [`CommError::DTypeMismatch`], [`CommError::Splits`]; those of [`Work::wait`].
    pub fn all_to_all_single(
        &self,
        output: &Tensor,
        input: &Tensor,
        output_splits: &[i64],
        input_splits: &[i64],
    ) -> Result<Work, CommError> {
        const OP: &str = "all_to_all_single";
        self.check_pair(OP, output, input)?;
        self.check_splits(OP, "output", output, output_splits)?;
        self.check_splits(OP, "input", input, input_splits)?;
        if self.engine.is_none() {
            self.check_numel(OP, output, input.numel() as i64)?;
            return self.copied(OP, output, input);
        }
        let launch = |output: &Tensor, input: &Tensor| {
            self.start(OP, output.device(), |engine| {
                engine.all_to_all_single(output, input, output_splits, input_splits)
            })
        };
        if self.is_staged(output) {
            return self.staged(OP, output, input, launch);
        }
        launch(output, input)
    }

    /// Replaces `tensor` on every rank by that of rank `root` of the group.
    ///
    /// # Communication
    ///
    /// A tree; each rank receives the tensor once.
    ///
    /// # Errors
    ///
    /// [`CommError::NotContiguous`]; those of [`Work::wait`].
    ///
    /// # Panics
    ///
    /// If the group has no rank `root`.
    pub fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<Work, CommError> {
        const OP: &str = "broadcast";
        assert!(root < self.size, "a group of {} has no rank {root}", self.size);
        self.check_contiguous(OP, "tensor", tensor)?;
        let launch = |tensor: &Tensor, _: &Tensor| {
            self.start(OP, tensor.device(), |engine| engine.broadcast(tensor, root))
        };
        if self.is_staged(tensor) {
            return self.staged(OP, tensor, tensor, launch);
        }
        launch(tensor, tensor)
    }

    /// Returns when every rank has called it.
    ///
    /// # Errors
    ///
    /// Those of [`Work::wait`].
    pub fn barrier(&self) -> Result<(), CommError> {
        self.start("barrier", Device::Cpu, ProcessGroup::barrier)?.wait()
    }

    /// Gathers a byte string from every rank, of any length each, in rank order.
    ///
    /// # Errors
    ///
    /// [`CommError::Tensor`] if the strings do not fit in memory; those of [`Work::wait`].
    pub fn all_gather_bytes(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, CommError> {
        const OP: &str = "all_gather_bytes";
        if self.engine.is_none() {
            return Ok(vec![bytes.to_vec()]);
        }
        let fail = |source| self.tensor_error(OP, source);
        let lens = Tensor::f_zeros([self.size as i64], (Kind::Int64, Device::Cpu)).map_err(fail)?;
        let len = Tensor::from_slice(&[bytes.len() as i64]);
        self.all_gather_into_tensor(&lens, &len)?.wait()?;
        let lens: Vec<i64> = Vec::try_from(&lens).map_err(fail)?;
        let max_len = lens.iter().copied().max().unwrap_or(0) as usize;
        if max_len == 0 {
            return Ok(vec![Vec::new(); self.size]);
        }
        // Gloo gathers equal sizes, so each string is padded to the longest.
        let mut padded = bytes.to_vec();
        padded.resize(max_len, 0);
        let gathered = Tensor::f_zeros([(self.size * max_len) as i64], (Kind::Uint8, Device::Cpu))
            .map_err(fail)?;
        self.all_gather_into_tensor(&gathered, &Tensor::from_slice(&padded))?.wait()?;
        let gathered: Vec<u8> = Vec::try_from(&gathered).map_err(fail)?;
        let strings = gathered.chunks(max_len).zip(lens);
        Ok(strings.map(|(chunk, len)| chunk[..len as usize].to_vec()).collect())
    }

    /// Tells all ranks of the job that this one gives up: their pending and later operations fail with `reason`.
    ///
    /// Returns when the report is written, or after two seconds.
    pub fn abort(&self, reason: &str) {
        if let Some(engine) = &self.engine {
            engine.liveness.report(reason);
        }
    }

    /// Whether a tensor goes through the memory of the host: it is a GPU's, and the ranks' GPUs are not connected.
    fn is_staged(&self, tensor: &Tensor) -> bool {
        let is_connected = self.engine.as_ref().is_none_or(|engine| engine.connects_gpus());
        tensor.device().is_cuda() && !is_connected
    }

    /// Runs an operation on copies in the memory of the host, and copies its output back when it is awaited. `output` and `input`
    /// may be one tensor.
    fn staged(
        &self,
        op: &'static str,
        output: &Tensor,
        input: &Tensor,
        launch: impl FnOnce(&Tensor, &Tensor) -> Result<Work, CommError>,
    ) -> Result<Work, CommError> {
        let fail = |source| self.tensor_error(op, source);
        let to_host = |x: &Tensor| x.f_to_device(Device::Cpu).map_err(fail);
        let host_input = to_host(input)?;
        let is_in_place = output.data_ptr() == input.data_ptr() && output.numel() == input.numel();
        let host_output = if is_in_place {
            host_input.shallow_clone()
        } else {
            Tensor::f_empty(output.size(), (output.kind(), Device::Cpu)).map_err(fail)?
        };
        let mut work = launch(&host_output, &host_input)?;
        let mut output = output.shallow_clone();
        let before = work.finish.take();
        work.finish = Some(Box::new(move || {
            before.map_or(Ok(()), |finish| finish())?;
            output.f_copy_(&host_output)
        }));
        Ok(work)
    }

    /// Starts an operation, unless the job has failed already. `device` is that of the tensors that travel.
    fn start(
        &self,
        op: &'static str,
        device: Device,
        launch: impl FnOnce(&ProcessGroup) -> Result<c10d::Work, TorchError>,
    ) -> Result<Work, CommError> {
        self.start_all(op, device, |engine| Ok(vec![launch(engine)?]))
    }

    /// As [`Group::start`], for an operation that takes several of the engine's. All ranks launch them in one order.
    fn start_all(
        &self,
        op: &'static str,
        device: Device,
        launch: impl FnOnce(&ProcessGroup) -> Result<Vec<c10d::Work>, TorchError>,
    ) -> Result<Work, CommError> {
        let group = self.name;
        let Some(engine) = &self.engine else {
            return Ok(Work { op, group, running: None, finish: None });
        };
        let site = Site { op, group, rank: engine.world_rank, elapsed: Duration::ZERO };
        if let Some(failure) = engine.liveness.failure() {
            return Err(CommError::PeerFailed { site, failure: failure.clone() });
        }
        engine.liveness.started(op, group);
        let launched = if device.is_cuda() {
            let nccl = engine.gpus.get().expect("a tensor of a GPU is staged without NCCL");
            launch(&nccl.lock().unwrap_or_else(PoisonError::into_inner))
        } else {
            let gloo = engine.process_group.lock().unwrap_or_else(PoisonError::into_inner);
            launch(gloo.as_ref().expect("it is taken in Drop only"))
        };
        match launched {
            Ok(parts) => {
                let running = Some(Running::new(parts, Arc::clone(engine)));
                Ok(Work { op, group, running, finish: None })
            }
            Err(source) => Err(engine.explain(site, source)),
        }
    }

    /// What an operation does in a group of one.
    fn copied(&self, op: &'static str, output: &Tensor, input: &Tensor) -> Result<Work, CommError> {
        // A view of the same elements in the output's shape, so that copying broadcasts nothing.
        let input = input.f_view_as(output).map_err(|source| self.tensor_error(op, source))?;
        output.shallow_clone().f_copy_(&input).map_err(|source| self.tensor_error(op, source))?;
        Ok(Work { op, group: self.name, running: None, finish: None })
    }

    fn flat(&self, op: &'static str, tensor: &Tensor) -> Result<Tensor, CommError> {
        tensor.f_view([-1]).map_err(|source| self.tensor_error(op, source))
    }

    fn tensor_error(&self, op: &'static str, source: TchError) -> CommError {
        CommError::Tensor { op, group: self.name, source }
    }

    fn check_contiguous(
        &self,
        op: &'static str,
        name: &'static str,
        tensor: &Tensor,
    ) -> Result<(), CommError> {
        if tensor.is_contiguous() {
            return Ok(());
        }
        Err(CommError::NotContiguous { op, group: self.name, tensor: name })
    }

    fn check_pair(
        &self,
        op: &'static str,
        output: &Tensor,
        input: &Tensor,
    ) -> Result<(), CommError> {
        self.check_contiguous(op, "output", output)?;
        self.check_contiguous(op, "input", input)?;
        let (input, output) = (input.kind(), output.kind());
        if input == output {
            return Ok(());
        }
        Err(CommError::DTypeMismatch { op, group: self.name, input, output })
    }

    fn check_numel(
        &self,
        op: &'static str,
        output: &Tensor,
        required: i64,
    ) -> Result<(), CommError> {
        let found = output.numel() as i64;
        if found == required {
            return Ok(());
        }
        Err(CommError::NumelMismatch { op, group: self.name, found, required })
    }

    fn check_splits(
        &self,
        op: &'static str,
        name: &'static str,
        tensor: &Tensor,
        splits: &[i64],
    ) -> Result<(), CommError> {
        let num_rows = tensor.size().first().copied().unwrap_or(1);
        if splits.len() == self.size
            && splits.iter().all(|&split| split >= 0)
            && splits.iter().sum::<i64>() == num_rows
        {
            return Ok(());
        }
        Err(CommError::Splits {
            op,
            group: self.name,
            tensor: name,
            splits: splits.to_vec(),
            num_rows,
            group_size: self.size,
        })
    }
}

/// Reduces `received`, one row from each rank, to `output`.
fn reduce_rows(
    output: &Tensor,
    received: &Tensor,
    num_rows: i64,
    op: ReduceOp,
) -> Result<(), TchError> {
    let rows = received.f_view([num_rows, -1])?;
    let ranks = [0].as_slice();
    let _output = match op {
        // libtorch accumulates low-precision sums in fp32 and rounds once.
        ReduceOp::Sum => rows.f_sum_intlist_out(output, ranks, false, output.kind())?,
        ReduceOp::Min => rows.f_amin_out(output, ranks, false)?,
        ReduceOp::Max => rows.f_amax_out(output, ranks, false)?,
    };
    Ok(())
}
