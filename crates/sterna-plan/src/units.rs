//! What is gathered and reduced at once, as a plan shows it.

use sterna_arch::{UnitLayout, units::UnitKind};

/// One unit, or all that are alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitPlan {
    /// What it is of.
    pub kind: UnitKind,
    /// The same in words: `embedding`, `block`, `experts`, `norm and head`.
    pub name: &'static str,
    /// How many such units there are.
    pub count: usize,
    /// Parameters of one.
    pub num_parameters: usize,
    /// Elements of its flat buffers together, padding included.
    pub padded_len: usize,
    /// Elements that each rank owns of one.
    pub shard_len: usize,
    /// Those of the `padded_len` that are trained: gradients and optimizer state are of these.
    pub trained_len: usize,
    /// Elements of those that each rank owns.
    pub trained_shard_len: usize,
}

/// The units of a model, in the order in which the first of each kind comes.
pub(crate) fn units(layouts: &[UnitLayout], is_tied: bool, world_size: usize) -> Vec<UnitPlan> {
    let mut units: Vec<UnitPlan> = Vec::new();
    for layout in layouts {
        let unit = UnitPlan {
            kind: layout.kind,
            name: match layout.kind {
                UnitKind::Embedding => "embedding",
                UnitKind::Layer => "block",
                UnitKind::Experts => "experts",
                UnitKind::Head if is_tied => "norm",
                UnitKind::Head => "norm and head",
            },
            count: 1,
            num_parameters: layout.num_parameters(),
            padded_len: layout.padded_len(),
            shard_len: layout.padded_len() / world_size,
            trained_len: layout.trained_len(),
            trained_shard_len: layout.trained_len() / world_size,
        };
        match units.iter_mut().find(|same| UnitPlan { count: 1, ..(*same).clone() } == unit) {
            Some(same) => same.count += 1,
            None => units.push(unit),
        }
    }
    units
}

/// The most elements that are whole at once, of which a unit has `len_of`: a unit and the one that follows it, and beside experts the
/// rest of their layer.
pub(crate) fn gathered_len(layouts: &[UnitLayout], len_of: impl Fn(&UnitLayout) -> usize) -> usize {
    let (mut of_layer, mut most) = (0, 0);
    for pair in layouts.windows(2) {
        let (kind, len, next) = (pair[0].kind, len_of(&pair[0]), len_of(&pair[1]));
        if kind != UnitKind::Experts {
            of_layer = 0;
        }
        most = most.max(of_layer + len + next);
        if kind == UnitKind::Layer {
            of_layer = len;
        }
    }
    most
}
