//! `deepspeed`: stage, places, formats; and the batch sizes that it repeats.

use sterna_arch::DType;

use crate::{
    diagnostic::Diagnostic,
    file::{At, DeepSpeedFile, DtypeWord, Int, OffloadDevice, Read, Reader, RecipeFile, ZeroFile},
    recipe::{DeepSpeedOptions, ZeroStage},
    yaml::Node,
};

use super::{conflict, or};

/// The reference clips to this norm unless told otherwise.
const DEFAULT_CLIPPING: f64 = 1.0;

/// `dtype` is the model's, unless that is missing; `sp_size` is `sequence_parallel_size`.
pub(super) fn resolve(
    file: &RecipeFile,
    dtype: Option<DType>,
    sp_size: usize,
    reader: &mut Reader,
) -> DeepSpeedOptions {
    let deepspeed = file.deepspeed.as_ref().map(|at| &at.value);
    let zero = deepspeed.and_then(|file| file.zero_optimization.as_ref());
    let zero_stage = zero_stage(zero, reader);
    let zero = zero.map(|at| &at.value);
    let offload_param = offload_param(zero, zero_stage, reader);
    if let (Some(deepspeed), Some(dtype)) = (deepspeed, dtype) {
        check_bf16(deepspeed, dtype, reader);
    }
    let sizes = [
        (
            "micro_batch_size",
            deepspeed.and_then(|file| file.train_micro_batch_size_per_gpu.as_ref()),
            file.micro_batch_size.as_ref(),
        ),
        (
            "gradient_accumulation_steps",
            deepspeed.and_then(|file| file.gradient_accumulation_steps.as_ref()),
            file.gradient_accumulation_steps.as_ref(),
        ),
        (
            "sequence_parallel_size",
            deepspeed.and_then(|file| file.sequence_parallel_size.as_ref()),
            file.sequence_parallel_size.as_ref(),
        ),
    ];
    for (key, repeated, own) in sizes {
        repeated_size(key, repeated, or(own, 1), reader);
    }
    DeepSpeedOptions {
        zero_stage,
        offload_param,
        gradient_clipping: or(
            deepspeed.and_then(|file| file.gradient_clipping.as_ref()),
            DEFAULT_CLIPPING,
        ),
        reduce_dtype: deepspeed.map_or(DType::F32, |file| reduce_dtype(file, sp_size, reader)),
        grad_accum_dtype: deepspeed.map_or(DType::F32, |file| grad_accum_dtype(file, reader)),
        train_batch_size: deepspeed.and_then(|file| size(file.train_batch_size.as_ref()?, reader)),
    }
}

/// The stage; without `zero_optimization` the reference's 2, with it but without `stage` DeepSpeed's 0.
fn zero_stage(zero: Option<&At<ZeroFile>>, reader: &mut Reader) -> ZeroStage {
    let Some(zero) = zero else { return ZeroStage::Two };
    let Some(at) = &zero.value.stage else {
        if !reader.is_set("deepspeed.zero_optimization.stage") {
            let text = "it has no `stage`, which means stage 0: nothing is sharded";
            reader.note(&zero.path, text);
        }
        return ZeroStage::Zero;
    };
    match at.value {
        0 => ZeroStage::Zero,
        1 => ZeroStage::One,
        2 => ZeroStage::Two,
        3 => ZeroStage::Three,
        other => {
            reader.error(Diagnostic::value(
                &at.path,
                at.span,
                format!("`{other}`"),
                "a stage: 0, 1, 2 or 3",
            ));
            ZeroStage::Three
        }
    }
}

/// Whether the weights rest on the host; a disk is refused.
fn is_on_host(device: Option<&At<OffloadDevice>>, reader: &mut Reader) -> bool {
    match device.map(|at| (at, at.value)) {
        None | Some((_, OffloadDevice::None)) => false,
        Some((_, OffloadDevice::Cpu)) => true,
        Some((at, OffloadDevice::Nvme)) => {
            reader.refuse(
                &at.path,
                at.span,
                "= `nvme`".to_owned(),
                "weights rest on the device or with `cpu` on the host",
            );
            false
        }
    }
}

fn offload_param(zero: Option<&ZeroFile>, stage: ZeroStage, reader: &mut Reader) -> bool {
    let section = zero.and_then(|zero| zero.offload_param.as_ref()?.value.as_ref());
    let is_on = section.is_some_and(|section| is_on_host(section.device.as_ref(), reader));
    if is_on && stage < ZeroStage::Three {
        let path = "deepspeed.zero_optimization.offload_param";
        let found = format!("`offload_param` is on with ZeRO stage `{}`", stage.number());
        conflict(
            reader,
            path,
            found,
            "stage 3, which fetches weights before use",
            Some("set `stage: 3` or remove `offload_param`"),
        );
    }
    is_on
}

/// `deepspeed.bf16.enabled` and `model.dtype` say the same thing twice.
fn check_bf16(file: &DeepSpeedFile, dtype: DType, reader: &mut Reader) {
    let Some(at) = file.bf16.as_ref().and_then(|at| at.value.enabled.as_ref()) else { return };
    let enabled = match at.value.to_json() {
        serde_json::Value::Bool(enabled) => enabled,
        serde_json::Value::String(word) if word == "auto" => return,
        _ => {
            reader.wrong::<()>(&at.value, &at.path, "`true`, `false` or `auto`");
            return;
        }
    };
    if enabled != (dtype == DType::BF16) {
        let found = format!("`{}` is `{enabled}` and `model.dtype` is `{dtype}`", at.path);
        conflict(
            reader,
            &at.path,
            found,
            "the same format in both",
            Some("`model.dtype` chooses the format: remove this key"),
        );
    }
}

/// A size that `DeepSpeed` would compute: `auto`, or an integer.
fn size(at: &At<Node>, reader: &mut Reader) -> Option<usize> {
    match at.value.to_json() {
        serde_json::Value::String(word) if word == "auto" => None,
        _ => Int::<1>::read(&at.value, &at.path, reader),
    }
}

/// The reference overwrites these keys with the recipe's own; here they have to agree.
fn repeated_size(key: &str, repeated: Option<&At<Node>>, own: usize, reader: &mut Reader) {
    let Some(at) = repeated else { return };
    if let Some(value) = size(at, reader).filter(|value| *value != own) {
        let found = format!("`{}` is `{value}` and `{key}` is `{own}`", at.path);
        conflict(
            reader,
            &at.path,
            found,
            "the same number",
            Some("remove it: the recipe's own key decides"),
        );
    }
}

/// The format of gradients between ranks: one key for sequence parallelism, one without it.
fn reduce_dtype(file: &DeepSpeedFile, sp_size: usize, reader: &mut Reader) -> DType {
    let sp = file.seq_parallel_communication_data_type.as_ref();
    let plain = file.communication_data_type.as_ref();
    let sp_dtype = sp.map(|at| format(&at.path, at, at.value, reader));
    let plain_dtype = plain.and_then(|at| Some(format(&at.path, at, at.value?, reader)));
    let (used, unused, why) = if sp_size > 1 {
        (sp_dtype, plain.map(|at| &at.path), "it is for runs without sequence parallelism")
    } else {
        (plain_dtype, sp.map(|at| &at.path), "it is for runs with `sequence_parallel_size` above 1")
    };
    if let Some(path) = unused {
        reader.note(&path.clone(), why);
    }
    used.unwrap_or(DType::F32)
}

fn grad_accum_dtype(file: &DeepSpeedFile, reader: &mut Reader) -> DType {
    let Some(at) = file.data_types.as_ref().and_then(|at| at.value.grad_accum_dtype.as_ref())
    else {
        return DType::F32;
    };
    at.value.map_or(DType::F32, |word| format(&at.path, at, word, reader))
}

fn format<T>(path: &str, at: &At<T>, word: DtypeWord, reader: &mut Reader) -> DType {
    match word {
        DtypeWord::Supported(dtype) => dtype,
        DtypeWord::Half => {
            reader.refuse(
                path,
                at.span,
                "= `fp16`".to_owned(),
                "gradients overflow in it: use `bf16` or `fp32`",
            );
            DType::F32
        }
    }
}
