//! JSON Lines, and JSON files that hold one list of objects; plain or compressed with gzip or Zstandard.
//!
//! The content says which, not the name: a file that was compressed or decompressed without being renamed reads the same.

use std::{
    fs::File,
    io::{BufRead, BufReader, Cursor, Read},
    ops::ControlFlow,
    path::Path,
};

use serde::de::{DeserializeSeed, Deserializer, Error as _, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::{
    error::{Error, Result},
    source::scratch::{Line, Lines, MAX_ROW_BYTES, Stamp, Writer, line, max_bytes},
};

/// What some editors put before the first character of a UTF-8 file.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

const GZIP: &[u8] = b"\x1f\x8b";
const ZSTANDARD: &[u8] = b"\x28\xb5\x2f\xfd";

/// What a file starts with that is not JSON and has no decoder here.
const REFUSED: [(&[u8], &str); 7] = [
    (b"BZh", "bzip2 data"),
    (b"\xfd7zXZ\0", "xz data"),
    (b"\x04\x22\x4d\x18", "lz4 data"),
    (b"PK\x03\x04", "a zip archive"),
    (b"PAR1", "Parquet data"),
    (b"\xff\xfe", "UTF-16 text"),
    (b"\xfe\xff", "UTF-16 text"),
];

/// Whether a visit wants more.
type Flow = ControlFlow<()>;

const BUFFER_BYTES: usize = 1 << 18;

/// The first `limit` lines or items of the file at `path`: plain JSON Lines stay where they are, anything else goes to `writer`.
pub(super) fn open(path: &Path, limit: usize, mut writer: Writer) -> Result<Lines> {
    let mut text = Text::open(path)?;
    if !text.is_list
        && let Some(stamp) = text.stamp
    {
        return Ok(Lines::of_file(text.find_lines(limit)?, stamp));
    }
    if limit == 0 {
        return writer.finish();
    }
    let flow = |writer: &Writer| {
        if writer.wants_more() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    if text.is_list {
        text.each_item(&mut |row| {
            writer.push_row(&row)?;
            Ok(flow(&writer))
        })?;
    } else {
        text.each_line(&mut |number, line| {
            writer.push_line(number, line)?;
            Ok(flow(&writer))
        })?;
    }
    writer.finish()
}

/// Calls `see` with the first `limit` rows at most.
pub(super) fn first_rows(
    path: &Path,
    limit: usize,
    mut see: impl FnMut(&Map<String, Value>),
) -> Result<()> {
    let mut text = Text::open(path)?;
    let mut left = limit;
    let mut see = |row: Map<String, Value>| {
        see(&row);
        left = left.saturating_sub(1);
        if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    if text.is_list {
        text.each_item(&mut |row| Ok(see(row)))
    } else {
        text.each_line(&mut |number, line| Ok(see(parse_row(path, number, line)?)))
    }
}

/// The object in line `number`.
pub(super) fn parse_row(path: &Path, number: usize, text: &[u8]) -> Result<Map<String, Value>> {
    let value = serde_json::from_slice(text).map_err(|source: serde_json::Error| {
        let path = path.to_path_buf();
        if source.is_eof() {
            Error::UnfinishedLine { path, line: number }
        } else {
            Error::Json { path, line: number, source }
        }
    })?;
    object(path, number, value, "one object on each line")
}

fn object(
    path: &Path,
    line: usize,
    value: Value,
    required: &'static str,
) -> Result<Map<String, Value>> {
    match value {
        Value::Object(row) => Ok(row),
        other => {
            Err(Error::JsonShape { path: path.to_path_buf(), line, found: kind(&other), required })
        }
    }
}

/// A file that stands before its first value.
struct Text<'a> {
    path: &'a Path,
    reader: Box<dyn BufRead>,
    /// Of a file that is not compressed.
    stamp: Option<Stamp>,
    is_list: bool,
    /// What was skipped: a byte order mark and blank lines.
    num_skipped_bytes: u64,
    num_skipped_lines: usize,
}

impl<'a> Text<'a> {
    fn open(path: &'a Path) -> Result<Self> {
        let error = |source| Error::Read { path: path.to_path_buf(), source };
        let file = File::open(path).map_err(error)?;
        let metadata = file.metadata().map_err(error)?;
        let (stamp, max_bytes) = (Stamp::new(&metadata), max_bytes(metadata.len()));
        let mut raw = BufReader::with_capacity(BUFFER_BYTES, file);
        let head = raw.fill_buf().map_err(error)?;
        let is_compressed = head.starts_with(GZIP) || head.starts_with(ZSTANDARD);
        let reader: Box<dyn BufRead> = if head.starts_with(GZIP) {
            let decoder = flate2::bufread::MultiGzDecoder::new(raw);
            Box::new(BufReader::with_capacity(BUFFER_BYTES, Bounded::new(decoder, max_bytes)))
        } else if is_compressed {
            let decoder = zstd::stream::read::Decoder::with_buffer(raw).map_err(error)?;
            Box::new(BufReader::with_capacity(BUFFER_BYTES, Bounded::new(decoder, max_bytes)))
        } else {
            Box::new(raw)
        };
        let mut text = Self {
            path,
            reader,
            stamp: (!is_compressed).then_some(stamp),
            is_list: false,
            num_skipped_bytes: 0,
            num_skipped_lines: 0,
        };
        text.skip_to_first_value()?;
        Ok(text)
    }

    fn error(&self, source: std::io::Error) -> Error {
        let path = self.path.to_path_buf();
        if self.stamp.is_some() {
            Error::Read { path, source }
        } else {
            Error::Decompress { path, source }
        }
    }

    fn peek(&mut self) -> Result<Option<u8>> {
        let byte = self.reader.fill_buf().map(|buffer| buffer.first().copied());
        byte.map_err(|source| self.error(source))
    }

    fn skip_to_first_value(&mut self) -> Result<()> {
        let mut head = Vec::new();
        let read = self.reader.by_ref().take(8).read_to_end(&mut head);
        read.map_err(|source| self.error(source))?;
        if let Some((_, found)) = REFUSED.iter().find(|(start, _)| head.starts_with(start)) {
            return Err(Error::NotJson { path: self.path.to_path_buf(), found });
        }
        if head.starts_with(BYTE_ORDER_MARK) {
            head.drain(..BYTE_ORDER_MARK.len());
            self.num_skipped_bytes += BYTE_ORDER_MARK.len() as u64;
        }
        let rest = std::mem::replace(&mut self.reader, Box::new(std::io::empty()));
        self.reader = Box::new(Cursor::new(head).chain(rest));
        loop {
            let Some(byte) = self.peek()? else { return Ok(()) };
            if !byte.is_ascii_whitespace() {
                self.is_list = byte == b'[';
                return Ok(());
            }
            self.reader.consume(1);
            self.num_skipped_bytes += 1;
            self.num_skipped_lines += usize::from(byte == b'\n');
        }
    }

    /// Where each of the first `limit` lines that are not blank stands.
    fn find_lines(&mut self, limit: usize) -> Result<Vec<Line>> {
        let mut lines = Vec::new();
        let mut start = self.num_skipped_bytes;
        let mut blank = Vec::new();
        for number in self.num_skipped_lines + 1.. {
            let Some(next) = self.peek()?.filter(|_| lines.len() < limit) else { break };
            let (len, is_blank) = if next.is_ascii_whitespace() {
                blank.clear();
                let len = self.reader.read_until(b'\n', &mut blank);
                (len, blank.trim_ascii().is_empty())
            } else {
                (self.reader.skip_until(b'\n'), false)
            };
            let len = len.map_err(|source| self.error(source))? as u64;
            if !is_blank {
                lines.push(line(self.path, start, len, number)?);
            }
            start += len;
        }
        Ok(lines)
    }

    /// Calls `visit` with number and text of each line that is not blank.
    fn each_line(&mut self, visit: &mut dyn FnMut(usize, &[u8]) -> Result<Flow>) -> Result<()> {
        let mut line = Vec::new();
        for number in self.num_skipped_lines + 1.. {
            line.clear();
            let mut bounded = self.reader.by_ref().take(MAX_ROW_BYTES as u64 + 1);
            let read = bounded.read_until(b'\n', &mut line);
            match read.map_err(|source| self.error(source))? {
                0 => break,
                len if len > MAX_ROW_BYTES => {
                    let path = self.path.to_path_buf();
                    return Err(Error::RowTooLong { path, line: number });
                }
                _ => {}
            }
            let line = line.trim_ascii();
            if !line.is_empty() && visit(number, line)?.is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Calls `visit` with each item of the list, one in memory at a time.
    fn each_item(
        &mut self,
        visit: &mut dyn FnMut(Map<String, Value>) -> Result<Flow>,
    ) -> Result<()> {
        let mut outcome = Ok(ControlFlow::Continue(()));
        let path = self.path;
        let mut visit = |value| {
            outcome = object(path, 1, value, "a list of objects").and_then(&mut *visit);
            matches!(outcome, Ok(ControlFlow::Continue(())))
        };
        // The parser asks for one byte at a time: not through a `dyn`.
        let reader = BufReader::with_capacity(BUFFER_BYTES, &mut self.reader);
        let mut deserializer = serde_json::Deserializer::from_reader(reader);
        let read =
            Items(&mut visit).deserialize(&mut deserializer).and_then(|()| deserializer.end());
        // A visit that stopped the reader is why it failed.
        if outcome?.is_break() {
            return Ok(());
        }
        read.map_err(|source| {
            if source.is_io() {
                return self.error(source.into());
            }
            let line = self.num_skipped_lines + source.line();
            Error::Json { path: path.to_path_buf(), line, source }
        })
    }
}

/// Decompressed data that may not be too much more than what it was made of.
struct Bounded<R> {
    reader: R,
    max_bytes: u64,
    bytes_left: u64,
}

impl<R> Bounded<R> {
    fn new(reader: R, max_bytes: u64) -> Self {
        Self { reader, max_bytes, bytes_left: max_bytes }
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let num_read = self.reader.read(buffer)?;
        self.bytes_left = self.bytes_left.checked_sub(num_read as u64).ok_or_else(|| {
            std::io::Error::other(format!(
                "it holds more than `{}` bytes, far more than data has in so small a file",
                self.max_bytes
            ))
        })?;
        Ok(num_read)
    }
}

/// Gives the items of a list to a function until it returns false.
struct Items<'a>(&'a mut dyn FnMut(Value) -> bool);

impl<'de> DeserializeSeed<'de> for Items<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Items<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while let Some(item) = items.next_element()? {
            if !(self.0)(item) {
                return Err(A::Error::custom("stopped"));
            }
        }
        Ok(())
    }
}

/// What a message calls a value of this kind.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
