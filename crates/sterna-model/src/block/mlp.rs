//! From the output of the mixer back to the residual stream, on one tile: its projection, residual, MLP, residual, with the norms
//! between.
//!
//! What comes before the MLP and what comes after it is the same where experts take its place ([`super::moe`]).

use sterna_arch::Dense;
use tch::Tensor;

use super::BlockContext;
use super::dense::{self, DenseSaved};
use super::mixer;
use crate::multiplier::{multiplied, product};
use crate::params::{BlockGrads, BlockParams};

/// What the backward of a tile reads, and all that is missing from the result but one matrix product.
#[derive(Debug)]
pub(super) struct MlpSaved {
    before: BeforeFfn,
    dense: DenseSaved,
    /// `[tile, d]`, what the norm on the output of the MLP reads, in a layer that has one.
    mlp: Option<Tensor>,
}

/// What the backward of a tile reads of everything before the MLP.
#[derive(Debug)]
pub(super) struct BeforeFfn {
    /// `[tile, d]`, what the norm on the output of attention reads, in a layer that has one.
    pub(super) attended: Option<Tensor>,
    /// `[tile, d]`, the residual stream after attention.
    pub(super) r: Tensor,
    /// `[tile, d]`, what the MLP reads; `r` or the input itself where no norm comes before it.
    pub(super) h: Tensor,
}

impl MlpSaved {
    pub(super) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let MlpSaved { before, dense, mlp } = self;
        before.tensors().chain(dense.tensors()).chain(mlp)
    }
}

impl BeforeFfn {
    pub(super) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.attended.iter().chain([&self.r, &self.h])
    }
}

/// Computes what the backward reads, from `x` `[tile, d]` and `o` `[tile, n, h]`.
pub(super) fn recompute(
    ctx: &BlockContext<'_>,
    ffn: &Dense,
    params: &BlockParams,
    x: &Tensor,
    o: &Tensor,
) -> MlpSaved {
    let before = before_ffn(ctx, params, x, o);
    let dense = dense::recompute(ffn, params, &before.h);
    let mlp = ctx.layer.post_ffn_norm.is_some().then(|| {
        let mut mlp = x.empty_like();
        dense::finish(ffn, params, &dense, &mut mlp);
        mlp
    });
    MlpSaved { before, dense, mlp }
}

/// Writes the result to `y` `[tile, d]`.
pub(super) fn finish(
    ctx: &BlockContext<'_>,
    ffn: &Dense,
    params: &BlockParams,
    saved: &MlpSaved,
    y: &mut Tensor,
) {
    if saved.mlp.is_none() {
        dense::finish(ffn, params, &saved.dense, y);
    }
    after_ffn(ctx, params, &saved.before.r, saved.mlp.as_ref(), y);
}

/// The gradient of `o` `[tile, n, h]` from that of the result, and that of `x` `[tile, d]`, written to `d_x`; weight gradients `+=`.
#[expect(
    clippy::too_many_arguments,
    reason = "the gradient of the result, everything the forward read, and where that of x goes"
)]
pub(super) fn backward(
    ctx: &BlockContext<'_>,
    ffn: &Dense,
    params: &BlockParams,
    grads: &mut BlockGrads,
    saved: MlpSaved,
    x: &Tensor,
    o: &Tensor,
    d_y: &Tensor,
    d_x: &Tensor,
) -> Tensor {
    let MlpSaved { before, dense, mlp } = saved;
    let d_mlp = after_ffn_backward(ctx, params, grads, mlp.as_ref(), d_y);
    drop(mlp);
    let d_h = dense::backward(ffn, params, grads, dense, &before.h, d_mlp);
    before_ffn_backward(ctx, params, grads, before, x, o, d_y, d_h, None, d_x)
}

/// Output projection, residual and norm.
pub(super) fn before_ffn(
    ctx: &BlockContext<'_>,
    params: &BlockParams,
    x: &Tensor,
    o: &Tensor,
) -> BeforeFfn {
    let layer = ctx.layer;
    let output = mixer::output(ctx, params, x, o);
    let (attended, output) = match &layer.post_attention_norm {
        Some(norm) => {
            let normed = params.norm(norm).forward(&output);
            (Some(output), normed)
        }
        None => (None, output),
    };
    let r = multiplied(output, layer.residual_multiplier).g_add_(x);
    let h = match (&layer.pre_ffn_norm, layer.is_parallel) {
        (Some(norm), true) => params.norm(norm).forward(x),
        (Some(norm), false) => params.norm(norm).forward(&r),
        (None, true) => mixer::input(ctx, params, x),
        (None, false) => r.shallow_clone(),
    };
    BeforeFfn { attended, r, h }
}

/// Norm and residual. `y` is the result, and before that the output of the MLP, unless `mlp` is.
pub(super) fn after_ffn(
    ctx: &BlockContext<'_>,
    params: &BlockParams,
    r: &Tensor,
    mlp: Option<&Tensor>,
    y: &mut Tensor,
) {
    let layer = ctx.layer;
    if let Some(norm) = &layer.post_ffn_norm {
        let normed = params.norm(norm).forward(mlp.unwrap_or(y));
        y.copy_(&normed);
    }
    let y = multiplied(y.shallow_clone(), layer.residual_multiplier).g_add_(r);
    if let Some(scale) = layer.output_scale {
        let _ = y.shallow_clone().g_mul_(params.get(scale));
    }
}

/// The gradient of the output of the MLP, `mlp` if a norm reads it, from that of the result.
pub(super) fn after_ffn_backward(
    ctx: &BlockContext<'_>,
    params: &BlockParams,
    grads: &mut BlockGrads,
    mlp: Option<&Tensor>,
    d_y: &Tensor,
) -> Tensor {
    let layer = ctx.layer;
    let d_branch = product(&before_scale(ctx, params, d_y), layer.residual_multiplier);
    match (&layer.post_ffn_norm, mlp) {
        (Some(norm), Some(mlp)) => grads.norm_backward(params, norm, mlp, &d_branch),
        (Some(_), None) => unreachable!("what a norm reads is computed again"),
        (None, _) => d_branch,
    }
}

/// The gradient of `o` `[tile, n, h]` from those of the result, of what the MLP read, and of what others have read of the residual stream
/// `d_r`, and that of `x` `[tile, d]`, written to `d_x`.
#[expect(
    clippy::too_many_arguments,
    reason = "three gradients, everything the forward read, and where the gradient of x goes"
)]
pub(super) fn before_ffn_backward(
    ctx: &BlockContext<'_>,
    params: &BlockParams,
    grads: &mut BlockGrads,
    saved: BeforeFfn,
    x: &Tensor,
    o: &Tensor,
    d_y: &Tensor,
    d_h: Tensor,
    d_r: Option<Tensor>,
    d_x: &Tensor,
) -> Tensor {
    let layer = ctx.layer;
    let BeforeFfn { attended, r, h } = saved;
    drop(h);
    let d_y = before_scale(ctx, params, d_y);
    // What the MLP reads has this share of the gradient of `r`, or of `x` where both branches read that.
    let through_mlp = match (&layer.pre_ffn_norm, layer.is_parallel) {
        (Some(norm), true) => grads.norm_backward(params, norm, x, &d_h),
        (Some(norm), false) => grads.norm_backward(params, norm, &r, &d_h),
        (None, true) => mixer::input_backward(ctx, params, grads, x, d_h),
        (None, false) => d_h,
    };
    let through_mlp = match d_r {
        Some(d_r) => d_r + through_mlp,
        None => through_mlp,
    };
    drop(r);
    // The residual around the MLP, and around attention.
    let d_r = through_mlp.add_out(d_x, &d_y);
    let d_branch = if layer.is_parallel { &d_y } else { &d_r };
    let mut d_branch = product(d_branch, layer.residual_multiplier);
    drop(through_mlp);
    if let (Some(norm), Some(attended)) = (&layer.post_attention_norm, attended) {
        d_branch = grads.norm_backward(params, norm, &attended, &d_branch);
    }
    mixer::output_backward(ctx, params, grads, x, o, &d_branch, d_x)
}

/// The gradient of what the buffer on the layer's output multiplies.
fn before_scale(ctx: &BlockContext<'_>, params: &BlockParams, d_y: &Tensor) -> Tensor {
    match ctx.layer.output_scale {
        Some(scale) => d_y * params.get(scale),
        None => d_y.shallow_clone(),
    }
}
