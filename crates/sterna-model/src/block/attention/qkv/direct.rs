//! Queries, keys and values by a map each ([`Direct`]).

use std::borrow::Cow;
use std::ops::Range;

use sterna_arch::{Direct, Linear, Norm, QkNorm, QkNormWidth};
use sterna_ops::rope::{self, RopeTable};
use sterna_ops::{accumulate_kind, norm};
use tch::Tensor;

use super::{project_backward, rope_of};
use crate::block::BlockContext;
use crate::block::attention::of;
use crate::block::mixer::{input, project_heads};
use crate::heads::{HeadGroup, Run};
use crate::params::{BlockGrads, BlockParams};

/// What the backward of a tile reads.
#[derive(Debug)]
pub(in crate::block) struct DirectSaved {
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

impl DirectSaved {
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
    maps: &Direct,
    group: &HeadGroup,
    params: &BlockParams,
    x: &Tensor,
) -> DirectSaved {
    let attention = of(ctx);
    let h = input(ctx, params, x);
    let reads_qk = maps.backward_reads_qk();
    let q = reads_qk.then(|| {
        project_heads(
            params,
            &maps.q,
            &read(maps, group.q(), attention.num_heads),
            attention.head_dim,
            &h,
        )
    });
    let kv = read(maps, group.kv(), attention.num_kv_heads);
    let k = reads_qk.then(|| project_heads(params, &maps.k, &kv, attention.head_dim, &h));
    let v = match &maps.v {
        Some(v) if maps.backward_reads_v() => {
            Some(project_heads(params, v, group.kv(), attention.head_dim, &h))
        }
        _ => None,
    };
    DirectSaved { h, projected: Projected { q, k, v } }
}

/// `q` `[tile, n, h]`, `k` and `v` `[tile, k, h]` of a tile, with the heads of the group.
pub(super) fn finish(
    ctx: &BlockContext<'_>,
    maps: &Direct,
    group: &HeadGroup,
    params: &BlockParams,
    saved: &DirectSaved,
    tile: &Range<i64>,
) -> [Tensor; 3] {
    let attention = of(ctx);
    let DirectSaved { h, projected } = saved;
    let rope = rope_of(ctx, tile);
    let projection = |saved: &Option<Tensor>, map: &Linear, runs: &[Run]| match saved {
        Some(projected) => clipped(maps.clip_qkv, projected),
        None => project_heads(params, map, runs, attention.head_dim, h),
    };
    let q = projection(&projected.q, &maps.q, group.q());
    let k = projection(&projected.k, &maps.k, group.kv());
    let mut v = match &maps.v {
        Some(map) => projection(&projected.v, map, group.kv()),
        // Rotary embeddings and norms of keys write tensors of their own.
        None => k.shallow_clone(),
    };
    if let Some(norm) = &maps.v_norm {
        v = params.norm(norm).forward(&v);
    }
    let norms = maps.qk_norm.as_ref();
    let turn = |x: Tensor| {
        rope.as_ref().map_or_else(|| x.shallow_clone(), |table| rope::forward(&x, table))
    };
    let of_heads = |x: Tensor, norm: Option<&Norm>, runs: &[Run], num_heads: usize| {
        let (Some(norms), Some(norm)) = (norms, norm) else { return turn(x) };
        let heads = NormOfHeads::new(norms, norm, runs, num_heads);
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

/// The share of the group's heads in the gradient of what the projections read, `[tile, d]`, from those of `q`, `k`, `v`; weight
/// gradients `+=`.
#[expect(
    clippy::too_many_arguments,
    reason = "the gradients of the result and everything the forward read"
)]
pub(super) fn backward(
    ctx: &BlockContext<'_>,
    maps: &Direct,
    group: &HeadGroup,
    params: &BlockParams,
    grads: &mut BlockGrads,
    saved: &DirectSaved,
    tile: &Range<i64>,
    [d_q, d_k, d_v]: [Tensor; 3],
) -> Tensor {
    let attention = of(ctx);
    let DirectSaved { h, projected } = saved;
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
    let norms = maps.qk_norm.as_ref();
    let mut of_heads =
        |d: Tensor, saved: &Option<Tensor>, norm: Option<&Norm>, runs: &[Run], num_heads: usize| {
            let (Some(norms), Some(norm), Some(projected)) = (norms, norm, saved) else {
                return turn_back(d);
            };
            let heads = NormOfHeads::new(norms, norm, runs, num_heads);
            let read = clipped(maps.clip_qkv, projected);
            if heads.is_after_rope {
                turn_back(heads.backward(params, grads, &turn(&read), d))
            } else {
                heads.backward(params, grads, &read, turn_back(d))
            }
        };
    let d_q =
        of_heads(d_q, &projected.q, norms.map(|norms| &norms.q), group.q(), attention.num_heads);
    let d_k = of_heads(
        d_k,
        &projected.k,
        norms.map(|norms| &norms.k),
        group.kv(),
        attention.num_kv_heads,
    );
    let of_v = if maps.v.is_some() { &projected.v } else { &projected.k };
    let d_v = match (&maps.v_norm, of_v) {
        (Some(norm), Some(read)) => grads.norm_backward(params, norm, read, &d_v),
        _ => d_v,
    };
    let d_k = if maps.v.is_none() { d_k + &d_v } else { d_k };
    // dL/dh = d_q * Wq + d_k * Wk + d_v * Wv.
    let mut d_h = None;
    let mut through = |map: &Linear, saved: &Option<Tensor>, runs: &[Run], d: Tensor| {
        let d = unclipped(maps.clip_qkv, saved.as_ref(), d);
        project_backward(params, grads, map, runs, h, &d, &mut d_h);
    };
    through(&maps.q, &projected.q, &read(maps, group.q(), attention.num_heads), d_q);
    through(&maps.k, &projected.k, &read(maps, group.kv(), attention.num_kv_heads), d_k);
    if let Some(v) = &maps.v {
        through(v, &projected.v, group.kv(), d_v);
    }
    d_h.expect("a group has heads")
}

/// The heads that are projected for those of a group: all, where a norm has its mean over all.
fn read<'r>(maps: &Direct, runs: &'r [Run], num_heads: usize) -> Cow<'r, [Run]> {
    let is_over_all = |norms: &QkNorm| norms.width == QkNormWidth::AllHeads;
    if maps.qk_norm.as_ref().is_some_and(is_over_all) {
        Cow::Owned(vec![Run::new(&(0..num_heads))])
    } else {
        Cow::Borrowed(runs)
    }
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
    fn new(norms: &QkNorm, norm: &'a Norm, runs: &'a [Run], num_heads: usize) -> Self {
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
