//! One rank's states in one safetensors file: written from front to back, read by ranges.

use std::fs::File;
use std::io::{self, BufReader, Read as _, Write as _};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use safetensors::tensor::{Metadata, TensorInfo};
use sha2::{Digest as _, Sha256};
use sterna_hf::hex;

use crate::error::{Error, Result};
use crate::manifest::{FileEntry, StateDtype, StateName};

/// The bytes of the header's length.
const LENGTH_BYTES: u64 = 8;
/// The largest header read, as in the safetensors format.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// The name of the file that `rank` writes.
pub fn shard_file_name(rank: usize) -> String {
    format!("rank_{rank:05}.safetensors")
}

/// A one-dimensional tensor of a shard file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateTensor {
    /// The flat buffer's name.
    pub flat: String,
    /// Which of its states.
    pub state: StateName,
    /// How it is stored.
    pub dtype: StateDtype,
    /// Elements.
    pub len: usize,
}

impl StateTensor {
    fn name(&self) -> String {
        format!("{}.{}", self.flat, self.state.as_str())
    }

    fn num_bytes(&self) -> u64 {
        (self.len * self.dtype.size()) as u64
    }
}

/// Writes a shard file and its hash in one pass.
#[derive(Debug)]
pub struct ShardWriter {
    path: PathBuf,
    file: File,
    hasher: Sha256,
    num_written: u64,
    file_bytes: u64,
}

impl ShardWriter {
    /// Starts `rank`'s file in `dir`: its space reserved, its header written. `tensors` are in the order in which they will be
    /// written, wider types first, so that each is aligned to its elements.
    ///
    /// # Errors
    ///
    /// [`Error::Write`], also when the disk is too small.
    pub fn create(dir: &Path, rank: usize, tensors: &[StateTensor]) -> Result<Self> {
        let path = dir.join(shard_file_name(rank));
        let header = header(tensors);
        let data_bytes: u64 = tensors.iter().map(StateTensor::num_bytes).sum();
        let file_bytes = header.len() as u64 + data_bytes;
        let write_error = |source| Error::Write { path: path.clone(), source };
        let file = File::create(&path).map_err(write_error)?;
        reserve(&file, file_bytes).map_err(write_error)?;
        let mut writer = Self { path, file, hasher: Sha256::new(), num_written: 0, file_bytes };
        writer.write(&header)?;
        Ok(writer)
    }

    /// Appends bytes of the tensor that is next.
    ///
    /// # Errors
    ///
    /// [`Error::Write`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.num_written += bytes.len() as u64;
        self.file
            .write_all(bytes)
            .map_err(|source| Error::Write { path: self.path.clone(), source })
    }

    /// Brings everything to the disk and returns the manifest's entry for it.
    ///
    /// # Errors
    ///
    /// [`Error::Write`].
    ///
    /// # Panics
    ///
    /// If the tensors of [`ShardWriter::create`] were not written as they were announced.
    pub fn finish(self) -> Result<FileEntry> {
        assert_eq!(self.num_written, self.file_bytes, "a shard file is written as announced");
        self.file.sync_all().map_err(|source| Error::Write { path: self.path.clone(), source })?;
        let name = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(FileEntry { name, bytes: self.file_bytes, sha256: hex(&self.hasher.finalize()) })
    }
}

/// Reserves space, so that a full disk is known at once.
fn reserve(file: &File, num_bytes: u64) -> io::Result<()> {
    match fallocate(file, FallocateFlags::empty(), 0, num_bytes.cast_signed()) {
        // Some file systems cannot reserve; there, writing tells.
        Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// The bytes before the data.
fn header(tensors: &[StateTensor]) -> Vec<u8> {
    let mut end = 0;
    let infos = tensors.iter().map(|tensor| {
        let begin = end;
        end += tensor.num_bytes() as usize;
        let info = TensorInfo {
            dtype: tensor.dtype.in_safetensors(),
            shape: vec![tensor.len],
            data_offsets: (begin, end),
        };
        (tensor.name(), info)
    });
    let metadata = Metadata::new(None, infos.collect()).expect("the tensors tile the data");
    let mut json = serde_json::to_vec(&metadata).expect("names and numbers are JSON");
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.append(&mut json);
    header
}

/// A shard file whose header was read and checked against its size.
#[derive(Debug)]
pub(crate) struct ShardFile {
    path: PathBuf,
    file: File,
    metadata: Metadata,
    data_start: u64,
}

impl ShardFile {
    pub(crate) fn open(path: PathBuf) -> Result<Self> {
        let file = match File::open(&path) {
            Err(source) if source.kind() == io::ErrorKind::NotFound => {
                return Err(Error::FileMissing { path });
            }
            Err(source) => return Err(Error::Read { path, source }),
            Ok(file) => file,
        };
        let read_error = |source| Error::Read { path: path.clone(), source };
        let file_bytes = file.metadata().map_err(read_error)?.len();
        let mut length = [0; LENGTH_BYTES as usize];
        let mut reader = BufReader::new(&file);
        let invalid = |source| Error::Safetensors { path: path.clone(), source };
        if file_bytes < LENGTH_BYTES {
            return Err(invalid(safetensors::SafeTensorError::HeaderTooSmall));
        }
        reader.read_exact(&mut length).map_err(read_error)?;
        let header_bytes = u64::from_le_bytes(length);
        if header_bytes > MAX_HEADER_BYTES.min(file_bytes - LENGTH_BYTES) {
            return Err(invalid(safetensors::SafeTensorError::InvalidHeaderLength));
        }
        let mut header = vec![0; header_bytes as usize];
        reader.read_exact(&mut header).map_err(read_error)?;
        let metadata: Metadata = serde_json::from_slice(&header).map_err(|error| {
            invalid(safetensors::SafeTensorError::InvalidHeaderDeserialization(error))
        })?;
        let data_start = LENGTH_BYTES + header_bytes;
        if data_start + metadata.data_len() as u64 != file_bytes {
            return Err(invalid(safetensors::SafeTensorError::MetadataIncompleteBuffer));
        }
        drop(reader);
        Ok(Self { path, file, metadata, data_start })
    }

    /// Reads elements `range` of the tensor called `name`, which must be `[len]` in `dtype`.
    pub(crate) fn read(
        &self,
        name: &str,
        dtype: StateDtype,
        len: usize,
        range: Range<usize>,
        out: &mut [u8],
    ) -> Result<()> {
        let required = format!("`[{len}]` in {dtype:?}");
        let wrong = |found: String| Error::Tensor {
            path: self.path.clone(),
            name: name.to_owned(),
            found,
            required: required.clone(),
        };
        let info = self.metadata.info(name).ok_or_else(|| wrong("missing".to_owned()))?;
        if info.dtype != dtype.in_safetensors() || info.shape != [len] {
            return Err(wrong(format!("`{:?}` in {:?}", info.shape, info.dtype)));
        }
        let begin = self.data_start + (info.data_offsets.0 + range.start * dtype.size()) as u64;
        self.file
            .read_exact_at(out, begin)
            .map_err(|source| Error::Read { path: self.path.clone(), source })
    }
}
