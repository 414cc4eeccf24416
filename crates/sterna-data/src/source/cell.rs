//! Cells of Parquet and Arrow columns as JSON values.
//!
//! Columns are typed where JSON rows are not, so two things need a rule. Every struct of a column has the fields of all: a null in
//! a struct is usually a field that the row never had, and is left out again. And some types have no JSON form of their own: they
//! get the text that Python's `isoformat` or `str` gives, or none, and then the field is left out.

use arrow_array::{
    Array, ArrayRef, StructArray,
    cast::AsArray,
    types::{
        ArrowPrimitiveType, Date32Type, Date64Type, Decimal32Type, Decimal64Type, Decimal128Type,
        Decimal256Type, Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type,
        Int64Type, Time32MillisecondType, Time32SecondType, Time64MicrosecondType,
        Time64NanosecondType, TimestampMicrosecondType, TimestampMillisecondType,
        TimestampNanosecondType, TimestampSecondType, UInt8Type, UInt16Type, UInt32Type,
        UInt64Type,
    },
};
use arrow_schema::{ArrowError, DataType, Field, Fields, TimeUnit};
use serde_json::{Map, Value};

use crate::source::{iso, scratch::MAX_ROW_BYTES};

/// Where the metadata of a field names its extension type, and the one that the datasets library writes values of mixed types as.
const EXTENSION_KEY: &str = "ARROW:extension:name";
const JSON_EXTENSION: &str = "arrow.json";

/// The field that a message has even if it is null: an assistant's message that only calls tools is written so.
const CONTENT: &str = "content";

/// Row `index` of columns.
pub(super) fn row(
    fields: &Fields,
    columns: &[ArrayRef],
    index: usize,
) -> Result<Map<String, Value>, ArrowError> {
    let mut budget = Budget(MAX_ROW_BYTES);
    let mut row = Map::new();
    for (field, column) in fields.iter().zip(columns) {
        if let Some(value) = cell(field, column, index, Place::Column, &mut budget)? {
            row.insert(field.name().clone(), value);
        }
    }
    Ok(row)
}

/// Whether values of this type can be read at all.
pub(super) fn has_json_form(data_type: &DataType) -> bool {
    match data_type {
        DataType::Duration(_)
        | DataType::Interval(_)
        | DataType::Union(..)
        | DataType::RunEndEncoded(..)
        | DataType::ListView(_)
        | DataType::LargeListView(_) => false,
        DataType::Dictionary(_, values) => has_json_form(values),
        _ => true,
    }
}

/// How far below the row a value is, which decides whether its nulls were written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The value of a column: null where the row says so.
    Column,
    /// An item of a column that is a list, so usually a message.
    Item,
    /// Anything deeper.
    Inside,
}

impl Place {
    fn of_items(self) -> Self {
        if self == Self::Column { Self::Item } else { Self::Inside }
    }
}

/// The value at `index`, as the JSON reader would have given it; `None` if it has no JSON form.
fn cell(
    field: &Field,
    array: &ArrayRef,
    index: usize,
    place: Place,
    budget: &mut Budget,
) -> Result<Option<Value>, ArrowError> {
    budget.take(size_of::<Value>())?;
    if !has_json_form(array.data_type()) {
        return Ok(None);
    }
    if array.is_null(index) {
        return Ok(Some(Value::Null));
    }
    Ok(Some(match array.data_type() {
        DataType::Null => Value::Null,
        DataType::Boolean => array.as_boolean().value(index).into(),
        DataType::Utf8 => text(field, array.as_string::<i32>().value(index), budget)?,
        DataType::LargeUtf8 => text(field, array.as_string::<i64>().value(index), budget)?,
        DataType::Utf8View => text(field, array.as_string_view().value(index), budget)?,
        DataType::Binary => return bytes(array.as_binary::<i32>().value(index), budget),
        DataType::LargeBinary => return bytes(array.as_binary::<i64>().value(index), budget),
        DataType::BinaryView => return bytes(array.as_binary_view().value(index), budget),
        DataType::FixedSizeBinary(_) => {
            return bytes(array.as_fixed_size_binary().value(index), budget);
        }
        DataType::List(item) => list(item, &array.as_list::<i32>().value(index), place, budget)?,
        DataType::LargeList(item) => {
            list(item, &array.as_list::<i64>().value(index), place, budget)?
        }
        DataType::FixedSizeList(item, _) => {
            list(item, &array.as_fixed_size_list().value(index), place, budget)?
        }
        DataType::Struct(_) => Value::Object(object(array.as_struct(), index, place, budget)?),
        DataType::Map(..) => map(&array.as_map().value(index), budget)?,
        DataType::Dictionary(..) => {
            let dictionary = array.as_any_dictionary();
            // Of one element: the keys of the whole column would be converted for each row.
            let key = array.slice(index, 1).as_any_dictionary().normalized_keys()[0];
            return cell(field, dictionary.values(), key, place, budget);
        }
        other => match number(other, array, index).or_else(|| time(other, array, index)) {
            Some(value) => value,
            None => return Ok(None),
        },
    }))
}

fn number(data_type: &DataType, array: &ArrayRef, index: usize) -> Option<Value> {
    Some(match data_type {
        DataType::Int8 => integer::<Int8Type>(array, index),
        DataType::Int16 => integer::<Int16Type>(array, index),
        DataType::Int32 => integer::<Int32Type>(array, index),
        DataType::Int64 => integer::<Int64Type>(array, index),
        DataType::UInt8 => integer::<UInt8Type>(array, index),
        DataType::UInt16 => integer::<UInt16Type>(array, index),
        DataType::UInt32 => integer::<UInt32Type>(array, index),
        DataType::UInt64 => integer::<UInt64Type>(array, index),
        DataType::Float16 => f64::from(array.as_primitive::<Float16Type>().value(index)).into(),
        DataType::Float32 => f64::from(array.as_primitive::<Float32Type>().value(index)).into(),
        DataType::Float64 => array.as_primitive::<Float64Type>().value(index).into(),
        // Text, because a decimal is there to be exact.
        DataType::Decimal32(..) => {
            array.as_primitive::<Decimal32Type>().value_as_string(index).into()
        }
        DataType::Decimal64(..) => {
            array.as_primitive::<Decimal64Type>().value_as_string(index).into()
        }
        DataType::Decimal128(..) => {
            array.as_primitive::<Decimal128Type>().value_as_string(index).into()
        }
        DataType::Decimal256(..) => {
            array.as_primitive::<Decimal256Type>().value_as_string(index).into()
        }
        _ => return None,
    })
}

fn integer<T>(array: &ArrayRef, index: usize) -> Value
where
    T: ArrowPrimitiveType,
    T::Native: Into<Value>,
{
    array.as_primitive::<T>().value(index).into()
}

/// Dates and times as Python's `isoformat` prints them; `None` outside its calendar.
fn time(data_type: &DataType, array: &ArrayRef, index: usize) -> Option<Value> {
    let text = match data_type {
        DataType::Date32 => iso::date(i64::from(array.as_primitive::<Date32Type>().value(index)))?,
        DataType::Date64 => {
            let milliseconds = array.as_primitive::<Date64Type>().value(index);
            iso::date(milliseconds.div_euclid(iso::SECONDS_IN_DAY * 1000))?
        }
        DataType::Time32(unit) => {
            let value = match unit {
                TimeUnit::Second => array.as_primitive::<Time32SecondType>().value(index),
                _ => array.as_primitive::<Time32MillisecondType>().value(index),
            };
            iso::time(i128::from(value) * nanoseconds(*unit))
        }
        DataType::Time64(unit) => {
            let value = match unit {
                TimeUnit::Nanosecond => array.as_primitive::<Time64NanosecondType>().value(index),
                _ => array.as_primitive::<Time64MicrosecondType>().value(index),
            };
            iso::time(i128::from(value) * nanoseconds(*unit))
        }
        DataType::Timestamp(unit, zone) => {
            let value = match unit {
                TimeUnit::Second => array.as_primitive::<TimestampSecondType>().value(index),
                TimeUnit::Millisecond => {
                    array.as_primitive::<TimestampMillisecondType>().value(index)
                }
                TimeUnit::Microsecond => {
                    array.as_primitive::<TimestampMicrosecondType>().value(index)
                }
                TimeUnit::Nanosecond => {
                    array.as_primitive::<TimestampNanosecondType>().value(index)
                }
            };
            iso::timestamp(i128::from(value) * nanoseconds(*unit), zone.as_deref())?
        }
        _ => return None,
    };
    Some(text.into())
}

fn nanoseconds(unit: TimeUnit) -> i128 {
    match unit {
        TimeUnit::Second => 1_000_000_000,
        TimeUnit::Millisecond => 1_000_000,
        TimeUnit::Microsecond => 1_000,
        TimeUnit::Nanosecond => 1,
    }
}

fn text(field: &Field, text: &str, budget: &mut Budget) -> Result<Value, ArrowError> {
    budget.take(text.len())?;
    if field.metadata().get(EXTENSION_KEY).is_some_and(|name| name == JSON_EXTENSION) {
        // `[0,0]` is a value for every two bytes.
        budget.take(text.len().saturating_mul(size_of::<Value>() / 2))?;
        return serde_json::from_str(text)
            .map_err(|source| ArrowError::JsonError(format!("`{}`: {source}", field.name())));
    }
    Ok(text.into())
}

/// Bytes that are text; images and the like have no JSON form.
fn bytes(bytes: &[u8], budget: &mut Budget) -> Result<Option<Value>, ArrowError> {
    budget.take(bytes.len())?;
    Ok(std::str::from_utf8(bytes).ok().map(Value::from))
}

fn list(
    field: &Field,
    items: &ArrayRef,
    place: Place,
    budget: &mut Budget,
) -> Result<Value, ArrowError> {
    let mut values = Vec::new();
    for i in 0..items.len() {
        // An item without a JSON form keeps its place.
        values.push(cell(field, items, i, place.of_items(), budget)?.unwrap_or(Value::Null));
    }
    Ok(Value::Array(values))
}

fn object(
    columns: &StructArray,
    index: usize,
    place: Place,
    budget: &mut Budget,
) -> Result<Map<String, Value>, ArrowError> {
    let mut object = Map::new();
    for (field, column) in columns.fields().iter().zip(columns.columns()) {
        let Some(value) = cell(field, column, index, Place::Inside, budget)? else { continue };
        if !value.is_null() || (place == Place::Item && field.name() == CONTENT) {
            object.insert(field.name().clone(), value);
        }
    }
    Ok(object)
}

/// An object if the keys are text, else a list of pairs.
fn map(entries: &StructArray, budget: &mut Budget) -> Result<Value, ArrowError> {
    let [(key_field, keys), (value_field, values)] =
        [0, 1].map(|i| (&entries.fields()[i], entries.column(i)));
    let has_text_keys =
        matches!(keys.data_type(), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    let mut named = Map::new();
    let mut pairs = Vec::new();
    for i in 0..entries.len() {
        let key = cell(key_field, keys, i, Place::Inside, budget)?.unwrap_or(Value::Null);
        let value = cell(value_field, values, i, Place::Inside, budget)?.unwrap_or(Value::Null);
        match key {
            Value::String(key) if has_text_keys => {
                named.insert(key, value);
            }
            key => pairs.push(Value::Array(vec![key, value])),
        }
    }
    Ok(if has_text_keys { Value::Object(named) } else { Value::Array(pairs) })
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
