//! Flat units: what is gathered and reduced at once.

use sterna_hf::{ParamSpec, Parameters};

/// Elements to which each parameter's start is aligned in a flat buffer.
const ALIGNMENT: usize = 64;

/// Substrings of a lower-cased name that exempt a parameter from weight decay, as in the reference.
const NO_DECAY: [&str; 5] =
    ["bias", "layer_norm.weight", "layernorm.weight", "norm.weight", "ln_f.weight"];

/// One unit, or several that are alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitPlan {
    /// What it is: `embedding`, `block`, `norm and head`.
    pub name: &'static str,
    /// How many such units there are.
    pub count: usize,
    /// Parameters of one.
    pub num_parameters: usize,
    /// Elements of its flat buffers together, padding included.
    pub padded_len: usize,
    /// Elements that each rank owns of one.
    pub shard_len: usize,
}

/// The units of a model: the embedding, each block, the final norm with the head.
pub(super) fn units(parameters: &Parameters, world_size: usize) -> Vec<UnitPlan> {
    let mut units = vec![unit("embedding", 1, std::slice::from_ref(&parameters.embed), world_size)];
    // All blocks have the same shapes.
    if let Some(layer) = parameters.layers.first() {
        units.push(unit("block", parameters.layers.len(), layer, world_size));
    }
    let end: Vec<_> =
        std::iter::once(&parameters.norm).chain(&parameters.lm_head).cloned().collect();
    let name = if parameters.lm_head.is_some() { "norm and head" } else { "norm" };
    units.push(unit(name, 1, &end, world_size));
    units
}

fn unit(name: &'static str, count: usize, specs: &[ParamSpec], world_size: usize) -> UnitPlan {
    let padded_len = flat_len(specs, true, world_size) + flat_len(specs, false, world_size);
    UnitPlan {
        name,
        count,
        num_parameters: specs.iter().map(ParamSpec::numel).sum(),
        padded_len,
        shard_len: padded_len / world_size,
    }
}

/// Elements of the buffer of the decayed, or of the other parameters: each aligned, the sum a multiple of the world size.
fn flat_len(specs: &[ParamSpec], decayed: bool, world_size: usize) -> usize {
    let aligned = specs
        .iter()
        .filter(|spec| is_decayed(&spec.name) == decayed)
        .map(|spec| spec.numel().next_multiple_of(ALIGNMENT));
    aligned.sum::<usize>().next_multiple_of(world_size)
}

fn is_decayed(name: &str) -> bool {
    let name = name.to_lowercase();
    !NO_DECAY.iter().any(|part| name.contains(part))
}
