//! From the heads of attention to the width of the residual stream, on one tile: the gate, and the projection.

use sterna_arch::Attention;
use tch::Tensor;

use crate::block::BlockContext;
use crate::block::mixer::{input, input_backward};
use crate::params::{BlockGrads, BlockParams};

/// The output of the branch, `[tile, d]`, from `x` `[tile, d]` and `o` `[tile, n, v_head_dim]`.
pub(in crate::block) fn forward(
    ctx: &BlockContext<'_>,
    attention: &Attention,
    params: &BlockParams,
    x: &Tensor,
    o: &Tensor,
) -> Tensor {
    let o = o.flatten(1, 2);
    let o = match &attention.gate {
        Some(gate) => params.project(gate, &input(ctx, params, x)).sigmoid_().g_mul_(&o),
        None => o,
    };
    params.project(&attention.o, &o)
}

/// The gradient of `o` `[tile, n, v_head_dim]` from that of the result; what a gate gives to that of `x` `[tile, d]` is added to `d_x`. Weight
/// gradients `+=`.
#[expect(
    clippy::too_many_arguments,
    reason = "the gradient of the result, everything the forward read, and where that of x goes"
)]
pub(in crate::block) fn backward(
    ctx: &BlockContext<'_>,
    attention: &Attention,
    params: &BlockParams,
    grads: &mut BlockGrads,
    x: &Tensor,
    o: &Tensor,
    d_y: &Tensor,
    d_x: &Tensor,
) -> Tensor {
    let o = o.flatten(1, 2);
    let d_o = match &attention.gate {
        None => params.project_backward(grads, &attention.o, &o, d_y),
        Some(gate) => {
            let a = input(ctx, params, x);
            let sigmoid = params.project(gate, &a).sigmoid_();
            let gated = &o * &sigmoid;
            let d_gated = params.project_backward(grads, &attention.o, &gated, d_y);
            drop(gated);
            let d_gate = Tensor::sigmoid_backward(&(&d_gated * &o), &sigmoid);
            let d_a = params.project_backward(grads, gate, &a, &d_gate);
            let _ = d_x.shallow_clone().g_add_(&input_backward(ctx, params, grads, x, d_a));
            sigmoid * d_gated
        }
    };
    d_o.unflatten(1, [-1, attention.v_head_dim as i64])
}
