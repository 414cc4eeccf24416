//! Tensors on disk: an unlinked scratch file with one thread that reads ahead and writes behind.
//!
//! The file has no name, so the system frees it when the process ends, however that is. It is read and written with
//! `pread` and `pwrite`, not mapped: nothing of it counts as memory of the process, an error is an error and not a signal, and
//! what moves when is ours to say. The system's page cache stays in between and holds what the machine has room for.
//!
//! ```text
//! caller          write(t0) write(t1) ...  prefetch(t0)            read(t0)
//! thread             `-> t0    `-> t1          `-> reads t0 into memory -^     in this order
//! ```

mod extents;
mod io;

use std::{path::Path, sync::Arc};

use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, fallocate},
    sys::statvfs::statvfs,
};
use sterna_model::stage::num_bytes;
use sterna_torch_sys::{copies::OnHost, file::is_dense, memory::pinned};
use tch::{Device, Kind, Tensor};

use self::io::{Io, Reading};
use crate::error::TrainError;

/// A file of one rank for tensors that are not needed for a while.
#[derive(Debug)]
pub struct DiskScratch {
    io: Arc<Io>,
}

/// A tensor in a [`DiskScratch`]. Dropped unread, it gives its place back.
#[derive(Debug)]
pub struct DiskTensor {
    extent: Extent,
    size: Vec<i64>,
    stride: Vec<i64>,
    kind: Kind,
    /// Whether it goes back to a device, and is read into pinned memory for that.
    is_from_device: bool,
    reading: Option<Reading>,
}

/// Bytes of a [`DiskScratch`] that are read and rewritten in place, in slices.
#[derive(Debug)]
pub struct Region {
    extent: Extent,
}

/// A slice of a [`Region`] on its way into memory.
#[derive(Debug)]
pub struct SliceRead {
    io: Arc<Io>,
    reading: Reading,
}

/// A part of the file that nothing else uses.
#[derive(Debug)]
struct Extent {
    io: Arc<Io>,
    offset: u64,
    bytes: u64,
}

impl DiskScratch {
    /// Makes a scratch file in the folder `dir` and reserves `needed_bytes` for it, so that a disk without room is
    /// known before the first step. `needed_bytes` are this rank's own: ranks that share a disk each reserve theirs.
    ///
    /// Where the file system cannot reserve, a warning says so, and a disk that others fill ends the run later.
    ///
    /// # Errors
    ///
    /// [`TrainError::ScratchFolder`] if `dir` is no folder or cannot be written; [`TrainError::ScratchSpace`] if its disk
    /// has less room.
    pub fn create(dir: &Path, needed_bytes: u64) -> Result<Self, TrainError> {
        let folder_error = |source| TrainError::ScratchFolder { dir: dir.to_owned(), source };
        let file = tempfile::tempfile_in(dir).map_err(folder_error)?;
        let stat = statvfs(dir).map_err(|errno| folder_error(errno.into()))?;
        let free_bytes = stat.blocks_available() * stat.fragment_size();
        let no_space =
            || TrainError::ScratchSpace { dir: dir.to_owned(), free_bytes, needed_bytes };
        if needed_bytes > free_bytes {
            return Err(no_space());
        }
        let is_reserved = match reserve(&file, 0, needed_bytes) {
            Ok(is_reserved) => is_reserved,
            Err(Errno::ENOSPC | Errno::EFBIG | Errno::EDQUOT) => return Err(no_space()),
            Err(errno) => return Err(folder_error(errno.into())),
        };
        if !is_reserved {
            tracing::warn!(
                dir = %dir.display(),
                needed_bytes,
                free_bytes,
                "this file system cannot reserve space: a full disk would end the run when it is met"
            );
        }
        Ok(Self { io: Io::start(file, dir.to_owned(), needed_bytes) })
    }

    /// The folder that the file was made in.
    pub fn dir(&self) -> &Path {
        self.io.dir()
    }

    /// Starts writing `source`, a CPU tensor, which nobody may change from here on, or one that is coming from a device. Returns at once,
    /// unless three tensors (`MAX_WRITES`) are on their way already.
    ///
    /// A tensor with gaps is copied first; a view of a larger one keeps all of that in memory until it is written.
    ///
    /// # Errors
    ///
    /// [`TrainError::Disk`] if an earlier transfer failed or the file cannot grow.
    pub fn write(&self, source: impl Into<OnHost>) -> Result<DiskTensor, TrainError> {
        let source: OnHost = source.into();
        let source =
            if is_dense(source.tensor()) { source } else { source.tensor().contiguous().into() };
        let tensor = source.tensor();
        let (size, stride, kind) = (tensor.size(), tensor.stride(), tensor.kind());
        let is_from_device = source.is_from_device();
        let extent = self.extent(num_bytes(tensor))?;
        self.io.write(extent.offset, source)?;
        Ok(DiskTensor { extent, size, stride, kind, is_from_device, reading: None })
    }

    /// Starts reading `tensor`, so that [`DiskScratch::read`] finds it in memory. Costs its size from here on.
    ///
    /// # Errors
    ///
    /// [`TrainError::Disk`] if an earlier transfer failed.
    pub fn prefetch(&self, tensor: &mut DiskTensor) -> Result<(), TrainError> {
        if tensor.reading.is_none() {
            tensor.reading = Some(tensor.start_reading()?);
        }
        Ok(())
    }

    /// The tensor that was written, bit for bit and with its strides; its place in the file is free again.
    ///
    /// # Errors
    ///
    /// [`TrainError::Disk`] if this or an earlier transfer failed.
    pub fn read(&self, mut tensor: DiskTensor) -> Result<Tensor, TrainError> {
        let reading = match tensor.reading.take() {
            Some(reading) => reading,
            None => tensor.start_reading()?,
        };
        self.io.wait(&reading)
    }

    /// A region of `bytes`, whose contents are whatever was there before.
    ///
    /// # Errors
    ///
    /// [`TrainError::Disk`] if an earlier transfer failed or the file cannot grow.
    pub fn region(&self, bytes: u64) -> Result<Region, TrainError> {
        Ok(Region { extent: self.extent(bytes)? })
    }

    fn extent(&self, bytes: u64) -> Result<Extent, TrainError> {
        let offset = self.io.allocate(bytes)?;
        Ok(Extent { io: Arc::clone(&self.io), offset, bytes })
    }
}

impl DiskTensor {
    /// Bytes of its elements.
    pub(crate) fn num_bytes(&self) -> u64 {
        self.size.iter().product::<i64>() as u64 * self.kind.elt_size_in_bytes() as u64
    }

    fn start_reading(&self) -> Result<Reading, TrainError> {
        let tensor = if self.is_from_device {
            let numel = self.size.iter().product();
            pinned(&[numel], self.kind)?.as_strided(&self.size, &self.stride, None)
        } else {
            Tensor::empty_strided(&self.size, &self.stride, (self.kind, Device::Cpu))
        };
        self.extent.io.read(self.extent.offset, tensor)
    }
}

impl Region {
    /// Starts writing `source`, dense and on the CPU or on its way there, at byte `offset` of the region; as [`DiskScratch::write`].
    ///
    /// # Errors
    ///
    /// [`TrainError::Disk`] if an earlier transfer failed.
    ///
    /// # Panics
    ///
    /// If it would end beyond the region.
    pub fn write_at(&self, offset: u64, source: impl Into<OnHost>) -> Result<(), TrainError> {
        let source = source.into();
        self.extent.io.write(self.place(offset, source.tensor()), source)
    }

    /// Starts filling `tensor`, dense and on the CPU, from byte `offset` of the region. What was given to
    /// [`Region::write_at`] before is what is read.
    ///
    /// # Errors
    ///
    /// [`TrainError::Disk`] if an earlier transfer failed.
    ///
    /// # Panics
    ///
    /// If it would end beyond the region.
    pub fn read_at(&self, offset: u64, tensor: Tensor) -> Result<SliceRead, TrainError> {
        let io = &self.extent.io;
        let reading = io.read(self.place(offset, &tensor), tensor)?;
        Ok(SliceRead { io: Arc::clone(io), reading })
    }

    fn place(&self, offset: u64, tensor: &Tensor) -> u64 {
        let bytes = num_bytes(tensor);
        assert!(offset + bytes <= self.extent.bytes, "a slice lies in its region");
        self.extent.offset + offset
    }
}

impl SliceRead {
    /// The filled tensor.
    ///
    /// # Errors
    ///
    /// [`TrainError::Disk`] if this or an earlier transfer failed.
    pub fn wait(self) -> Result<Tensor, TrainError> {
        self.io.wait(&self.reading)
    }
}

impl Drop for Extent {
    fn drop(&mut self) {
        // Transfers are done in order: what was asked for before still finds its bytes.
        self.io.free(self.offset, self.bytes);
    }
}

/// Reserves `bytes` from `offset` on; `false` where the file system cannot.
fn reserve(file: &std::fs::File, offset: u64, bytes: u64) -> Result<bool, Errno> {
    if bytes == 0 {
        return Ok(true);
    }
    let signed = |x: u64| i64::try_from(x).map_err(|_| Errno::EFBIG);
    match fallocate(file, FallocateFlags::empty(), signed(offset)?, signed(bytes)?) {
        Ok(()) => Ok(true),
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => Ok(false),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn ones(num_bytes: i64) -> Tensor {
        Tensor::ones([num_bytes], (Kind::Uint8, Device::Cpu))
    }

    /// A scratch whose writes all fail as on a full disk, and whose reads succeed.
    fn full() -> DiskScratch {
        let file = File::options().read(true).write(true).open("/dev/full").unwrap();
        DiskScratch { io: Io::start(file, "/scratch".into(), 1 << 20) }
    }

    fn assert_full(error: &TrainError) {
        let expected =
            "cannot write `5000` bytes at offset `4096` of the scratch file in `/scratch`";
        assert_eq!(error.to_string(), expected);
        assert!(
            matches!(error, TrainError::Disk { source, .. } if source.raw_os_error() == Some(Errno::ENOSPC as i32))
        );
    }

    #[test]
    fn a_full_disk_fails_the_reader_and_every_call_after_it() {
        let scratch = full();
        let _empty = scratch.write(ones(0)).unwrap();
        let tensor = scratch.write(ones(5000)).unwrap();
        // Read-ahead may be asked for before or after the write has failed.
        assert_full(&scratch.read(tensor).unwrap_err());
        assert_full(&scratch.write(ones(1)).unwrap_err());
        assert_full(&scratch.region(1).unwrap_err());
    }

    #[test]
    fn a_full_disk_wakes_a_writer_that_waits() {
        let scratch = full();
        let _empty = scratch.write(ones(0)).unwrap();
        // If none has failed when all places are taken, the next one waits.
        let error = (0..=io::MAX_WRITES).find_map(|_| scratch.write(ones(5000)).err()).unwrap();
        assert_full(&error);
    }

    #[test]
    fn a_file_that_was_cut_short_is_an_error_of_the_read() {
        let file = tempfile::tempfile().unwrap();
        let scratch =
            DiskScratch { io: Io::start(file.try_clone().unwrap(), "/scratch".into(), 1 << 20) };
        let region = scratch.region(100).unwrap();
        let error = region.read_at(40, ones(60)).unwrap().wait().unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot read `60` bytes at offset `40` of the scratch file in `/scratch`"
        );
    }

    #[test]
    fn places_are_used_again_however_their_tensors_end() {
        let file = tempfile::tempfile().unwrap();
        let scratch =
            DiskScratch { io: Io::start(file.try_clone().unwrap(), "/scratch".into(), 0) };
        for round in 0..20 {
            let dropped = scratch.write(ones(10_000)).unwrap();
            let mut prefetched = scratch.write(ones(20_000)).unwrap();
            let read = scratch.write(ones(30_000)).unwrap();
            scratch.prefetch(&mut prefetched).unwrap();
            drop((dropped, prefetched));
            assert_eq!(scratch.read(read).unwrap(), ones(30_000), "round {round}");
        }
        // 10,000, 20,000 and 30,000 bytes in pages of 4,096.
        assert_eq!(
            file.metadata().unwrap().len(),
            10_000_u64.next_multiple_of(4096) + 20_000_u64.next_multiple_of(4096) + 30_000
        );
    }
}
