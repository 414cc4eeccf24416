//! What follows attention, on one tile: an MLP, or experts.

mod dense;
mod moe;

use sterna_arch::Ffn;
use tch::Tensor;

use self::dense::DenseSaved;
use self::moe::MoeSaved;
use crate::params::{BlockGrads, BlockParams};
use crate::routing::Routing;

/// What the backward of a tile reads beside the input.
#[derive(Debug)]
pub(super) enum FfnSaved {
    Dense(DenseSaved),
    Moe(MoeSaved),
}

impl FfnSaved {
    pub(super) fn tensors(&self) -> Vec<&Tensor> {
        match self {
            FfnSaved::Dense(saved) => saved.tensors().collect(),
            FfnSaved::Moe(saved) => saved.tensors(),
        }
    }

    /// Tells what a router chose for a tile whose first row is `start`.
    pub(super) fn count_routes(&self, routing: &Routing, start: i64) {
        if let FfnSaved::Moe(saved) = self {
            saved.count_routes(routing, start);
        }
    }
}

/// All but the last product, of `h` `[tile, d]`.
pub(super) fn recompute(ffn: &Ffn, params: &BlockParams, h: &Tensor) -> FfnSaved {
    match ffn {
        Ffn::Dense(dense) => FfnSaved::Dense(dense::recompute(dense, params, h)),
        Ffn::Moe(moe) => FfnSaved::Moe(moe::recompute(moe, params, h)),
    }
}

/// The result, `[tile, d]`, into `y`.
pub(super) fn finish(ffn: &Ffn, params: &BlockParams, saved: &FfnSaved, y: &mut Tensor) {
    match (ffn, saved) {
        (Ffn::Dense(dense), FfnSaved::Dense(saved)) => dense::finish(dense, params, saved, y),
        (Ffn::Moe(moe), FfnSaved::Moe(saved)) => moe::finish(moe, params, saved, y),
        _ => unreachable!("saved by another layer"),
    }
}

/// The gradient of `h` `[tile, d]` from that of the result; weight gradients `+=`. `routing` adds the gradient of its loss, for a tile
/// whose first row is given.
pub(super) fn backward(
    ffn: &Ffn,
    params: &BlockParams,
    grads: &mut BlockGrads,
    saved: FfnSaved,
    h: &Tensor,
    d_y: Tensor,
    routing: Option<(&Routing, i64)>,
) -> Tensor {
    match (ffn, saved) {
        (Ffn::Dense(dense), FfnSaved::Dense(saved)) => {
            dense::backward(dense, params, grads, saved, h, d_y)
        }
        (Ffn::Moe(moe), FfnSaved::Moe(saved)) => {
            moe::backward(moe, params, grads, saved, h, &d_y, routing)
        }
        _ => unreachable!("saved by another layer"),
    }
}
