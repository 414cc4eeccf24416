//! `memory`: what is kept, where, and how much is computed at once.

use sterna_arch::DType;

use crate::{
    file::{At, DtypeWord, MemoryFile, OffloadDevice, OffloadOptimizerFile, Reader, RecipeFile},
    recipe::{KeepAttention, MemoryOptions, Place},
};

use super::{conflict, or};

/// A trace of more steps is more than a viewer opens.
const DEFAULT_TIMELINE_STEPS: usize = 3;

/// 28 experts of Qwen3-30B-A3B, whose layer then has five groups; one of Mixtral 8x7B.
const DEFAULT_EXPERT_GROUP_BYTES: usize = 256 << 20;

pub(super) fn resolve(file: &RecipeFile, reader: &mut Reader) -> MemoryOptions {
    let memory = file.memory.as_ref().map(|at| &at.value);
    let offload = offload_optimizer(file);
    let kept_on_host = or(file.activation_checkpoint_cpu_offload.as_ref(), false);
    let default_place = if kept_on_host { Place::Host } else { Place::Device };
    let optimizer_on = optimizer_place(memory, offload, reader);
    let options = MemoryOptions {
        keep_inputs_every: or(memory.and_then(|m| m.keep_inputs_every.as_ref()), 1),
        keep_attention: or(memory.and_then(|m| m.keep_attention.as_ref()), KeepAttention::Auto),
        inputs_on: or(memory.and_then(|m| m.inputs_on.as_ref()), default_place),
        attention_on: or(memory.and_then(|m| m.attention_on.as_ref()), default_place),
        attention_head_groups: or(memory.and_then(|m| m.attention_head_groups.as_ref()), 1),
        attention_query_tile: or(memory.and_then(|m| m.attention_query_tile.as_ref()), 0),
        expert_group_bytes: or(
            memory.and_then(|m| m.expert_group_bytes.as_ref()),
            DEFAULT_EXPERT_GROUP_BYTES,
        ),
        tile_bytes: memory.and_then(|m| m.tile_bytes.as_ref()).map(|at| at.value),
        optimizer_on,
        gradients_on: gradients_place(memory, optimizer_on, reader),
        moments_dtype: moments_dtype(memory, reader),
        disk_dir: memory
            .and_then(|m| m.disk_dir.as_ref()?.value.as_ref())
            .or_else(|| offload?.nvme_path.as_ref()?.value.as_ref())
            .map(Into::into),
        timeline_dir: memory.and_then(|m| m.timeline_dir.as_ref()?.value.as_ref()).map(Into::into),
        timeline_steps: or(memory.and_then(|m| m.timeline_steps.as_ref()), DEFAULT_TIMELINE_STEPS),
    };
    check_places(file, memory, &options, kept_on_host, reader);
    check_keep(file, memory, reader);
    if memory.is_some_and(|m| m.timeline_steps.is_some()) && options.timeline_dir.is_none() {
        reader.note(
            "memory.timeline_steps",
            "`memory.timeline_dir` is not set, so nothing is traced",
        );
    }
    options
}

fn offload_optimizer(file: &RecipeFile) -> Option<&OffloadOptimizerFile> {
    let zero = file.deepspeed.as_ref()?.value.zero_optimization.as_ref()?;
    zero.value.offload_optimizer.as_ref()?.value.as_ref()
}

/// `memory.optimizer_on` and `offload_optimizer.device` say the same thing twice.
fn optimizer_place(
    memory: Option<&MemoryFile>,
    offload: Option<&OffloadOptimizerFile>,
    reader: &mut Reader,
) -> Place {
    let typed = memory.and_then(|m| m.optimizer_on.as_ref()).map(|at| at.value);
    let moved = offload.and_then(|offload| offload.device.as_ref()).map(|at| match at.value {
        OffloadDevice::None => Place::Device,
        OffloadDevice::Cpu => Place::Host,
        OffloadDevice::Nvme => Place::Disk,
    });
    if let (Some(typed), Some(moved)) = (typed, moved)
        && typed != moved
    {
        let found = format!(
            "`memory.optimizer_on` is `{}` and `offload_optimizer` means `{}`",
            typed.name(),
            moved.name()
        );
        let hint = Some("remove one of the two");
        conflict(reader, "memory.optimizer_on", found, "the same place in both", hint);
    }
    typed.or(moved).unwrap_or(Place::Device)
}

/// Beside the optimizer, unless the recipe says otherwise.
fn gradients_place(memory: Option<&MemoryFile>, optimizer_on: Place, reader: &mut Reader) -> Place {
    let beside = if optimizer_on == Place::Device { Place::Device } else { Place::Host };
    let Some(at) = memory.and_then(|m| m.gradients_on.as_ref()) else { return beside };
    match (at.value, optimizer_on) {
        (Place::Disk, _) => {
            let why = "every micro-batch reads and writes them: use `host` or `device`";
            reader.refuse(&at.path, at.span, "= `disk`".to_owned(), why);
            beside
        }
        (Place::Host, Place::Device) => {
            let found =
                "`memory.gradients_on` is `host` and the optimizer is on the device".to_owned();
            let hint = Some("set `memory.optimizer_on` to `host`, or remove `memory.gradients_on`");
            let required = "an optimizer on the host for gradients on the host";
            conflict(reader, "memory.gradients_on", found, required, hint);
            beside
        }
        (place, _) => place,
    }
}

fn moments_dtype(memory: Option<&MemoryFile>, reader: &mut Reader) -> DType {
    match memory.and_then(|m| m.moments_dtype.as_ref()) {
        None => DType::F32,
        Some(At { value: DtypeWord::Supported(dtype), .. }) => *dtype,
        Some(at) => {
            let why = "squared gradients underflow in it: use `bf16` or `fp32`";
            reader.refuse(&at.path, at.span, "= `fp16`".to_owned(), why);
            DType::F32
        }
    }
}

/// What lives on disk needs a folder; what `activation_checkpoint_cpu_offload` moves is not on the device.
fn check_places(
    file: &RecipeFile,
    memory: Option<&MemoryFile>,
    options: &MemoryOptions,
    kept_on_host: bool,
    reader: &mut Reader,
) {
    let places = [
        ("memory.inputs_on", options.inputs_on),
        ("memory.attention_on", options.attention_on),
        ("memory.optimizer_on", options.optimizer_on),
    ];
    let on_disk = places.iter().find(|(_, place)| *place == Place::Disk);
    match (on_disk, &options.disk_dir) {
        (Some((key, _)), None) => {
            let device = "deepspeed.zero_optimization.offload_optimizer.device";
            let (key, word) = if reader.is_set(key) { (*key, "disk") } else { (device, "nvme") };
            let found = format!("`{key}` is `{word}` and `memory.disk_dir` is not set");
            let hint = Some("set `memory.disk_dir` to a folder on a fast local disk");
            conflict(reader, key, found, "a folder for what lives on disk", hint);
        }
        (None, Some(_)) => {
            let key = if memory.is_some_and(|m| m.disk_dir.is_some()) {
                "memory.disk_dir"
            } else {
                "deepspeed.zero_optimization.offload_optimizer.nvme_path"
            };
            reader.note(key, "nothing lives on disk, so nothing is written there");
        }
        _ => {}
    }
    if kept_on_host {
        for (key, place) in &places[..2] {
            if *place == Place::Device && file.memory.is_some() {
                let found =
                    format!("`{key}` is `device` and `activation_checkpoint_cpu_offload` is on");
                let hint = Some("remove one of the two");
                conflict(reader, key, found, "the same place in both", hint);
            }
        }
    }
}

/// Keeping everything leaves nothing for a policy to decide.
fn check_keep(file: &RecipeFile, memory: Option<&MemoryFile>, reader: &mut Reader) {
    let keeps_all = file
        .model
        .as_ref()
        .is_some_and(|at| or(at.value.disable_activation_checkpoint.as_ref(), false));
    let Some(memory) = memory.filter(|_| keeps_all) else { return };
    let recomputes = [
        (
            "memory.keep_inputs_every",
            memory.keep_inputs_every.as_ref().is_some_and(|at| at.value > 1),
        ),
        (
            "memory.keep_attention",
            memory
                .keep_attention
                .as_ref()
                .is_some_and(|at| matches!(at.value, KeepAttention::Blocks(_))),
        ),
    ];
    let is_on_disk = |at: Option<&At<Place>>| at.is_some_and(|at| at.value == Place::Disk);
    let moves = [
        ("memory.inputs_on", is_on_disk(memory.inputs_on.as_ref())),
        ("memory.attention_on", is_on_disk(memory.attention_on.as_ref())),
        (
            "memory.attention_query_tile",
            memory.attention_query_tile.as_ref().is_some_and(|at| at.value > 0),
        ),
    ];
    let recomputes = recomputes.map(|(key, is_set)| (key, is_set, "asks for recomputing"));
    let moves = moves.map(|(key, is_set)| (key, is_set, "moves what is kept"));
    for (key, _, what) in recomputes.into_iter().chain(moves).filter(|(_, is_set, _)| *is_set) {
        let found = format!("`{key}` {what} and `model.disable_activation_checkpoint` is on");
        let hint = Some("remove `model.disable_activation_checkpoint`");
        conflict(reader, key, found, "one of the two", hint);
    }
}
