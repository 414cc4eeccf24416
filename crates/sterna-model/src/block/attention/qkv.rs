//! From the residual stream to queries, keys and values: norm, projections, norms of queries and keys, rotary.

mod direct;
mod latent;

use std::ops::Range;

use sterna_arch::{Linear, Qkv};
use sterna_ops::rope::RopeTable;
use tch::Tensor;

use self::direct::DirectSaved;
use self::latent::LatentSaved;
use super::of;
use crate::block::BlockContext;
use crate::block::mixer::{input_backward, project_heads_backward};
use crate::heads::{HeadGroup, Run};
use crate::params::{BlockGrads, BlockParams};

/// What the backward of a tile reads.
#[derive(Debug)]
pub(super) enum QkvSaved {
    Direct(DirectSaved),
    Latent(LatentSaved),
}

impl QkvSaved {
    pub(super) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let (direct, latent) = match self {
            QkvSaved::Direct(saved) => (Some(saved), None),
            QkvSaved::Latent(saved) => (None, Some(saved)),
        };
        let direct = direct.into_iter().flat_map(DirectSaved::tensors);
        direct.chain(latent.into_iter().flat_map(LatentSaved::tensors))
    }
}

/// Computes what the backward reads, `x` `[tile, d]`.
pub(super) fn recompute(
    ctx: &BlockContext<'_>,
    group: &HeadGroup,
    params: &BlockParams,
    x: &Tensor,
) -> QkvSaved {
    match &of(ctx).qkv {
        Qkv::Direct(maps) => QkvSaved::Direct(direct::recompute(ctx, maps, group, params, x)),
        Qkv::Latent(maps) => QkvSaved::Latent(latent::recompute(ctx, maps, params, x)),
    }
}

/// `q` `[tile, n, h]`, `k` `[tile, k, h]` and `v` `[tile, k, v_head_dim]` of a tile, with the heads of the group.
pub(super) fn finish(
    ctx: &BlockContext<'_>,
    group: &HeadGroup,
    params: &BlockParams,
    saved: &QkvSaved,
    tile: &Range<i64>,
) -> [Tensor; 3] {
    match (&of(ctx).qkv, saved) {
        (Qkv::Direct(maps), QkvSaved::Direct(saved)) => {
            direct::finish(ctx, maps, group, params, saved, tile)
        }
        (Qkv::Latent(maps), QkvSaved::Latent(saved)) => {
            latent::finish(ctx, maps, group, params, saved, tile)
        }
        _ => unreachable!("the same layer has saved it"),
    }
}

/// The share of the group's heads in the gradient of `x` `[tile, d]`, from those of `q`, `k`, `v`; weight gradients `+=`.
#[expect(
    clippy::too_many_arguments,
    reason = "the gradients of the result and everything the forward read"
)]
pub(super) fn backward(
    ctx: &BlockContext<'_>,
    group: &HeadGroup,
    params: &BlockParams,
    grads: &mut BlockGrads,
    x: &Tensor,
    saved: &QkvSaved,
    tile: &Range<i64>,
    gradients: [Tensor; 3],
) -> Tensor {
    let d_h = match (&of(ctx).qkv, saved) {
        (Qkv::Direct(maps), QkvSaved::Direct(saved)) => {
            direct::backward(ctx, maps, group, params, grads, saved, tile, gradients)
        }
        (Qkv::Latent(maps), QkvSaved::Latent(saved)) => {
            latent::backward(ctx, maps, group, params, grads, saved, tile, gradients)
        }
        _ => unreachable!("the same layer has saved it"),
    };
    input_backward(ctx, params, grads, x, d_h)
}

/// The angles of a tile's tokens; `None` in a block that does not turn them.
fn rope_of(ctx: &BlockContext<'_>, tile: &Range<i64>) -> Option<RopeTable> {
    ctx.attention.rope.map(|rope| rope.narrow(tile.start, tile.end - tile.start))
}

/// Adds the gradient of `x` through [`project_heads`] to `d_x`, which may be nothing yet, from `d_y` `[tile, heads, width]`; weight
/// gradients `+=`.
fn project_backward(
    params: &BlockParams,
    grads: &mut BlockGrads,
    map: &Linear,
    runs: &[Run],
    x: &Tensor,
    d_y: &Tensor,
    d_x: &mut Option<Tensor>,
) {
    let width = d_y.size()[2] as usize;
    project_heads_backward(params, grads, map, runs, width, x, d_y, d_x);
}
