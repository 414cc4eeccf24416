//! Adapters added to the weights of their base.

use std::collections::HashMap;
use std::path::Path;

use rayon::prelude::*;
use sterna_arch::{DType, LoraConfig, ModelConfig, ParamSpec, Role, adapters};

use super::ExportWriter;
use crate::assets;
use crate::error::{Error, Result};
use crate::weights::WeightFiles;

/// The trained tensors of adapters, by what they are of a model: their elements in single precision, or `None` for one that is as in the
/// base.
pub trait AdapterTensors {
    /// What reading one may give.
    type Error: From<Error>;

    /// The elements of a parameter, row-major.
    ///
    /// # Errors
    ///
    /// If its file cannot be read.
    fn tensor(&self, spec: &ParamSpec) -> std::result::Result<Option<Vec<f32>>, Self::Error>;
}

/// The file of a folder of PEFT.
impl AdapterTensors for WeightFiles {
    type Error = Error;

    fn tensor(&self, spec: &ParamSpec) -> Result<Option<Vec<f32>>> {
        let name = adapters::name_in(|name| self.contains(name), &spec.name);
        name.map(|name| {
            let view = self.tensor(&name)?;
            Ok(floats(&view.bytes(), view.dtype))
        })
        .transpose()
    }
}

/// Opens the folder of PEFT `from`, whose adapters are of the model in `base`, and returns that model's config with them.
///
/// # Errors
///
/// Those of [`LoraConfig::from_dir`] and [`WeightFiles::open_adapter`].
pub fn open(from: &Path, base: &Path) -> Result<(ModelConfig, WeightFiles)> {
    let weights = WeightFiles::open(base)?;
    let config = ModelConfig::from_dir(base)?.with_lora(LoraConfig::from_dir(from)?)?;
    let config = config.named_as_in(|name| weights.contains(name));
    let files = WeightFiles::open_adapter(from, &config)?;
    Ok((config, files))
}

/// Writes the model in `base`, with adapters added to its weights, to `to`: the same tensors under the same names in files of the same
/// cut, in `dtype` if one is given, but buffers that classes keep in single precision and what is not of the decoder. `config` has the
/// adapters, and is what `config.json` will say. Tokenizer and chat template come from `tokenizer_dir`, if it has them.
///
/// A weight becomes `W + scale * B A`, or `m (W + scale * B A) / |W + scale * B A|` by rows with DoRA, in single precision, and is rounded
/// once.
///
/// # Memory
///
/// One tensor, three times in single precision.
///
/// # Errors
///
/// Those of reading `base` ([`WeightFiles::open`]), of `adapter`, and of writing `to` ([`ExportWriter::create`]).
pub fn merge<T: AdapterTensors>(
    base: &Path,
    config: ModelConfig,
    adapter: &T,
    tokenizer_dir: &Path,
    to: &Path,
    dtype: Option<DType>,
) -> std::result::Result<(), T::Error> {
    let weights = WeightFiles::open(base)?;
    let config = config.named_as_in(|name| weights.contains(name));
    weights.check(&config)?;
    let specs = config.arch.params().map(|spec| (&spec.name[..], spec)).collect::<HashMap<_, _>>();
    let files = weights.tensors_by_file(|name, view| match specs.get(name) {
        Some(spec) if spec.is_fp32 => DType::F32,
        None if config.wrapper.is_some() => view.dtype,
        _ => dtype.unwrap_or(view.dtype),
    })?;
    // Each weight that an adapter adds to, with the adapter.
    let mut adapted = HashMap::new();
    for layer in &config.arch.layers {
        for map in layer.linears() {
            if let Some(low_rank) = map.low_rank {
                adapted.insert(&layer.params[map.weight].name[..], (layer, low_rank));
            }
        }
    }
    let mut writer = ExportWriter::create_files(to, &files)?;
    for (spec, dtype) in files.iter().flatten() {
        let view = weights.tensor(&spec.name)?;
        // A module that is trained whole, or a bias.
        let own = specs.get(&spec.name[..]).filter(|spec| spec.role != Role::Frozen);
        let whole = match own {
            Some(spec) => adapter.tensor(spec)?,
            None => None,
        };
        let merged = if let Some((layer, low_rank)) = adapted.get(&spec.name[..]) {
            let of = |param_idx: usize| adapter.tensor(&layer.params[param_idx]);
            let (a, b) = (of(low_rank.a)?, of(low_rank.b)?);
            let magnitude = low_rank.magnitude.map(of).transpose()?.flatten();
            let (Some(a), Some(b)) = (a, b) else {
                let name = layer.params[low_rank.a].name.clone();
                let dir = tokenizer_dir.to_owned();
                return Err(Error::TensorMissing { dir, name, num_missing: 1 }.into());
            };
            let weight = whole.unwrap_or_else(|| floats(&view.bytes(), view.dtype));
            let shape = &layer.params[low_rank.a].shape;
            Some(added(weight, low_rank.scale, (shape[0], shape[1]), &a, &b, magnitude.as_deref()))
        } else {
            whole
        };
        if let Some(merged) = merged {
            let bytes: Vec<u8> = merged.iter().flat_map(|value| value.to_le_bytes()).collect();
            writer.write(&spec.name, &DType::convert(&bytes, DType::F32, *dtype))?;
        } else {
            writer.write(&spec.name, &DType::convert(&view.bytes(), view.dtype, *dtype))?;
        }
    }
    writer.copy_assets(base, &config.raw)?;
    if assets::TOKENIZER_FILES.iter().any(|name| tokenizer_dir.join(name).exists()) {
        writer.copy_tokenizer(tokenizer_dir)?;
    }
    Ok(writer.finish()?)
}

fn floats(bytes: &[u8], dtype: DType) -> Vec<f32> {
    let bytes = DType::convert(bytes, dtype, DType::F32);
    let floats = bytes.chunks_exact(4);
    floats.map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four bytes"))).collect()
}

/// `weight` `[out, in]` with A `[r, in]` and B `[out, r]` added, and its rows as long as `magnitude` says.
fn added(
    mut weight: Vec<f32>,
    scale: f64,
    (rank, in_features): (usize, usize),
    a: &[f32],
    b: &[f32],
    magnitude: Option<&[f32]>,
) -> Vec<f32> {
    let scale = scale as f32;
    weight.par_chunks_mut(in_features).enumerate().for_each(|(row_idx, row)| {
        for (b, a) in b[row_idx * rank..][..rank].iter().zip(a.chunks_exact(in_features)) {
            let b = scale * b;
            row.iter_mut().zip(a).for_each(|(sum, a)| *sum += b * a);
        }
        if let Some(magnitude) = magnitude {
            let norm = row.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
            let factor = (f64::from(magnitude[row_idx]) / norm) as f32;
            for value in row {
                *value *= factor;
            }
        }
    });
    weight
}
