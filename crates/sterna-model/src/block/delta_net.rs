//! A gated delta net as the mixer of tokens: from the input of a block to the output of all heads, and back.
//!
//! ```text
//! forward                                             backward
//!   for group of heads:                                 for group of heads:
//!     for tile:     q, k, v, b, a = projections(x)        for tile:     recompute q, k, v, b, a
//!     to heads      -> [s, own heads, ..]                 to heads      these, d_o
//!     rule          convolution, decay, rule: o           rule          d_q, d_k, d_v, d_b, d_a
//!     to sequence   o -> [s/p, n, h_v]                    to sequence   back
//!                                                         for tile:     -> d_x +=, weight grads +=
//! ```
//!
//! The exchange is that of attention: its query heads are the value heads here, its kv heads those of queries and keys, which ranks and
//! groups may share. Convolution and rule look along the sequence, so they come after the exchange, each rank with the channels of its heads; both
//! begin anew in every document. Norm, gate and projection back ([`output`]) run in the tiles of what comes next.

pub(super) mod output;
mod rule;

use std::collections::VecDeque;

use sterna_arch::{DeltaNet, Linear};
use sterna_ops::tile::tiles;
use sterna_torch_sys::memory::{self, MemoryKind};
use tch::Tensor;

use super::BlockContext;
use super::mixer::{
    Mixed, Save, input, input_backward, project_heads, project_heads_backward, to_heads,
    to_sequence,
};
use crate::error::ModelError;
use crate::heads::{HeadGroup, Run};
use crate::parallel::ulysses::{Heads, Part, SeqToHead};
use crate::params::{BlockGrads, BlockParams};
use crate::stage::Stage;

/// Projections, in the order in which they travel: `q`, `k`, `v`, `b`, `a`.
const NUM_PROJECTIONS: usize = 5;

/// The intermediate values of each group of heads, if there are any.
#[derive(Debug, Default)]
pub(super) struct Saved(Vec<GroupSaved>);

#[derive(Debug)]
struct GroupSaved {
    /// What the projections read, of each tile or of none, `[tile, d]`.
    inputs: VecDeque<Tensor>,
    /// What they gave, of this rank's heads of all tokens.
    projected: [Tensor; NUM_PROJECTIONS],
}

impl Saved {
    pub(super) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.0.iter().flat_map(|GroupSaved { inputs, projected }| inputs.iter().chain(projected))
    }
}

/// The delta net of all groups of heads on `x` `[b * s/p, d]`, and what a backward will read of each if wanted.
pub(super) fn forward(
    ctx: &BlockContext<'_>,
    net: &DeltaNet,
    params: &BlockParams,
    x: &Tensor,
    save: Save,
) -> Result<(Mixed, Saved), ModelError> {
    let groups = ctx.attention.groups;
    let num_tokens = x.size()[0];
    let (saves, saves_inputs) = save.of_groups(ctx, num_tokens);
    let (mut outputs, mut states, mut saved) = (Vec::new(), Vec::new(), Vec::new());
    let _memory = memory::scope(MemoryKind::Attention);
    for group in groups {
        let (projected, inputs) = project(ctx, net, group, params, x, saves_inputs)?;
        let (o, states_of_group) = rule::forward(ctx, net, group, params, &projected);
        states.push(states_of_group);
        if saves {
            saved.push(GroupSaved { inputs, projected });
        } else {
            // What follows needs the room.
            drop(projected);
        }
        let returned = to_sequence(ctx, group, x, vec![(values(net), o)])?;
        outputs.push(returned.tile(0, &(0..num_tokens)));
    }
    let o = HeadGroup::join(groups, outputs);
    let rest = if states.len() == 1 { states.remove(0) } else { Tensor::cat(&states, 1) };
    Ok((Mixed { o, rest }, Saved(saved)))
}

/// The backward of a delta net: collects the gradient of its output, then computes that of its input.
pub(super) struct Backward<'a> {
    ctx: &'a BlockContext<'a>,
    net: &'a DeltaNet,
    x: &'a Tensor,
    saved: Vec<GroupSaved>,
    /// Of each group of heads the gradient of its output.
    outgoing: Vec<SeqToHead<'a>>,
}

impl<'a> Backward<'a> {
    /// Prepares for the gradient of the output, whose forward read `x` and left `saved`.
    pub(super) fn new(
        ctx: &'a BlockContext<'a>,
        net: &'a DeltaNet,
        x: &'a Tensor,
        saved: Saved,
    ) -> Self {
        let Saved(saved) = saved;
        let parts = [values(net)];
        let outgoing =
            ctx.attention.groups.iter().map(|group| to_heads(ctx, group, x, &parts)).collect();
        Self { ctx, net, x, saved, outgoing }
    }

    /// Takes the gradient of a tile of the output, `[tile, n, h_v]`, whose first token is `start`.
    pub(super) fn put(&mut self, start: i64, d_o: &Tensor) {
        for (group, outgoing) in self.ctx.attention.groups.iter().zip(&mut self.outgoing) {
            outgoing.put(0, start, &group.queries_of(d_o));
        }
    }

    /// Adds the gradient of `x` to `d_x` `[b * s/p, d]`, once that of every tile of the output is there; weight gradients `+=`.
    pub(super) fn finish(
        self,
        params: &BlockParams,
        grads: &mut BlockGrads,
        mixed: &Mixed,
        d_x: &Tensor,
    ) -> Result<(), ModelError> {
        let Backward { ctx, net, x, saved, outgoing } = self;
        let (groups, tile_len) = (ctx.attention.groups, ctx.attention.qkv_tile_len);
        let num_tokens = x.size()[0];
        let mut saved = saved.into_iter();
        let mut first_head = 0;
        for (group, outgoing) in groups.iter().zip(outgoing) {
            let d_o = outgoing.all_to_all()?.remove(0);
            let (projected, mut inputs) = match saved.next() {
                Some(saved) => (saved.projected, saved.inputs),
                None => project(ctx, net, group, params, x, num_tokens <= tile_len)?,
            };
            let num_heads = d_o.size()[1];
            let states = mixed.rest.narrow(1, first_head, num_heads);
            first_head += num_heads;
            let gradients = rule::backward(ctx, net, group, params, grads, projected, &states, d_o);
            let travellers = parts(net).into_iter().zip(gradients).collect();
            let returned = to_sequence(ctx, group, x, travellers)?;

            for tile in tiles(num_tokens, tile_len) {
                let (start, len) = (tile.start, tile.end - tile.start);
                let _stage = Stage::Qkv.enter();
                let x = x.narrow(0, start, len);
                let h = inputs.pop_front().unwrap_or_else(|| input(ctx, params, &x));
                let mut d_h = None;
                for (part_idx, projection) in projections(net, group).into_iter().enumerate() {
                    let (map, runs, head_dim) = projection;
                    let d = returned.tile(part_idx, &tile);
                    project_heads_backward(params, grads, map, runs, head_dim, &h, &d, &mut d_h);
                }
                let d_h = d_h.expect("a group has heads");
                let d_x_tile = input_backward(ctx, params, grads, &x, d_h);
                // The residual around the mixer and the groups before this one have written their share already.
                let _ = d_x.narrow(0, start, len).g_add_(&d_x_tile);
            }
        }
        Ok(())
    }
}

/// What the projections give of this rank's heads of a group, and what they read, if wanted.
fn project(
    ctx: &BlockContext<'_>,
    net: &DeltaNet,
    group: &HeadGroup,
    params: &BlockParams,
    x: &Tensor,
    save: bool,
) -> Result<([Tensor; NUM_PROJECTIONS], VecDeque<Tensor>), ModelError> {
    let mut outgoing = to_heads(ctx, group, x, &parts(net));
    let mut inputs = VecDeque::new();
    for tile in tiles(x.size()[0], ctx.attention.qkv_tile_len) {
        let (start, len) = (tile.start, tile.end - tile.start);
        let _stage = Stage::Qkv.enter();
        let h = input(ctx, params, &x.narrow(0, start, len));
        for (part_idx, (map, runs, head_dim)) in projections(net, group).into_iter().enumerate() {
            outgoing.put(part_idx, start, &project_heads(params, map, runs, head_dim, &h));
        }
        if save {
            inputs.push_back(h);
        }
    }
    let projected = outgoing.all_to_all()?.try_into();
    Ok((projected.expect("an exchange returns as many tensors as were put in"), inputs))
}

/// The projections, each with the heads of a group that it has and their width.
fn projections<'a>(
    net: &'a DeltaNet,
    group: &'a HeadGroup,
) -> [(&'a Linear, &'a [Run], usize); NUM_PROJECTIONS] {
    let (keys, values) = (group.kv(), group.q());
    [
        (&net.q, keys, net.key_head_dim),
        (&net.k, keys, net.key_head_dim),
        (&net.v, values, net.value_head_dim),
        (&net.b, values, 1),
        (&net.a, values, 1),
    ]
}

/// How they travel.
fn parts(net: &DeltaNet) -> [Part; NUM_PROJECTIONS] {
    let keys = Part { heads: Heads::KeyValue, head_dim: net.key_head_dim as i64 };
    let numbers = Part { heads: Heads::Query, head_dim: 1 };
    [keys, keys, values(net), numbers, numbers]
}

/// What has the value heads.
fn values(net: &DeltaNet) -> Part {
    Part { heads: Heads::Query, head_dim: net.value_head_dim as i64 }
}
