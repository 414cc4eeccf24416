//! An MLP on one tile.

use sterna_arch::{Activation, Dense, Elementwise};
use sterna_ops::clamped_swiglu::{self, Clamp};
use sterna_ops::{activation, swiglu, xielu};
use tch::Tensor;

use crate::params::{BlockGrads, BlockParams};

const ONLY_GATED: &str = "a clamped SwiGLU is of a gate and another projection";

/// What the backward of a tile reads beside the input.
#[derive(Debug)]
pub(super) struct DenseSaved {
    /// `[tile, f]`, in an MLP with a gate.
    gate: Option<Tensor>,
    /// `[tile, f]`.
    up: Tensor,
    /// `[tile, f]`, what `down` reads.
    a: Tensor,
}

impl DenseSaved {
    pub(super) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.gate.iter().chain([&self.up, &self.a])
    }
}

/// All but the last product, of `h` `[tile, d]`.
pub(super) fn recompute(ffn: &Dense, params: &BlockParams, h: &Tensor) -> DenseSaved {
    let gate = ffn.gate.as_ref().map(|gate| params.project(gate, h));
    let up = params.project(&ffn.up, h);
    let a = match (&gate, ffn.activation) {
        (Some(gate), Activation::Elementwise(Elementwise::Silu)) => swiglu::forward(gate, &up),
        (Some(gate), Activation::ClampedSwiglu { alpha, limit }) => {
            clamped_swiglu::forward(gate, &up, Clamp { alpha, limit })
        }
        (Some(gate), _) => activated(ffn, params, gate).g_mul_(&up),
        (None, _) => activated(ffn, params, &up),
    };
    DenseSaved { gate, up, a }
}

/// The last product, `[tile, d]`, into `y`.
pub(super) fn finish(ffn: &Dense, params: &BlockParams, saved: &DenseSaved, y: &mut Tensor) {
    params.project_into(y, &ffn.down, &saved.a);
}

/// The gradient of `h` `[tile, d]` from that of the result; weight gradients `+=`.
pub(super) fn backward(
    ffn: &Dense,
    params: &BlockParams,
    grads: &mut BlockGrads,
    saved: DenseSaved,
    h: &Tensor,
    d_y: Tensor,
) -> Tensor {
    let DenseSaved { gate, up, a } = saved;
    let d_a = params.project_backward(grads, &ffn.down, &a, &d_y);
    drop((a, d_y));
    let Some((gate, gate_map)) = gate.zip(ffn.gate.as_ref()) else {
        let d_up = activated_backward(ffn, params, grads, &up, &d_a);
        drop((d_a, up));
        return params.project_backward(grads, &ffn.up, h, &d_up);
    };
    let (d_gate, d_up) = match ffn.activation {
        Activation::Elementwise(Elementwise::Silu) => swiglu::backward(&d_a, &gate, &up),
        Activation::ClampedSwiglu { alpha, limit } => {
            clamped_swiglu::backward(&d_a, &gate, &up, Clamp { alpha, limit })
        }
        _ => {
            let d_gate = activated_backward(ffn, params, grads, &gate, &(&d_a * &up));
            (d_gate, activated(ffn, params, &gate).g_mul_(&d_a))
        }
    };
    // Four of the widest tensors of the tile; the rest of the backward reads none of these three.
    drop((d_a, gate, up));
    // dL/dh = d_gate * Wgate + d_up * Wup.
    let mut d_h = params.project_backward(grads, gate_map, h, &d_gate);
    drop(d_gate);
    params.add_project_backward(grads, &ffn.up, h, &d_up, &mut d_h);
    d_h
}

fn activated(ffn: &Dense, params: &BlockParams, x: &Tensor) -> Tensor {
    match ffn.activation {
        Activation::Elementwise(function) => activation::forward(function, x),
        Activation::Xielu { alpha_p, alpha_n, beta, eps } => {
            xielu::forward(x, &xielu_of(params, [alpha_p, alpha_n, beta, eps]))
        }
        Activation::ClampedSwiglu { .. } => unreachable!("{ONLY_GATED}"),
    }
}

fn activated_backward(
    ffn: &Dense,
    params: &BlockParams,
    grads: &mut BlockGrads,
    x: &Tensor,
    d_y: &Tensor,
) -> Tensor {
    match ffn.activation {
        Activation::Elementwise(function) => activation::backward(function, d_y, x),
        Activation::Xielu { alpha_p, alpha_n, beta, eps } => {
            let xielu = xielu_of(params, [alpha_p, alpha_n, beta, eps]);
            let mut of = |idx: usize| grads.get(idx).map(|grad| grad.shallow_clone());
            let (mut d_alpha_p, mut d_alpha_n) = (of(alpha_p), of(alpha_n));
            xielu::backward(d_y, x, &xielu, d_alpha_p.as_mut(), d_alpha_n.as_mut())
        }
        Activation::ClampedSwiglu { .. } => unreachable!("{ONLY_GATED}"),
    }
}

fn xielu_of(params: &BlockParams, indices: [usize; 4]) -> xielu::Xielu<'_> {
    let [alpha_p, alpha_n, beta, eps] = indices.map(|idx| params.get(idx));
    xielu::Xielu { alpha_p, alpha_n, beta, eps }
}
