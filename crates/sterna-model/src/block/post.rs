//! From the attention output back to the residual stream: output projection, residual, norm, MLP, residual.

use sterna_ops::{linear, rms_norm, swiglu};
use tch::Tensor;

use super::BlockContext;
use crate::multiplier::{multiplied, product};
use crate::params::{BlockGrads, BlockParams, Linear};

/// What the backward of a tile reads, and all that is missing from the result but one matrix product.
#[derive(Debug)]
pub(super) struct PostSaved {
    /// `[tile, d]`, the residual stream after attention.
    r: Tensor,
    /// `[tile, d]`, normalised.
    h: Tensor,
    /// `[tile, f]`.
    gate: Tensor,
    /// `[tile, f]`.
    up: Tensor,
    /// `[tile, f]`, `silu(gate) * up`.
    a: Tensor,
}

impl PostSaved {
    pub(super) fn tensors(&self) -> [&Tensor; 5] {
        [&self.r, &self.h, &self.gate, &self.up, &self.a]
    }
}

/// Computes what the backward reads, from `x` `[tile, d]` and `o` `[tile, n, h]`.
pub(super) fn recompute(
    ctx: &BlockContext<'_>,
    params: &BlockParams,
    x: &Tensor,
    o: &Tensor,
) -> PostSaved {
    let attended = forward_linear(&params.o_proj, &o.flatten(1, 2));
    let r = multiplied(attended, ctx.config.residual_multiplier).g_add_(x);
    let h = rms_norm::forward(&r, &params.post_attention_layernorm, ctx.config.rms_norm_eps);
    let gate = forward_linear(&params.gate_proj, &h);
    let up = forward_linear(&params.up_proj, &h);
    let a = swiglu::forward(&gate, &up);
    PostSaved { r, h, gate, up, a }
}

/// Writes the result to `y` `[tile, d]`.
pub(super) fn finish(
    ctx: &BlockContext<'_>,
    params: &BlockParams,
    saved: &PostSaved,
    y: &mut Tensor,
) {
    let Linear { weight, bias } = &params.down_proj;
    linear::forward_into(y, &saved.a, weight, bias.as_ref());
    let _ = multiplied(y.shallow_clone(), ctx.config.residual_multiplier).g_add_(&saved.r);
}

/// The gradient of `o` `[tile, n, h]` from that of the result, and that of `x`, written to `d_x` `[tile, d]`; weight gradients `+=`.
pub(super) fn backward(
    ctx: &BlockContext<'_>,
    params: &BlockParams,
    grads: &mut BlockGrads,
    saved: PostSaved,
    o: &Tensor,
    d_y: &Tensor,
    d_x: &Tensor,
) -> Tensor {
    let PostSaved { r, h, gate, up, a } = saved;
    let multiplier = ctx.config.residual_multiplier;
    let d_branch = product(d_y, multiplier);
    let d_a = backward_linear(&params.down_proj, &mut grads.down_proj, &a, &d_branch);
    drop((a, d_branch));
    let (d_gate, d_up) = swiglu::backward(&d_a, &gate, &up);
    // Four of the widest tensors of the tile; the rest of the backward reads none of these three.
    drop((d_a, gate, up));
    // dL/dh = d_gate * Wgate + d_up * Wup.
    let mut d_h = backward_linear(&params.gate_proj, &mut grads.gate_proj, &h, &d_gate);
    drop(d_gate);
    grads.up_proj.accumulate(&d_up, &h);
    linear::add_backward_input(&mut d_h, &d_up, &params.up_proj.weight);
    drop(d_up);
    // The residual around the MLP: dL/dr = d_y + the gradient through the norm.
    let norm = &params.post_attention_layernorm;
    let grad = grads.post_attention_layernorm.as_mut();
    let through_norm = rms_norm::backward(&d_h, &r, norm, ctx.config.rms_norm_eps, grad);
    // The residual around attention: x receives the same gradient as the output projection.
    let d_r = through_norm.add_out(d_x, d_y);
    let d_branch = product(&d_r, multiplier);
    let d_o = backward_linear(&params.o_proj, &mut grads.o_proj, &o.flatten(1, 2), &d_branch);
    d_o.unflatten(1, [-1, ctx.config.head_dim as i64])
}

fn forward_linear(proj: &Linear<Tensor>, x: &Tensor) -> Tensor {
    linear::forward(x, &proj.weight, proj.bias.as_ref())
}

fn backward_linear(
    proj: &Linear<Tensor>,
    grads: &mut Linear<Option<Tensor>>,
    x: &Tensor,
    d_y: &Tensor,
) -> Tensor {
    grads.accumulate(d_y, x);
    linear::backward_input(d_y, &proj.weight)
}
