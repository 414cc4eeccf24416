//! Queries, keys and values by way of latents ([`Latent`]).
//!
//! What travels to other ranks are heads, after the projection from the latent (see `ARCHITECTURE.md` for what the latent would cost).

use std::ops::Range;

use sterna_arch::Latent;
use sterna_ops::accumulate_kind;
use sterna_ops::rope::{self, RopeTable};
use tch::Tensor;

use super::{project_backward, rope_of};
use crate::block::BlockContext;
use crate::block::attention::of;
use crate::block::mixer::{input, project_heads};
use crate::heads::HeadGroup;
use crate::params::{BlockGrads, BlockParams};

const HEADS: &str = "a group has heads";

/// What the backward of a tile reads: what norms do.
#[derive(Debug)]
pub(in crate::block) struct LatentSaved {
    /// `[tile, d]`, what the first projections read.
    h: Tensor,
    /// `[tile, q_lora_rank]`, the latent of queries before its norm.
    q_latent: Option<Tensor>,
    /// `[tile, kv_lora_rank + h - nope_head_dim]`, the latent of keys and values before its norm, and the keys that turn.
    kv: Tensor,
}

impl LatentSaved {
    pub(super) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        [&self.h, &self.kv].into_iter().chain(&self.q_latent)
    }

    /// `[tile, kv_lora_rank]`.
    fn kv_latent(&self, maps: &Latent) -> Tensor {
        self.kv.narrow(1, 0, maps.kv_lora_rank() as i64).contiguous()
    }

    /// `[tile, 1, h - nope_head_dim]`.
    fn key(&self, maps: &Latent) -> Tensor {
        let rank = maps.kv_lora_rank() as i64;
        self.kv.narrow(1, rank, self.kv.size()[1] - rank).unsqueeze(1)
    }

    /// What the projection to queries reads.
    fn read_by_q(&self, maps: &Latent, params: &BlockParams) -> Tensor {
        match (&maps.q_latent, &self.q_latent) {
            (Some(maps), Some(latent)) => params.norm(&maps.norm).forward(latent),
            _ => self.h.shallow_clone(),
        }
    }
}

/// Computes what the backward reads, `x` `[tile, d]`.
pub(super) fn recompute(
    ctx: &BlockContext<'_>,
    maps: &Latent,
    params: &BlockParams,
    x: &Tensor,
) -> LatentSaved {
    let h = input(ctx, params, x);
    LatentSaved {
        q_latent: maps.q_latent.as_ref().map(|latent| params.project(&latent.map, &h)),
        kv: params.project(&maps.kv_a, &h),
        h,
    }
}

/// `q` and `k` `[tile, n, h]`, `v` `[tile, n, v_head_dim]`, with the heads of the group.
pub(super) fn finish(
    ctx: &BlockContext<'_>,
    maps: &Latent,
    group: &HeadGroup,
    params: &BlockParams,
    saved: &LatentSaved,
    tile: &Range<i64>,
) -> [Tensor; 3] {
    let attention = of(ctx);
    let (head_dim, v_head_dim) = (attention.head_dim, attention.v_head_dim);
    let (nope, rotated) = (maps.nope_head_dim as i64, (head_dim - maps.nope_head_dim) as i64);
    let rope = rope_of(ctx, tile);
    let turn = |x: Tensor| match &rope {
        Some(table) => rope::forward(&x, table),
        None => x,
    };
    let q = project_heads(params, &maps.q, group.q(), head_dim, &saved.read_by_q(maps, params));
    let q = Tensor::cat(&[q.narrow(2, 0, nope), turn(q.narrow(2, nope, rotated))], 2);
    let q = match rope.as_ref().and_then(RopeTable::query_scale) {
        Some(scale) => q * scale,
        None => q,
    };
    let latent = params.norm(&maps.kv_a_norm).forward(&saved.kv_latent(maps));
    let width = maps.nope_head_dim + v_head_dim;
    let kv = project_heads(params, &maps.kv_b, group.kv(), width, &latent);
    let key = turn(saved.key(maps)).expand([-1, kv.size()[1], -1], false);
    let k = Tensor::cat(&[kv.narrow(2, 0, nope), key], 2);
    // Values of their own, so that those of keys do not stay with them.
    let v = kv.narrow(2, nope, v_head_dim as i64).contiguous();
    [q, k, v]
}

/// The share of the group's heads in the gradient of what the first projections read, `[tile, d]`; weight gradients `+=`.
///
/// All heads have one key that turns, so its gradient is the sum of theirs. What heads of other groups give is added where their turn
/// comes: norms and projections are linear in the gradient that passes back through them.
#[expect(
    clippy::too_many_arguments,
    reason = "the gradients of the result and everything the forward read"
)]
pub(super) fn backward(
    ctx: &BlockContext<'_>,
    maps: &Latent,
    group: &HeadGroup,
    params: &BlockParams,
    grads: &mut BlockGrads,
    saved: &LatentSaved,
    tile: &Range<i64>,
    [d_q, d_k, d_v]: [Tensor; 3],
) -> Tensor {
    let (nope, head_dim) = (maps.nope_head_dim as i64, of(ctx).head_dim as i64);
    let rotated = head_dim - nope;
    let kind = d_k.kind();
    let rope = rope_of(ctx, tile);
    let turn_back = |d: Tensor| match &rope {
        Some(table) => rope::backward(&d, table),
        None => d,
    };

    let d_key = d_k.narrow(2, nope, rotated);
    let d_key = d_key.sum_dim_intlist(1_i64, true, accumulate_kind(kind)).to_kind(kind);
    let d_key = turn_back(d_key).squeeze_dim(1);
    let d_kv = Tensor::cat(&[d_k.narrow(2, 0, nope), d_v], 2);
    drop(d_k);
    let latent = saved.kv_latent(maps);
    let read = params.norm(&maps.kv_a_norm).forward(&latent);
    let mut d_read = None;
    project_backward(params, grads, &maps.kv_b, group.kv(), &read, &d_kv, &mut d_read);
    let d_read = d_read.expect(HEADS);
    let d_latent = grads.norm_backward(params, &maps.kv_a_norm, &latent, &d_read);
    let d_kv = Tensor::cat(&[d_latent, d_key], 1);
    let d_h = params.project_backward(grads, &maps.kv_a, &saved.h, &d_kv);

    let d_q = match rope.as_ref().and_then(RopeTable::query_scale) {
        Some(scale) => d_q * scale,
        None => d_q,
    };
    let d_rotated = turn_back(d_q.narrow(2, nope, rotated));
    let d_q = Tensor::cat(&[d_q.narrow(2, 0, nope), d_rotated], 2);
    let mut d_h = Some(d_h);
    let (Some(of_q), Some(latent)) = (&maps.q_latent, &saved.q_latent) else {
        project_backward(params, grads, &maps.q, group.q(), &saved.h, &d_q, &mut d_h);
        return d_h.expect(HEADS);
    };
    let mut d_read = None;
    let read = params.norm(&of_q.norm).forward(latent);
    project_backward(params, grads, &maps.q, group.q(), &read, &d_q, &mut d_read);
    let d_latent = grads.norm_backward(params, &of_q.norm, latent, &d_read.expect(HEADS));
    let mut d_h = d_h.expect(HEADS);
    params.add_project_backward(grads, &of_q.map, &saved.h, &d_latent, &mut d_h);
    d_h
}
