//! One mapped safetensors file.

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::tensor::{Metadata, SafeTensorError, SafeTensors, TensorInfo};

use super::{Elements, WeightView};
use crate::error::{Error, Result};
use sterna_arch::DType;

/// Bytes of the little-endian header length that a file begins with.
const LENGTH_BYTES: usize = 8;

/// A mapped file whose header has been checked against its size.
#[derive(Debug)]
pub(super) struct MappedFile {
    path: PathBuf,
    mmap: Mmap,
    metadata: Metadata,
    /// Where the data begins.
    data_start: usize,
}

impl MappedFile {
    pub(super) fn open(path: PathBuf) -> Result<MappedFile> {
        let mmap = map(&path)?;
        // This bounds the header's size and checks that the tensors tile the rest of the file.
        let (header_bytes, metadata) = match SafeTensors::read_metadata(&mmap) {
            Ok(parsed) => parsed,
            Err(source) => return Err(not_whole(path, &mmap, source)),
        };
        Ok(MappedFile { path, mmap, metadata, data_start: LENGTH_BYTES + header_bytes })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn names(&self) -> impl Iterator<Item = String> {
        self.metadata.offset_keys().into_iter()
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.metadata.info(name).is_some()
    }

    /// Whether a tensor of bytes has this name.
    pub(super) fn has_bytes(&self, name: &str) -> bool {
        self.metadata.info(name).is_some_and(|info| info.dtype == safetensors::Dtype::U8)
    }

    /// A tensor of bytes, with its shape.
    pub(super) fn bytes(&self, name: &str) -> Result<(&[u8], &[usize])> {
        let info = self.info(name)?;
        Ok((self.data(info), &info.shape))
    }

    pub(super) fn view(&self, name: &str) -> Result<WeightView<'_>> {
        let info = self.info(name)?;
        let dtype = match info.dtype {
            safetensors::Dtype::F32 => DType::F32,
            safetensors::Dtype::F16 => DType::F16,
            safetensors::Dtype::BF16 => DType::BF16,
            other => {
                return Err(Error::TensorDType {
                    path: self.path.clone(),
                    name: name.to_owned(),
                    found: format!("{other:?}"),
                });
            }
        };
        Ok(WeightView {
            dtype,
            shape: info.shape.clone(),
            elements: Elements::AsTheyLie(self.data(info)),
        })
    }

    fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.metadata.info(name).ok_or_else(|| Error::TensorMissing {
            dir: self.path.clone(),
            name: name.to_owned(),
            num_missing: 1,
        })
    }

    fn data(&self, info: &TensorInfo) -> &[u8] {
        let (begin, end) = info.data_offsets;
        &self.mmap[self.data_start + begin..self.data_start + end]
    }
}

#[expect(unsafe_code, reason = "mapping a file has no safe interface; see the safety comment")]
fn map(path: &Path) -> Result<Mmap> {
    let read_error = |source| Error::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(read_error)?;
    if file.metadata().map_err(read_error)?.is_dir() {
        return Err(read_error(std::io::ErrorKind::IsADirectory.into()));
    }
    // SAFETY: the map is read-only and private to this process. The bytes are only ever copied
    // into tensors, for which any bit pattern is a value, so a file that another process writes to
    // gives wrong weights and nothing worse; one that shrinks ends the process by a bus error, as
    // it does in every program that maps weights. Our own export never writes to a file in place.
    unsafe { Mmap::map(&file) }.map_err(read_error)
}

/// Tells a file that was cut off from one that never was a safetensors file.
fn not_whole(path: PathBuf, bytes: &[u8], source: SafeTensorError) -> Error {
    let found_bytes = bytes.len() as u64;
    let truncated = |required_bytes| Error::TruncatedSafetensors {
        path: path.clone(),
        found_bytes,
        required_bytes,
    };
    let header_bytes = bytes.first_chunk().map(|length| u64::from_le_bytes(*length));
    let header_end = header_bytes.and_then(|length| length.checked_add(LENGTH_BYTES as u64));
    match (&source, header_end) {
        (SafeTensorError::InvalidHeaderLength, Some(end)) => truncated(end),
        (SafeTensorError::MetadataIncompleteBuffer, Some(end)) => {
            let header = &bytes[LENGTH_BYTES..end as usize];
            match serde_json::from_slice::<Metadata>(header) {
                Ok(metadata) if end + metadata.data_len() as u64 > found_bytes => {
                    truncated(end + metadata.data_len() as u64)
                }
                _ => Error::Safetensors { path, source },
            }
        }
        _ => Error::Safetensors { path, source },
    }
}
