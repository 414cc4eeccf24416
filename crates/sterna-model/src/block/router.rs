//! Which experts each token takes, and what the output of each is multiplied by ([`Router`]).

use sterna_arch::{Router, RouterNorm, RouterScores, TopkNorm};
use sterna_ops::accumulate_kind;
use tch::{Kind, Tensor};

use crate::multiplier::{multiplied, product};
use crate::params::{BlockGrads, BlockParams};
use crate::routing::Routing;

/// What a router says of a tile of tokens, single precision (double for double).
pub(super) struct Scores {
    /// `[tile, experts]`, the logits of sigmoids: the auxiliary loss reads their softmax.
    logits: Option<Tensor>,
    /// `[tile, experts]`.
    scores: Tensor,
}

impl Scores {
    /// Of `h` `[tile, d]`.
    pub(super) fn new(router: &Router, params: &BlockParams, h: &Tensor) -> Self {
        Self::of_input(router, params, &input(router, params, h))
    }

    /// Of what the map reads.
    fn of_input(router: &Router, params: &BlockParams, h: &Tensor) -> Self {
        let wide = accumulate_kind(h.kind());
        let logits = if router.is_fp32 {
            params.project_wide(&router.map, &h.to_kind(wide))
        } else {
            params.project(&router.map, h)
        };
        match router.scores {
            RouterScores::Softmax => Self { logits: None, scores: logits.softmax(-1, wide) },
            RouterScores::Sigmoid => {
                let logits = logits.to_kind(wide);
                Self { scores: logits.sigmoid(), logits: Some(logits) }
            }
        }
    }

    /// The experts that each token takes, `[tile, k]`, 64-bit integers.
    pub(super) fn choose(&self, router: &Router, params: &BlockParams) -> Tensor {
        let mut scores = self.scores.shallow_clone();
        if let Some(bias) = router.correction_bias {
            scores = &scores + params.get(bias).to_kind(scores.kind()).view([1, -1]);
        }
        if let Some(groups) = &router.expert_groups {
            let (num, num_chosen) = (groups.num as i64, groups.num_chosen as i64);
            let size = scores.size();
            let by_group = scores.view([size[0], num, -1]);
            let (best, _) = by_group.topk(groups.num_best as i64, -1, true, false);
            let of_group = best.sum_dim_intlist(-1_i64, false, scores.kind());
            let (_, chosen) = of_group.topk(num_chosen, -1, true, false);
            let is_left_out = of_group.ones_like().scatter_value(-1, &chosen, 0.0);
            let is_left_out = is_left_out.to_kind(Kind::Bool).unsqueeze(-1);
            // Zero, as transformers has it: a chosen group's expert whose bias makes its score negative comes after them.
            scores = by_group.masked_fill(&is_left_out, 0.0).view(&size[..]);
        }
        let (_, chosen) = scores.topk(router.num_experts_per_tok as i64, -1, true, true);
        chosen
    }

    /// The scores of the chosen, `[tile, k]`.
    pub(super) fn of(&self, chosen: &Tensor) -> Tensor {
        self.scores.gather(-1, chosen, false)
    }

    /// Adds a tile of tokens from `start` on to the auxiliary loss, which is that of the softmax of the logits and of its largest.
    pub(super) fn count(&self, router: &Router, routing: &Routing, start: i64, chosen: &Tensor) {
        if !routing.has_loss() {
            return;
        }
        let probs = self.probabilities();
        let is_by_score = router.correction_bias.is_none() && router.expert_groups.is_none();
        if is_by_score {
            routing.count(start, &probs, chosen);
        } else {
            let k = router.num_experts_per_tok as i64;
            routing.count(start, &probs, &probs.topk(k, -1, true, true).1);
        }
    }

    /// `[tile, experts]`, the softmax of the logits.
    fn probabilities(&self) -> Tensor {
        match &self.logits {
            Some(logits) => logits.softmax(-1, logits.kind()),
            None => self.scores.shallow_clone(),
        }
    }
}

/// What the map of a router reads of `h` `[tile, d]`.
fn input(router: &Router, params: &BlockParams, h: &Tensor) -> Tensor {
    match &router.norm {
        Some(RouterNorm { norm, multiplier }) => {
            multiplied(params.norm(norm).forward(h), *multiplier)
        }
        None => h.shallow_clone(),
    }
}

/// What multiplies the outputs of a token's experts, `[tile, k]`, from their scores.
pub(super) fn weights(
    router: &Router,
    params: &BlockParams,
    top: &Tensor,
    chosen: &Tensor,
) -> Tensor {
    let weights = weights_of_all(router, top);
    match router.expert_scales {
        Some(scales) => weights * scales_of(params.get(scales), chosen, top),
        None => weights,
    }
}

/// [`weights`] without the scales of experts.
fn weights_of_all(router: &Router, top: &Tensor) -> Tensor {
    let weights = match &router.topk_norm {
        Some(norm) => top / denominator(norm, top),
        None => top.shallow_clone(),
    };
    multiplied(weights, router.scale)
}

/// The scales `[experts]` of the chosen, `[tile, k]`, in the dtype of their scores.
fn scales_of(scales: &Tensor, chosen: &Tensor, top: &Tensor) -> Tensor {
    scales.to_kind(top.kind()).index_select(0, &chosen.flatten(0, -1)).view_as(chosen)
}

/// Adds the gradient of `h` `[tile, d]` through the router to `d_h`, from that of [`weights`]; weight gradients `+=`. `start` is the
/// tile's first token.
///
/// A weight that is a score over the sum of the chosen ones, `w_e = p_e / sum`, has
/// `dL/dp_e = (dL/dw_e - sum over chosen j of w_j dL/dw_j) / sum`, without the second term where the sum is below the least that divides.
/// Through the softmax of all experts goes `p * (dL/dp - sum over all of p dL/dp)`, through a sigmoid `p (1 - p) dL/dp`.
#[expect(
    clippy::too_many_arguments,
    reason = "the gradient of the weights, everything the forward read, and where gradients go"
)]
pub(super) fn backward(
    router: &Router,
    params: &BlockParams,
    grads: &mut BlockGrads,
    routing: Option<&Routing>,
    start: i64,
    h: &Tensor,
    chosen: &Tensor,
    d_weights: &Tensor,
    d_h: &mut Tensor,
) {
    let routing = routing.filter(|routing| routing.has_loss());
    let read = input(router, params, h);
    let said = Scores::of_input(router, params, &read);
    let top = said.of(chosen);
    let mut d_top = product(d_weights, router.scale);
    if let Some(scales) = router.expert_scales {
        if let Some(grad) = grads.get(scales) {
            let of_chosen = d_weights * weights_of_all(router, &top);
            // An expert is a token's at most once, so that each sum is over tokens, in their order.
            let of_all = said.scores.zeros_like().scatter_(-1, chosen, &of_chosen);
            let _ = grad.g_add_(&of_all.sum_dim_intlist(0_i64, false, top.kind()));
        }
        // The product may be the caller's tensor.
        d_top = &d_top * scales_of(params.get(scales), chosen, &top);
    }
    if let Some(norm) = &router.topk_norm {
        let sum = denominator(norm, &top);
        let mut mean = sum_of(&(&d_top * &top)) / &sum;
        if norm.least > 0.0 {
            mean *= (sum_of(&top) + norm.added).ge(norm.least);
        }
        d_top = (d_top - mean) / sum;
    }
    let scores = &said.scores;
    let d_scores = scores.zeros_like().scatter_(-1, chosen, &d_top);
    let through_softmax = |d_probs: Tensor, probs: &Tensor| {
        let along = sum_of(&(&d_probs * probs));
        (d_probs - along) * probs
    };
    let d_logits = if said.logits.is_some() {
        let d_logits = d_scores * (scores - scores * scores);
        match routing {
            Some(routing) => {
                let probs = said.probabilities();
                let d_probs = probs.zeros_like();
                routing.add_gradient(start, &d_probs);
                d_logits + through_softmax(d_probs, &probs)
            }
            None => d_logits,
        }
    } else {
        if let Some(routing) = routing {
            routing.add_gradient(start, &d_scores);
        }
        through_softmax(d_scores, scores)
    };
    let mut through_map = |d_read: &mut Tensor| {
        if router.is_fp32 {
            let read = read.to_kind(d_logits.kind());
            params.add_project_wide_backward(grads, &router.map, &read, &d_logits, d_read);
        } else {
            let d_logits = d_logits.to_kind(h.kind());
            params.add_project_backward(grads, &router.map, &read, &d_logits, d_read);
        }
    };
    let Some(RouterNorm { norm, multiplier }) = &router.norm else {
        return through_map(d_h);
    };
    let mut d_read = read.zeros_like();
    through_map(&mut d_read);
    let _ = d_h.g_add_(&grads.norm_backward(params, norm, h, &product(&d_read, *multiplier)));
}

/// What the scores of a token's experts are divided by, `[tile, 1]`.
fn denominator(norm: &TopkNorm, top: &Tensor) -> Tensor {
    let mut sum = sum_of(top);
    if norm.added > 0.0 {
        sum += norm.added;
    }
    if norm.least > 0.0 {
        sum = sum.clamp_min(norm.least);
    }
    sum
}

/// Over the last dimension, which stays as one.
fn sum_of(x: &Tensor) -> Tensor {
    x.sum_dim_intlist(-1_i64, true, x.kind())
}
