//! A model folder read and written again.

use std::path::Path;

use super::ExportWriter;
use crate::assets;
use crate::error::Result;
use crate::weights::{INDEX_FILE, WeightFiles};
use sterna_arch::DType;
use sterna_arch::ModelConfig;

/// Writes the model of the folder `from` to `to`: the same tensors under the same names in files of the same cut, as safetensors,
/// in `dtype` if one is given. Without, every file that transformers wrote comes out byte for byte, unless it has weights of four bits:
/// these are always widened, and without a `dtype` everything is written in bf16.
///
/// # Memory
///
/// One tensor.
///
/// # Errors
///
/// Those of reading `from` ([`WeightFiles::open`]) and of writing `to` ([`ExportWriter::create`]).
pub fn rewrite(from: &Path, to: &Path, dtype: Option<DType>) -> Result<()> {
    let weights = WeightFiles::open(from)?;
    let dtype = dtype.or(weights.are_packed().then_some(DType::BF16));
    let files = weights.tensors_by_file(|_, view| dtype.unwrap_or(view.dtype))?;
    let mut writer = ExportWriter::create_files(to, &files)?;
    for (spec, dtype) in files.iter().flatten() {
        let view = weights.tensor(&spec.name)?;
        writer.write(&spec.name, &DType::convert(&view.bytes(), view.dtype, *dtype))?;
    }
    match dtype {
        // Config and index too, as they stand in their files.
        None => assets::names().chain([INDEX_FILE]).try_for_each(|name| writer.copy(from, name))?,
        Some(_) => writer.copy_assets(from, &ModelConfig::from_dir(from)?.raw)?,
    }
    writer.finish()
}
