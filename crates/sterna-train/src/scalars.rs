//! A few numbers agreed on by all ranks.

use sterna_comm::{CommError, Group, ReduceOp};
use tch::Tensor;

/// The sums of `values` over the ranks of `group`, in double precision.
///
/// # Communication
///
/// One all-reduce. Collective.
///
/// # Errors
///
/// Those of [`Group::all_reduce_`].
pub(crate) fn sum(group: &Group, values: &[f64]) -> Result<Vec<f64>, CommError> {
    all_reduce(group, values, ReduceOp::Sum)
}

/// The largest of the ranks' `value`s.
///
/// # Communication
///
/// One all-reduce. Collective.
///
/// # Errors
///
/// Those of [`Group::all_reduce_`].
pub(crate) fn max(group: &Group, value: f64) -> Result<f64, CommError> {
    Ok(all_reduce(group, &[value], ReduceOp::Max)?[0])
}

/// The largest of the ranks' values, one by one.
///
/// # Communication
///
/// One all-reduce. Collective.
///
/// # Errors
///
/// Those of [`Group::all_reduce_`].
pub(crate) fn maxima(group: &Group, values: &[f64]) -> Result<Vec<f64>, CommError> {
    all_reduce(group, values, ReduceOp::Max)
}

fn all_reduce(group: &Group, values: &[f64], op: ReduceOp) -> Result<Vec<f64>, CommError> {
    let tensor = Tensor::from_slice(values);
    group.all_reduce_(&tensor, op)?;
    Ok((0..values.len()).map(|i| tensor.double_value(&[i as i64])).collect())
}
