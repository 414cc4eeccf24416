//! Rows as lines of JSON in a file, so that any row can be read at any time in memory that does not grow with the data.
//!
//! A plain file of JSON Lines is read where it lies. Everything else, which can only be read from its start (compressed files, lists,
//! Parquet, Arrow), is written once, row by row, to a scratch file without a name, which the system removes with the process. The
//! alternative refused is to keep decoded blocks in memory: a random sample of rows decodes a block for each row.

use std::{
    fs::{File, Metadata},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Bytes that a writer collects before it writes them.
const BUFFER_BYTES: usize = 1 << 20;

/// Bytes that the rows of a file may take, whatever its size and for each of its bytes: a small file can say that one long text
/// stands in a million rows, and that would fill the disk.
const MIN_BYTES: u64 = 1 << 28;
const MAX_BYTES_PER_BYTE: u64 = 1024;

/// Bytes that the rows of a file of `file_bytes` may take.
pub(super) fn max_bytes(file_bytes: u64) -> u64 {
    MIN_BYTES.max(file_bytes.saturating_mul(MAX_BYTES_PER_BYTE))
}

/// Bytes that a row may take, in a file or in memory: a hundred times a chat of a million tokens.
pub(crate) const MAX_ROW_BYTES: usize = 1 << 29;

/// A file without a name that all files of a source share: a thousand of them would need a thousand open files.
#[derive(Debug)]
pub(super) struct Scratch {
    file: File,
    /// For messages.
    folder: PathBuf,
    /// Where the next writer writes.
    end: AtomicU64,
}

impl Scratch {
    /// Makes the file in `folder`.
    pub(super) fn create(folder: &Path) -> Result<Arc<Self>> {
        let error = |source| Error::Write { path: folder.to_path_buf(), source };
        std::fs::create_dir_all(folder).map_err(error)?;
        let file = tempfile::tempfile_in(folder).map_err(error)?;
        Ok(Arc::new(Self { file, folder: folder.to_path_buf(), end: AtomicU64::new(0) }))
    }

    fn write(&self, bytes: &[u8]) -> Result<u64> {
        let start = self.end.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let error = |source| Error::Write { path: self.folder.clone(), source };
        self.file.write_all_at(bytes, start).map_err(error)?;
        Ok(start)
    }
}

/// Where a row stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    pub(super) start: u64,
    pub(super) len: u32,
    /// Of the file that a person knows, from 1; 0 if it has no lines.
    pub(super) number: u32,
}

/// The rows of one file.
#[derive(Debug)]
pub(super) struct Lines {
    lines: Vec<Line>,
    place: Place,
}

#[derive(Debug)]
enum Place {
    /// The file itself, as it was when its lines were found. It is opened when it is read, and not kept for long: a source may have
    /// more files than a process may open.
    File(Stamp),
    Scratch(Arc<Scratch>),
}

/// The file that was read last, for those who read several rows: to open it for each took longer than to read them.
#[derive(Debug, Default)]
pub(super) struct LastRead(Option<(PathBuf, File)>);

impl LastRead {
    fn open(&mut self, path: &Path) -> std::io::Result<&File> {
        let opened = match self.0.take().filter(|(last, _)| last == path) {
            Some(kept) => kept,
            None => (path.to_path_buf(), File::open(path)?),
        };
        Ok(&self.0.insert(opened).1)
    }
}

/// What changes when a file is written to or replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    len: u64,
    seconds: i64,
    nanoseconds: i64,
}

impl Stamp {
    pub(super) fn new(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            len: metadata.len(),
            seconds: metadata.mtime(),
            nanoseconds: metadata.mtime_nsec(),
        }
    }
}

impl Lines {
    /// Lines of the file itself.
    pub(super) fn of_file(lines: Vec<Line>, stamp: Stamp) -> Self {
        Self { lines, place: Place::File(stamp) }
    }

    pub(super) fn len(&self) -> usize {
        self.lines.len()
    }

    pub(super) fn number(&self, index: usize) -> Option<usize> {
        let number = self.lines[index].number as usize;
        (number > 0).then_some(number)
    }

    /// The text of row `index` of the file at `path`.
    pub(super) fn read(
        &self,
        path: &Path,
        index: usize,
        last_read: &mut LastRead,
    ) -> Result<Vec<u8>> {
        let Line { start, len, .. } = self.lines[index];
        let mut text = vec![0; len as usize];
        match &self.place {
            Place::Scratch(scratch) => scratch
                .file
                .read_exact_at(&mut text, start)
                .map_err(|source| Error::Read { path: scratch.folder.clone(), source })?,
            Place::File(stamp) => {
                let error = |source| Error::Read { path: path.to_path_buf(), source };
                let file = last_read.open(path).map_err(error)?;
                let read = file.read_exact_at(&mut text, start);
                // After the read, so that a change in between is seen; and before its error, which the change may explain.
                if Stamp::new(&file.metadata().map_err(error)?) != *stamp {
                    return Err(Error::FileChanged { path: path.to_path_buf() });
                }
                read.map_err(error)?;
            }
        }
        Ok(text)
    }
}

/// Writes the rows of one file.
#[derive(Debug)]
pub(super) struct Writer {
    /// The file that the rows come from.
    path: PathBuf,
    /// Bytes that they may still take.
    bytes_left: u64,
    max_bytes: u64,
    /// Rows that are wanted.
    limit: usize,
    scratch: Arc<Scratch>,
    lines: Vec<Line>,
    buffer: Vec<u8>,
    /// Lines from here on are in `buffer`, with starts relative to it.
    first_in_buffer: usize,
}

impl Writer {
    /// A writer of the first `limit` rows of the file at `path`.
    pub(super) fn new(path: &Path, limit: usize, scratch: &Arc<Scratch>) -> Result<Self> {
        let metadata = path.metadata();
        let metadata =
            metadata.map_err(|source| Error::Read { path: path.to_path_buf(), source })?;
        let max_bytes = max_bytes(metadata.len());
        Ok(Self {
            path: path.to_path_buf(),
            bytes_left: max_bytes,
            max_bytes,
            limit,
            scratch: Arc::clone(scratch),
            lines: Vec::new(),
            buffer: Vec::new(),
            first_in_buffer: 0,
        })
    }

    /// Whether more rows are wanted.
    pub(super) fn wants_more(&self) -> bool {
        self.lines.len() < self.limit
    }

    /// Adds a row as it is written in line `number` of the file.
    pub(super) fn push_line(&mut self, number: usize, text: &[u8]) -> Result<()> {
        let len = text.len() as u64;
        self.bytes_left = self.bytes_left.checked_sub(len).ok_or_else(|| Error::GrowsTooMuch {
            path: self.path.clone(),
            max_bytes: self.max_bytes,
        })?;
        self.lines.push(line(&self.path, self.buffer.len() as u64, len, number)?);
        self.buffer.extend_from_slice(text);
        if self.buffer.len() < BUFFER_BYTES { Ok(()) } else { self.flush() }
    }

    /// Adds a row of a file without lines.
    pub(super) fn push_row(&mut self, row: &Map<String, Value>) -> Result<()> {
        let text = serde_json::to_vec(row).expect("a map of JSON values is JSON");
        self.push_line(0, &text)
    }

    /// The rows that were added.
    pub(super) fn finish(mut self) -> Result<Lines> {
        self.flush()?;
        Ok(Lines { lines: self.lines, place: Place::Scratch(self.scratch) })
    }

    fn flush(&mut self) -> Result<()> {
        let start = self.scratch.write(&self.buffer)?;
        for line in &mut self.lines[self.first_in_buffer..] {
            line.start += start;
        }
        self.first_in_buffer = self.lines.len();
        self.buffer.clear();
        Ok(())
    }
}

/// A line of `len` bytes.
pub(super) fn line(path: &Path, start: u64, len: u64, number: usize) -> Result<Line> {
    if len > MAX_ROW_BYTES as u64 {
        return Err(Error::RowTooLong { path: path.to_path_buf(), line: number });
    }
    // A file of four billion lines says "no line" for those beyond.
    Ok(Line { start, len: len as u32, number: u32::try_from(number).unwrap_or(0) })
}
