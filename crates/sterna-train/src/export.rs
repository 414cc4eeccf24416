//! The Hugging Face folder that transformers, vLLM and the rest open.

use std::path::Path;

use sterna_arch::{DType, ModelConfig};
use sterna_comm::Group;
use sterna_hf::{ExportWriter, TensorSpec, WeightFiles};
use tch::{Device, Kind, Tensor};

use crate::{error::TrainError, zero::Zero};

/// Largest safetensors shard of an export, bytes.
pub const MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// Writes the model to `dir`: safetensors in the model's dtype, but buffers that classes keep in single precision, config, tokenizer.
///
/// The generation config is copied from `model_dir`, the tokenizer and chat template from `tokenizer_dir`; of a multimodal model, every
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
    model_dir: &Path,
    tokenizer_dir: &Path,
    dir: &Path,
) -> Result<(), TrainError> {
    let dtype = if kind == Kind::BFloat16 { DType::BF16 } else { DType::F32 };
    let num_units = zero.num_units();
    let mut writer = None;
    let mut beside = None;
    if world.rank() == 0 {
        let mut tensors: Vec<(TensorSpec, DType)> = (0..num_units)
            .flat_map(|unit_idx| &zero.layout(unit_idx).specs)
            .map(|spec| (spec.into(), if spec.is_fp32 { DType::F32 } else { dtype }))
            .collect();
        if config.wrapper.is_some() {
            let files = WeightFiles::open(model_dir)?;
            for name in names_beside(&files, config) {
                let view = files.tensor(name)?;
                tensors.push((TensorSpec { name: name.to_owned(), shape: view.shape }, view.dtype));
            }
            beside = Some(files);
        }
        writer = Some(ExportWriter::create(dir, &tensors, MAX_SHARD_BYTES)?);
    }
    for unit_idx in 0..num_units {
        let params = zero.gather(world, unit_idx)?;
        if let Some(writer) = &mut writer {
            for (spec, param) in zero.layout(unit_idx).specs.iter().zip(&params) {
                writer.write(&spec.name, &bytes_of(param))?;
            }
        }
    }
    if let Some(mut writer) = writer {
        if let Some(files) = &beside {
            for name in names_beside(files, config) {
                writer.write(name, &files.tensor(name)?.bytes())?;
            }
        }
        writer.copy_assets(model_dir, &config.raw)?;
        writer.copy_tokenizer(tokenizer_dir)?;
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
