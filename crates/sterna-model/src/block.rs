//! One decoder block on one rank: forward and backward side by side.
//!
//! ```text
//! forward                                          backward
//!   for group of heads:                              for tile:   recompute mlp; d_y -> d_x, d_o, weight grads +=
//!     for tile:   q, k, v = qkv(x)                   for group of heads:
//!     all-to-all  q, k, v -> [s, n/p, h], ..           all-to-all  d_o, o
//!     attention   o, lse                               for tile:   recompute q, k, v
//!     all-to-all  o -> [s/p, n, h]                     all-to-all  q, k, v
//!   for tile:     y = mlp(x, o)                       attention   d_q, d_k, d_v
//!                                                      all-to-all  back
//!                                                      for tile:   d_q, d_k, d_v -> d_x +=, weight grads +=
//! ```
//!
//! No autograd graph is built: each op of a block has its backward in `sterna-ops`, and calling those directly makes the backward
//! recompute only what a gradient reads. Where no norm reads what they give, the output projection of the MLP is never recomputed, and
//! the second visit to `qkv` repeats a norm instead of three matrix products. What is kept from the forward is a policy ([`Keep`]).
//! Heads run all at once or in groups ([`HeadGroup`]): the tensors of attention exist for one group at a time.

mod attend;
mod dense;
mod mlp;
mod moe;
mod qkv;

use std::collections::VecDeque;
use std::ops::Range;

use sterna_arch::{Ffn, Layer};
use sterna_comm::Group;
use sterna_ops::attention::{AttentionSpec, Documents, Implementation};
use sterna_ops::rope::RopeTable;
use sterna_ops::tile::tiles;
use sterna_torch_sys::memory::{self, MemoryKind};
use tch::Tensor;

use self::attend::Attended;
pub use self::attend::{KeysValuesStore, Streaming};
use self::mlp::MlpSaved;
pub use self::moe::Experts;
use self::moe::MoeSaved;
use self::qkv::QkvSaved;
use crate::error::{ModelError, check_shape};
use crate::heads::HeadGroup;
use crate::parallel::ulysses::{Exchange, HeadToSeq, Heads, SeqToHead};
use crate::params::{BlockGrads, BlockParams};
use crate::routing::Routing;
use crate::stage::Stage;

const NO_EXPERTS: &str = "a layer with experts is given them";

/// What a block needs to know beside its weights and activations.
#[derive(Clone, Copy)]
pub struct BlockContext<'a> {
    /// What the block computes.
    pub layer: &'a Layer,
    /// Which block this is, for timelines.
    pub layer_idx: usize,
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
    /// The routers' auxiliary loss, if the model has one.
    pub routing: Option<&'a Routing>,
    /// Whether what routers choose is added to that: the first forward of a micro-batch does, what computes it again does not.
    pub counts_routes: bool,
    /// Tiles of queries that attend one after the other to keys and values that wait elsewhere; `None` is all at once.
    pub streaming: Option<Streaming<'a>>,
    /// Which kernels may compute attention on a CUDA device.
    pub attention: Implementation,
    /// At most how many tokens go through norm and projections at once.
    pub qkv_tile_len: i64,
    /// At most how many tokens go through output projection and MLP at once.
    pub mlp_tile_len: i64,
}

/// What a forward keeps for its backward. The input is always kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// Keep the attention output and log-sum-exp, so that the backward runs no attention forward.
    pub attention: bool,
    /// Keep every intermediate value, so that the backward recomputes nothing but a router's probabilities and the outputs of experts.
    /// Implies `attention`. The weights are not kept.
    pub graph: bool,
}

/// What a forward has kept. The caller may move the tensors elsewhere and back.
#[derive(Debug)]
pub struct Kept {
    /// The input of the block, `[b * s/p, d]`.
    pub x: Tensor,
    /// What the mixer of tokens keeps, if it does: a list that only its own backward can read.
    pub mixer: Option<Vec<Tensor>>,
    /// Everything else, if kept.
    pub graph: Option<Graph>,
}

/// The result of attention, which is what it keeps.
#[derive(Debug)]
struct AttentionResult {
    /// The output with all heads of this rank's tokens, `[b * s/p, n, h]`.
    o: Tensor,
    /// The log-sum-exp of this rank's heads of all tokens, `[own heads, b * s]`, single precision.
    lse: Tensor,
}

impl AttentionResult {
    fn into_kept(self) -> Vec<Tensor> {
        vec![self.o, self.lse]
    }

    fn from_kept(kept: &[Tensor]) -> Self {
        let [o, lse] = kept else { unreachable!("attention keeps two tensors") };
        Self { o: o.shallow_clone(), lse: lse.shallow_clone() }
    }
}

/// Every other intermediate value.
#[derive(Debug)]
pub struct Graph {
    groups: Vec<GroupSaved>,
    after: AfterSaved,
}

impl Graph {
    /// Counts all of it as `kind` from now on.
    pub fn retag(&self, kind: MemoryKind) {
        let of_groups = self.groups.iter().flat_map(|GroupSaved { qkv, attended }| {
            qkv.iter().flat_map(QkvSaved::tensors).chain(attended.tensors())
        });
        for tensor in of_groups {
            memory::retag(tensor, kind);
        }
        match &self.after {
            AfterSaved::Dense(tiles) => {
                let tensors = tiles.iter().flat_map(MlpSaved::tensors);
                tensors.for_each(|tensor| memory::retag(tensor, kind));
            }
            AfterSaved::Moe(saved) => {
                saved.tensors().for_each(|tensor| memory::retag(tensor, kind));
            }
        }
    }
}

/// Every other intermediate value after attention.
#[derive(Debug)]
enum AfterSaved {
    /// Of each tile.
    Dense(VecDeque<MlpSaved>),
    Moe(MoeSaved),
}

/// Every other intermediate value of a group of heads, up to attention.
#[derive(Debug)]
struct GroupSaved {
    qkv: VecDeque<QkvSaved>,
    attended: Attended,
}

/// Computes the block. `experts` are there in a layer that has some, here and in the next two.
///
/// # Shapes
///
/// `x` `[b * s/p, d]`; returns the same shape.
///
/// # Communication
///
/// Two all-to-alls over the sp axis for each group of heads. Collective: every rank of the axis must call it, in the same order.
///
/// # Memory
///
/// Beside input and output: `q`, `k`, `v` and `o` of a group of heads, twice while they travel, the output of all groups, and one
/// tile of intermediate values. With experts, the residual stream and their input, and a group of their weights.
///
/// # Errors
///
/// [`ModelError::Shape`] or [`ModelError::Length`] if `x` does not fit the context; [`ModelError::Comm`] if a peer fails; those of
/// [`Experts`].
///
/// # Panics
///
/// If the layer has experts and there are none.
pub fn forward(
    ctx: &BlockContext<'_>,
    params: &BlockParams,
    experts: Option<&mut dyn Experts>,
    x: &Tensor,
    keep: Keep,
) -> Result<(Tensor, Kept), ModelError> {
    ctx.check(x)?;
    let _stage = Stage::Block.enter_at(ctx.layer_idx);
    let save = if keep.graph { Save::All } else { Save::Nothing };
    let (attention, groups) = attention_forward(ctx, params, x, save)?;
    let (y, after) = after_attention(ctx, params, experts, x, &attention.o, keep.graph)?;
    let kept = Kept {
        x: x.shallow_clone(),
        mixer: (keep.attention || keep.graph).then(|| attention.into_kept()),
        graph: after.map(|after| Graph { groups, after }),
    };
    Ok((y, kept))
}

/// Computes the block again from its input and what its mixer has kept, which costs no attention and no communication.
///
/// # Shapes
///
/// `x` `[b * s/p, d]`; returns the same shape.
///
/// # Memory
///
/// Beside the output, one tile of intermediate values. With experts, the residual stream and their input, and a group of their weights.
///
/// # Errors
///
/// [`ModelError::Shape`] or [`ModelError::Length`] if `x` does not fit the context; those of [`Experts`].
///
/// # Panics
///
/// As [`forward`].
pub fn recompute(
    ctx: &BlockContext<'_>,
    params: &BlockParams,
    experts: Option<&mut dyn Experts>,
    x: &Tensor,
    mixer: &[Tensor],
) -> Result<Tensor, ModelError> {
    ctx.check(x)?;
    let _stage = Stage::BlockRecompute.enter_at(ctx.layer_idx);
    Ok(after_attention(ctx, params, experts, x, &AttentionResult::from_kept(mixer).o, false)?.0)
}

/// Computes the gradient of the block's input, and adds those of its weights to `grads`.
///
/// `ctx` and `params` must be those of the forward.
///
/// # Shapes
///
/// `d_y` `[b * s/p, d]`; returns the same shape.
///
/// # Communication
///
/// Over the sp axis, for each group of heads: three all-to-alls, one more if the forward kept nothing but its input, one less if it
/// kept everything. Collective: every rank of the axis must call it, with the same policy, in the same order.
///
/// # Memory
///
/// `q`, `k`, `v`, `o`, their gradients and one exchange of them, for one group of heads; the gradient of the output of the groups
/// still to come; one tile of intermediate values. With experts, the residual stream, their input and output with the gradients of
/// both, and the weights and gradients of a group.
///
/// # Numerics
///
/// Activation gradients have the dtype of `x`. A weight gradient is summed in the dtype of `grads`; what a tile adds to it is rounded
/// first only where [`sterna_ops::linear::backward_params`] says so.
/// With several groups, each adds its share of the input's gradient to it.
///
/// # Errors
///
/// As [`forward`].
///
/// # Panics
///
/// As [`forward`].
pub fn backward(
    ctx: &BlockContext<'_>,
    params: &BlockParams,
    grads: &mut BlockGrads,
    experts: Option<&mut dyn Experts>,
    kept: Kept,
    d_y: &Tensor,
) -> Result<Tensor, ModelError> {
    let Kept { x, mixer, graph } = kept;
    let attention = mixer.map(|kept| AttentionResult::from_kept(&kept));
    ctx.check(&x)?;
    check_shape("d_y", &d_y.size(), &x.size())?;
    let _stage = Stage::BlockBackward.enter_at(ctx.layer_idx);
    let num_tokens = x.size()[0];

    let (attention, groups_saved, after_saved) = match (attention, graph) {
        (Some(attention), Some(Graph { groups, after })) => (attention, groups, Some(after)),
        (Some(attention), None) => (attention, Vec::new(), None),
        // What one group reads is at hand afterwards; of several, each is computed again when its turn comes.
        (None, _) => {
            let save = if ctx.groups.len() == 1 { Save::Attended } else { Save::Nothing };
            let (attention, groups) = attention_forward(ctx, params, &x, save)?;
            (attention, groups, None)
        }
    };
    let AttentionResult { o, lse } = attention;

    // To attention travels the gradient of its output, and the output itself unless it is there.
    let parts = if groups_saved.is_empty() { &[Heads::Query; 2][..] } else { &[Heads::Query] };
    let mut outgoing: Vec<SeqToHead<'_>> =
        ctx.groups.iter().map(|group| SeqToHead::new(ctx.exchange(group, &x), parts)).collect();
    let d_x = x.empty_like();
    let mut d_o_of_tile = |start: i64, d_o: &Tensor| {
        for (group, outgoing) in ctx.groups.iter().zip(&mut outgoing) {
            outgoing.put(0, start, &group.queries_of(d_o));
        }
    };
    match &ctx.layer.ffn {
        Ffn::Dense(dense) => {
            let mut saved = match after_saved {
                Some(AfterSaved::Dense(saved)) => saved,
                _ => VecDeque::new(),
            };
            for tile in tiles(num_tokens, ctx.mlp_tile_len) {
                let (start, len) = (tile.start, tile.end - tile.start);
                let _stage = Stage::Mlp.enter();
                let (x, o) = (x.narrow(0, start, len), o.narrow(0, start, len));
                let saved = match saved.pop_front() {
                    Some(saved) => saved,
                    None => mlp::recompute(ctx, dense, params, &x, &o),
                };
                let (d_y, d_x) = (d_y.narrow(0, start, len), d_x.narrow(0, start, len));
                let d_o = mlp::backward(ctx, dense, params, grads, saved, &x, &o, &d_y, &d_x);
                d_o_of_tile(start, &d_o);
            }
        }
        Ffn::Moe(moe) => {
            let saved = match after_saved {
                Some(AfterSaved::Moe(saved)) => Some(saved),
                _ => None,
            };
            let experts = experts.expect(NO_EXPERTS);
            moe::backward(ctx, moe, params, grads, experts, saved, &x, &o, d_y, &d_x, d_o_of_tile)?;
        }
    }
    if groups_saved.is_empty() {
        for (group, outgoing) in ctx.groups.iter().zip(&mut outgoing) {
            outgoing.put(1, 0, &group.queries_of(&o));
        }
    }
    // Attention has its own of each group.
    drop(o);

    let mut groups_saved = groups_saved.into_iter();
    let mut first_head = 0;
    for (group, outgoing) in ctx.groups.iter().zip(outgoing) {
        let mut arrived = outgoing.all_to_all()?;
        let (attended, mut qkv_saved) = if let Some(saved) = groups_saved.next() {
            (saved.attended, saved.qkv)
        } else {
            let save = num_tokens <= ctx.qkv_tile_len;
            let (projected, qkv_saved) = project(ctx, group, params, &x, save)?;
            (Attended::new(ctx, projected, arrived.remove(1))?, qkv_saved)
        };
        let d_o = arrived.remove(0);
        let num_heads = attended.num_heads();
        let lse = lse.narrow(0, first_head, num_heads);
        first_head += num_heads;
        let (d_q, d_k, d_v) = attend::backward(ctx, group, attended, &lse, d_o)?;
        let travellers = vec![(Heads::Query, d_q), (Heads::KeyValue, d_k), (Heads::KeyValue, d_v)];
        let returned = HeadToSeq::all_to_all(ctx.exchange(group, &x), travellers)?;

        for tile in tiles(num_tokens, ctx.qkv_tile_len) {
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
    Ok(d_x)
}

/// What the attention of a group of heads leaves for its backward.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Save {
    Nothing,
    /// What attention read and gave, and of `qkv` what fits one tile.
    Attended,
    All,
}

/// Attention of all groups of heads, and what a backward will read of each if wanted.
fn attention_forward(
    ctx: &BlockContext<'_>,
    params: &BlockParams,
    x: &Tensor,
    save: Save,
) -> Result<(AttentionResult, Vec<GroupSaved>), ModelError> {
    let num_tokens = x.size()[0];
    let (mut outputs, mut lses, mut saved) = (Vec::new(), Vec::new(), Vec::new());
    let _memory = memory::scope(MemoryKind::Attention);
    for group in ctx.groups {
        let saves_qkv = match save {
            Save::Nothing => false,
            Save::Attended => num_tokens <= ctx.qkv_tile_len,
            Save::All => true,
        };
        let (projected, qkv) = project(ctx, group, params, x, saves_qkv)?;
        let (attended, lse) = attend::forward(ctx, group, projected)?;
        lses.push(lse);
        // Attention inputs are dead unless everything is kept; what follows needs the room.
        let o = if save == Save::Nothing {
            attended.into_output()
        } else {
            let o = attended.output();
            saved.push(GroupSaved { qkv, attended });
            o
        };
        let returned = HeadToSeq::all_to_all(ctx.exchange(group, x), vec![(Heads::Query, o)])?;
        outputs.push(returned.tile(0, &(0..num_tokens)));
    }
    let o = HeadGroup::join(ctx.groups, outputs);
    let lse = if lses.len() == 1 { lses.remove(0) } else { Tensor::cat(&lses, 0) };
    Ok((AttentionResult { o, lse }, saved))
}

/// From the attention output to the output of the block, and what a backward will read, if wanted.
fn after_attention(
    ctx: &BlockContext<'_>,
    params: &BlockParams,
    experts: Option<&mut dyn Experts>,
    x: &Tensor,
    o: &Tensor,
    save: bool,
) -> Result<(Tensor, Option<AfterSaved>), ModelError> {
    let dense = match &ctx.layer.ffn {
        Ffn::Dense(dense) => dense,
        Ffn::Moe(moe) => {
            let experts = experts.expect(NO_EXPERTS);
            let (y, saved) = moe::forward(ctx, moe, params, experts, x, o, save)?;
            return Ok((y, saved.map(AfterSaved::Moe)));
        }
    };
    let y = x.empty_like();
    let mut all_saved = VecDeque::new();
    for tile in tiles(x.size()[0], ctx.mlp_tile_len) {
        let (start, len) = (tile.start, tile.end - tile.start);
        let _stage = Stage::Mlp.enter();
        let (x, o) = (x.narrow(0, start, len), o.narrow(0, start, len));
        let saved = mlp::recompute(ctx, dense, params, &x, &o);
        mlp::finish(ctx, dense, params, &saved, &mut y.narrow(0, start, len));
        if save {
            all_saved.push_back(saved);
        }
    }
    Ok((y, save.then_some(AfterSaved::Dense(all_saved))))
}

/// `q`, `k` and `v` of this rank's heads of a group, and what the backward of `qkv` will read, if wanted.
fn project(
    ctx: &BlockContext<'_>,
    group: &HeadGroup,
    params: &BlockParams,
    x: &Tensor,
    save: bool,
) -> Result<([Tensor; 3], VecDeque<QkvSaved>), ModelError> {
    let parts = [Heads::Query, Heads::KeyValue, Heads::KeyValue];
    let mut outgoing = SeqToHead::new(ctx.exchange(group, x), &parts);
    let mut all_saved = VecDeque::new();
    for tile in tiles(x.size()[0], ctx.qkv_tile_len) {
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

impl<'a> BlockContext<'a> {
    /// Checks that everything is as long as `x` says.
    fn check(&self, x: &Tensor) -> Result<(), ModelError> {
        let num_tokens = x.size()[0];
        check_shape("x", &x.size(), &[num_tokens, self.layer.hidden_size() as i64])?;
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

    /// The angles of a tile's tokens; `None` in a block that does not turn them.
    fn rope_of(&self, tile: &Range<i64>) -> Option<RopeTable> {
        self.rope.map(|rope| rope.narrow(tile.start, tile.end - tile.start))
    }

    /// The exchange around the attention of a group of heads.
    fn exchange(&self, group: &'a HeadGroup, x: &Tensor) -> Exchange<'a> {
        Exchange {
            group: self.sp,
            heads: group.splits(),
            num_rows: self.num_rows,
            shard_len: x.size()[0] / self.num_rows,
            head_dim: self.layer.attention.head_dim as i64,
            kind: x.kind(),
            device: x.device(),
        }
    }

    fn attention_spec(&self, group: &HeadGroup) -> AttentionSpec {
        let attention = &self.layer.attention;
        AttentionSpec {
            kv_of_q: group.kv_of_q(self.sp.rank()).to_vec(),
            scale: attention.scale,
            softcap: attention.softcap,
            sliding_window: attention.sliding_window.map(|window| window as i64),
            implementation: self.attention,
        }
    }
}
