//! From the residual stream to queries, keys and values: norm, projections, q/k norms, rotary.

use sterna_ops::rope::{self, RopeTable};
use sterna_ops::{linear, rms_norm};
use tch::Tensor;

use super::BlockContext;
use crate::heads::{HeadGroup, Run};
use crate::params::{BlockGrads, BlockParams, Linear};

/// What the backward of a tile reads.
#[derive(Debug)]
pub(super) struct PreSaved {
    /// `[tile, d]`, the normalised input.
    h: Tensor,
    /// Queries and keys before their norms, in families that have these.
    unnormed: Option<Unnormed>,
}

#[derive(Debug)]
struct Unnormed {
    /// `[tile, n, h]`.
    q: Tensor,
    /// `[tile, k, h]`.
    k: Tensor,
}

impl PreSaved {
    pub(super) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let unnormed = self.unnormed.iter().flat_map(|Unnormed { q, k }| [q, k]);
        [&self.h].into_iter().chain(unnormed)
    }
}

/// Computes what the backward reads, `x` `[tile, d]`.
///
/// Where queries and keys have no norm of their own, that is one norm: rotary and projections are linear, so that their backward
/// does not need their input. A second pass over a tile therefore costs no matrix product.
pub(super) fn recompute(
    ctx: &BlockContext<'_>,
    group: &HeadGroup,
    params: &BlockParams,
    x: &Tensor,
) -> PreSaved {
    let h = rms_norm::forward(x, &params.input_layernorm, ctx.config.rms_norm_eps);
    let unnormed = ctx.config.qk_norm.then(|| Unnormed {
        q: project(ctx, &params.q_proj, group.q(), &h),
        k: project(ctx, &params.k_proj, group.kv(), &h),
    });
    PreSaved { h, unnormed }
}

/// `q` `[tile, n, h]`, `k` and `v` `[tile, k, h]` of a tile, with the heads of the group.
pub(super) fn finish(
    ctx: &BlockContext<'_>,
    group: &HeadGroup,
    params: &BlockParams,
    saved: &PreSaved,
    rope_table: Option<&RopeTable>,
) -> [Tensor; 3] {
    let PreSaved { h, unnormed } = saved;
    let eps = ctx.config.rms_norm_eps;
    let (q, k) = match (unnormed, &params.q_norm, &params.k_norm) {
        (Some(unnormed), Some(q_norm), Some(k_norm)) => (
            rms_norm::forward(&unnormed.q, q_norm, eps),
            rms_norm::forward(&unnormed.k, k_norm, eps),
        ),
        _ => (
            project(ctx, &params.q_proj, group.q(), h),
            project(ctx, &params.k_proj, group.kv(), h),
        ),
    };
    let v = project(ctx, &params.v_proj, group.kv(), h);
    match rope_table {
        Some(table) => [rope::forward(&q, table), rope::forward(&k, table), v],
        None => [q, k, v],
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
    saved: &PreSaved,
    rope_table: Option<&RopeTable>,
    [d_q, d_k, d_v]: [Tensor; 3],
) -> Tensor {
    let PreSaved { h, unnormed } = saved;
    let eps = ctx.config.rms_norm_eps;
    let (mut d_q, mut d_k) = match rope_table {
        Some(table) => (rope::backward(&d_q, table), rope::backward(&d_k, table)),
        None => (d_q, d_k),
    };
    if let (Some(unnormed), Some(q_norm), Some(k_norm)) = (unnormed, &params.q_norm, &params.k_norm)
    {
        d_q = rms_norm::backward(
            &d_q,
            &unnormed.q,
            q_norm,
            eps,
            grads.q_norm.as_mut().and_then(Option::as_mut),
        );
        d_k = rms_norm::backward(
            &d_k,
            &unnormed.k,
            k_norm,
            eps,
            grads.k_norm.as_mut().and_then(Option::as_mut),
        );
    }
    // dL/dh = d_q * Wq + d_k * Wk + d_v * Wv.
    let mut d_h = None;
    project_backward(&params.q_proj, &mut grads.q_proj, group.q(), h, &d_q, &mut d_h);
    project_backward(&params.k_proj, &mut grads.k_proj, group.kv(), h, &d_k, &mut d_h);
    project_backward(&params.v_proj, &mut grads.v_proj, group.kv(), h, &d_v, &mut d_h);
    let d_h = d_h.expect("a group has heads");
    rms_norm::backward(&d_h, x, &params.input_layernorm, eps, grads.input_layernorm.as_mut())
}

/// The projection to the heads of `runs`, `[tile, heads, h]`.
fn project(ctx: &BlockContext<'_>, proj: &Linear<Tensor>, runs: &[Run], h: &Tensor) -> Tensor {
    let head_dim = ctx.config.head_dim as i64;
    let of_run = |run: &Run| {
        let rows = proj.rows(run.start * head_dim, run.len() * head_dim);
        linear::forward(h, &rows.weight, rows.bias.as_ref())
    };
    let y = match runs {
        [run] => of_run(run),
        _ => Tensor::cat(&runs.iter().map(of_run).collect::<Vec<_>>(), 1),
    };
    y.unflatten(1, [-1, head_dim])
}

/// Adds the gradient of `h` to `d_h`, which is it where there is none yet.
fn project_backward(
    proj: &Linear<Tensor>,
    grads: &mut Linear<Option<Tensor>>,
    runs: &[Run],
    h: &Tensor,
    d_y: &Tensor,
    d_h: &mut Option<Tensor>,
) {
    let head_dim = d_y.size()[2];
    let mut offset = 0;
    for run in runs {
        let d_y = d_y.narrow(1, offset, run.len()).flatten(1, 2);
        offset += run.len();
        let (start, len) = (run.start * head_dim, run.len() * head_dim);
        grads.rows(start, len).accumulate(&d_y, h);
        let weight = &proj.rows(start, len).weight;
        match d_h {
            Some(d_h) => linear::add_backward_input(d_h, &d_y, weight),
            None => *d_h = Some(linear::backward_input(&d_y, weight)),
        }
    }
}
