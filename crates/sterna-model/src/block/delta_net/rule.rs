//! Convolution, decay and delta rule of a group of heads, on this rank's heads of all tokens.

use std::ops::Range;

use sterna_arch::DeltaNet;
use sterna_ops::causal_conv;
use sterna_ops::delta_rule::{self, Gradients, Inputs};
use tch::Tensor;

use super::NUM_PROJECTIONS;
use crate::block::BlockContext;
use crate::heads::HeadGroup;
use crate::params::{BlockGrads, BlockParams};
use crate::stage::Stage;

/// What the rule reads.
struct Read {
    /// `q`, `k` and `v` after their convolutions.
    mixed: [Tensor; 3],
    g: Tensor,
    beta: Tensor,
}

impl Read {
    fn new(
        ctx: &BlockContext<'_>,
        net: &DeltaNet,
        own: &Own,
        params: &BlockParams,
        [q, k, v, b, a]: &[Tensor; NUM_PROJECTIONS],
    ) -> Read {
        let documents = ctx.attention.documents;
        let conv = |x: &Tensor, part: usize| {
            let weight = own.channels(params.get(net.conv), part);
            causal_conv::forward(&x.flatten(1, 2), &weight, documents).view_as(x)
        };
        let [a_log, dt_bias] = own.decay(params, net);
        Read {
            mixed: [conv(q, 0), conv(k, 1), conv(v, 2)],
            g: delta_rule::log_decay(&a.squeeze_dim(2), &a_log, &dt_bias),
            beta: b.squeeze_dim(2).sigmoid(),
        }
    }

    fn inputs<'a>(&'a self, ctx: &'a BlockContext<'_>, group: &'a HeadGroup) -> Inputs<'a> {
        let [q, k, v] = &self.mixed;
        Inputs {
            q,
            k,
            v,
            g: &self.g,
            beta: &self.beta,
            key_of_value: group.kv_of_q(ctx.attention.sp.rank()),
            documents: ctx.attention.documents,
        }
    }
}

/// The output `[b * s, own value heads, h_v]` of this rank's heads of a group, and the states that the backward begins with.
pub(super) fn forward(
    ctx: &BlockContext<'_>,
    net: &DeltaNet,
    group: &HeadGroup,
    params: &BlockParams,
    projected: &[Tensor; NUM_PROJECTIONS],
) -> (Tensor, Tensor) {
    let _stage = Stage::Attention.enter();
    let read = Read::new(ctx, net, &Own::new(ctx, net, group), params, projected);
    delta_rule::forward(&read.inputs(ctx, group))
}

/// The gradients of what the projections gave; those of convolution and decay are added to `grads`.
#[expect(
    clippy::too_many_arguments,
    reason = "the gradient of the output and everything the forward read and left"
)]
pub(super) fn backward(
    ctx: &BlockContext<'_>,
    net: &DeltaNet,
    group: &HeadGroup,
    params: &BlockParams,
    grads: &mut BlockGrads,
    projected: [Tensor; NUM_PROJECTIONS],
    states: &Tensor,
    d_o: Tensor,
) -> [Tensor; NUM_PROJECTIONS] {
    let _stage = Stage::Attention.enter();
    let own = Own::new(ctx, net, group);
    let read = Read::new(ctx, net, &own, params, &projected);
    let Gradients { q: d_q, k: d_k, v: d_v, g: d_g, beta: d_beta } =
        delta_rule::backward(&d_o, &read.inputs(ctx, group), states);
    drop(d_o);
    let Read { mixed, g: _, beta } = read;
    drop(mixed);
    let [q, k, v, _, a] = projected;
    let mut conv_backward = |d_y: Tensor, x: Tensor, part: usize| {
        let weight = own.channels(params.get(net.conv), part);
        let mut d_weight = grads.get(net.conv).map(|grad| own.channels(grad, part));
        let (d_y, documents) = (d_y.flatten(1, 2), ctx.attention.documents);
        let d_x =
            causal_conv::backward(&d_y, &x.flatten(1, 2), &weight, documents, d_weight.as_mut());
        d_x.view_as(&x)
    };
    let d_q = conv_backward(d_q, q, 0);
    let d_k = conv_backward(d_k, k, 1);
    let d_v = conv_backward(d_v, v, 2);
    let [a_log, dt_bias] = own.decay(params, net);
    let mut of_heads = |param_idx: usize| grads.get(param_idx).map(|grad| own.values(grad));
    let (mut d_a_log, mut d_dt_bias) = (of_heads(net.a_log), of_heads(net.dt_bias));
    let d_a = delta_rule::log_decay_backward(
        &d_g,
        &a.squeeze_dim(2),
        &a_log,
        &dt_bias,
        d_a_log.as_mut(),
        d_dt_bias.as_mut(),
    );
    let d_b = Tensor::sigmoid_backward(&d_beta, &beta);
    [d_q, d_k, d_v, d_b.unsqueeze(2), d_a.unsqueeze(2)]
}

/// The heads of a group that are this rank's.
struct Own {
    values: Range<usize>,
    /// Channels of the convolution of `q`, `k` and `v`.
    channels: [Range<usize>; 3],
}

impl Own {
    fn new(ctx: &BlockContext<'_>, net: &DeltaNet, group: &HeadGroup) -> Own {
        let rank = ctx.attention.sp.rank();
        let (keys, values) = (group.own_kv(rank), group.own_q(rank));
        let channels = |heads: &Range<usize>, first: usize, head_dim: usize| {
            first + heads.start * head_dim..first + heads.end * head_dim
        };
        let width = net.key_width();
        Own {
            channels: [
                channels(&keys, 0, net.key_head_dim),
                channels(&keys, width, net.key_head_dim),
                channels(&values, 2 * width, net.value_head_dim),
            ],
            values,
        }
    }

    /// The channels of `q`, `k` or `v` in the weight of the convolution `[channels, 1, w]`, or in its gradient: `[own channels, w]`,
    /// sharing memory.
    fn channels(&self, weight: &Tensor, part: usize) -> Tensor {
        let Range { start, end } = self.channels[part];
        weight.narrow(0, start as i64, (end - start) as i64).squeeze_dim(1)
    }

    /// The numbers of these value heads in a weight `[n]` or its gradient, sharing memory.
    fn values(&self, weight: &Tensor) -> Tensor {
        weight.narrow(0, self.values.start as i64, self.values.len() as i64)
    }

    /// `A_log` and `dt_bias`.
    fn decay(&self, params: &BlockParams, net: &DeltaNet) -> [Tensor; 2] {
        [net.a_log, net.dt_bias].map(|param_idx| self.values(params.get(param_idx)))
    }
}
