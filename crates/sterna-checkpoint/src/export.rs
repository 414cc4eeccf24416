//! A checkpoint turned into a Hugging Face folder, without a model or a device.

use std::path::Path;

use sterna_arch::{DType, LoraConfig, ModelConfig, ParamSpec, Wrapper, adapters};
use sterna_hf::export::{
    MAX_SHARD_BYTES,
    merge::{self, AdapterTensors},
};
use sterna_hf::{ExportWriter, TensorSpec};

use crate::error::{Error, Result};
use crate::manifest::{Checkpoint, ParameterPlace, StateDtype, StateName};

/// What a checkpoint has of adapters, in single precision.
struct Masters<'c>(&'c Checkpoint);

impl AdapterTensors for Masters<'_> {
    type Error = Error;

    fn tensor(&self, spec: &ParamSpec) -> Result<Option<Vec<f32>>> {
        let manifest = &self.0.manifest;
        let wrong = |reason: String| {
            let path = self.0.dir.join(crate::manifest::MANIFEST);
            Error::Manifest { path, reason }
        };
        let Some(place) = manifest.parameters.iter().find(|place| place.name == spec.name) else {
            return Err(wrong(format!("it has no `{}`, which the base has", spec.name)));
        };
        if place.shape != spec.shape {
            let (name, found, required) = (&spec.name, &place.shape, &spec.shape);
            return Err(wrong(format!(
                "`{name}` has shape `{found:?}`, and the base's `{required:?}`"
            )));
        }
        let range = place.offset..place.offset + place.numel();
        let bytes =
            self.0.read_state(&manifest.flats[place.flat].name, StateName::Master, range)?;
        let floats = bytes.chunks_exact(4);
        let float = |bytes: &[u8]| f32::from_le_bytes(bytes.try_into().expect("four bytes"));
        Ok(Some(floats.map(float).collect()))
    }
}

/// Writes the model of the folder `base` with the adapters of `checkpoint`, added in single precision, to `dir`, in `dtype`; with the
/// tokenizer that the run had.
///
/// # Errors
///
/// [`Error::Manifest`] if it has no adapters; those of [`merge::merge`]; what reading a damaged checkpoint gives.
pub fn merge(checkpoint: &Checkpoint, base: &Path, dir: &Path, dtype: DType) -> Result<()> {
    let path = checkpoint.dir.join(crate::manifest::MANIFEST);
    let Some(config) = &checkpoint.manifest.adapter else {
        let reason = "it is of a run without adapters, whose export is the whole model".to_owned();
        return Err(Error::Manifest { path, reason });
    };
    let lora = LoraConfig::from_file(config, &path).map_err(sterna_hf::Error::from)?;
    // With the changes of the recipe, which the base's own has not.
    let assets_dir = checkpoint.assets_dir();
    let config = ModelConfig::from_dir(&assets_dir).and_then(|config| config.with_lora(lora));
    let config = config.map_err(sterna_hf::Error::from)?;
    merge::merge(base, config, &Masters(checkpoint), &assets_dir, dir, Some(dtype))
}

/// Writes the weights of `checkpoint` to `dir` as safetensors in `dtype`, buffers that classes keep in single precision in that, with config and tokenizer: the same bytes that an entry
/// of `type: huggingface` writes at that step; of adapters, those alone.
///
/// Rounding is to the nearest, ties to even, as libtorch rounds.
///
/// # Memory
///
/// One parameter, twice.
///
/// # Errors
///
/// [`Error::Hf`] if the folder cannot be written; what reading a damaged checkpoint gives.
pub fn export(checkpoint: &Checkpoint, dir: &Path, dtype: DType) -> Result<()> {
    let manifest = &checkpoint.manifest;
    if let Some(wrapper) = Wrapper::of(&manifest.model)
        && manifest.adapter.is_none()
    {
        let required = "a model of text alone: a `checkpoint` entry of `type: huggingface` exports the other towers too";
        let path = checkpoint.dir.join(crate::manifest::MANIFEST);
        return Err(sterna_hf::Error::from(wrapper.refuse(&path, required)).into());
    }
    let all = manifest.parameters.iter();
    let places: Vec<(String, &ParameterPlace)> = if manifest.adapter.is_none() {
        all.map(|place| (place.name.clone(), place)).collect()
    } else {
        let trained = all.filter(|place| manifest.flats[place.flat].is_trained);
        let names = adapters::export_names(trained.clone().map(|place| &place.name[..]));
        names.into_iter().zip(trained).collect()
    };
    let dtype_of = |place: &ParameterPlace| if place.is_fp32 { DType::F32 } else { dtype };
    let tensor = |(name, place): &(String, &ParameterPlace)| {
        let spec = TensorSpec { name: name.clone(), shape: place.shape.clone() };
        (spec, dtype_of(place))
    };
    let tensors: Vec<(TensorSpec, DType)> = places.iter().map(tensor).collect();
    if let Some(state) = manifest.state(StateName::Master)
        && state.dtype != StateDtype::F32
    {
        return Err(Error::Manifest {
            path: checkpoint.dir.join(crate::manifest::MANIFEST),
            reason: format!("masters are stored in {:?}, required: F32", state.dtype),
        });
    }
    let mut writer = match manifest.adapter {
        Some(_) => ExportWriter::create_adapter(dir, &tensors)?,
        None => ExportWriter::create(dir, &tensors, MAX_SHARD_BYTES)?,
    };
    for (name, place) in places {
        let flat = &manifest.flats[place.flat].name;
        let range = place.offset..place.offset + place.numel();
        let masters = checkpoint.read_state(flat, StateName::Master, range)?;
        let dtype = dtype_of(place);
        writer.write(&name, &DType::convert(&masters, DType::F32, dtype))?;
    }
    let assets = checkpoint.assets_dir();
    match &manifest.adapter {
        Some(config) => {
            writer.write_adapter_config(config)?;
            writer.copy_tokenizer(&assets)?;
        }
        None => writer.copy_assets(&assets, &manifest.model)?,
    }
    writer.finish()?;
    Ok(())
}
