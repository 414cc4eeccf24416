//! Parquet files and Arrow files, and their cells as JSON values.

use std::{
    fs::File,
    io::{BufReader, Read, Seek, SeekFrom},
    path::Path,
};

use arrow_array::RecordBatch;
use arrow_ipc::reader::{FileReader, StreamReader};
use arrow_schema::{ArrowError, Schema, SchemaRef};
use parquet::{
    arrow::{ProjectionMask, arrow_reader::ParquetRecordBatchReaderBuilder},
    errors::ParquetError,
    file::{
        metadata::ParquetMetaData, reader::FileReader as _, serialized_reader::SerializedFileReader,
    },
};
use sterna_hf::catch_panic;

use crate::{
    error::{Error, Result},
    source::{
        Wanted, cell,
        scratch::{Lines, Writer},
    },
};

/// What an Arrow stream ends with: a continuation marker and a length of zero.
const STREAM_END: [u8; 8] = [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];
/// What an Arrow file (not stream) starts with.
const FILE_MAGIC: &[u8; 6] = b"ARROW1";

/// Values of a column that a Parquet file may have whatever its size.
const MIN_VALUES: u64 = 1 << 22;
/// Values of a column for each byte of a Parquet file. Texts have fewer than one; nulls in a row may have hundreds.
const MAX_VALUES_PER_BYTE: u64 = 256;

/// Rows of a Parquet file that are decoded at once, and the bytes that they should take: rows may be chats of megabytes, and every
/// core reads a file.
const MAX_BATCH_ROWS: usize = 1024;
const BATCH_BYTES: u64 = 1 << 23;

/// Parquet or Arrow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Parquet,
    Arrow,
}

/// The names of all columns of the file at `path`, from its head.
pub(super) fn columns(kind: Kind, path: &Path) -> Result<Vec<String>> {
    catching(kind, path, || {
        let file = open(path)?;
        let schema = match kind {
            Kind::Parquet => ParquetRecordBatchReaderBuilder::try_new(file)
                .map_err(|source| Error::Parquet { path: path.to_path_buf(), source })?
                .schema()
                .clone(),
            Kind::Arrow => arrow_schema(path, &file)?,
        };
        Ok(names(&schema))
    })
}

/// Writes those of the `wanted` columns that the file at `path` has to `writer`.
///
/// In memory is one batch of rows at a time: of a Parquet file some 8 MiB, of an Arrow file what its writer made a batch.
pub(super) fn read(
    kind: Kind,
    path: &Path,
    wanted: &Wanted,
    source_name: &str,
    mut writer: Writer,
) -> Result<Lines> {
    catching(kind, path, || {
        let file = open(path)?;
        match kind {
            Kind::Parquet => read_parquet(path, file, wanted, source_name, &mut writer)?,
            Kind::Arrow => read_arrow(path, &file, wanted, source_name, &mut writer)?,
        }
        writer.finish()
    })
}

fn catching<T>(kind: Kind, path: &Path, read: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_panic(read).unwrap_or_else(|panicked| {
        let path = path.to_path_buf();
        let panicked = Box::new(panicked);
        Err(match kind {
            Kind::Parquet => Error::Parquet { path, source: ParquetError::External(panicked) },
            Kind::Arrow => Error::Arrow { path, source: ArrowError::ExternalError(panicked) },
        })
    })
}

fn read_parquet(
    path: &Path,
    file: File,
    wanted: &Wanted,
    source_name: &str,
    writer: &mut Writer,
) -> Result<()> {
    let error = |source| Error::Parquet { path: path.to_path_buf(), source };
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(error)?;
    let indices = wanted_indices(path, builder.schema(), wanted, source_name)?;
    let mask = ProjectionMask::roots(builder.parquet_schema(), indices);
    let file_bytes =
        path.metadata().map_err(|source| Error::Read { path: path.to_path_buf(), source })?.len();
    check_pages(open(path)?, &mask, file_bytes).map_err(error)?;
    let batch_rows = batch_rows(builder.metadata(), &mask);
    let reader =
        builder.with_projection(mask).with_batch_size(batch_rows).build().map_err(error)?;
    write_batches(path, reader, writer)
}

/// As many rows as take [`BATCH_BYTES`] in the row group with the longest rows.
fn batch_rows(metadata: &ParquetMetaData, mask: &ProjectionMask) -> usize {
    let row_bytes = metadata.row_groups().iter().map(|group| {
        let columns = group.columns().iter().enumerate();
        let wanted = columns.filter(|(i, _)| mask.leaf_included(*i));
        let bytes: u64 =
            wanted.map(|(_, column)| column.uncompressed_size().max(0).cast_unsigned()).sum();
        bytes / group.num_rows().max(1).cast_unsigned()
    });
    let rows = BATCH_BYTES / row_bytes.max().unwrap_or(0).max(1);
    (rows as usize).clamp(1, MAX_BATCH_ROWS)
}

/// Both formats of Arrow data are read: the stream that `save_to_disk` writes, and the file.
fn read_arrow(
    path: &Path,
    file: &File,
    wanted: &Wanted,
    source_name: &str,
    writer: &mut Writer,
) -> Result<()> {
    let schema = arrow_schema(path, file)?;
    let indices = Some(wanted_indices(path, &schema, wanted, source_name)?);
    let error = |source| arrow_error(path, source);
    if is_arrow_file(path, file)? {
        let reader = FileReader::try_new(rewound(path, file)?, indices).map_err(error)?;
        write_batches(path, reader, writer)
    } else {
        let reader = StreamReader::try_new(rewound(path, file)?, indices).map_err(error)?;
        write_batches(path, reader, writer)
    }
}

fn arrow_schema(path: &Path, file: &File) -> Result<SchemaRef> {
    let error = |source| arrow_error(path, source);
    if is_arrow_file(path, file)? {
        return Ok(FileReader::try_new(rewound(path, file)?, None).map_err(error)?.schema());
    }
    check_end(path, file)?;
    Ok(StreamReader::try_new(rewound(path, file)?, None).map_err(error)?.schema())
}

fn is_arrow_file(path: &Path, file: &File) -> Result<bool> {
    let mut head = Vec::new();
    let head_reader = rewound(path, file)?.take(FILE_MAGIC.len() as u64).read_to_end(&mut head);
    head_reader.map_err(|source| Error::Read { path: path.to_path_buf(), source })?;
    Ok(head == FILE_MAGIC)
}

/// A stream that was cut between two batches reads without an error, only shorter.
fn check_end(path: &Path, mut file: &File) -> Result<()> {
    let error = |source| Error::Read { path: path.to_path_buf(), source };
    let found_bytes = file.seek(SeekFrom::End(0)).map_err(error)?;
    let mut tail = [0; STREAM_END.len()];
    if found_bytes >= tail.len() as u64 {
        file.seek(SeekFrom::End(-(tail.len() as i64))).map_err(error)?;
        file.read_exact(&mut tail).map_err(error)?;
    }
    if tail == STREAM_END {
        return Ok(());
    }
    Err(Error::TruncatedArrow { path: path.to_path_buf(), found_bytes })
}

fn rewound<'a>(path: &Path, mut file: &'a File) -> Result<BufReader<&'a File>> {
    file.rewind().map_err(|source| Error::Read { path: path.to_path_buf(), source })?;
    Ok(BufReader::new(file))
}

fn arrow_error(path: &Path, source: ArrowError) -> Error {
    Error::Arrow { path: path.to_path_buf(), source }
}

fn write_batches(
    path: &Path,
    batches: impl Iterator<Item = Result<RecordBatch, ArrowError>>,
    writer: &mut Writer,
) -> Result<()> {
    for batch in batches {
        let batch = batch.map_err(|source| arrow_error(path, source))?;
        for index in 0..batch.num_rows() {
            if !writer.wants_more() {
                return Ok(());
            }
            let row = cell::row(batch.schema_ref().fields(), batch.columns(), index);
            writer.push_row(&row.map_err(|source| arrow_error(path, source))?)?;
        }
    }
    Ok(())
}

/// Refuses a file that says that it holds far more rows, or values in its pages, than its bytes can: a run of one value
/// takes five bytes however long it is, and the reader makes room for all of it.
fn check_pages(file: File, mask: &ProjectionMask, file_bytes: u64) -> Result<(), ParquetError> {
    let max_values = MIN_VALUES.max(file_bytes.saturating_mul(MAX_VALUES_PER_BYTE));
    let refuse = |what: String| {
        Err(ParquetError::General(format!(
            "{what} claims more than `{max_values}` values in a file of `{file_bytes}` bytes"
        )))
    };
    let reader = SerializedFileReader::new(file)?;
    let metadata = reader.metadata();
    // A negative number is read as a huge one.
    let num_rows = metadata.row_groups().iter().map(|group| group.num_rows().cast_unsigned());
    if num_rows.fold(0_u64, u64::saturating_add) > max_values {
        return refuse("the list of row groups".to_owned());
    }
    for group in 0..reader.num_row_groups() {
        let group = reader.get_row_group(group)?;
        for column in (0..group.num_columns()).filter(|&column| mask.leaf_included(column)) {
            let mut pages = group.get_column_page_reader(column)?;
            let mut num_values = 0;
            while let Some(page) = pages.peek_next_page()? {
                num_values += page.num_levels.or(page.num_rows).unwrap_or(0) as u64;
                if num_values > max_values {
                    let path = group.metadata().column(column).column_path();
                    return refuse(format!("column `{path}`"));
                }
                pages.skip_next_page()?;
            }
        }
    }
    Ok(())
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|source| Error::Read { path: path.to_path_buf(), source })
}

fn names(schema: &Schema) -> Vec<String> {
    schema.fields().iter().map(|field| field.name().clone()).collect()
}

/// The columns that are read, of which the required ones are there and readable.
fn wanted_indices(
    path: &Path,
    schema: &Schema,
    wanted: &Wanted,
    source_name: &str,
) -> Result<Vec<usize>> {
    for column in &wanted.required {
        let field = schema.fields().iter().find(|field| field.name() == column);
        let field = field.ok_or_else(|| Error::MissingColumn {
            source_name: source_name.to_owned(),
            column: column.clone(),
            available: names(schema),
        })?;
        if !cell::has_json_form(field.data_type()) {
            return Err(Error::UnreadableColumn {
                path: path.to_path_buf(),
                column: column.clone(),
                found: field.data_type().to_string(),
            });
        }
    }
    let fields = schema.fields().iter().enumerate();
    Ok(fields.filter(|(_, field)| wanted.contains(field.name())).map(|(i, _)| i).collect())
}
