//! Attention as the mixer of tokens: from the input of a block to the output of all heads, and back.
//!
//! ```text
//! forward                                          backward
//!   for group of heads:                              for group of heads:
//!     for tile:     q, k, v = qkv(x)                   to heads      d_o, o
//!     to heads      q, k, v -> [s, n/p, h], ..         for tile:     recompute q, k, v
//!     attend        o, lse                             to heads      q, k, v
//!     to sequence   o -> [s/p, n, h]                   attend        d_q, d_k, d_v
//!                                                      to sequence   back
//!                                                      for tile:     d_q, d_k, d_v -> d_x +=, weight grads +=
//! ```
//!
//! Where no norm reads what they give, the second visit to `qkv` repeats a norm instead of three matrix products. Heads run all at once
//! or in groups ([`HeadGroup`]): the tensors of attention exist for one group at a time.
//!
//! Between the tokens of a rank and its heads are [`to_heads`] and [`to_sequence`]. Ranks that pass keys and values on instead (a ring)
//! trade nothing there: their keys and values are another source for [`attend`], beside those that are here and those that wait elsewhere.
//!
//! The gate and the projection back ([`output`]) run in the tiles of what comes next.

mod attend;
pub(super) mod output;
mod qkv;

use std::collections::VecDeque;

use sterna_arch::Attention;
use sterna_comm::Group;
use sterna_ops::attention::{Documents, Implementation};
use sterna_ops::rope::RopeTable;
use sterna_ops::tile::tiles;
use sterna_torch_sys::memory::{self, MemoryKind};
use tch::Tensor;

use self::attend::Attended;
pub use self::attend::{KeysValuesStore, Streaming};
use self::qkv::QkvSaved;
use super::BlockContext;
use super::mixer::{Mixed, Save, to_heads, to_sequence};
use crate::error::ModelError;
use crate::heads::HeadGroup;
use crate::parallel::ulysses::{Heads, Part, SeqToHead};
use crate::params::{BlockGrads, BlockParams};
use crate::stage::Stage;

/// What the mixer of a block needs to know beside its weights and activations: attention all of it, others what is not about scores.
///
/// # Communication
///
/// Over the sp axis, for each group of heads: two all-to-alls in a forward. In a backward three, one more if the forward kept nothing but
/// its input, one less if it kept everything.
///
/// # Memory
///
/// In a forward `q`, `k`, `v` and `o` of a group of heads, twice while they travel, and the output of all groups. In a backward `q`, `k`,
/// `v`, `o`, their gradients and one exchange of them, for one group of heads, and the gradient of the output of the groups still to
/// come.
#[derive(Clone, Copy)]
pub struct AttentionContext<'a> {
    /// The sequence-parallel group.
    pub sp: &'a Group,
    /// The heads that run one after the other, and which rank has which ([`HeadGroup::of_all_ranks`]).
    pub groups: &'a [HeadGroup],
    /// The documents of the whole micro-batch, all its rows one after the other: `b * s` tokens.
    pub documents: &'a Documents,
    /// The angles of this rank's `b * s/p` tokens ([`crate::rotary::tables`]); `None` in a block that does not turn them.
    pub rope: Option<&'a RopeTable>,
    /// `b`, rows of the micro-batch.
    pub num_rows: i64,
    /// Tiles of queries that attend one after the other to keys and values that wait elsewhere; `None` is all at once.
    pub streaming: Option<Streaming<'a>>,
    /// Which kernels may compute attention on a CUDA device.
    pub implementation: Implementation,
    /// At most how many tokens go through norm and projections at once.
    pub qkv_tile_len: i64,
}

impl AttentionContext<'_> {
    /// Checks that everything is as long as this rank's tokens are.
    pub(super) fn check(&self, num_tokens: i64) -> Result<(), ModelError> {
        let sp_size = self.sp.size();
        let check_length = |name: &'static str, found: usize, required: usize| {
            if found == required {
                Ok(())
            } else {
                Err(ModelError::Length { name, found, required })
            }
        };
        if let Some(rope) = self.rope {
            check_length("rope", rope.len() as usize, num_tokens as usize)?;
        }
        for group in self.groups {
            check_length("heads", group.splits().len(), sp_size)?;
        }
        let (found, required) = (self.documents.num_tokens(), num_tokens * sp_size as i64);
        check_length("documents", found as usize, required as usize)
    }
}

/// The intermediate values of each group of heads, if there are any.
#[derive(Debug, Default)]
pub(super) struct Saved(Vec<GroupSaved>);

#[derive(Debug)]
struct GroupSaved {
    /// Of each tile, or of none.
    qkv: VecDeque<QkvSaved>,
    attended: Attended,
}

impl Saved {
    pub(super) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.0.iter().flat_map(|GroupSaved { qkv, attended }| {
            qkv.iter().flat_map(QkvSaved::tensors).chain(attended.tensors())
        })
    }
}

/// Attention of all groups of heads on `x` `[b * s/p, d]`, and what a backward will read of each if wanted.
pub(super) fn forward(
    ctx: &BlockContext<'_>,
    params: &BlockParams,
    x: &Tensor,
    save: Save,
) -> Result<(Mixed, Saved), ModelError> {
    let groups = ctx.attention.groups;
    let num_tokens = x.size()[0];
    let (saves, saves_qkv) = save.of_groups(ctx, num_tokens);
    let (mut of_groups, mut lses, mut saved) = (Vec::new(), Vec::new(), Vec::new());
    let _memory = memory::scope(MemoryKind::Attention);
    for group in groups {
        let (projected, qkv) = project(ctx, group, params, x, saves_qkv)?;
        let (attended, lse) = attend::forward(ctx, group, params, projected)?;
        lses.push(lse);
        // Attention inputs are dead unless they are saved; what follows needs the room.
        let o = if saves {
            let o = attended.output();
            saved.push(GroupSaved { qkv, attended });
            o
        } else {
            attended.into_output()
        };
        let returned = to_sequence(ctx, group, x, vec![(outputs(ctx), o)])?;
        of_groups.push(returned.tile(0, &(0..num_tokens)));
    }
    let o = HeadGroup::join(groups, of_groups);
    let lse = if lses.len() == 1 { lses.remove(0) } else { Tensor::cat(&lses, 0) };
    Ok((Mixed { o, rest: lse }, Saved(saved)))
}

/// The backward of attention: collects the gradient of its output, then computes that of its input.
pub(super) struct Backward<'a> {
    ctx: &'a BlockContext<'a>,
    x: &'a Tensor,
    saved: Vec<GroupSaved>,
    /// Of each group of heads: the gradient of its output, and the output itself unless that is saved.
    outgoing: Vec<SeqToHead<'a>>,
}

impl<'a> Backward<'a> {
    /// Prepares for the gradient of the output, whose forward read `x` and left `saved`.
    pub(super) fn new(ctx: &'a BlockContext<'a>, x: &'a Tensor, saved: Saved) -> Self {
        let Saved(saved) = saved;
        let parts = [outputs(ctx); 2];
        let parts = if saved.is_empty() { &parts[..] } else { &parts[..1] };
        let outgoing =
            ctx.attention.groups.iter().map(|group| to_heads(ctx, group, x, parts)).collect();
        Self { ctx, x, saved, outgoing }
    }

    /// Takes the gradient of a tile of the output, `[tile, n, v_head_dim]`, whose first token is `start`.
    pub(super) fn put(&mut self, start: i64, d_o: &Tensor) {
        for (group, outgoing) in self.ctx.attention.groups.iter().zip(&mut self.outgoing) {
            outgoing.put(0, start, &group.queries_of(d_o));
        }
    }

    /// Adds the gradient of `x` to `d_x` `[b * s/p, d]`, once that of every tile of the output is there; weight gradients `+=`. Takes
    /// what attention gave, of which each group has its own part when its turn comes.
    pub(super) fn finish(
        self,
        params: &BlockParams,
        grads: &mut BlockGrads,
        mixed: Mixed,
        d_x: &Tensor,
    ) -> Result<(), ModelError> {
        let Backward { ctx, x, saved, mut outgoing } = self;
        let (groups, qkv_tile_len) = (ctx.attention.groups, ctx.attention.qkv_tile_len);
        let num_tokens = x.size()[0];
        let Mixed { o, rest: lse } = mixed;
        if saved.is_empty() {
            for (group, outgoing) in groups.iter().zip(&mut outgoing) {
                outgoing.put(1, 0, &group.queries_of(&o));
            }
        }
        drop(o);

        let mut saved = saved.into_iter();
        let mut first_head = 0;
        for (group, outgoing) in groups.iter().zip(outgoing) {
            let mut arrived = outgoing.all_to_all()?;
            let (attended, mut qkv_saved) = if let Some(saved) = saved.next() {
                (saved.attended, saved.qkv)
            } else {
                let save = num_tokens <= qkv_tile_len;
                let (projected, qkv_saved) = project(ctx, group, params, x, save)?;
                (Attended::new(ctx, projected, arrived.remove(1))?, qkv_saved)
            };
            let d_o = arrived.remove(0);
            let num_heads = attended.num_heads();
            let lse = lse.narrow(0, first_head, num_heads);
            first_head += num_heads;
            let (d_q, d_k, d_v) = attend::backward(ctx, group, params, grads, attended, &lse, d_o)?;
            let travellers = vec![(queries(ctx), d_q), (keys(ctx), d_k), (values(ctx), d_v)];
            let returned = to_sequence(ctx, group, x, travellers)?;

            for tile in tiles(num_tokens, qkv_tile_len) {
                let (start, len) = (tile.start, tile.end - tile.start);
                let _stage = Stage::Qkv.enter();
                let x = x.narrow(0, start, len);
                let saved = match qkv_saved.pop_front() {
                    Some(saved) => saved,
                    None => qkv::recompute(ctx, group, params, &x),
                };
                let d_projections = [0, 1, 2].map(|part_idx| returned.tile(part_idx, &tile));
                let d_x_tile =
                    qkv::backward(ctx, group, params, grads, &x, &saved, &tile, d_projections);
                // The residual around attention and the groups before this one have written their share already.
                let _ = d_x.narrow(0, start, len).g_add_(&d_x_tile);
            }
        }
        Ok(())
    }
}

/// `q`, `k` and `v` of this rank's heads of a group, and what the backward of `qkv` will read, if wanted.
fn project(
    ctx: &BlockContext<'_>,
    group: &HeadGroup,
    params: &BlockParams,
    x: &Tensor,
    save: bool,
) -> Result<([Tensor; 3], VecDeque<QkvSaved>), ModelError> {
    let parts = [queries(ctx), keys(ctx), values(ctx)];
    let mut outgoing = to_heads(ctx, group, x, &parts);
    let mut all_saved = VecDeque::new();
    for tile in tiles(x.size()[0], ctx.attention.qkv_tile_len) {
        let (start, len) = (tile.start, tile.end - tile.start);
        let _stage = Stage::Qkv.enter();
        let saved = qkv::recompute(ctx, group, params, &x.narrow(0, start, len));
        let projections = qkv::finish(ctx, group, params, &saved, &tile);
        for (part_idx, projection) in projections.iter().enumerate() {
            outgoing.put(part_idx, start, projection);
        }
        if save {
            all_saved.push_back(saved);
        }
    }
    let projected = outgoing.all_to_all()?.try_into();
    Ok((projected.expect("an exchange returns as many tensors as were put in"), all_saved))
}

/// The attention of a layer that has it.
fn of<'a>(ctx: &BlockContext<'a>) -> &'a Attention {
    ctx.layer.mixer.attention().expect("this mixer is called for layers that have it")
}

/// Queries and their gradients.
fn queries(ctx: &BlockContext<'_>) -> Part {
    Part { heads: Heads::Query, head_dim: of(ctx).head_dim as i64 }
}

/// Keys and their gradients.
fn keys(ctx: &BlockContext<'_>) -> Part {
    Part { heads: Heads::KeyValue, head_dim: of(ctx).head_dim as i64 }
}

/// Values and their gradients.
fn values(ctx: &BlockContext<'_>) -> Part {
    Part { heads: Heads::KeyValue, head_dim: of(ctx).v_head_dim as i64 }
}

/// Outputs and their gradients.
fn outputs(ctx: &BlockContext<'_>) -> Part {
    Part { heads: Heads::Query, head_dim: of(ctx).v_head_dim as i64 }
}
