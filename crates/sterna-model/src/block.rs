//! One decoder block on one rank: forward and backward side by side.
//!
//! ```text
//! forward                                          backward
//!   o = mixer(norm(x))                               for tile:   recompute mlp; d_y -> d_x, d_o, weight grads +=
//!   for tile:     y = mlp(x, o)                      mixer:      d_o -> d_x +=, weight grads +=
//! ```
//!
//! The mixer lets a token see others (`mixer.rs`, and beside it `attention.rs` and `delta_net.rs`); everything else is pointwise along the
//! sequence. Where norms and residuals stand is the layer's to say.
//!
//! No autograd graph is built: each op of a block has its backward in `sterna-ops`, and calling those directly makes the backward
//! recompute only what a gradient reads. Where no norm reads what it gives, the output projection of the MLP is never recomputed. What
//! is kept from the forward is a policy ([`Keep`]).

mod attention;
mod delta_net;
mod dense;
mod mixer;
mod mlp;
mod moe;
mod router;

use std::collections::VecDeque;

use sterna_arch::{Ffn, Layer};
use sterna_ops::tile::tiles;
use sterna_torch_sys::memory::{self, MemoryKind};
use tch::Tensor;

pub use self::attention::{AttentionContext, KeysValuesStore, Streaming};
use self::mixer::{Mixed, Save};
use self::mlp::MlpSaved;
pub use self::moe::Experts;
use self::moe::MoeSaved;
use crate::error::{ModelError, check_shape};
use crate::params::{BlockGrads, BlockParams};
use crate::routing::Routing;
use crate::stage::Stage;

const NO_EXPERTS: &str = "a layer with experts is given them";

/// What a block needs to know beside its weights and activations.
#[derive(Clone, Copy)]
pub struct BlockContext<'a> {
    /// What the block computes.
    pub layer: &'a Layer,
    /// Which block this is, for timelines.
    pub layer_idx: usize,
    /// What its mixer needs to know.
    pub attention: AttentionContext<'a>,
    /// What routers choose and their auxiliary loss, in a model with experts.
    pub routing: Option<&'a Routing>,
    /// Which experts each token takes, as the first forward of a micro-batch has decided ([`Kept::route`]), for what computes the block
    /// again. `None` decides, and adds what is chosen to `routing`.
    pub route: Option<&'a Tensor>,
    /// At most how many tokens go through output projection and MLP at once.
    pub mlp_tile_len: i64,
}

/// What a forward keeps for its backward. The input is always kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// Keep the output of the mixer and what its backward begins with, so that the backward runs no forward of it.
    pub attention: bool,
    /// Keep every intermediate value, so that the backward recomputes nothing but a router's probabilities and the outputs of experts.
    /// Implies `attention`. The weights are not kept.
    pub graph: bool,
}

/// What a forward has kept. The caller may move the tensors elsewhere and back.
#[derive(Debug)]
pub struct Kept {
    /// The input of the block, `[b * s/p, d]`.
    pub x: Tensor,
    /// In a layer with experts, those that each token takes, `[b * s/p, experts per token]`, 16-bit integers. It is always kept: a token
    /// whose experts are almost equal would take others where its logits, computed again, differ by a rounding.
    pub route: Option<Tensor>,
    /// What the mixer of tokens keeps, if it does: a list that only its own backward can read.
    pub mixer: Option<Vec<Tensor>>,
    /// Everything else, if kept.
    pub graph: Option<Graph>,
}

/// Every other intermediate value.
#[derive(Debug)]
pub struct Graph {
    mixer: mixer::Saved,
    after: AfterSaved,
}

impl Graph {
    /// Counts all of it as `kind` from now on.
    pub fn retag(&self, kind: MemoryKind) {
        self.mixer.tensors().into_iter().for_each(|tensor| memory::retag(tensor, kind));
        match &self.after {
            AfterSaved::Dense(tiles) => {
                let tensors = tiles.iter().flat_map(MlpSaved::tensors);
                tensors.for_each(|tensor| memory::retag(tensor, kind));
            }
            AfterSaved::Moe(saved) => {
                saved.tensors().for_each(|tensor| memory::retag(tensor, kind));
            }
        }
    }
}

/// Every other intermediate value after the mixer.
#[derive(Debug)]
enum AfterSaved {
    /// Of each tile.
    Dense(VecDeque<MlpSaved>),
    Moe(MoeSaved),
}

/// Computes the block. `experts` are there in a layer that has some, here and in the next two.
///
/// # Shapes
///
/// `x` `[b * s/p, d]`; returns the same shape.
///
/// # Communication
///
/// That of its mixer ([`AttentionContext`]). Collective: every rank of the sp axis must call it, in the same order.
///
/// # Memory
///
/// Beside input and output: that of its mixer, and one tile of intermediate values. With experts, the residual stream and their
/// input, and a group of their weights.
///
/// # Errors
///
/// [`ModelError::Shape`] or [`ModelError::Length`] if `x` does not fit the context; [`ModelError::Comm`] if a peer fails; those of
/// [`Experts`].
///
/// # Panics
///
/// If the layer has experts and there are none.
pub fn forward(
    ctx: &BlockContext<'_>,
    params: &BlockParams,
    experts: Option<&mut dyn Experts>,
    x: &Tensor,
    keep: Keep,
) -> Result<(Tensor, Kept), ModelError> {
    ctx.check(x)?;
    let _stage = Stage::Block.enter_at(ctx.layer_idx);
    let save = if keep.graph { Save::All } else { Save::Nothing };
    let (mixed, saved) = mixer::forward(ctx, params, x, save)?;
    let (y, route, after) = after_mixer(ctx, params, experts, x, mixed.output(), keep.graph)?;
    let kept = Kept {
        x: x.shallow_clone(),
        route,
        mixer: (keep.attention || keep.graph).then(|| mixed.into_kept()),
        graph: after.map(|after| Graph { mixer: saved, after }),
    };
    Ok((y, kept))
}

/// Computes the block again from its input and what its mixer has kept, which costs no mixing and no communication.
///
/// # Shapes
///
/// `x` `[b * s/p, d]`; returns the same shape.
///
/// # Memory
///
/// Beside the output, one tile of intermediate values. With experts, the residual stream and their input, and a group of their weights.
///
/// # Errors
///
/// [`ModelError::Shape`] or [`ModelError::Length`] if `x` does not fit the context; those of [`Experts`].
///
/// # Panics
///
/// As [`forward`].
pub fn recompute(
    ctx: &BlockContext<'_>,
    params: &BlockParams,
    experts: Option<&mut dyn Experts>,
    x: &Tensor,
    mixer: &[Tensor],
) -> Result<Tensor, ModelError> {
    ctx.check(x)?;
    let _stage = Stage::BlockRecompute.enter_at(ctx.layer_idx);
    Ok(after_mixer(ctx, params, experts, x, Mixed::from_kept(mixer).output(), false)?.0)
}

/// Computes the gradient of the block's input, and adds those of its weights to `grads`.
///
/// `ctx` and `params` must be those of the forward, whose route it takes.
///
/// # Shapes
///
/// `d_y` `[b * s/p, d]`; returns the same shape.
///
/// # Communication
///
/// That of its mixer ([`AttentionContext`]). Collective: every rank of the sp axis must call it, with the same policy, in the same
/// order.
///
/// # Memory
///
/// That of its mixer, and one tile of intermediate values. With experts, the residual stream, their input and output with the
/// gradients of both, and the weights and gradients of a group.
///
/// # Numerics
///
/// Activation gradients have the dtype of `x`. A weight gradient is summed in the dtype of `grads`; what a tile adds to it is rounded
/// first only where [`sterna_ops::linear::backward_params`] says so.
/// Where the mixer runs in parts, each adds its share of the input's gradient to it.
///
/// # Errors
///
/// As [`forward`].
///
/// # Panics
///
/// As [`forward`].
pub fn backward(
    ctx: &BlockContext<'_>,
    params: &BlockParams,
    grads: &mut BlockGrads,
    experts: Option<&mut dyn Experts>,
    kept: Kept,
    d_y: &Tensor,
) -> Result<Tensor, ModelError> {
    let Kept { x, route, mixer, graph } = kept;
    ctx.check(&x)?;
    check_shape("d_y", &d_y.size(), &x.size())?;
    let _stage = Stage::BlockBackward.enter_at(ctx.layer_idx);
    let num_tokens = x.size()[0];

    let mixed = mixer.map(|kept| Mixed::from_kept(&kept));
    let (mixed, mixer_saved, after_saved) = match (mixed, graph) {
        (Some(mixed), Some(Graph { mixer, after })) => (mixed, mixer, Some(after)),
        (Some(mixed), None) => (mixed, mixer::Saved::Nothing, None),
        (None, _) => {
            let (mixed, saved) = mixer::forward(ctx, params, &x, Save::AtHand)?;
            (mixed, saved, None)
        }
    };
    let mut mixer = mixer::Backward::new(ctx, &x, mixer_saved);
    let d_x = x.empty_like();
    let o = mixed.output();
    match &ctx.layer.ffn {
        Ffn::Dense(dense) => {
            let mut saved = match after_saved {
                Some(AfterSaved::Dense(saved)) => saved,
                _ => VecDeque::new(),
            };
            for tile in tiles(num_tokens, ctx.mlp_tile_len) {
                let (start, len) = (tile.start, tile.end - tile.start);
                let _stage = Stage::Mlp.enter();
                let (x, o) = (x.narrow(0, start, len), o.narrow(0, start, len));
                let saved = match saved.pop_front() {
                    Some(saved) => saved,
                    None => mlp::recompute(ctx, dense, params, &x, &o),
                };
                let (d_y, d_x) = (d_y.narrow(0, start, len), d_x.narrow(0, start, len));
                let d_o = mlp::backward(ctx, dense, params, grads, saved, &x, &o, &d_y, &d_x);
                mixer.put(start, &d_o);
            }
        }
        Ffn::Moe(moe) => {
            let saved = match after_saved {
                Some(AfterSaved::Moe(saved)) => Some(saved),
                _ => None,
            };
            let experts = experts.expect(NO_EXPERTS);
            let ctx = &BlockContext { route: route.as_ref(), ..*ctx };
            let d_o_of_tile = |start, d_o: &Tensor| mixer.put(start, d_o);
            moe::backward(ctx, moe, params, grads, experts, saved, &x, o, d_y, &d_x, d_o_of_tile)?;
        }
    }
    mixer.finish(params, grads, mixed, &d_x)?;
    Ok(d_x)
}

/// From the output of the mixer to the output of the block, which experts each token takes, and what a backward will read, if wanted.
fn after_mixer(
    ctx: &BlockContext<'_>,
    params: &BlockParams,
    experts: Option<&mut dyn Experts>,
    x: &Tensor,
    o: &Tensor,
    save: bool,
) -> Result<(Tensor, Option<Tensor>, Option<AfterSaved>), ModelError> {
    let dense = match &ctx.layer.ffn {
        Ffn::Dense(dense) => dense,
        Ffn::Moe(moe) => {
            let experts = experts.expect(NO_EXPERTS);
            let (y, route, saved) = moe::forward(ctx, moe, params, experts, x, o, save)?;
            return Ok((y, Some(route), saved.map(AfterSaved::Moe)));
        }
    };
    let y = x.empty_like();
    let mut all_saved = VecDeque::new();
    for tile in tiles(x.size()[0], ctx.mlp_tile_len) {
        let (start, len) = (tile.start, tile.end - tile.start);
        let _stage = Stage::Mlp.enter();
        let (x, o) = (x.narrow(0, start, len), o.narrow(0, start, len));
        let saved = mlp::recompute(ctx, dense, params, &x, &o);
        mlp::finish(ctx, dense, params, &saved, &mut y.narrow(0, start, len));
        if save {
            all_saved.push_back(saved);
        }
    }
    Ok((y, None, save.then_some(AfterSaved::Dense(all_saved))))
}

impl BlockContext<'_> {
    /// Checks that everything is as long as `x` says.
    fn check(&self, x: &Tensor) -> Result<(), ModelError> {
        let num_tokens = x.size()[0];
        check_shape("x", &x.size(), &[num_tokens, self.layer.hidden_size() as i64])?;
        self.attention.check(num_tokens)
    }
}
