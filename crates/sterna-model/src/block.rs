//! One decoder block on one rank: forward and backward side by side.
//!
//! ```text
//! forward                                          backward
//!   for tile:   q, k, v = pre(x)                     for tile:   recompute post; d_y -> d_x, d_o, weight grads +=
//!   all-to-all  q, k, v -> [s, n/p, h], ..           for tile:   recompute q, k, v
//!   attention   o, lse                               all-to-all  q, k, v, d_o, o
//!   all-to-all  o -> [s/p, n, h]                     attention   d_q, d_k, d_v
//!   for tile:   y = post(x, o)                       all-to-all  back
//!                                                    for tile:   d_q, d_k, d_v -> d_x +=, weight grads +=
//! ```
//!
//! No autograd graph is built: a block is six ops, each with its backward in `sterna-ops`, and calling those directly makes the
//! backward recompute only what a gradient reads. The output projection of the MLP is never recomputed, and the second visit to
//! `pre` repeats a norm instead of three matrix products. What is kept from the forward is a policy ([`Keep`]).

mod post;
mod pre;

use std::collections::VecDeque;

use sterna_comm::Group;
use sterna_hf::ModelConfig;
use sterna_ops::attention::{self, AttentionSpec, Documents};
use sterna_ops::rope::RopeTable;
use sterna_ops::tile::tiles;
use tch::Tensor;

use self::post::PostSaved;
use self::pre::PreSaved;
use crate::error::{ModelError, check_shape};
use crate::heads::HeadSplit;
use crate::parallel::ulysses::{Exchange, HeadToSeq, Heads, SeqToHead};
use crate::params::{BlockGrads, BlockParams};

/// What a block needs to know beside its weights and activations.
#[derive(Clone, Copy)]
pub struct BlockContext<'a> {
    /// The model.
    pub config: &'a ModelConfig,
    /// Which block this is; its sliding window depends on it.
    pub layer_idx: usize,
    /// The sequence-parallel group.
    pub sp: &'a Group,
    /// The heads of each of its ranks ([`HeadSplit::of_all_ranks`]).
    pub heads: &'a [HeadSplit],
    /// The documents of the whole micro-batch, all its rows one after the other: `b * s` tokens.
    pub documents: &'a Documents,
    /// The angles of this rank's `b * s/p` tokens ([`crate::rotary::table`]).
    pub rope: &'a RopeTable,
    /// `b`, rows of the micro-batch.
    pub num_rows: i64,
    /// At most how many tokens go through norm and projections at once.
    pub pre_tile_len: i64,
    /// At most how many tokens go through output projection and MLP at once.
    pub post_tile_len: i64,
}

/// What a forward keeps for its backward. The input is always kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// Keep the attention output and log-sum-exp, so that the backward runs no attention forward.
    pub attention: bool,
    /// Keep every intermediate value, so that the backward recomputes nothing. Implies `attention`. The weights are not kept.
    pub graph: bool,
}

/// What a forward has kept. The caller may move the tensors elsewhere and back.
#[derive(Debug)]
pub struct Kept {
    /// The input of the block, `[b * s/p, d]`.
    pub x: Tensor,
    /// The result of attention, if kept.
    pub attention: Option<KeptAttention>,
    /// Everything else, if kept.
    graph: Option<Graph>,
}

/// The result of attention.
#[derive(Debug)]
pub struct KeptAttention {
    /// The output with all heads of this rank's tokens, `[b * s/p, n, h]`.
    pub o: Tensor,
    /// The log-sum-exp of this rank's heads of all tokens, `[own heads, b * s]`, single precision.
    pub lse: Tensor,
}

/// Every other intermediate value.
#[derive(Debug)]
struct Graph {
    pre: VecDeque<PreSaved>,
    attended: Attended,
    post: VecDeque<PostSaved>,
}

/// The inputs and the output of attention on this rank: its heads of all tokens.
#[derive(Debug)]
struct Attended {
    /// `[b * s, own q heads, h]`.
    q: Tensor,
    /// `[b * s, own kv heads, h]`.
    k: Tensor,
    /// `[b * s, own kv heads, h]`.
    v: Tensor,
    /// `[b * s, own q heads, h]`.
    o: Tensor,
}

impl Attended {
    /// The output alone. Takes the whole, because moving one field out of a binding would leave the others alive until its end.
    fn into_output(self) -> Tensor {
        self.o
    }
}

/// Computes the block.
///
/// # Shapes
///
/// `x` `[b * s/p, d]`; returns the same shape.
///
/// # Communication
///
/// Two all-to-alls over the sp axis. Collective: every rank of the axis must call it, in the same order.
///
/// # Memory
///
/// Beside input and output: `q`, `k`, `v` and `o` of the rank, twice while they travel, and one tile of intermediate values.
///
/// # Errors
///
/// [`ModelError::Shape`] or [`ModelError::Length`] if `x` does not fit the context; [`ModelError::Comm`] if a peer fails.
pub fn forward(
    ctx: &BlockContext<'_>,
    params: &BlockParams,
    x: &Tensor,
    keep: Keep,
) -> Result<(Tensor, Kept), ModelError> {
    let exchange = ctx.exchange(x)?;
    let num_tokens = x.size()[0];
    let (projected, pre_saved) = project(ctx, params, x, keep.graph)?;
    let (attended, lse) = attend(ctx, projected);
    // Attention inputs are dead unless everything is kept; what follows needs the room.
    let (o, attended) = if keep.graph {
        (attended.o.shallow_clone(), Some(attended))
    } else {
        (attended.into_output(), None)
    };
    let o = HeadToSeq::trade(exchange, vec![(Heads::Query, o)])?.tile(0, &(0..num_tokens));
    let y = x.empty_like();
    let mut post_saved = VecDeque::new();
    for tile in tiles(num_tokens, ctx.post_tile_len) {
        let (start, len) = (tile.start, tile.end - tile.start);
        let saved =
            post::recompute(ctx, params, &x.narrow(0, start, len), &o.narrow(0, start, len));
        y.narrow(0, start, len).copy_(&post::finish(params, &saved));
        if keep.graph {
            post_saved.push_back(saved);
        }
    }
    let kept = Kept {
        x: x.shallow_clone(),
        attention: (keep.attention || keep.graph).then_some(KeptAttention { o, lse }),
        graph: attended.map(|attended| Graph { pre: pre_saved, attended, post: post_saved }),
    };
    Ok((y, kept))
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
/// Over the sp axis: two all-to-alls, two more if the forward kept nothing but its input.
/// Collective: every rank of the axis must call it, with the same policy, in the same order.
///
/// # Memory
///
/// `q`, `k`, `v`, `o`, their gradients and one exchange of them; one tile of intermediate values.
///
/// # Numerics
///
/// Activation gradients have the dtype of `x`. A weight gradient is rounded to it once per tile and summed in that of `grads`.
///
/// # Errors
///
/// As [`forward`].
pub fn backward(
    ctx: &BlockContext<'_>,
    params: &BlockParams,
    grads: &mut BlockGrads,
    kept: Kept,
    d_y: &Tensor,
) -> Result<Tensor, ModelError> {
    let Kept { x, attention, graph } = kept;
    let exchange = ctx.exchange(&x)?;
    check_shape("d_y", &d_y.size(), &x.size())?;
    let num_tokens = x.size()[0];
    let is_one_pre_tile = num_tokens <= ctx.pre_tile_len;

    // The output of attention for this rank's tokens, and what attention read if that is at hand.
    let (o, lse, attended, mut pre_saved, mut post_saved) = match (attention, graph) {
        (Some(KeptAttention { o, lse }), Some(Graph { pre, attended, post })) => {
            (o, lse, Some(attended), pre, post)
        }
        (Some(KeptAttention { o, lse }), None) => (o, lse, None, VecDeque::new(), VecDeque::new()),
        (None, _) => {
            let (projected, pre_saved) = project(ctx, params, &x, is_one_pre_tile)?;
            let (attended, lse) = attend(ctx, projected);
            let traveller = vec![(Heads::Query, attended.o.shallow_clone())];
            let o = HeadToSeq::trade(exchange, traveller)?.tile(0, &(0..num_tokens));
            (o, lse, Some(attended), pre_saved, VecDeque::new())
        }
    };

    // What attention does not have yet travels together: the gradient of its output, and what it read.
    let mut outgoing = match attended {
        Some(_) => SeqToHead::new(exchange, &[Heads::Query]),
        None => SeqToHead::new(
            exchange,
            &[Heads::Query, Heads::Query, Heads::Query, Heads::KeyValue, Heads::KeyValue],
        ),
    };
    let d_x = x.empty_like();
    for tile in tiles(num_tokens, ctx.post_tile_len) {
        let (start, len) = (tile.start, tile.end - tile.start);
        let o = o.narrow(0, start, len);
        let saved = match post_saved.pop_front() {
            Some(saved) => saved,
            None => post::recompute(ctx, params, &x.narrow(0, start, len), &o),
        };
        let (d_x_tile, d_o) =
            post::backward(ctx, params, grads, saved, &o, &d_y.narrow(0, start, len));
        d_x.narrow(0, start, len).copy_(&d_x_tile);
        outgoing.put(0, start, &d_o);
    }
    let (d_o, attended) = if let Some(attended) = attended {
        // `o` of this rank's tokens has done its work; attention has its own.
        drop(o);
        (take_one(outgoing.trade()?), attended)
    } else {
        outgoing.put(1, 0, &o);
        drop(o);
        pre_saved = put_projections(ctx, params, &x, &mut outgoing, 2, is_one_pre_tile);
        let [d_o, o, q, k, v] = take(outgoing.trade()?);
        (d_o, Attended { q, k, v, o })
    };

    let Attended { q, k, v, o } = attended;
    let (d_q, d_k, d_v) =
        attention::backward(&d_o, &q, &k, &v, &o, &lse, &ctx.attention_spec(), ctx.documents);
    // The largest tensors of the block: gone before their gradients travel.
    drop((d_o, q, k, v, o, lse));
    let travellers = vec![(Heads::Query, d_q), (Heads::KeyValue, d_k), (Heads::KeyValue, d_v)];
    let returned = HeadToSeq::trade(exchange, travellers)?;

    for tile in tiles(num_tokens, ctx.pre_tile_len) {
        let (start, len) = (tile.start, tile.end - tile.start);
        let x = x.narrow(0, start, len);
        let saved = match pre_saved.pop_front() {
            Some(saved) => saved,
            None => pre::recompute(ctx, params, &x),
        };
        let d_projections = [0, 1, 2].map(|part_idx| returned.tile(part_idx, &tile));
        let d_x_tile = pre::backward(
            ctx,
            params,
            grads,
            &x,
            &saved,
            &ctx.rope.narrow(start, len),
            d_projections,
        );
        // The residual around attention has written its share already.
        let _ = d_x.narrow(0, start, len).g_add_(&d_x_tile);
    }
    Ok(d_x)
}

/// `q`, `k` and `v` of this rank's heads, and what the backward of `pre` will read, if wanted.
fn project(
    ctx: &BlockContext<'_>,
    params: &BlockParams,
    x: &Tensor,
    save: bool,
) -> Result<([Tensor; 3], VecDeque<PreSaved>), ModelError> {
    let mut outgoing =
        SeqToHead::new(ctx.exchange(x)?, &[Heads::Query, Heads::KeyValue, Heads::KeyValue]);
    let saved = put_projections(ctx, params, x, &mut outgoing, 0, save);
    Ok((take(outgoing.trade()?), saved))
}

/// Computes `q`, `k` and `v` tile by tile into an exchange, as its parts `first_part..`.
fn put_projections(
    ctx: &BlockContext<'_>,
    params: &BlockParams,
    x: &Tensor,
    outgoing: &mut SeqToHead<'_>,
    first_part: usize,
    save: bool,
) -> VecDeque<PreSaved> {
    let mut all_saved = VecDeque::new();
    for tile in tiles(x.size()[0], ctx.pre_tile_len) {
        let (start, len) = (tile.start, tile.end - tile.start);
        let saved = pre::recompute(ctx, params, &x.narrow(0, start, len));
        let projections = pre::finish(ctx, params, &saved, &ctx.rope.narrow(start, len));
        for (part_idx, projection) in projections.iter().enumerate() {
            outgoing.put(first_part + part_idx, start, projection);
        }
        if save {
            all_saved.push_back(saved);
        }
    }
    all_saved
}

/// Attention on this rank's heads; returns its inputs and output, and the log-sum-exp.
fn attend(ctx: &BlockContext<'_>, [q, k, v]: [Tensor; 3]) -> (Attended, Tensor) {
    let (o, lse) = attention::forward(&q, &k, &v, &ctx.attention_spec(), ctx.documents);
    (Attended { q, k, v, o }, lse)
}

fn take<const N: usize>(tensors: Vec<Tensor>) -> [Tensor; N] {
    tensors.try_into().expect("an exchange returns as many tensors as were put in")
}

fn take_one(tensors: Vec<Tensor>) -> Tensor {
    let [tensor] = take(tensors);
    tensor
}

impl<'a> BlockContext<'a> {
    /// The exchange around this block's attention, after checking that everything is as long as `x` says.
    fn exchange(&self, x: &Tensor) -> Result<Exchange<'a>, ModelError> {
        let num_tokens = self.rope.len();
        check_shape("x", &x.size(), &[num_tokens, self.config.hidden_size as i64])?;
        let sp_size = self.sp.size();
        let check_length = |name: &'static str, found: usize, required: usize| {
            if found == required {
                Ok(())
            } else {
                Err(ModelError::Length { name, found, required })
            }
        };
        check_length("heads", self.heads.len(), sp_size)?;
        check_length(
            "documents",
            self.documents.num_tokens() as usize,
            num_tokens as usize * sp_size,
        )?;
        Ok(Exchange {
            group: self.sp,
            heads: self.heads,
            num_rows: self.num_rows,
            shard_len: num_tokens / self.num_rows,
            head_dim: self.config.head_dim as i64,
            kind: x.kind(),
            device: x.device(),
        })
    }

    fn attention_spec(&self) -> AttentionSpec {
        let ModelConfig { num_attention_heads, num_key_value_heads, head_dim, .. } = *self.config;
        AttentionSpec {
            kv_of_q: self.heads[self.sp.rank()].kv_of_q(num_attention_heads / num_key_value_heads),
            scale: 1.0 / (head_dim as f64).sqrt(),
            sliding_window: self.config.sliding_window[self.layer_idx].map(|window| window as i64),
        }
    }
}
