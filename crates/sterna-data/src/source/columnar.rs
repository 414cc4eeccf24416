//! Parquet files and Arrow files, and their cells as JSON values.

use std::{
    fs::File,
    io::{BufReader, Read, Seek, SeekFrom},
    path::Path,
};

use arrow_array::{
    Array, ArrayRef, RecordBatch, StructArray,
    cast::AsArray,
    types::{
        ArrowPrimitiveType, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
        UInt8Type, UInt16Type, UInt32Type, UInt64Type,
    },
};
use arrow_ipc::reader::{FileReader, StreamReader};
use arrow_schema::{ArrowError, DataType, Schema};
use parquet::{
    arrow::{ProjectionMask, arrow_reader::ParquetRecordBatchReaderBuilder},
    errors::ParquetError,
    file::{reader::FileReader as _, serialized_reader::SerializedFileReader},
};
use serde_json::{Map, Value};
use sterna_hf::catch_panic;

use crate::error::{Error, Result};

/// What an Arrow stream ends with: a continuation marker and a length of zero.
const STREAM_END: [u8; 8] = [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];
/// What an Arrow file (not stream) starts with.
const FILE_MAGIC: &[u8; 6] = b"ARROW1";

/// Values of a column that a Parquet file may have whatever its size.
const MIN_VALUES: u64 = 1 << 22;
/// Values of a column for each byte of a Parquet file. Texts have fewer than one; nulls in a row may have hundreds.
const MAX_VALUES_PER_BYTE: u64 = 256;

/// Bytes that a row may take in memory: a hundred times a chat of a million tokens.
const MAX_ROW_BYTES: usize = 1 << 29;

/// Some columns of a file, in memory.
#[derive(Debug)]
pub(super) struct Columns {
    /// Every column of the file, read or not.
    pub(super) names: Vec<String>,
    batches: Vec<RecordBatch>,
    /// First row of each batch.
    starts: Vec<usize>,
    len: usize,
}

impl Columns {
    fn new(schema: &Schema, batches: Vec<RecordBatch>) -> Self {
        let mut len = 0;
        let starts = batches
            .iter()
            .map(|batch| {
                len += batch.num_rows();
                len - batch.num_rows()
            })
            .collect();
        let names = schema.fields().iter().map(|field| field.name().clone()).collect();
        Self { names, batches, starts, len }
    }

    /// Reads those of `wanted` columns that the Parquet file has.
    pub(super) fn open_parquet(path: &Path, wanted: &[String]) -> Result<Self> {
        catch_panic(|| Self::read_parquet(path, wanted)).unwrap_or_else(|panicked| {
            let source = ParquetError::External(Box::new(panicked));
            Err(Error::Parquet { path: path.to_path_buf(), source })
        })
    }

    fn read_parquet(path: &Path, wanted: &[String]) -> Result<Self> {
        let error = |source| Error::Parquet { path: path.to_path_buf(), source };
        let builder = ParquetRecordBatchReaderBuilder::try_new(open(path)?).map_err(error)?;
        let schema = builder.schema().clone();
        let mask = ProjectionMask::roots(builder.parquet_schema(), wanted_indices(&schema, wanted));
        let file_bytes = path
            .metadata()
            .map_err(|source| Error::Read { path: path.to_path_buf(), source })?
            .len();
        check_pages(open(path)?, &mask, file_bytes).map_err(error)?;
        let reader = builder.with_projection(mask).build().map_err(error)?;
        let batches: Result<Vec<_>, ArrowError> = reader.collect();
        let batches =
            batches.map_err(|source| Error::Arrow { path: path.to_path_buf(), source })?;
        Ok(Self::new(&schema, batches))
    }

    /// Reads those of `wanted` columns that the Arrow file has; both the stream format that `save_to_disk` writes and the file format.
    pub(super) fn open_arrow(path: &Path, wanted: &[String]) -> Result<Self> {
        catch_panic(|| Self::read_arrow(path, wanted)).unwrap_or_else(|panicked| {
            let source = ArrowError::ExternalError(Box::new(panicked));
            Err(Error::Arrow { path: path.to_path_buf(), source })
        })
    }

    fn read_arrow(path: &Path, wanted: &[String]) -> Result<Self> {
        let read_error = |source| Error::Read { path: path.to_path_buf(), source };
        let error = |source| Error::Arrow { path: path.to_path_buf(), source };
        let mut file = open(path)?;
        let mut head = Vec::new();
        file.by_ref().take(FILE_MAGIC.len() as u64).read_to_end(&mut head).map_err(read_error)?;
        if head == FILE_MAGIC {
            let schema = FileReader::try_new(BufReader::new(&file), None).map_err(error)?.schema();
            let indices = wanted_indices(&schema, wanted);
            let reader =
                FileReader::try_new(BufReader::new(&file), Some(indices)).map_err(error)?;
            let batches: Result<Vec<_>, _> = reader.collect();
            return Ok(Self::new(&schema, batches.map_err(error)?));
        }
        // A stream that was cut between two batches reads without an error, only shorter.
        let found_bytes = file.seek(SeekFrom::End(0)).map_err(read_error)?;
        let mut tail = [0; STREAM_END.len()];
        if found_bytes >= tail.len() as u64 {
            file.seek(SeekFrom::End(-(tail.len() as i64))).map_err(read_error)?;
            file.read_exact(&mut tail).map_err(read_error)?;
        }
        if tail != STREAM_END {
            return Err(Error::TruncatedArrow { path: path.to_path_buf(), found_bytes });
        }
        file.rewind().map_err(read_error)?;
        let schema = StreamReader::try_new(BufReader::new(&file), None).map_err(error)?.schema();
        let indices = wanted_indices(&schema, wanted);
        file.rewind().map_err(read_error)?;
        let reader = StreamReader::try_new(BufReader::new(&file), Some(indices)).map_err(error)?;
        let batches: Result<Vec<_>, _> = reader.collect();
        Ok(Self::new(&schema, batches.map_err(error)?))
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn row(&self, path: &Path, index: usize) -> Result<Map<String, Value>> {
        let batch = self.starts.partition_point(|&start| start <= index) - 1;
        let (batch, offset) = (&self.batches[batch], index - self.starts[batch]);
        let mut budget = Budget(MAX_ROW_BYTES);
        object(batch.schema_ref().fields(), batch.columns(), offset, &mut budget)
            .map_err(|source| Error::Arrow { path: path.to_path_buf(), source })
    }
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

fn wanted_indices(schema: &Schema, wanted: &[String]) -> Vec<usize> {
    let is_wanted = |name: &String| wanted.contains(name);
    schema
        .fields()
        .iter()
        .enumerate()
        .filter(|(_, field)| is_wanted(field.name()))
        .map(|(i, _)| i)
        .collect()
}

fn object(
    fields: &arrow_schema::Fields,
    columns: &[ArrayRef],
    index: usize,
    budget: &mut Budget,
) -> Result<Map<String, Value>, ArrowError> {
    fields
        .iter()
        .zip(columns)
        .map(|(field, column)| Ok((field.name().clone(), cell(column, index, budget)?)))
        .collect()
}

/// The value at `index`, as the JSON reader would have given it.
fn cell(array: &ArrayRef, index: usize, budget: &mut Budget) -> Result<Value, ArrowError> {
    budget.take(size_of::<Value>())?;
    if array.is_null(index) {
        return Ok(Value::Null);
    }
    Ok(match array.data_type() {
        DataType::Null => Value::Null,
        DataType::Boolean => array.as_boolean().value(index).into(),
        DataType::Utf8 => text(array.as_string::<i32>().value(index), budget)?,
        DataType::LargeUtf8 => text(array.as_string::<i64>().value(index), budget)?,
        DataType::Utf8View => text(array.as_string_view().value(index), budget)?,
        DataType::Int8 => integer::<Int8Type>(array, index),
        DataType::Int16 => integer::<Int16Type>(array, index),
        DataType::Int32 => integer::<Int32Type>(array, index),
        DataType::Int64 => integer::<Int64Type>(array, index),
        DataType::UInt8 => integer::<UInt8Type>(array, index),
        DataType::UInt16 => integer::<UInt16Type>(array, index),
        DataType::UInt32 => integer::<UInt32Type>(array, index),
        DataType::UInt64 => integer::<UInt64Type>(array, index),
        DataType::Float32 => f64::from(array.as_primitive::<Float32Type>().value(index)).into(),
        DataType::Float64 => array.as_primitive::<Float64Type>().value(index).into(),
        DataType::List(_) => list(&array.as_list::<i32>().value(index), budget)?,
        DataType::LargeList(_) => list(&array.as_list::<i64>().value(index), budget)?,
        DataType::FixedSizeList(..) => list(&array.as_fixed_size_list().value(index), budget)?,
        DataType::Struct(fields) => {
            let columns: &StructArray = array.as_struct();
            Value::Object(object(fields, columns.columns(), index, budget)?)
        }
        DataType::Dictionary(..) => {
            let dictionary = array.as_any_dictionary();
            // Of one element: the keys of the whole column would be converted for each row.
            let key = array.slice(index, 1).as_any_dictionary().normalized_keys()[0];
            cell(dictionary.values(), key, budget)?
        }
        other => {
            return Err(ArrowError::NotYetImplemented(format!(
                "a column of type {other} as chat data"
            )));
        }
    })
}

fn integer<T>(array: &ArrayRef, index: usize) -> Value
where
    T: ArrowPrimitiveType,
    T::Native: Into<Value>,
{
    array.as_primitive::<T>().value(index).into()
}

fn text(text: &str, budget: &mut Budget) -> Result<Value, ArrowError> {
    budget.take(text.len())?;
    Ok(text.into())
}

fn list(items: &ArrayRef, budget: &mut Budget) -> Result<Value, ArrowError> {
    let mut values = Vec::new();
    for i in 0..items.len() {
        values.push(cell(items, i, budget)?);
    }
    Ok(Value::Array(values))
}

/// Bytes that a row may still take. Lists of nulls and texts that share their bytes take none in the file.
struct Budget(usize);

impl Budget {
    fn take(&mut self, bytes: usize) -> Result<(), ArrowError> {
        self.0 = self.0.checked_sub(bytes).ok_or_else(|| {
            ArrowError::InvalidArgumentError(format!(
                "a row takes more than `{MAX_ROW_BYTES}` bytes"
            ))
        })?;
        Ok(())
    }
}
