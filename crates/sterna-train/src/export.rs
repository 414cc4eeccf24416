//! The Hugging Face folder that transformers, vLLM and the rest open.

use std::{collections::HashMap, path::Path};

use sterna_arch::{DType, ModelConfig, ParamSpec};
use sterna_comm::Group;
use sterna_hf::{ExportWriter, TensorSpec, WeightFiles, export::MAX_SHARD_BYTES};
use tch::{Device, Kind, Tensor};

use crate::{error::TrainError, zero::Zero};

/// Where the model of a run comes from.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// Its name in the recipe.
    pub name: &'a str,
    /// Its folder.
    pub model_dir: &'a Path,
    /// The folder of its tokenizer.
    pub tokenizer_dir: &'a Path,
}

/// Writes the model to `dir`: safetensors in the model's dtype, but buffers that classes keep in single precision, config, tokenizer.
///
/// Under adapters, what is trained alone and `adapter_config.json`, as PEFT reads them.
///
/// The generation config is copied from the model's folder, tokenizer and chat template from the tokenizer's; of a multimodal model, every
/// tensor that is not of its text decoder too, as it lies there. An earlier export in `dir` stays intact until the new one is complete.
///
/// # Communication
///
/// One gather for each unit, in order. Collective; rank 0 alone writes. If it cannot, its error goes up to
/// [`crate::train`], which tells the other ranks; their gathers then fail in seconds.
///
/// # Memory
///
/// One unit at a time.
///
/// # Errors
///
/// [`TrainError::Hf`] if the folder cannot be written.
pub fn export(
    world: &Group,
    zero: &mut Zero,
    config: &ModelConfig,
    kind: Kind,
    origin: Origin<'_>,
    dir: &Path,
) -> Result<(), TrainError> {
    let dtype = if kind == Kind::BFloat16 { DType::BF16 } else { DType::F32 };
    let exported: HashMap<&str, (String, DType)> = config
        .arch
        .exported()
        .into_iter()
        .map(|(name, spec)| (&spec.name[..], (name, if spec.is_fp32 { DType::F32 } else { dtype })))
        .collect();
    let mut writer = None;
    let mut beside = None;
    if world.rank() == 0 {
        let specs = (0..zero.num_units()).flat_map(|unit_idx| &zero.layout(unit_idx).specs);
        let mut tensors: Vec<(TensorSpec, DType)> = specs
            .filter_map(|spec| {
                let (name, dtype) = exported.get(&spec.name[..])?;
                Some((TensorSpec { name: name.clone(), shape: spec.shape.clone() }, *dtype))
            })
            .collect();
        if config.lora.is_none() && config.wrapper.is_some() {
            let files = WeightFiles::open(origin.model_dir)?;
            for name in names_beside(&files, config) {
                let view = files.tensor(name)?;
                tensors.push((TensorSpec { name: name.to_owned(), shape: view.shape }, view.dtype));
            }
            beside = Some(files);
        }
        writer = Some(match config.lora {
            Some(_) => ExportWriter::create_adapter(dir, &tensors)?,
            None => ExportWriter::create(dir, &tensors, MAX_SHARD_BYTES)?,
        });
    }
    for unit_idx in 0..zero.num_units() {
        let is_exported = |spec: &ParamSpec| exported.contains_key(&spec.name[..]);
        if !zero.layout(unit_idx).specs.iter().any(is_exported) {
            continue;
        }
        let params = zero.gather(world, unit_idx)?;
        if let Some(writer) = &mut writer {
            for (spec, param) in zero.layout(unit_idx).specs.iter().zip(&params) {
                if let Some((name, _)) = exported.get(&spec.name[..]) {
                    writer.write(name, &bytes_of(param))?;
                }
            }
        }
    }
    if let Some(mut writer) = writer {
        if let Some(files) = &beside {
            for name in names_beside(files, config) {
                writer.write(name, &files.tensor(name)?.bytes())?;
            }
        }
        match &config.lora {
            Some(lora) => writer.write_adapter_config(&lora.to_json(origin.name, config))?,
            None => writer.copy_assets(origin.model_dir, &config.raw)?,
        }
        writer.copy_tokenizer(origin.tokenizer_dir)?;
        writer.finish()?;
    }
    Ok(())
}

/// The tensors of other towers. A head that the model has not is none: it would differ from the embedding that it is to be.
fn names_beside<'f>(files: &'f WeightFiles, config: &ModelConfig) -> Vec<&'f str> {
    let mut names = files.names_beside(&config.arch);
    names.retain(|name| !(config.arch.is_tied() && name.ends_with("lm_head.weight")));
    names
}

/// The elements of `tensor` as they lie in memory.
fn bytes_of(tensor: &Tensor) -> Vec<u8> {
    let tensor = tensor.to_device(Device::Cpu).contiguous();
    let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
    tensor.copy_data_u8(&mut bytes, tensor.numel());
    bytes
}
