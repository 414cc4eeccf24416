//! From the output of the mixer back to the residual stream in a layer with experts.
//!
//! ```text
//! forward                                              backward
//!   for tile of tokens:   r, h; the router's choice      for tile of tokens:   r, h; the router's choice
//!   for group of experts: its weights                    for group of experts: its weights
//!     for tile of rows:     y[tokens] += w * expert(h)     for tile of rows:     recompute; d_h[tokens] +=, weight grads +=
//!   for tile of tokens:   y += shared(h), y += r           its gradients go
//!                                                        for tile of tokens:   d_h of the shared expert and the router,
//!                                                                              then d_o, d_x, weight grads +=
//! ```
//!
//! Every token of the rank is routed before the first expert computes, so that an expert has all its rows at once, and each group of
//! experts is gathered once whatever the number of tiles.
//!
//! A token takes each expert at most once, so that adding an expert's rows to their tokens adds no two to one token: sums are in the
//! order of experts, on any device.

use std::collections::VecDeque;
use std::ops::Range;

use sterna_arch::{Dense, Moe, SharedExpert};
use sterna_ops::accumulate_kind;
use sterna_ops::tile::tiles;
use tch::{Kind, Tensor};

use super::BlockContext;
use super::dense::{self, DenseSaved};
use super::mlp::{self, BeforeFfn};
use super::router::{self, Scores};
use crate::error::ModelError;
use crate::params::{BlockGrads, BlockParams};
use crate::stage::Stage;

/// Where the experts of a layer come from and their gradients go, a group ([`Moe::groups`]) at a time: no more of them has to exist.
///
/// Groups are asked for in order, each once a visit of the block, with or without tokens; twice in the backward of a layer whose output
/// goes through a norm, which reads what the experts gave.
pub trait Experts {
    /// The weights of a group.
    ///
    /// # Errors
    ///
    /// [`ModelError::Caller`] if they cannot be had.
    fn gather(&mut self, group_idx: usize) -> Result<BlockParams, ModelError>;

    /// The buffers that gradients of a group are added to.
    ///
    /// # Errors
    ///
    /// As [`Experts::gather`].
    fn gradients(&mut self, group_idx: usize) -> Result<BlockGrads, ModelError>;

    /// Takes the gradients of the group that [`Experts::gradients`] gave last.
    ///
    /// # Errors
    ///
    /// As [`Experts::gather`].
    fn reduce(&mut self) -> Result<(), ModelError>;
}

/// What the backward reads.
#[derive(Debug)]
pub(super) struct MoeSaved {
    /// Of each tile of tokens. What it says the MLP reads is a part of `h`, unless norms make the experts a branch of their own.
    before: VecDeque<BeforeFfn>,
    /// `[s, d]`, what the experts read.
    h: Tensor,
    routes: Routes,
    /// `[s, d]`, what the norm on the output of the experts reads, in a layer that has one, and of everything kept.
    mlp: Option<Tensor>,
    /// `[s, d]`, what the norm on the output of the experts alone reads, where there is one, once they have computed.
    output: Option<Tensor>,
    /// What each run of rows has computed, if everything is kept.
    rows: VecDeque<RowsSaved>,
    /// The same of the shared expert, of each tile of tokens.
    shared: VecDeque<DenseSaved>,
}

/// Which experts each token takes.
#[derive(Debug)]
struct Routes {
    /// `[s, k]`.
    chosen: Tensor,
    /// `[s, k]`, what multiplies their outputs, single precision (double for double).
    weights: Tensor,
    /// `[s * k]`, places in a flat `[s, k]` by expert, and in the order of tokens within one.
    order: Tensor,
    /// Where each expert's begin among those, and one more: where they end.
    starts: Vec<i64>,
}

/// Some tokens of one expert.
struct Rows {
    expert_idx: usize,
    /// `[rows]`, the tokens.
    tokens: Tensor,
    /// `[rows]`, where their weights are in a flat `[s * k]`.
    routes: Tensor,
}

/// What the backward of such tokens reads.
#[derive(Debug)]
struct RowsSaved {
    /// `[rows, d]`.
    x: Tensor,
    dense: DenseSaved,
}

impl MoeSaved {
    pub(super) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let MoeSaved { before, h, routes, mlp, output, rows, shared } = self;
        let of_rows =
            rows.iter().flat_map(|rows| [&rows.x].into_iter().chain(rows.dense.tensors()));
        let Routes { chosen, weights, order, .. } = routes;
        let before = before.iter().flat_map(BeforeFfn::tensors);
        let of_shared = shared.iter().flat_map(DenseSaved::tensors);
        let outputs = mlp.iter().chain(output);
        before.chain([h, chosen, weights, order]).chain(outputs).chain(of_rows).chain(of_shared)
    }
}

/// The result, `[s, d]`, from `x` `[s, d]` and `o` `[s, n, h]`, which experts each token takes ([`super::Kept::route`]), and what a
/// backward will read, if wanted.
pub(super) fn forward(
    ctx: &BlockContext<'_>,
    moe: &Moe,
    params: &BlockParams,
    experts: &mut dyn Experts,
    x: &Tensor,
    o: &Tensor,
    save: bool,
) -> Result<(Tensor, Tensor, Option<MoeSaved>), ModelError> {
    let mut saved = route(ctx, moe, params, x, o);
    if !save {
        saved.before.iter_mut().for_each(|before| before.attended = None);
    }
    let y = apply(ctx, moe, params, experts, &mut saved, save)?;
    saved.mlp = (save && ctx.layer.post_ffn_norm.is_some()).then(|| y.copy());
    for (tile, before) in tiles(y.size()[0], ctx.mlp_tile_len).zip(&saved.before) {
        let _stage = Stage::Mlp.enter();
        mlp::after_ffn(ctx, params, &before.r, None, &mut part(&y, &tile));
    }
    let route = saved.routes.chosen.to_kind(Kind::Int16);
    Ok((y, route, save.then_some(saved)))
}

/// Gives `d_o_of_tile` the gradient of each tile of `o` with its first token, and writes that of `x` `[s, d]` to `d_x`; weight gradients
/// `+=`. `saved` is computed again if it is not there.
#[expect(
    clippy::too_many_arguments,
    reason = "the gradient of the result, everything the forward read, and where gradients go"
)]
pub(super) fn backward(
    ctx: &BlockContext<'_>,
    moe: &Moe,
    params: &BlockParams,
    grads: &mut BlockGrads,
    experts: &mut dyn Experts,
    saved: Option<MoeSaved>,
    x: &Tensor,
    o: &Tensor,
    d_y: &Tensor,
    d_x: &Tensor,
    mut d_o_of_tile: impl FnMut(i64, &Tensor),
) -> Result<(), ModelError> {
    let mut saved = match saved {
        Some(saved) => saved,
        None => route(ctx, moe, params, x, o),
    };
    let is_output_read = ctx.layer.post_ffn_norm.is_some() || moe.norms.is_some();
    if is_output_read && saved.mlp.is_none() {
        saved.mlp = Some(apply(ctx, moe, params, experts, &mut saved, false)?);
    }
    let d_mlp = d_mlp(ctx, params, grads, saved.mlp.as_ref(), d_y);
    let MoeSaved { mut before, h, routes, output, rows, mut shared, .. } = saved;
    let d_output = d_output(ctx, moe, params, grads, output, &d_mlp);
    let (d_h, d_weights) = experts_backward(ctx, moe, experts, &routes, rows, &h, &d_output)?;
    drop(d_output);
    // Only a shared expert reads it again.
    let d_mlp = moe.shared.as_ref().map(|expert| (expert, d_mlp));
    for tile in tiles(x.size()[0], ctx.mlp_tile_len) {
        let _stage = Stage::Mlp.enter();
        let before = before.pop_front().expect("one for each tile");
        let (x, o) = (part(x, &tile), part(o, &tile));
        let (d_y, d_x, d_h) = (part(d_y, &tile), part(d_x, &tile), part(&d_h, &tile));
        // What the router reads is what the experts read, or what their norm reads.
        let (mut d_h, mut d_r) = match &moe.norms {
            Some(norms) => {
                let d_r = grads.norm_backward(params, &norms.input, &before.r, &d_h);
                (before.h.zeros_like(), Some(d_r))
            }
            None => (d_h, None),
        };
        let (chosen, d_weights) = (part(&routes.chosen, &tile), part(&d_weights, &tile));
        if let Some((expert, d_mlp)) = &d_mlp {
            let d_mlp = part(d_mlp, &tile);
            shared_backward(expert, params, grads, shared.pop_front(), &before.h, d_mlp, &mut d_h);
        }
        router::backward(
            &moe.router,
            params,
            grads,
            ctx.routing,
            tile.start,
            router_input(moe, &before),
            &chosen,
            &d_weights,
            d_r.as_mut().unwrap_or(&mut d_h),
        );
        let d_o =
            mlp::before_ffn_backward(ctx, params, grads, before, &x, &o, &d_y, d_h, d_r, &d_x);
        d_o_of_tile(tile.start, &d_o);
    }
    Ok(())
}

/// Everything before the experts, and which of them each token takes: those of the context, or those that its router chooses.
fn route(
    ctx: &BlockContext<'_>,
    moe: &Moe,
    params: &BlockParams,
    x: &Tensor,
    o: &Tensor,
) -> MoeSaved {
    let router = &moe.router;
    let whole_h = x.empty_like();
    let (mut before, mut weights, mut chosen) = (VecDeque::new(), Vec::new(), Vec::new());
    for tile in tiles(x.size()[0], ctx.mlp_tile_len) {
        let _stage = Stage::Mlp.enter();
        let of_tile = mlp::before_ffn(ctx, params, &part(x, &tile), &part(o, &tile));
        let mut h = part(&whole_h, &tile);
        let of_tile = if let Some(norms) = &moe.norms {
            h.copy_(&params.norm(&norms.input).forward(&of_tile.r));
            of_tile
        } else {
            h.copy_(&of_tile.h);
            BeforeFfn { h, ..of_tile }
        };
        let scores = Scores::new(router, params, router_input(moe, &of_tile));
        let chosen_of_tile = if let Some(route) = ctx.route {
            part(route, &tile).to_kind(Kind::Int64)
        } else {
            let chosen = scores.choose(router, params);
            if let Some(routing) = ctx.routing {
                routing.count_loads(ctx.layer_idx, tile.start, &chosen);
                scores.count(router, routing, tile.start, &chosen);
            }
            chosen
        };
        let top = scores.of(&chosen_of_tile);
        weights.push(router::weights(router, params, &top, &chosen_of_tile));
        chosen.push(chosen_of_tile);
        before.push_back(of_tile);
    }
    let routes = Routes::new(moe, Tensor::cat(&weights, 0), Tensor::cat(&chosen, 0));
    let (rows, shared) = (VecDeque::new(), VecDeque::new());
    MoeSaved { before, h: whole_h, routes, mlp: None, output: None, rows, shared }
}

/// What the router reads, `[tile, d]`.
fn router_input<'b>(moe: &Moe, before: &'b BeforeFfn) -> &'b Tensor {
    if moe.norms.is_some() { &before.r } else { &before.h }
}

/// The output of the experts, `[s, d]`; `params` are those of the layer without them.
fn apply(
    ctx: &BlockContext<'_>,
    moe: &Moe,
    params: &BlockParams,
    experts: &mut dyn Experts,
    saved: &mut MoeSaved,
    save: bool,
) -> Result<Tensor, ModelError> {
    let MoeSaved { before, h, routes, output, rows: rows_saved, shared: shared_saved, .. } = saved;
    let weights = routes.weights.to_kind(h.kind()).view(-1);
    let mut y = h.zeros_like();
    for (group_idx, group) in moe.groups.iter().enumerate() {
        let params = experts.gather(group_idx)?;
        for rows in routes.rows_of(moe, group, ctx.mlp_tile_len) {
            let _stage = Stage::Mlp.enter();
            let (expert, of_rows) = rows.recompute(moe, &params, h);
            let mut output = of_rows.x.empty_like();
            dense::finish(expert, &params, &of_rows.dense, &mut output);
            let output = output.g_mul_(&weights.index_select(0, &rows.routes).unsqueeze(-1));
            let _ = y.index_add_(0, &rows.tokens, &output);
            if save {
                rows_saved.push_back(of_rows);
            }
        }
    }
    if let Some(norms) = &moe.norms {
        let experts = std::mem::replace(&mut y, h.empty_like());
        for tile in tiles(h.size()[0], ctx.mlp_tile_len) {
            let normed = params.norm(&norms.output).forward(&part(&experts, &tile));
            part(&y, &tile).copy_(&normed);
        }
        *output = Some(experts);
    }
    let Some(shared) = &moe.shared else { return Ok(y) };
    for (tile, before) in tiles(h.size()[0], ctx.mlp_tile_len).zip(before) {
        let _stage = Stage::Mlp.enter();
        let of_tile = dense::recompute(&shared.mlp, params, &before.h);
        let mut output = shared_output(shared, params, &of_tile, &before.h);
        if let Some(norm) = &shared.output_norm {
            output = params.norm(norm).forward(&output);
        }
        let _ = part(&y, &tile).g_add_(&output);
        if save {
            shared_saved.push_back(of_tile);
        }
    }
    Ok(y)
}

/// What the shared expert gives before a norm of it, `[tile, d]`.
fn shared_output(
    expert: &SharedExpert,
    params: &BlockParams,
    saved: &DenseSaved,
    h: &Tensor,
) -> Tensor {
    let mut output = h.empty_like();
    dense::finish(&expert.mlp, params, saved, &mut output);
    match &expert.gate {
        Some(gate) => output.g_mul_(&params.project(gate, h).sigmoid()),
        None => output,
    }
}

/// Adds the gradient of `h` `[tile, d]` through the shared expert to `d_h`, from that of the output of all experts; weight gradients `+=`.
///
/// Of `y = g * mlp(h)`, `g = sigmoid(z)`, it is that of `mlp` for `g * dL/dy`, and `dL/dz = g (1 - g) sum over d of dL/dy * mlp(h)`.
fn shared_backward(
    expert: &SharedExpert,
    params: &BlockParams,
    grads: &mut BlockGrads,
    saved: Option<DenseSaved>,
    h: &Tensor,
    d_y: Tensor,
    d_h: &mut Tensor,
) {
    let saved = saved.unwrap_or_else(|| dense::recompute(&expert.mlp, params, h));
    let mut d_output = match &expert.output_norm {
        Some(norm) => {
            let output = shared_output(expert, params, &saved, h);
            grads.norm_backward(params, norm, &output, &d_y)
        }
        None => d_y,
    };
    if let Some(gate) = &expert.gate {
        let g = params.project(gate, h).sigmoid();
        let mut output = h.empty_like();
        dense::finish(&expert.mlp, params, &saved, &mut output);
        let kind = accumulate_kind(h.kind());
        let d_g = (&d_output * output).sum_dim_intlist(-1_i64, true, kind);
        let d_z = (d_g * (&g - &g * &g)).to_kind(h.kind());
        params.add_project_backward(grads, gate, h, &d_z, d_h);
        // It may be a part of the gradient of the residual stream, which others read.
        d_output = &d_output * g;
    }
    let of_mlp = dense::backward(&expert.mlp, params, grads, saved, h, d_output);
    let _ = d_h.g_add_(&of_mlp);
}

/// The gradient of the output of the experts from that of the result.
fn d_mlp(
    ctx: &BlockContext<'_>,
    params: &BlockParams,
    grads: &mut BlockGrads,
    mlp: Option<&Tensor>,
    d_y: &Tensor,
) -> Tensor {
    if ctx.layer.post_ffn_norm.is_none() {
        return mlp::after_ffn_backward(ctx, params, grads, None, d_y);
    }
    let d_mlp = d_y.empty_like();
    for tile in tiles(d_y.size()[0], ctx.mlp_tile_len) {
        let _stage = Stage::Mlp.enter();
        let mlp = mlp.map(|mlp| part(mlp, &tile));
        let of_tile = mlp::after_ffn_backward(ctx, params, grads, mlp.as_ref(), &part(d_y, &tile));
        part(&d_mlp, &tile).copy_(&of_tile);
    }
    d_mlp
}

/// The gradient of what the experts give alone, `[s, d]`, from that of the output of all; `output` is what a norm of it reads.
fn d_output(
    ctx: &BlockContext<'_>,
    moe: &Moe,
    params: &BlockParams,
    grads: &mut BlockGrads,
    output: Option<Tensor>,
    d_mlp: &Tensor,
) -> Tensor {
    let (Some(norms), Some(output)) = (&moe.norms, output) else { return d_mlp.shallow_clone() };
    let d_output = d_mlp.empty_like();
    for tile in tiles(d_mlp.size()[0], ctx.mlp_tile_len) {
        let (output, d_mlp) = (part(&output, &tile), part(d_mlp, &tile));
        let of_tile = grads.norm_backward(params, &norms.output, &output, &d_mlp);
        part(&d_output, &tile).copy_(&of_tile);
    }
    d_output
}

/// The gradient of `h` through the experts, `[s, d]`, and that of the weights of their outputs, `[s, k]`.
fn experts_backward(
    ctx: &BlockContext<'_>,
    moe: &Moe,
    experts: &mut dyn Experts,
    routes: &Routes,
    mut rows_saved: VecDeque<RowsSaved>,
    h: &Tensor,
    d_y: &Tensor,
) -> Result<(Tensor, Tensor), ModelError> {
    let weights = &routes.weights;
    let rounded = weights.to_kind(h.kind()).view(-1);
    let mut d_weights = weights.zeros_like().view(-1);
    let mut d_h = h.zeros_like();
    for (group_idx, group) in moe.groups.iter().enumerate() {
        let params = experts.gather(group_idx)?;
        let mut grads = experts.gradients(group_idx)?;
        for rows in routes.rows_of(moe, group, ctx.mlp_tile_len) {
            let _stage = Stage::Mlp.enter();
            let expert = &moe.experts[rows.expert_idx];
            let RowsSaved { x, dense } = match rows_saved.pop_front() {
                Some(of_rows) => of_rows,
                None => rows.recompute(moe, &params, h).1,
            };
            let d_rows = d_y.index_select(0, &rows.tokens);
            let mut output = x.empty_like();
            dense::finish(expert, &params, &dense, &mut output);
            let of_weights = (&d_rows * output).sum_dim_intlist(-1_i64, false, d_weights.kind());
            let _ = d_weights.index_copy_(0, &rows.routes, &of_weights);
            let d_output = d_rows * rounded.index_select(0, &rows.routes).unsqueeze(-1);
            let d_x = dense::backward(expert, &params, &mut grads, dense, &x, d_output);
            let _ = d_h.index_add_(0, &rows.tokens, &d_x);
        }
        drop((params, grads));
        experts.reduce()?;
    }
    Ok((d_h, d_weights.view_as(weights)))
}

impl Routes {
    fn new(moe: &Moe, weights: Tensor, chosen: Tensor) -> Routes {
        let flat = chosen.view(-1);
        let order = flat.argsort_stable(true, 0, false);
        let counts = flat.bincount::<Tensor>(None, moe.experts.len() as i64);
        // The products of an expert are as long as it has rows: the host has to know.
        let counts = Vec::<i64>::try_from(counts).expect("counts are integers");
        let mut starts = vec![0];
        starts.extend(counts.iter().scan(0, |end, count| {
            *end += count;
            Some(*end)
        }));
        Routes { chosen, weights, order, starts }
    }

    /// The tokens of a group's experts, those of each cut where they are more rows than a tile of so many tokens has.
    fn rows_of(
        &self,
        moe: &Moe,
        group: &Range<usize>,
        tile_len: i64,
    ) -> impl Iterator<Item = Rows> {
        let k = moe.router.num_experts_per_tok as i64;
        group.clone().flat_map(move |expert_idx| {
            let (start, end) = (self.starts[expert_idx], self.starts[expert_idx + 1]);
            tiles(end - start, tile_len.saturating_mul(k)).map(move |tile| {
                let routes = self.order.narrow(0, start + tile.start, tile.end - tile.start);
                Rows { expert_idx, tokens: routes.divide_scalar_mode(k, "floor"), routes }
            })
        })
    }
}

impl Rows {
    /// The expert, and all of it but the last product.
    fn recompute<'m>(
        &self,
        moe: &'m Moe,
        params: &BlockParams,
        h: &Tensor,
    ) -> (&'m Dense, RowsSaved) {
        let expert = &moe.experts[self.expert_idx];
        let x = h.index_select(0, &self.tokens);
        let dense = dense::recompute(expert, params, &x);
        (expert, RowsSaved { x, dense })
    }
}

fn part(x: &Tensor, tile: &Range<i64>) -> Tensor {
    x.narrow(0, tile.start, tile.end - tile.start)
}
