//! From the residual stream to queries, keys and values: norm, projections, norms of queries and keys, rotary.

use std::borrow::Cow;
use std::ops::Range;

use sterna_arch::{Linear, Norm, QkNormWidth};
use sterna_ops::rope::{self, RopeTable};
use sterna_ops::{accumulate_kind, norm};
use tch::Tensor;

use super::of;
use crate::block::BlockContext;
use crate::block::mixer::{input, input_backward, project_heads, project_heads_backward};
use crate::heads::{HeadGroup, Run};
use crate::params::{BlockGrads, BlockParams};

/// What the backward of a tile reads.
#[derive(Debug)]
pub(super) struct QkvSaved {
    /// `[tile, d]`, what the projections read.
    h: Tensor,
    /// What they gave, where something reads it.
    projected: Projected,
}

/// Queries `[tile, n, h]`, keys and values `[tile, k, h]` as their projections gave them.
#[derive(Debug)]
struct Projected {
    q: Option<Tensor>,
    k: Option<Tensor>,
    v: Option<Tensor>,
}

impl QkvSaved {
    pub(super) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let Projected { q, k, v } = &self.projected;
        [&self.h].into_iter().chain(q).chain(k).chain(v)
    }
}

/// Computes what the backward reads, `x` `[tile, d]`.
///
/// Where nothing but rotary embeddings follows the projections, that is one norm: both are linear, so that their backward does not need
/// their input. A second pass over a tile therefore costs no matrix product.
pub(super) fn recompute(
    ctx: &BlockContext<'_>,
    group: &HeadGroup,
    params: &BlockParams,
    x: &Tensor,
) -> QkvSaved {
    let attention = of(ctx);
    let h = input(ctx, params, x);
    let reads_qk = attention.backward_reads_qk();
    let q = reads_qk.then(|| {
        project(ctx, params, &attention.q, &read(ctx, group.q(), attention.num_heads), &h)
    });
    let kv = read(ctx, group.kv(), attention.num_kv_heads);
    let k = reads_qk.then(|| project(ctx, params, &attention.k, &kv, &h));
    let v = match &attention.v {
        Some(v) if attention.backward_reads_v() => Some(project(ctx, params, v, group.kv(), &h)),
        _ => None,
    };
    QkvSaved { h, projected: Projected { q, k, v } }
}

/// `q` `[tile, n, h]`, `k` and `v` `[tile, k, h]` of a tile, with the heads of the group.
pub(super) fn finish(
    ctx: &BlockContext<'_>,
    group: &HeadGroup,
    params: &BlockParams,
    saved: &QkvSaved,
    tile: &Range<i64>,
) -> [Tensor; 3] {
    let attention = of(ctx);
    let QkvSaved { h, projected } = saved;
    let rope = rope_of(ctx, tile);
    let projection = |saved: &Option<Tensor>, map: &Linear, runs: &[Run]| match saved {
        Some(projected) => clipped(attention.clip_qkv, projected),
        None => project(ctx, params, map, runs, h),
    };
    let q = projection(&projected.q, &attention.q, group.q());
    let k = projection(&projected.k, &attention.k, group.kv());
    let mut v = match &attention.v {
        Some(map) => projection(&projected.v, map, group.kv()),
        // Rotary embeddings and norms of keys write tensors of their own.
        None => k.shallow_clone(),
    };
    if let Some(norm) = &attention.v_norm {
        v = params.norm(norm).forward(&v);
    }
    let norms = attention.qk_norm.as_ref();
    let turn = |x: Tensor| {
        rope.as_ref().map_or_else(|| x.shallow_clone(), |table| rope::forward(&x, table))
    };
    let of_heads = |x: Tensor, norm: Option<&Norm>, runs: &[Run], num_heads: usize| {
        let Some(norm) = norm else { return turn(x) };
        let heads = NormOfHeads::new(ctx, norm, runs, num_heads);
        if heads.is_after_rope {
            heads.forward(params, &turn(x))
        } else {
            turn(heads.forward(params, &x))
        }
    };
    let q = of_heads(q, norms.map(|norms| &norms.q), group.q(), attention.num_heads);
    let k = of_heads(k, norms.map(|norms| &norms.k), group.kv(), attention.num_kv_heads);
    let q = match rope.as_ref().and_then(RopeTable::query_scale) {
        Some(scale) => q * scale,
        None => q,
    };
    [q, k, v]
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
    [d_q, d_k, d_v]: [Tensor; 3],
) -> Tensor {
    let attention = of(ctx);
    let QkvSaved { h, projected } = saved;
    let rope = rope_of(ctx, tile);
    let d_q = match rope.as_ref().and_then(RopeTable::query_scale) {
        Some(scale) => d_q * scale,
        None => d_q,
    };
    let turn = |x: &Tensor| {
        rope.as_ref().map_or_else(|| x.shallow_clone(), |table| rope::forward(x, table))
    };
    let turn_back = |d: Tensor| {
        rope.as_ref().map_or_else(|| d.shallow_clone(), |table| rope::backward(&d, table))
    };
    let mut of_heads =
        |d: Tensor, saved: &Option<Tensor>, norm: Option<&Norm>, runs: &[Run], num_heads: usize| {
            let (Some(norm), Some(projected)) = (norm, saved) else { return turn_back(d) };
            let heads = NormOfHeads::new(ctx, norm, runs, num_heads);
            let read = clipped(attention.clip_qkv, projected);
            if heads.is_after_rope {
                turn_back(heads.backward(params, grads, &turn(&read), d))
            } else {
                heads.backward(params, grads, &read, turn_back(d))
            }
        };
    let norms = attention.qk_norm.as_ref();
    let d_q =
        of_heads(d_q, &projected.q, norms.map(|norms| &norms.q), group.q(), attention.num_heads);
    let d_k = of_heads(
        d_k,
        &projected.k,
        norms.map(|norms| &norms.k),
        group.kv(),
        attention.num_kv_heads,
    );
    let of_v = if attention.v.is_some() { &projected.v } else { &projected.k };
    let d_v = match (&attention.v_norm, of_v) {
        (Some(norm), Some(read)) => grads.norm_backward(params, norm, read, &d_v),
        _ => d_v,
    };
    let d_k = if attention.v.is_none() { d_k + &d_v } else { d_k };
    // dL/dh = d_q * Wq + d_k * Wk + d_v * Wv.
    let mut d_h = None;
    let mut project_backward = |map: &Linear, saved: &Option<Tensor>, runs: &[Run], d: Tensor| {
        let d = unclipped(attention.clip_qkv, saved.as_ref(), d);
        project_heads_backward(params, grads, map, runs, attention.head_dim, h, &d, &mut d_h);
    };
    project_backward(&attention.q, &projected.q, &read(ctx, group.q(), attention.num_heads), d_q);
    project_backward(
        &attention.k,
        &projected.k,
        &read(ctx, group.kv(), attention.num_kv_heads),
        d_k,
    );
    if let Some(v) = &attention.v {
        project_backward(v, &projected.v, group.kv(), d_v);
    }
    let d_h = d_h.expect("a group has heads");
    input_backward(ctx, params, grads, x, d_h)
}

/// The angles of a tile's tokens; `None` in a block that does not turn them.
fn rope_of(ctx: &BlockContext<'_>, tile: &Range<i64>) -> Option<RopeTable> {
    ctx.attention.rope.map(|rope| rope.narrow(tile.start, tile.end - tile.start))
}

/// The heads that are projected for those of a group: all, where a norm has its mean over all.
fn read<'r>(ctx: &BlockContext<'_>, runs: &'r [Run], num_heads: usize) -> Cow<'r, [Run]> {
    let is_over_all = |norms: &sterna_arch::QkNorm| norms.width == QkNormWidth::AllHeads;
    if of(ctx).qk_norm.as_ref().is_some_and(is_over_all) {
        Cow::Owned(vec![Run::new(&(0..num_heads))])
    } else {
        Cow::Borrowed(runs)
    }
}

/// The projection to the heads of `runs`, `[tile, heads, h]`.
fn project(
    ctx: &BlockContext<'_>,
    params: &BlockParams,
    map: &Linear,
    runs: &[Run],
    h: &Tensor,
) -> Tensor {
    project_heads(params, map, runs, of(ctx).head_dim, h)
}

fn clipped(clip: Option<f64>, x: &Tensor) -> Tensor {
    clip.map_or_else(|| x.shallow_clone(), |clip| x.clamp(-clip, clip))
}

/// The gradient of what was clamped: none beyond the bounds.
fn unclipped(clip: Option<f64>, x: Option<&Tensor>, d: Tensor) -> Tensor {
    match (clip, x) {
        (Some(clip), Some(x)) => d * x.abs().le(clip),
        _ => d,
    }
}

/// A norm on the queries or keys of a group.
struct NormOfHeads<'a> {
    norm: &'a Norm,
    width: QkNormWidth,
    is_after_rope: bool,
    runs: &'a [Run],
    num_heads: usize,
}

impl<'a> NormOfHeads<'a> {
    fn new(ctx: &'a BlockContext<'_>, norm: &'a Norm, runs: &'a [Run], num_heads: usize) -> Self {
        let norms = of(ctx).qk_norm.as_ref().expect("the norm is one of these");
        NormOfHeads {
            norm,
            width: norms.width,
            is_after_rope: norms.is_after_rope,
            runs,
            num_heads,
        }
    }

    /// The heads of the group `[tile, heads, h]`, from those that the norm reads.
    fn forward(&self, params: &BlockParams, x: &Tensor) -> Tensor {
        match self.width {
            QkNormWidth::AllHeads => {
                let normed = params.norm(self.norm).forward(&x.flatten(1, 2)).view_as(x);
                self.of_runs(&normed, 1)
            }
            QkNormWidth::Head | QkNormWidth::HeadWithRow | QkNormWidth::HeadWithTensor => {
                let weight = self.weight(params);
                norm::Norm { weight: weight.as_ref(), ..params.norm(self.norm) }.forward(x)
            }
        }
    }

    /// The gradient of what the norm reads.
    fn backward(
        &self,
        params: &BlockParams,
        grads: &mut BlockGrads,
        x: &Tensor,
        d_y: Tensor,
    ) -> Tensor {
        match self.width {
            QkNormWidth::AllHeads => {
                let d_y = self.to_all(d_y);
                let d_x =
                    grads.norm_backward(params, self.norm, &x.flatten(1, 2), &d_y.flatten(1, 2));
                d_x.view_as(x)
            }
            QkNormWidth::Head => {
                let grad = self.norm.weight.and_then(|idx| grads.get(idx));
                params.norm(self.norm).backward(&d_y, x, grad, None)
            }
            QkNormWidth::HeadWithRow | QkNormWidth::HeadWithTensor => {
                let weight = self.weight(params);
                let norm = norm::Norm { weight: weight.as_ref(), ..params.norm(self.norm) };
                let kind = accumulate_kind(x.kind());
                let mut rows = weight.as_ref().map(|weight| weight.zeros_like().to_kind(kind));
                let d_x = norm.backward(&d_y, x, rows.as_mut(), None);
                if let (Some(rows), Some(first)) = (rows, self.norm.weight) {
                    self.add_rows(grads, first, &rows);
                }
                d_x
            }
        }
    }

    /// The weight, `[h]` or a row for each head of the group.
    fn weight(&self, params: &BlockParams) -> Option<Tensor> {
        let first = self.norm.weight?;
        Some(match self.width {
            QkNormWidth::Head | QkNormWidth::AllHeads => params.get(first).shallow_clone(),
            QkNormWidth::HeadWithRow => self.of_runs(params.get(first), 0),
            QkNormWidth::HeadWithTensor => {
                let rows: Vec<_> = self.heads().map(|head| params.get(first + head)).collect();
                Tensor::stack(&rows, 0)
            }
        })
    }

    /// Adds the gradients of the heads' weights to where each head has its own.
    fn add_rows(&self, grads: &mut BlockGrads, first: usize, rows: &Tensor) {
        for (row, head) in self.heads().enumerate() {
            let row = rows.get(row as i64);
            let grad = match self.width {
                QkNormWidth::HeadWithTensor => {
                    grads.get(first + head).map(|grad| grad.shallow_clone())
                }
                _ => grads.get(first).map(|grad| grad.get(head as i64)),
            };
            if let Some(mut grad) = grad {
                let _ = grad.g_add_(&row);
            }
        }
    }

    /// The heads of the group, by their numbers in the model.
    fn heads(&self) -> impl Iterator<Item = usize> {
        self.runs.iter().flat_map(|run| run.start as usize..(run.start + run.len()) as usize)
    }

    /// The heads of the group, along dimension `dim` of a tensor with all.
    fn of_runs(&self, x: &Tensor, dim: i64) -> Tensor {
        let of_run = |run: &Run| x.narrow(dim, run.start, run.len());
        match self.runs {
            [run] => of_run(run),
            runs => Tensor::cat(&runs.iter().map(of_run).collect::<Vec<_>>(), dim),
        }
    }

    /// The heads of the group among zeros for all others, `[tile, n, h]`.
    fn to_all(&self, d_y: Tensor) -> Tensor {
        if let [run] = self.runs
            && run.len() == self.num_heads as i64
        {
            return d_y;
        }
        let size = d_y.size();
        let all =
            Tensor::zeros([size[0], self.num_heads as i64, size[2]], (d_y.kind(), d_y.device()));
        let mut offset = 0;
        for run in self.runs {
            all.narrow(1, run.start, run.len()).copy_(&d_y.narrow(1, offset, run.len()));
            offset += run.len();
        }
        all
    }
}
