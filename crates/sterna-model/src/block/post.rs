//! From the attention output back to the residual stream: output projection, residual, MLP, residual, with the norms between.

use tch::Tensor;

use super::BlockContext;
use super::ffn::{self, FfnSaved};
use crate::multiplier::{multiplied, product};
use crate::params::{BlockGrads, BlockParams};

/// What the backward of a tile reads, and all that is missing from the result but one matrix product.
#[derive(Debug)]
pub(super) struct PostSaved {
    /// `[tile, d]`, what the norm on the output of attention reads, in a layer that has one.
    attended: Option<Tensor>,
    /// `[tile, d]`, the residual stream after attention.
    r: Tensor,
    /// `[tile, d]`, what the MLP reads; `r` or the input itself where no norm comes before it.
    h: Tensor,
    ffn: FfnSaved,
    /// `[tile, d]`, what the norm on the output of the MLP reads, in a layer that has one.
    mlp: Option<Tensor>,
}

impl PostSaved {
    pub(super) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let PostSaved { attended, r, h, ffn, mlp } = self;
        attended.iter().chain([r, h]).chain(ffn.tensors()).chain(mlp)
    }
}

/// Computes what the backward reads, from `x` `[tile, d]` and `o` `[tile, n, h]`, whose first token is `start`.
pub(super) fn recompute(
    ctx: &BlockContext<'_>,
    params: &BlockParams,
    x: &Tensor,
    o: &Tensor,
    start: i64,
) -> PostSaved {
    let layer = ctx.layer;
    let o = o.flatten(1, 2);
    let o = match &layer.attention.gate {
        Some(gate) => params.project(gate, &attention_input(ctx, params, x)).sigmoid_().g_mul_(&o),
        None => o,
    };
    let output = params.project(&layer.attention.o, &o);
    drop(o);
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
        (None, true) => attention_input(ctx, params, x),
        (None, false) => r.shallow_clone(),
    };
    let ffn = ffn::recompute(&layer.ffn, params, &h);
    if let (Some(routing), true) = (ctx.routing, ctx.counts_routes) {
        ffn.count_routes(routing, start);
    }
    let mlp = layer.post_ffn_norm.is_some().then(|| {
        let mut mlp = x.empty_like();
        ffn::finish(&layer.ffn, params, &ffn, &mut mlp);
        mlp
    });
    PostSaved { attended, r, h, ffn, mlp }
}

/// Writes the result to `y` `[tile, d]`.
pub(super) fn finish(
    ctx: &BlockContext<'_>,
    params: &BlockParams,
    saved: &PostSaved,
    y: &mut Tensor,
) {
    let layer = ctx.layer;
    match (&layer.post_ffn_norm, &saved.mlp) {
        (Some(norm), Some(mlp)) => y.copy_(&params.norm(norm).forward(mlp)),
        _ => ffn::finish(&layer.ffn, params, &saved.ffn, y),
    }
    let y = multiplied(y.shallow_clone(), layer.residual_multiplier).g_add_(&saved.r);
    if let Some(scale) = layer.output_scale {
        let _ = y.shallow_clone().g_mul_(params.get(scale));
    }
}

/// The gradient of `o` `[tile, n, h]` from that of the result, and that of `x` `[tile, d]`, written to `d_x`; weight gradients `+=`.
#[expect(
    clippy::too_many_arguments,
    reason = "the gradient of the result, everything the forward read, and where that of x goes"
)]
pub(super) fn backward(
    ctx: &BlockContext<'_>,
    params: &BlockParams,
    grads: &mut BlockGrads,
    saved: PostSaved,
    x: &Tensor,
    o: &Tensor,
    d_y: &Tensor,
    d_x: &Tensor,
    start: i64,
) -> Tensor {
    let layer = ctx.layer;
    let PostSaved { attended, r, h, ffn, mlp } = saved;
    let multiplier = layer.residual_multiplier;
    let d_y = match layer.output_scale {
        Some(scale) => d_y * params.get(scale),
        None => d_y.shallow_clone(),
    };
    let mut d_branch = product(&d_y, multiplier);
    if let (Some(norm), Some(mlp)) = (&layer.post_ffn_norm, mlp) {
        d_branch = grads.norm_backward(params, norm, &mlp, &d_branch);
    }
    let d_h = ffn::backward(
        &layer.ffn,
        params,
        grads,
        ffn,
        &h,
        d_branch,
        ctx.routing.map(|r| (r, start)),
    );
    drop(h);
    // What the MLP reads has this share of the gradient of `r`, or of `x` where both branches read that.
    let through_mlp = match (&layer.pre_ffn_norm, layer.is_parallel) {
        (Some(norm), true) => grads.norm_backward(params, norm, x, &d_h),
        (Some(norm), false) => grads.norm_backward(params, norm, &r, &d_h),
        (None, true) => attention_input_backward(ctx, params, grads, x, d_h),
        (None, false) => d_h,
    };
    drop(r);
    // The residual around the MLP, and around attention.
    let d_r = through_mlp.add_out(d_x, &d_y);
    let mut d_branch = product(if layer.is_parallel { &d_y } else { &d_r }, multiplier);
    drop(through_mlp);
    if let (Some(norm), Some(attended)) = (&layer.post_attention_norm, attended) {
        d_branch = grads.norm_backward(params, norm, &attended, &d_branch);
    }
    let o = o.flatten(1, 2);
    let d_o = match &layer.attention.gate {
        None => params.project_backward(grads, &layer.attention.o, &o, &d_branch),
        Some(gate) => {
            let a = attention_input(ctx, params, x);
            let sigmoid = params.project(gate, &a).sigmoid_();
            let gated = &o * &sigmoid;
            let d_gated = params.project_backward(grads, &layer.attention.o, &gated, &d_branch);
            drop(gated);
            let d_gate = Tensor::sigmoid_backward(&(&d_gated * &o), &sigmoid);
            let d_a = params.project_backward(grads, gate, &a, &d_gate);
            let _ =
                d_x.shallow_clone().g_add_(&attention_input_backward(ctx, params, grads, x, d_a));
            sigmoid * d_gated
        }
    };
    d_o.unflatten(1, [-1, layer.attention.head_dim as i64])
}

/// What attention reads.
fn attention_input(ctx: &BlockContext<'_>, params: &BlockParams, x: &Tensor) -> Tensor {
    match &ctx.layer.pre_attention_norm {
        Some(norm) => params.norm(norm).forward(x),
        None => x.shallow_clone(),
    }
}

fn attention_input_backward(
    ctx: &BlockContext<'_>,
    params: &BlockParams,
    grads: &mut BlockGrads,
    x: &Tensor,
    d_y: Tensor,
) -> Tensor {
    match &ctx.layer.pre_attention_norm {
        Some(norm) => grads.norm_backward(params, norm, x, &d_y),
        None => d_y,
    }
}
