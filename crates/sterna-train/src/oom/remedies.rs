//! Changes to a recipe, each with the memory that it would free.

use sterna_arch::ModelConfig;
use sterna_plan::{DeviceType, Plan, TileLengths};
use sterna_recipe::{DType, KeepAttention, Place, Recipe, ZeroStage};
use sterna_torch_sys::memory::{MemoryKind, Refusal};

/// At most so many are named.
const MAX_REMEDIES: usize = 6;

/// A change that frees less than one part in so many is not worth a line.
const LEAST_PART: u64 = 100;

/// A key with the value that it should have.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Remedy {
    /// As in a recipe.
    pub(super) change: String,
    /// Bytes of one rank.
    pub(super) freed: u64,
}

/// What would free memory, most first: each change is planned by itself. `counts` says whether bytes of the device and those of the
/// host count.
pub(super) fn remedies(
    recipe: &Recipe,
    model: &ModelConfig,
    world_size: usize,
    device: DeviceType,
    counts: (bool, bool),
    refusal: Option<&Refusal>,
) -> Vec<Remedy> {
    let plan = |recipe: &Recipe| {
        let mut model = model.clone();
        recipe.group_experts(&mut model);
        Plan::new(recipe, &model, world_size, device).ok()
    };
    let bytes = |recipe: &Recipe| -> Option<u64> {
        let memory = plan(recipe)?.memory;
        let of = |counts: bool, bytes: u64| if counts { bytes } else { 0 };
        Some(of(counts.0, memory.device_bytes()) + of(counts.1, memory.host_bytes()))
    };
    let Some(now) = bytes(recipe) else { return Vec::new() };
    let mut remedies: Vec<Remedy> = candidates(recipe, world_size, device)
        .into_iter()
        .filter_map(|(change, recipe)| {
            let freed = now.saturating_sub(bytes(&recipe)?);
            Some(Remedy { change, freed })
        })
        .collect();
    if let (KeepAttention::Auto, Some(refusal)) = (recipe.memory.keep_attention, refusal) {
        // How many blocks keep theirs is decided when the run begins: more is held than the plan has for everything else.
        let freed = plan(recipe).map_or(0, |plan| kept_by_choice(&plan, refusal));
        remedies.push(Remedy { change: "memory.keep_attention: false".to_owned(), freed });
    }
    remedies.retain(|remedy| remedy.freed > 0 && remedy.freed >= now / LEAST_PART);
    remedies.sort_by_key(|remedy| std::cmp::Reverse(remedy.freed));
    remedies.truncate(MAX_REMEDIES);
    remedies
}

/// Kept activations beyond those that are planned.
fn kept_by_choice(plan: &Plan, refusal: &Refusal) -> u64 {
    let is_kept = |kind| kind == sterna_plan::MemoryKind::KeptActivations;
    let rows = plan.memory.rows.iter().filter(|row| is_kept(row.kind));
    let planned: u64 = rows.map(|row| row.device_bytes).sum();
    refusal.live[MemoryKind::KeptActivations].saturating_sub(planned)
}

/// The recipe with one change each.
fn candidates(recipe: &Recipe, world_size: usize, device: DeviceType) -> Vec<(String, Recipe)> {
    let mut all = Vec::new();
    let mut change = |text: String, change: &dyn Fn(&mut Recipe)| {
        let mut changed = recipe.clone();
        change(&mut changed);
        all.push((text, changed));
    };
    let memory = &recipe.memory;
    let elsewhere: &[Place] =
        if memory.disk_dir.is_some() { &[Place::Host, Place::Disk] } else { &[Place::Host] };
    for &place in elsewhere {
        let name = place.name();
        change(format!("memory.inputs_on: {name}"), &|recipe| recipe.memory.inputs_on = place);
        change(format!("memory.attention_on: {name}"), &|recipe| {
            recipe.memory.attention_on = place;
        });
        change(format!("memory.optimizer_on: {name}"), &|recipe| {
            recipe.memory.optimizer_on = place;
        });
    }
    change("memory.gradients_on: host".to_owned(), &|recipe| {
        recipe.memory.gradients_on = Place::Host;
    });
    if memory.keep_attention != KeepAttention::Auto {
        change("memory.keep_attention: false".to_owned(), &|recipe| {
            recipe.memory.keep_attention = KeepAttention::Blocks(0);
        });
    }
    if recipe.model.disable_activation_checkpoint {
        change("model.disable_activation_checkpoint: false".to_owned(), &|recipe| {
            recipe.model.disable_activation_checkpoint = false;
        });
    }
    let every = 4.max(2 * memory.keep_inputs_every);
    change(format!("memory.keep_inputs_every: {every}"), &|recipe| {
        recipe.memory.keep_inputs_every = every;
    });
    if memory.moments_dtype != DType::BF16 {
        change("memory.moments_dtype: bf16".to_owned(), &|recipe| {
            recipe.memory.moments_dtype = DType::BF16;
        });
    }
    let tile_bytes = TileLengths::budget(recipe, device) / 2;
    change(format!("memory.tile_bytes: {tile_bytes}"), &|recipe| {
        recipe.memory.tile_bytes = Some(tile_bytes);
    });
    let expert_group_bytes = memory.expert_group_bytes / 2;
    change(format!("memory.expert_group_bytes: {expert_group_bytes}"), &|recipe| {
        recipe.memory.expert_group_bytes = expert_group_bytes;
    });
    let groups = 2 * memory.attention_head_groups;
    change(format!("memory.attention_head_groups: {groups}"), &|recipe| {
        recipe.memory.attention_head_groups = groups;
    });
    if recipe.deepspeed.zero_stage < ZeroStage::Three && world_size > 1 {
        change("deepspeed.zero_optimization.stage: 3".to_owned(), &|recipe| {
            recipe.deepspeed.zero_stage = ZeroStage::Three;
        });
    }
    let sp_size = 2 * recipe.sequence_parallel_size;
    change(format!("sequence_parallel_size: {sp_size}"), &|recipe| {
        recipe.sequence_parallel_size = sp_size;
    });
    if recipe.micro_batch_size > 1 {
        change("micro_batch_size: 1".to_owned(), &|recipe| recipe.micro_batch_size = 1);
    }
    if let Some(length) = recipe.data.max_length {
        let length = length / 2;
        change(format!("data.max_length: {length}"), &|recipe| {
            recipe.data.max_length = Some(length);
        });
    }
    all
}
