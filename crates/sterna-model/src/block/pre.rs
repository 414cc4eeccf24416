//! From the residual stream to queries, keys and values: norm, projections, q/k norms, rotary.

use sterna_ops::rope::{self, RopeTable};
use sterna_ops::{linear, rms_norm};
use tch::Tensor;

use super::BlockContext;
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

/// Computes what the backward reads, `x` `[tile, d]`.
///
/// Where queries and keys have no norm of their own, that is one norm: rotary and projections are linear, so that their backward
/// does not need their input. A second pass over a tile therefore costs no matrix product.
pub(super) fn recompute(ctx: &BlockContext<'_>, params: &BlockParams, x: &Tensor) -> PreSaved {
    let h = rms_norm::forward(x, &params.input_layernorm, ctx.config.rms_norm_eps);
    let unnormed = ctx.config.qk_norm.then(|| Unnormed {
        q: project(ctx, &params.q_proj, &h),
        k: project(ctx, &params.k_proj, &h),
    });
    PreSaved { h, unnormed }
}

/// `q` `[tile, n, h]`, `k` and `v` `[tile, k, h]` of a tile.
pub(super) fn finish(
    ctx: &BlockContext<'_>,
    params: &BlockParams,
    saved: &PreSaved,
    rope_table: &RopeTable,
) -> [Tensor; 3] {
    let PreSaved { h, unnormed } = saved;
    let eps = ctx.config.rms_norm_eps;
    let (q, k) = match (unnormed, &params.q_norm, &params.k_norm) {
        (Some(unnormed), Some(q_norm), Some(k_norm)) => (
            rms_norm::forward(&unnormed.q, q_norm, eps),
            rms_norm::forward(&unnormed.k, k_norm, eps),
        ),
        _ => (project(ctx, &params.q_proj, h), project(ctx, &params.k_proj, h)),
    };
    let v = project(ctx, &params.v_proj, h);
    [rope::forward(&q, rope_table), rope::forward(&k, rope_table), v]
}

/// The gradient of `x` `[tile, d]` from those of `q`, `k`, `v`; weight gradients `+=`.
pub(super) fn backward(
    ctx: &BlockContext<'_>,
    params: &BlockParams,
    grads: &mut BlockGrads,
    x: &Tensor,
    saved: &PreSaved,
    rope_table: &RopeTable,
    [d_q, d_k, d_v]: [Tensor; 3],
) -> Tensor {
    let PreSaved { h, unnormed } = saved;
    let eps = ctx.config.rms_norm_eps;
    let (mut d_q, mut d_k) = (rope::backward(&d_q, rope_table), rope::backward(&d_k, rope_table));
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
    let mut d_h = project_backward(&params.q_proj, &mut grads.q_proj, h, &d_q);
    let _ = d_h.g_add_(&project_backward(&params.k_proj, &mut grads.k_proj, h, &d_k));
    let _ = d_h.g_add_(&project_backward(&params.v_proj, &mut grads.v_proj, h, &d_v));
    rms_norm::backward(&d_h, x, &params.input_layernorm, eps, grads.input_layernorm.as_mut())
}

/// A projection, split into heads.
fn project(ctx: &BlockContext<'_>, proj: &Linear<Tensor>, h: &Tensor) -> Tensor {
    let y = linear::forward(h, &proj.weight, proj.bias.as_ref());
    y.unflatten(1, [-1, ctx.config.head_dim as i64])
}

fn project_backward(
    proj: &Linear<Tensor>,
    grads: &mut Linear<Option<Tensor>>,
    h: &Tensor,
    d_y: &Tensor,
) -> Tensor {
    let d_y = d_y.flatten(1, 2);
    grads.accumulate(&d_y, h);
    linear::backward_input(&d_y, &proj.weight)
}
