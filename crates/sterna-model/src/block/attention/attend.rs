//! Attention of a group of heads, on what it reads at once or on tiles of queries with keys and values streamed to them.

use std::fmt;
use std::ops::Range;

use sterna_ops::accumulate_kind;
use sterna_ops::attention::{self, AttentionSpec, KeysValues, Streamed, sinks};
use sterna_ops::tile::tiles;
use tch::Tensor;

use crate::block::BlockContext;
use crate::error::ModelError;
use crate::heads::HeadGroup;
use crate::params::{BlockGrads, BlockParams};
use crate::stage::Stage;

/// Where keys and values wait while tiles of queries attend to them.
pub trait KeysValuesStore {
    /// Puts away `k` and `v` `[b * s, own kv heads, h]`, to be read in runs of tokens until the result is dropped.
    ///
    /// # Errors
    ///
    /// [`ModelError::Caller`] if there is no room or an earlier transfer failed.
    fn put(
        &self,
        k: Tensor,
        v: Tensor,
    ) -> Result<Box<dyn KeysValues<Error = ModelError>>, ModelError>;
}

/// How queries attend in tiles.
#[derive(Clone, Copy)]
pub struct Streaming<'a> {
    /// At most so many queries attend at once, to as many keys at once.
    pub tile_len: i64,
    /// Where keys and values wait.
    pub store: &'a dyn KeysValuesStore,
}

/// The inputs and the output of attention on this rank: its heads of all tokens.
pub(super) struct Attended {
    /// `[b * s, own q heads, h]`.
    q: Tensor,
    kv: KeysAndValues,
    /// `[b * s, own q heads, v_head_dim]`.
    o: Tensor,
}

enum KeysAndValues {
    /// `k` `[b * s, own kv heads, h]` and `v` `[b * s, own kv heads, v_head_dim]`.
    Here([Tensor; 2]),
    /// Somewhere else, both `[b * s, own kv heads, h]`, with that shape.
    Stored(Box<dyn KeysValues<Error = ModelError>>, Vec<i64>),
}

impl fmt::Debug for Attended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attended").field("q", &self.q).field("o", &self.o).finish_non_exhaustive()
    }
}

impl Attended {
    /// What attention read and what it gave, when the latter has been kept.
    pub(super) fn new(
        ctx: &BlockContext<'_>,
        [q, k, v]: [Tensor; 3],
        o: Tensor,
    ) -> Result<Attended, ModelError> {
        let (q, kv) = KeysAndValues::new(ctx, q, k, v)?;
        Ok(Attended { q, kv, o })
    }

    /// All tensors that are here.
    pub(super) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let kv = match &self.kv {
            KeysAndValues::Here(kv) => &kv[..],
            KeysAndValues::Stored(..) => &[],
        };
        [&self.q, &self.o].into_iter().chain(kv)
    }

    /// Query heads of this rank.
    pub(super) fn num_heads(&self) -> i64 {
        self.q.size()[1]
    }

    /// The output, shared.
    pub(super) fn output(&self) -> Tensor {
        self.o.shallow_clone()
    }

    /// The output alone. Takes the whole, because moving one field out of a binding would leave the others alive until its end.
    pub(super) fn into_output(self) -> Tensor {
        self.o
    }
}

impl KeysAndValues {
    /// Puts keys and values where they wait, and returns the queries with memory of their own: what an exchange returns shares
    /// one buffer, which would stay for as long as the queries do.
    fn new(
        ctx: &BlockContext<'_>,
        q: Tensor,
        k: Tensor,
        v: Tensor,
    ) -> Result<(Tensor, KeysAndValues), ModelError> {
        match ctx.attention.streaming {
            None => Ok((q, KeysAndValues::Here([k, v]))),
            Some(streaming) => {
                let size = k.size();
                let q = q.contiguous();
                let v = widened(v, size[2]);
                Ok((q, KeysAndValues::Stored(streaming.store.put(k, v)?, size)))
            }
        }
    }
}

/// Attention on this rank's heads of a group; returns its inputs and output, and the log-sum-exp, of sinks too where the layer has them.
pub(super) fn forward(
    ctx: &BlockContext<'_>,
    group: &HeadGroup,
    params: &BlockParams,
    [q, k, v]: [Tensor; 3],
) -> Result<(Attended, Tensor), ModelError> {
    let _stage = Stage::Attention.enter();
    let spec = attention_spec(ctx, group);
    let (q, mut kv) = KeysAndValues::new(ctx, q, k, v)?;
    let (o, lse) = match (&mut kv, ctx.attention.streaming) {
        (KeysAndValues::Stored(kv, _), Some(streaming)) => {
            let size = q.size();
            let o = Tensor::empty(&size, (q.kind(), q.device()));
            let lse = Tensor::empty([size[1], size[0]], (accumulate_kind(q.kind()), q.device()));
            let streamed = streamed(ctx, &spec, streaming);
            for tile in tiles(size[0], streaming.tile_len) {
                let (o_tile, lse_tile) = streamed.forward(&of(&q, 0, &tile), &tile, &mut **kv)?;
                of(&o, 0, &tile).copy_(&o_tile);
                of(&lse, 1, &tile).copy_(&lse_tile);
            }
            (o, lse)
        }
        (KeysAndValues::Here([k, v]), _) => {
            let v = widened(v.shallow_clone(), q.size()[2]);
            attention::forward(&q, k, &v, &spec, ctx.attention.documents)
        }
        (KeysAndValues::Stored(..), None) => unreachable!("only streaming puts them away"),
    };
    let o = narrowed(ctx, o);
    if let Some((param_idx, own)) = own_sinks(ctx, group) {
        sinks::forward(&o, &lse, &of(params.get(param_idx), 0, &own));
    }
    Ok((Attended { q, kv, o }, lse))
}

/// The gradients of `q`, `k` and `v`; that of sinks `+=`. Takes what it reads: the largest tensors of the block are gone before their
/// gradients travel.
pub(super) fn backward(
    ctx: &BlockContext<'_>,
    group: &HeadGroup,
    params: &BlockParams,
    grads: &mut BlockGrads,
    attended: Attended,
    lse: &Tensor,
    d_o: Tensor,
) -> Result<(Tensor, Tensor, Tensor), ModelError> {
    let _stage = Stage::Attention.enter();
    let Attended { q, kv, o } = attended;
    let spec = attention_spec(ctx, group);
    if let Some((param_idx, own)) = own_sinks(ctx, group)
        && let Some(grad) = grads.get(param_idx)
    {
        // Other ranks and groups have the other heads, and all tokens of these are here.
        let own_sinks = of(params.get(param_idx), 0, &own);
        sinks::backward(&d_o, &o, lse, &own_sinks, &mut of(grad, 0, &own));
    }
    let [o, d_o] = [o, d_o].map(|x| widened(x, q.size()[2]));
    let (d_q, d_k, d_v) = match (kv, ctx.attention.streaming) {
        (KeysAndValues::Here([k, v]), _) => {
            let v = widened(v, q.size()[2]);
            attention::backward(&d_o, &q, &k, &v, &o, lse, &spec, ctx.attention.documents)
        }
        (KeysAndValues::Stored(mut kv, kv_size), Some(streaming)) => {
            let d_q = Tensor::empty(q.size(), (q.kind(), q.device()));
            let d_k = Tensor::zeros(kv_size, (accumulate_kind(q.kind()), q.device()));
            let d_v = d_k.zeros_like();
            let streamed = streamed(ctx, &spec, streaming);
            // From the last tile to the first, so that what was read last is read again first.
            for tile in tiles(q.size()[0], streaming.tile_len).rev() {
                let add = |chunk: &Range<i64>, d_k_share: Tensor, d_v_share: Tensor| {
                    let _ = of(&d_k, 0, chunk).g_add_(&d_k_share);
                    let _ = of(&d_v, 0, chunk).g_add_(&d_v_share);
                    Ok(())
                };
                let d_q_tile = streamed.backward(
                    &of(&d_o, 0, &tile),
                    &of(&q, 0, &tile),
                    &of(&o, 0, &tile),
                    &of(lse, 1, &tile),
                    &tile,
                    &mut *kv,
                    add,
                )?;
                of(&d_q, 0, &tile).copy_(&d_q_tile);
            }
            (d_q, d_k.to_kind(q.kind()), d_v.to_kind(q.kind()))
        }
        (KeysAndValues::Stored(..), None) => unreachable!("only streaming puts them away"),
    };
    drop((o, d_o));
    Ok((d_q, d_k, narrowed(ctx, d_v)))
}

/// Heads of values, outputs or gradients of outputs with zeros behind them up to the width of queries and keys, `[tokens, heads, h]`.
///
/// Not every kernel takes values of another width than keys. Zeros change nothing: columns of the output are columns of the values, each
/// by itself, and scores and probabilities do not depend on values; a column of zeros adds nothing to `d_o . o` and `d_o . v`, which are
/// all that the backward takes from their columns, and its own gradient is dropped.
fn widened(x: Tensor, head_dim: i64) -> Tensor {
    let behind = head_dim - x.size()[2];
    if behind == 0 { x } else { x.constant_pad_nd([0, behind]) }
}

/// The columns that [`widened`] found, `[tokens, heads, v_head_dim]`, contiguous.
fn narrowed(ctx: &BlockContext<'_>, x: Tensor) -> Tensor {
    let v_head_dim = super::of(ctx).v_head_dim as i64;
    if x.size()[2] == v_head_dim { x } else { x.narrow(2, 0, v_head_dim).contiguous() }
}

/// The index of the sinks among the parameters, and this rank's heads of the group.
fn own_sinks(ctx: &BlockContext<'_>, group: &HeadGroup) -> Option<(usize, Range<i64>)> {
    let own = group.own_q(ctx.attention.sp.rank());
    super::of(ctx).sinks.map(|param_idx| (param_idx, own.start as i64..own.end as i64))
}

fn attention_spec(ctx: &BlockContext<'_>, group: &HeadGroup) -> AttentionSpec {
    let attention = super::of(ctx);
    AttentionSpec {
        kv_of_q: group.kv_of_q(ctx.attention.sp.rank()).to_vec(),
        scale: attention.scale,
        softcap: attention.softcap,
        sliding_window: attention.sliding_window.map(|window| window as i64),
        implementation: ctx.attention.implementation,
    }
}

fn streamed<'s>(
    ctx: &BlockContext<'s>,
    spec: &'s AttentionSpec,
    streaming: Streaming<'_>,
) -> Streamed<'s> {
    Streamed { spec, documents: ctx.attention.documents, key_chunk_len: streaming.tile_len }
}

/// A run of tokens along dimension `dim`.
fn of(x: &Tensor, dim: i64, tokens: &Range<i64>) -> Tensor {
    x.narrow(dim, tokens.start, tokens.end - tokens.start)
}
