//! From the heads of a delta net to the width of the residual stream, on one tile: norm, gate, and the projection.

use sterna_arch::DeltaNet;
use sterna_ops::swiglu;
use tch::Tensor;

use crate::block::BlockContext;
use crate::block::mixer::{input, input_backward};
use crate::params::{BlockGrads, BlockParams};

/// The output of the branch, `[tile, d]`, from `x` `[tile, d]` and `o` `[tile, n, h_v]`.
pub(in crate::block) fn forward(
    ctx: &BlockContext<'_>,
    net: &DeltaNet,
    params: &BlockParams,
    x: &Tensor,
    o: &Tensor,
) -> Tensor {
    let normed = params.norm(&net.norm).forward(o).flatten(1, 2);
    let z = params.project(&net.z, &input(ctx, params, x));
    params.project(&net.o, &swiglu::forward(&z, &normed))
}

/// The gradient of `o` `[tile, n, h_v]` from that of the result; what the gate gives to that of `x` `[tile, d]` is added to `d_x`. Weight
/// gradients `+=`.
#[expect(
    clippy::too_many_arguments,
    reason = "the gradient of the result, everything the forward read, and where that of x goes"
)]
pub(in crate::block) fn backward(
    ctx: &BlockContext<'_>,
    net: &DeltaNet,
    params: &BlockParams,
    grads: &mut BlockGrads,
    x: &Tensor,
    o: &Tensor,
    d_y: &Tensor,
    d_x: &Tensor,
) -> Tensor {
    let h = input(ctx, params, x);
    let normed = params.norm(&net.norm).forward(o).flatten(1, 2);
    let z = params.project(&net.z, &h);
    let gated = swiglu::forward(&z, &normed);
    let d_gated = params.project_backward(grads, &net.o, &gated, d_y);
    drop(gated);
    let (d_z, d_normed) = swiglu::backward(&d_gated, &z, &normed);
    drop((d_gated, z, normed));
    let d_h = params.project_backward(grads, &net.z, &h, &d_z);
    let _ = d_x.shallow_clone().g_add_(&input_backward(ctx, params, grads, x, d_h));
    grads.norm_backward(params, &net.norm, o, &d_normed.view_as(o))
}
