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
use parquet::arrow::{ProjectionMask, arrow_reader::ParquetRecordBatchReaderBuilder};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// What an Arrow stream ends with: a continuation marker and a length of zero.
const STREAM_END: [u8; 8] = [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];
/// What an Arrow file (not stream) starts with.
const FILE_MAGIC: &[u8; 6] = b"ARROW1";

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
        let error = |source| Error::Parquet { path: path.to_path_buf(), source };
        let builder = ParquetRecordBatchReaderBuilder::try_new(open(path)?).map_err(error)?;
        let schema = builder.schema().clone();
        let mask = ProjectionMask::roots(builder.parquet_schema(), wanted_indices(&schema, wanted));
        let reader = builder.with_projection(mask).build().map_err(error)?;
        let batches: Result<Vec<_>, ArrowError> = reader.collect();
        let batches =
            batches.map_err(|source| Error::Arrow { path: path.to_path_buf(), source })?;
        Ok(Self::new(&schema, batches))
    }

    /// Reads those of `wanted` columns that the Arrow file has; both the stream format that `save_to_disk` writes and the file format.
    pub(super) fn open_arrow(path: &Path, wanted: &[String]) -> Result<Self> {
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
        object(batch.schema_ref().fields(), batch.columns(), offset)
            .map_err(|source| Error::Arrow { path: path.to_path_buf(), source })
    }
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
) -> Result<Map<String, Value>, ArrowError> {
    fields
        .iter()
        .zip(columns)
        .map(|(field, column)| Ok((field.name().clone(), cell(column, index)?)))
        .collect()
}

/// The value at `index`, as the JSON reader would have given it.
fn cell(array: &ArrayRef, index: usize) -> Result<Value, ArrowError> {
    if array.is_null(index) {
        return Ok(Value::Null);
    }
    Ok(match array.data_type() {
        DataType::Null => Value::Null,
        DataType::Boolean => array.as_boolean().value(index).into(),
        DataType::Utf8 => array.as_string::<i32>().value(index).into(),
        DataType::LargeUtf8 => array.as_string::<i64>().value(index).into(),
        DataType::Utf8View => array.as_string_view().value(index).into(),
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
        DataType::List(_) => list(&array.as_list::<i32>().value(index))?,
        DataType::LargeList(_) => list(&array.as_list::<i64>().value(index))?,
        DataType::FixedSizeList(..) => list(&array.as_fixed_size_list().value(index))?,
        DataType::Struct(fields) => {
            let columns: &StructArray = array.as_struct();
            Value::Object(object(fields, columns.columns(), index)?)
        }
        DataType::Dictionary(..) => {
            let dictionary = array.as_any_dictionary();
            cell(dictionary.values(), dictionary.normalized_keys()[index])?
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

fn list(items: &ArrayRef) -> Result<Value, ArrowError> {
    (0..items.len()).map(|i| cell(items, i)).collect::<Result<Vec<_>, _>>().map(Value::Array)
}
