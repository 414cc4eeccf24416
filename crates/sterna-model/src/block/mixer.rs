//! What lets a token see others: from the input of a block to the output of all heads, and back, by whichever mixer the layer has.
//!
//! A mixer is a file beside [`attention`] with the same functions. All of them give an output of heads `[b * s/p, n, h]` and keep it with
//! one tensor of their own; their projections run tile by tile, their heads all at once or in groups ([`HeadGroup`]), and between the tokens
//! of a rank and its heads are two functions, [`to_heads`] and [`to_sequence`], the only calls of the exchange.

use sterna_arch::{Linear, Mixer};
use tch::Tensor;

use super::BlockContext;
use super::{attention, delta_net};
use crate::error::ModelError;
use crate::heads::{HeadGroup, Run};
use crate::parallel::ulysses::{Exchange, HeadToSeq, Part, SeqToHead};
use crate::params::{BlockGrads, BlockParams};

/// The result of a mixer, which is what it keeps.
#[derive(Debug)]
pub(super) struct Mixed {
    /// The output with all heads of this rank's tokens, `[b * s/p, n, h]`.
    pub(super) o: Tensor,
    /// What its backward begins with, of this rank's heads of all tokens: the log-sum-exp of attention, the states of a delta net.
    pub(super) rest: Tensor,
}

impl Mixed {
    /// The output, `[b * s/p, n, h]`.
    pub(super) fn output(&self) -> &Tensor {
        &self.o
    }

    pub(super) fn into_kept(self) -> Vec<Tensor> {
        vec![self.o, self.rest]
    }

    pub(super) fn from_kept(kept: &[Tensor]) -> Self {
        let [o, rest] = kept else { unreachable!("a mixer keeps two tensors") };
        Self { o: o.shallow_clone(), rest: rest.shallow_clone() }
    }
}

/// Which intermediate values a forward leaves for its backward.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Save {
    Nothing,
    /// Those that are at hand when the backward follows: of heads that run all at once what the mixer read and gave, and of projections what
    /// fits one tile. Of several groups none, for each is computed again when its turn comes.
    AtHand,
    All,
}

impl Save {
    /// Whether groups save what they read and gave, and whether that of their projections too.
    pub(super) fn of_groups(self, ctx: &BlockContext<'_>, num_tokens: i64) -> (bool, bool) {
        let saves = match self {
            Save::Nothing => false,
            Save::AtHand => ctx.attention.groups.len() == 1,
            Save::All => true,
        };
        (saves, saves && (self == Save::All || num_tokens <= ctx.attention.qkv_tile_len))
    }
}

/// The intermediate values of each group of heads, if there are any.
#[derive(Debug)]
pub(super) enum Saved {
    Nothing,
    Attention(attention::Saved),
    DeltaNet(delta_net::Saved),
}

impl Saved {
    pub(super) fn tensors(&self) -> Vec<&Tensor> {
        match self {
            Saved::Nothing => Vec::new(),
            Saved::Attention(saved) => saved.tensors().collect(),
            Saved::DeltaNet(saved) => saved.tensors().collect(),
        }
    }
}

/// The mixer on `x` `[b * s/p, d]`, and what a backward will read if wanted.
pub(super) fn forward(
    ctx: &BlockContext<'_>,
    params: &BlockParams,
    x: &Tensor,
    save: Save,
) -> Result<(Mixed, Saved), ModelError> {
    Ok(match &ctx.layer.mixer {
        Mixer::Attention(_) => {
            let (mixed, saved) = attention::forward(ctx, params, x, save)?;
            (mixed, Saved::Attention(saved))
        }
        Mixer::DeltaNet(net) => {
            let (mixed, saved) = delta_net::forward(ctx, net, params, x, save)?;
            (mixed, Saved::DeltaNet(saved))
        }
    })
}

/// The backward of a mixer: collects the gradient of its output, then computes that of its input.
pub(super) enum Backward<'a> {
    Attention(attention::Backward<'a>),
    DeltaNet(delta_net::Backward<'a>),
}

impl<'a> Backward<'a> {
    /// Prepares for the gradient of the output, whose forward read `x` and left `saved`.
    pub(super) fn new(ctx: &'a BlockContext<'a>, x: &'a Tensor, saved: Saved) -> Self {
        match (&ctx.layer.mixer, saved) {
            (Mixer::Attention(_), Saved::Attention(saved)) => {
                Self::Attention(attention::Backward::new(ctx, x, saved))
            }
            (Mixer::Attention(_), _) => {
                Self::Attention(attention::Backward::new(ctx, x, attention::Saved::default()))
            }
            (Mixer::DeltaNet(net), Saved::DeltaNet(saved)) => {
                Self::DeltaNet(delta_net::Backward::new(ctx, net, x, saved))
            }
            (Mixer::DeltaNet(net), _) => {
                Self::DeltaNet(delta_net::Backward::new(ctx, net, x, delta_net::Saved::default()))
            }
        }
    }

    /// Takes the gradient of a tile of the output, `[tile, n, h]`, whose first token is `start`.
    pub(super) fn put(&mut self, start: i64, d_o: &Tensor) {
        match self {
            Self::Attention(backward) => backward.put(start, d_o),
            Self::DeltaNet(backward) => backward.put(start, d_o),
        }
    }

    /// Adds the gradient of `x` to `d_x` `[b * s/p, d]`, once that of every tile of the output is there; weight gradients `+=`. Takes
    /// what the mixer gave, of which each group has its own part when its turn comes.
    pub(super) fn finish(
        self,
        params: &BlockParams,
        grads: &mut BlockGrads,
        mixed: Mixed,
        d_x: &Tensor,
    ) -> Result<(), ModelError> {
        match self {
            Self::Attention(backward) => backward.finish(params, grads, mixed, d_x),
            Self::DeltaNet(backward) => backward.finish(params, grads, &mixed, d_x),
        }
    }
}

/// The output of the branch, `[tile, d]`, from `x` `[tile, d]` and the output of the mixer `o` `[tile, n, h]`: what gates it, and the
/// projection back.
pub(super) fn output(
    ctx: &BlockContext<'_>,
    params: &BlockParams,
    x: &Tensor,
    o: &Tensor,
) -> Tensor {
    match &ctx.layer.mixer {
        Mixer::Attention(net) => attention::output::forward(ctx, net, params, x, o),
        Mixer::DeltaNet(net) => delta_net::output::forward(ctx, net, params, x, o),
    }
}

/// The gradient of `o` `[tile, n, h]` from that of the result; what a gate gives to that of `x` `[tile, d]` is added to `d_x`. Weight
/// gradients `+=`.
pub(super) fn output_backward(
    ctx: &BlockContext<'_>,
    params: &BlockParams,
    grads: &mut BlockGrads,
    x: &Tensor,
    o: &Tensor,
    d_y: &Tensor,
    d_x: &Tensor,
) -> Tensor {
    match &ctx.layer.mixer {
        Mixer::Attention(net) => {
            attention::output::backward(ctx, net, params, grads, x, o, d_y, d_x)
        }
        Mixer::DeltaNet(net) => {
            delta_net::output::backward(ctx, net, params, grads, x, o, d_y, d_x)
        }
    }
}

/// What a mixer reads of `x` `[tile, d]`.
pub(super) fn input(ctx: &BlockContext<'_>, params: &BlockParams, x: &Tensor) -> Tensor {
    match &ctx.layer.pre_attention_norm {
        Some(norm) => params.norm(norm).forward(x),
        None => x.shallow_clone(),
    }
}

/// The gradient of `x` from that of [`input`]; weight gradients `+=`.
pub(super) fn input_backward(
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

/// A projection of `h` `[tile, d]` to the heads of `runs`, `[tile, heads, h]`.
pub(super) fn project_heads(
    params: &BlockParams,
    map: &Linear,
    runs: &[Run],
    head_dim: usize,
    h: &Tensor,
) -> Tensor {
    let of_run = |run: &Run| params.project(&map.part(&run.outputs(head_dim)), h);
    let y = match runs {
        [run] => of_run(run),
        _ => Tensor::cat(&runs.iter().map(of_run).collect::<Vec<_>>(), 1),
    };
    y.unflatten(1, [-1, head_dim as i64])
}

/// Adds the gradient of `h` from that of [`project_heads`] to `d_h`, or begins it; weight gradients `+=`.
#[expect(
    clippy::too_many_arguments,
    reason = "everything the forward read, and where the gradients go"
)]
pub(super) fn project_heads_backward(
    params: &BlockParams,
    grads: &mut BlockGrads,
    map: &Linear,
    runs: &[Run],
    head_dim: usize,
    h: &Tensor,
    d_y: &Tensor,
    d_h: &mut Option<Tensor>,
) {
    let mut offset = 0;
    for run in runs {
        let d_y = d_y.narrow(1, offset, run.len()).flatten(1, 2);
        offset += run.len();
        let part = map.part(&run.outputs(head_dim));
        match d_h {
            Some(d_h) => params.add_project_backward(grads, &part, h, &d_y, d_h),
            None => *d_h = Some(params.project_backward(grads, &part, h, &d_y)),
        }
    }
}

/// Takes tiles of tensors with all heads of a group of this rank's tokens, and gives this rank's heads of all tokens.
pub(super) fn to_heads<'a>(
    ctx: &BlockContext<'a>,
    group: &'a HeadGroup,
    x: &Tensor,
    parts: &[Part],
) -> SeqToHead<'a> {
    SeqToHead::new(exchange(ctx, group, x), parts)
}

/// The way back: all heads of a group of this rank's tokens, from this rank's heads of all tokens.
pub(super) fn to_sequence<'a>(
    ctx: &BlockContext<'a>,
    group: &'a HeadGroup,
    x: &Tensor,
    tensors: Vec<(Part, Tensor)>,
) -> Result<HeadToSeq<'a>, ModelError> {
    HeadToSeq::all_to_all(exchange(ctx, group, x), tensors)
}

fn exchange<'a>(ctx: &BlockContext<'a>, group: &'a HeadGroup, x: &Tensor) -> Exchange<'a> {
    Exchange {
        group: ctx.attention.sp,
        heads: group.splits(),
        num_rows: ctx.attention.num_rows,
        shard_len: x.size()[0] / ctx.attention.num_rows,
        kind: x.kind(),
        device: x.device(),
    }
}
