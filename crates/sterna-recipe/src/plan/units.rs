//! What is gathered and reduced at once, as a plan shows it.

use sterna_arch::{Architecture, UnitLayout, units::UnitKind};

/// One unit, or several in a row that are alike.
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

/// The units of a model, in order.
pub(super) fn units(arch: &Architecture, world_size: usize) -> Vec<UnitPlan> {
    let mut units: Vec<UnitPlan> = Vec::new();
    for (kind, specs) in arch.units() {
        let layout = UnitLayout::new(specs.to_vec(), world_size);
        let unit = UnitPlan {
            name: match kind {
                UnitKind::Embedding => "embedding",
                UnitKind::Layer => "block",
                UnitKind::Head if arch.is_tied() => "norm",
                UnitKind::Head => "norm and head",
            },
            count: 1,
            num_parameters: layout.num_parameters(),
            padded_len: layout.len(),
            shard_len: layout.len() / world_size,
        };
        match units.last_mut() {
            Some(last) if UnitPlan { count: 1, ..last.clone() } == unit => last.count += 1,
            _ => units.push(unit),
        }
    }
    units
}
