//! Copies between a GPU and pinned memory of the host, beside what the GPU computes.
//!
//! Each direction has a stream of its own. Nothing here makes the host wait but what says so; streams wait for one another by events.
//! All device memory belongs to the stream that computes, libtorch's current one:
//!
//! ```text
//! compute    | block 0 | block 1 |w| block 2 |       | block 2' |w| block 1' |
//! to host         `--> x0 `--> x1 `--> x2
//! to device                                     x1 -----^   x0 -----^
//! ```
//!
//! A tensor that leaves is held until [`Copies::release_sent`] has been called twice: then the computing stream waits for its copy (`w`), and
//! what allocates next may have its memory. A tensor that comes is allocated first, so its copy begins when what was
//! computed up to then is done, and runs beside what is computed next. Memory is thus used again in the order of the computing stream, and the
//! peak does not depend on how far the host runs ahead, as it does with libtorch's `record_stream`.

use std::{cell::RefCell, collections::VecDeque, fmt};

use cxx::UniquePtr;
use tch::{Device, Kind, Tensor};

use crate::{Error, bridge::ffi, event::Event, memory, tensor::borrow};

/// The streams that copy between one GPU and the host, for one thread of the host.
pub struct Copies {
    device_index: i32,
    to_host: UniquePtr<ffi::Stream>,
    to_device: UniquePtr<ffi::Stream>,
    /// What leaves since the last [`Copies::release_sent`].
    leaving: RefCell<Vec<Transfer>>,
    /// What was leaving before it.
    left: RefCell<Vec<Transfer>>,
    /// Memory of the host that is being read. In order, so the first one is done first.
    read: RefCell<VecDeque<Transfer>>,
}

/// A copy under way, and the memory that it reads and writes.
struct Transfer {
    done: Event,
    _source: Tensor,
    _target: Tensor,
}

/// A tensor of the host, written by a copy that may be under way. Its memory is pinned, but where it was made [`From`] a tensor
/// that is not: copies from that make the host wait.
pub struct OnHost {
    tensor: Tensor,
    written: Option<Event>,
}

/// A tensor of the device, written by a copy that may be under way.
pub struct InFlight {
    device_index: i32,
    tensor: Tensor,
    written: Event,
}

impl Copies {
    /// Streams for GPU `device_index`.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`] if there is no such device.
    pub fn new(device_index: usize) -> Result<Self, Error> {
        let device_index = device_index as i32;
        Ok(Self {
            device_index,
            to_host: ffi::new_stream(device_index)?,
            to_device: ffi::new_stream(device_index)?,
            leaving: RefCell::default(),
            left: RefCell::default(),
            read: RefCell::default(),
        })
    }

    /// Starts copying `source`, a tensor of the device with its elements one after the other, when what computes it is done. The result
    /// has memory of its own, counted as what the thread allocates for ([`memory::scope`]).
    ///
    /// Nobody may change `source` from here on.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`] if the host has none left, or the driver cannot pin it; [`Error::Operand`] if `source` has gaps;
    /// [`Error::Torch`] if the device has failed.
    pub fn to_host(&self, source: Tensor) -> Result<OnHost, Error> {
        self.let_go_of_what_is_read()?;
        let mut target = OnHost::empty(&source.size(), source.kind())?;
        self.to_host_at(source, &mut target, 0)?;
        Ok(target)
    }

    /// As [`Copies::to_host`], into the rows of `target` from `start` on.
    ///
    /// # Errors
    ///
    /// [`Error::Operand`] if `source` has gaps, or is not as these rows; [`Error::Torch`] if the device has failed.
    pub fn to_host_at(&self, source: Tensor, target: &mut OnHost, start: i64) -> Result<(), Error> {
        let rows = target.tensor.narrow(0, start, source.size()[0]);
        check(&source, &rows)?;
        let compute = ffi::current_stream(self.device_index)?;
        ffi::wait_event(&self.to_host, Event::record(&compute)?.of_c10())?;
        ffi::copy_on(&self.to_host, borrow(&rows), borrow(&source))?;
        let done = Event::record(&self.to_host)?;
        target.written = Some(done.clone());
        self.leaving.borrow_mut().push(Transfer { done, _source: source, _target: rows });
        Ok(())
    }

    /// Lets go of the device memory of what was leaving before the last call: what is computed from here on begins when its copies are
    /// done. To be called once for each block.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`] if the device has failed.
    pub fn release_sent(&self) -> Result<(), Error> {
        let compute = ffi::current_stream(self.device_index)?;
        for Transfer { done, .. } in &*self.left.borrow() {
            ffi::wait_event(&compute, done.of_c10())?;
        }
        self.left.replace(self.leaving.take());
        Ok(())
    }

    /// Starts copying `source` to the device, when it is written and what has been asked of the device so far is done.
    ///
    /// # Errors
    ///
    /// [`Error::Operand`] if `source` has gaps; [`Error::Torch`] if the device has failed.
    ///
    /// # Panics
    ///
    /// If the device has no memory left, as every op does.
    pub fn to_device(&self, source: &OnHost) -> Result<InFlight, Error> {
        let options = (source.tensor.kind(), Device::Cuda(self.device_index as usize));
        let target = Tensor::empty(source.tensor.size(), options);
        let written = self.start_to_device(source, &target)?;
        Ok(InFlight { device_index: self.device_index, tensor: target, written })
    }

    /// As [`Copies::to_device`], into memory that is there already, which nobody reads before
    /// [`Copies::wait_all`].
    ///
    /// # Waiting
    ///
    /// For the oldest copy to the device when sixteen are under way, so that a host which is faster than the copies does not fill its
    /// memory with what they read.
    ///
    /// # Errors
    ///
    /// [`Error::Operand`] if `source` has gaps, or is not as `target`; [`Error::Torch`] if the device has failed.
    pub fn to_device_at(&self, source: &OnHost, target: &Tensor) -> Result<(), Error> {
        const MAX_UNDER_WAY: usize = 16;
        self.start_to_device(source, target)?;
        let mut read = self.read.borrow_mut();
        while read.len() > MAX_UNDER_WAY
            && let Some(first) = read.pop_front()
        {
            ffi::wait_on_host(first.done.of_c10())?;
        }
        Ok(())
    }

    /// What is computed from here on begins when every copy to the device is done.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`] if the device has failed.
    pub fn wait_all(&self) -> Result<(), Error> {
        let compute = ffi::current_stream(self.device_index)?;
        Ok(ffi::wait_event(&compute, Event::record(&self.to_device)?.of_c10())?)
    }

    /// Runs `body`, which starts something with a tensor that is in flight, as the next thing after the copies to the device. It must not
    /// allocate memory of the device, which would belong to the copies' stream.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`] if the device has failed.
    pub fn after_copies<T>(&self, body: impl FnOnce() -> T) -> Result<T, Error> {
        let _compute = CurrentStream::set(&self.to_device)?;
        Ok(body())
    }

    fn start_to_device(&self, source: &OnHost, target: &Tensor) -> Result<Event, Error> {
        check(&source.tensor, target)?;
        let compute = ffi::current_stream(self.device_index)?;
        ffi::wait_event(&self.to_device, Event::record(&compute)?.of_c10())?;
        if let Some(written) = &source.written {
            ffi::wait_event(&self.to_device, written.of_c10())?;
        }
        ffi::copy_on(&self.to_device, borrow(target), borrow(&source.tensor))?;
        let done = Event::record(&self.to_device)?;
        self.let_go_of_what_is_read()?;
        self.read.borrow_mut().push_back(Transfer {
            done: done.clone(),
            _source: source.tensor.shallow_clone(),
            _target: target.shallow_clone(),
        });
        Ok(done)
    }

    /// Waits until every copy is done. The host may then read and write what was copied, and the device what came.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`] if the device has failed.
    pub fn synchronize(&self) -> Result<(), Error> {
        for stream in [&self.to_host, &self.to_device] {
            ffi::wait_on_host(Event::record(stream)?.of_c10())?;
        }
        self.leaving.take();
        self.left.take();
        self.read.take();
        Ok(())
    }

    /// Gives memory of the host back whose copies to the device are done, for the next one to find.
    fn let_go_of_what_is_read(&self) -> Result<(), Error> {
        let mut read = self.read.borrow_mut();
        while let Some(first) = read.front()
            && ffi::has_happened(first.done.of_c10())?
        {
            read.pop_front();
        }
        Ok(())
    }
}

impl OnHost {
    /// Uninitialised, for the host or [`Copies::to_host_at`] to write.
    ///
    /// # Errors
    ///
    /// As [`memory::pinned`].
    pub fn empty(size: &[i64], kind: Kind) -> Result<Self, Error> {
        Ok(Self { tensor: memory::pinned(size, kind)?, written: None })
    }

    /// The same memory as the host sees it: to be read and written when its copies are done, after [`OnHost::wait`] or
    /// [`Copies::synchronize`].
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// Blocks the host until it is written.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`] if the device has failed.
    pub fn wait(&self) -> Result<(), Error> {
        self.written.as_ref().map_or(Ok(()), |written| Ok(ffi::wait_on_host(written.of_c10())?))
    }

    /// Whether it was written by a copy from a device.
    pub fn is_from_device(&self) -> bool {
        self.written.is_some()
    }

    /// A view of rows `start..start + len`.
    #[must_use]
    pub fn narrow(&self, start: i64, len: i64) -> Self {
        Self { tensor: self.tensor.narrow(0, start, len), written: self.written.clone() }
    }
}

impl From<Tensor> for OnHost {
    /// What the host has written.
    fn from(tensor: Tensor) -> Self {
        Self { tensor, written: None }
    }
}

impl InFlight {
    /// The tensor, for what follows the copies on their stream ([`Copies::after_copies`]).
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// The tensor: what is computed from here on begins when it is there.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`] if the device has failed.
    pub fn wait(self) -> Result<Tensor, Error> {
        self.make_wait()?;
        Ok(self.tensor.shallow_clone())
    }

    fn make_wait(&self) -> Result<(), Error> {
        let compute = ffi::current_stream(self.device_index)?;
        Ok(ffi::wait_event(&compute, self.written.of_c10())?)
    }
}

impl Drop for InFlight {
    /// Memory that is still being written must not be the next tensor's.
    fn drop(&mut self) {
        // A device that cannot wait has failed, and nothing of it is used again.
        let _ = self.make_wait();
    }
}

/// The stream that was current before, and is again when this is dropped.
struct CurrentStream {
    before: UniquePtr<ffi::Stream>,
}

impl CurrentStream {
    fn set(stream: &ffi::Stream) -> Result<Self, Error> {
        Ok(Self { before: ffi::exchange_stream(stream)? })
    }
}

impl Drop for CurrentStream {
    fn drop(&mut self) {
        // It was current once, so it can be.
        let _ = ffi::exchange_stream(&self.before);
    }
}

impl Drop for Copies {
    /// What is being read must not be the next tensor's memory.
    fn drop(&mut self) {
        // A device that cannot wait has failed, and nothing of it is used again.
        let _ = self.synchronize();
    }
}

impl fmt::Debug for Copies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Copies").field("device_index", &self.device_index).finish_non_exhaustive()
    }
}

impl fmt::Debug for OnHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OnHost").field(&self.tensor).finish()
    }
}

impl fmt::Debug for InFlight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("InFlight").field(&self.tensor).finish()
    }
}

/// `host`, a small tensor, on `device`. On a GPU the host does not wait for it: libtorch keeps a pinned copy for as long as that is read.
///
/// # Panics
///
/// If there is no memory for it.
pub fn upload(host: Tensor, device: Device) -> Tensor {
    if device == Device::Cpu {
        return host;
    }
    let kind = host.kind();
    // What `pin_memory` calls: tch gives that one a device, of which libtorch warns each time.
    host.internal_pin_memory(device).to_device_(device, kind, true, false)
}

/// A copy that changes neither sizes nor dtype is one transfer; any other one would need memory of the stream that copies.
fn check(source: &Tensor, target: &Tensor) -> Result<(), Error> {
    if !source.is_contiguous() {
        return Err(Error::operand("source", source, "contiguous"));
    }
    if !target.is_contiguous() || target.kind() != source.kind() || target.size() != source.size() {
        return Err(Error::operand(
            "target",
            target,
            "contiguous, and of the source's size and dtype",
        ));
    }
    Ok(())
}
