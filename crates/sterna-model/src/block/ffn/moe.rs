//! Experts on one tile: each has the tokens that chose it, one run of rows after the other.
//!
//! A token takes each expert at most once, so that adding an expert's rows to their tokens adds no two to one token: sums are in
//! the order of experts, on any device.

use sterna_arch::Moe;
use sterna_ops::accumulate_kind;
use tch::Tensor;

use super::dense::{self, DenseSaved};
use crate::params::{BlockGrads, BlockParams};
use crate::routing::Routing;

/// What the backward of a tile reads beside the input.
#[derive(Debug)]
pub(in crate::block) struct MoeSaved {
    /// `[tile, experts]`, single precision (double for double): the softmax of the router.
    probs: Tensor,
    /// `[tile, k]`, which experts each token takes.
    chosen: Tensor,
    /// `[tile, k]`, the largest probabilities, as they are chosen.
    top: Tensor,
    /// The experts that have tokens.
    experts: Vec<Routed>,
}

/// The tokens of one expert.
#[derive(Debug)]
struct Routed {
    expert_idx: usize,
    /// `[rows]`, their places in the tile.
    tokens: Tensor,
    /// `[rows]`, where their weights are in a flat `[tile * k]`.
    routes: Tensor,
    /// `[rows, d]`.
    x: Tensor,
    dense: DenseSaved,
}

impl MoeSaved {
    pub(in crate::block) fn tensors(&self) -> Vec<&Tensor> {
        let mut tensors = vec![&self.probs, &self.chosen, &self.top];
        for Routed { tokens, routes, x, dense, .. } in &self.experts {
            tensors.extend([tokens, routes, x].into_iter().chain(dense.tensors()));
        }
        tensors
    }

    /// Tells what the router chose for a tile whose first row is `start`.
    pub(in crate::block) fn count_routes(&self, routing: &Routing, start: i64) {
        routing.count(start, &self.probs, &self.chosen);
    }

    /// `[tile, k]`, what multiplies the outputs of a token's experts, in the precision of the router.
    fn weights(&self, moe: &Moe) -> Tensor {
        if moe.norm_topk_prob { &self.top / self.sum_of_top() } else { self.top.shallow_clone() }
    }

    /// `[tile, 1]`.
    fn sum_of_top(&self) -> Tensor {
        self.top.sum_dim_intlist(-1_i64, true, self.top.kind())
    }
}

/// Routes the tokens of `h` `[tile, d]`, and computes all but the last product of each expert.
pub(in crate::block) fn recompute(moe: &Moe, params: &BlockParams, h: &Tensor) -> MoeSaved {
    let kind = accumulate_kind(h.kind());
    let probs = params.project(&moe.router, h).softmax(-1, kind);
    let k = moe.num_experts_per_tok as i64;
    let (top, chosen) = probs.topk(k, -1, true, true);
    // Runs of rows of one expert; those of an expert are in the order of tokens.
    let flat = chosen.view(-1);
    let routes = flat.argsort_stable(true, 0, false);
    let counts = flat.bincount::<Tensor>(None, moe.experts.len() as i64);
    let counts = Vec::<i64>::try_from(counts).expect("counts are integers");
    let mut experts = Vec::new();
    let mut start = 0;
    for (expert_idx, &count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
        let routes = routes.narrow(0, start, count);
        start += count;
        let tokens = routes.divide_scalar_mode(k, "floor");
        let x = h.index_select(0, &tokens);
        let dense = dense::recompute(&moe.experts[expert_idx], params, &x);
        experts.push(Routed { expert_idx, tokens, routes, x, dense });
    }
    MoeSaved { probs, chosen, top, experts }
}

/// Writes the result to `y` `[tile, d]`.
pub(in crate::block) fn finish(moe: &Moe, params: &BlockParams, saved: &MoeSaved, y: &mut Tensor) {
    let weights = saved.weights(moe).to_kind(y.kind()).view(-1);
    let _ = y.zero_();
    for routed in &saved.experts {
        let output =
            routed.output(moe, params) * weights.index_select(0, &routed.routes).unsqueeze(-1);
        let _ = y.index_add_(0, &routed.tokens, &output);
    }
}

/// The gradient of `h` `[tile, d]` from that of the result; weight gradients `+=`.
///
/// With `w` the weights and `y_e` the output of expert `e`: `dL/dw_e = d_y . y_e`. A weight that is a probability over the sum of
/// the chosen ones has `dL/dp_e = (dL/dw_e - sum over chosen j of w_j dL/dw_j) / sum`. Through the softmax of all experts goes
/// `p * (dL/dp - sum over all of p dL/dp)`.
pub(in crate::block) fn backward(
    moe: &Moe,
    params: &BlockParams,
    grads: &mut BlockGrads,
    mut saved: MoeSaved,
    h: &Tensor,
    d_y: &Tensor,
    routing: Option<(&Routing, i64)>,
) -> Tensor {
    let weights = saved.weights(moe);
    let rounded = weights.to_kind(h.kind()).view(-1);
    let mut d_weights = weights.zeros_like().view(-1);
    let mut d_h = h.zeros_like();
    for routed in std::mem::take(&mut saved.experts) {
        let d_rows = d_y.index_select(0, &routed.tokens);
        let output = routed.output(moe, params);
        let of_weights = (&d_rows * output).sum_dim_intlist(-1_i64, false, d_weights.kind());
        let _ = d_weights.index_copy_(0, &routed.routes, &of_weights);
        let d_output = d_rows * rounded.index_select(0, &routed.routes).unsqueeze(-1);
        let expert = &moe.experts[routed.expert_idx];
        let d_x = dense::backward(expert, params, grads, routed.dense, &routed.x, d_output);
        let _ = d_h.index_add_(0, &routed.tokens, &d_x);
    }
    let mut d_top = d_weights.view_as(&weights);
    if moe.norm_topk_prob {
        let mean = (&d_top * &weights).sum_dim_intlist(-1_i64, true, weights.kind());
        d_top = (d_top - mean) / saved.sum_of_top();
    }
    let d_probs = saved.probs.zeros_like().scatter_(-1, &saved.chosen, &d_top);
    if let Some((routing, start)) = routing {
        routing.add_gradient(start, &d_probs);
    }
    let along = (&d_probs * &saved.probs).sum_dim_intlist(-1_i64, true, weights.kind());
    let d_logits = ((d_probs - along) * &saved.probs).to_kind(h.kind());
    params.add_project_backward(grads, &moe.router, h, &d_logits, &mut d_h);
    d_h
}

impl Routed {
    /// `[rows, d]`.
    fn output(&self, moe: &Moe, params: &BlockParams) -> Tensor {
        let mut output = self.x.empty_like();
        dense::finish(&moe.experts[self.expert_idx], params, &self.dense, &mut output);
        output
    }
}
