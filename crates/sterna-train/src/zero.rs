//! ZeRO on flat units: which rank holds which part of weights, gradients and optimizer state.
//!
//! The stages are not four code paths. A [`Sharding`] says for each of the three states whether a
//! rank keeps all of a unit's flat buffer or one shard of it; [`Zero`] gathers, reduces and steps whatever is there.
//!
//! | stage | weights | gradients | optimizer state | per micro-batch | per step |
//! |---|---|---|---|---|---|
//! | 0 | all | all | all | | all-reduce gradients |
//! | 1 | all | all | shard | | reduce-scatter gradients, all-gather weights |
//! | 2 | all | shard | shard | reduce-scatter gradients | all-gather weights |
//! | 3 | shard | shard | shard | all-gather weights twice, reduce-scatter gradients | |
//!
//! **Invariant:** every rank of the world calls the same methods for the same units in the same order, whatever the
//! lengths of its sequences: collectives follow units, never tiles.
//!
//! Source: Rajbhandari et al. 2019, <https://arxiv.org/abs/1910.02054>.

mod checkpoint;
mod flat;
mod optimizer;
mod reduce;
mod units;

use sterna_recipe::ZeroStage;

pub use self::{
    checkpoint::Snapshot,
    units::{Gradients, StatePlacement, Zero},
};

/// Which states are sharded over the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sharding {
    /// Each rank keeps only its shard of the weights and gathers a unit before use.
    pub params: bool,
    /// Each rank keeps only its shard of the gradients; a unit is reduced when its backward ends.
    pub gradients: bool,
    /// Each rank keeps and steps only its shard of the fp32 masters and moments.
    pub optimizer: bool,
}

impl Sharding {
    /// What `stage` shards over `world_size` ranks; a world of one has nothing to shard.
    pub fn new(stage: ZeroStage, world_size: usize) -> Self {
        let is_shared = world_size > 1;
        Self {
            params: is_shared && stage.shards_params(),
            gradients: is_shared && stage.shards_gradients(),
            optimizer: is_shared && stage.shards_optimizer(),
        }
    }
}
