//! A decoder as data: embedding, layers, head. What a layer does is said here, and how in `sterna-model`.
//!
//! A layer is two branches on the residual stream, the mixer and the MLP, each between optional norms:
//!
//! ```text
//! in turn     r = x + m * post_attention(mixer(pre_attention(x)))          m is residual_multiplier
//!             y = r + m * post_ffn(ffn(pre_ffn(r)))
//! parallel    y = x + m * mixer(pre_attention(x)) + m * ffn(pre_ffn or pre_attention(x))
//! ```
//!
//! A part that has weights names them by their index in [`Layer::params`], in one place, so that no two lists have to agree.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::error::Result;
use crate::heads::HeadSplit;
use crate::parameters::{ParamSpec, Role};
use crate::rope::Rope;

/// What a model computes.
#[derive(Debug, Clone, PartialEq)]
pub struct Architecture {
    /// `d`, the width of the residual stream.
    pub hidden_size: usize,
    /// `v`, the rows of the embedding.
    pub vocab_size: usize,
    /// From token ids to the residual stream.
    pub embed: Embed,
    /// The decoder layers, in order.
    pub layers: Vec<Layer>,
    /// From the residual stream to logits.
    pub head: Head,
    /// The rotary embeddings, which layers name by index.
    pub ropes: Vec<Rope>,
    /// What the auxiliary loss of routers is multiplied by; `None` is no such loss.
    pub router_aux_loss_coef: Option<f64>,
}

/// The embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct Embed {
    /// `model.embed_tokens.weight`, `[v, d]`.
    pub weight: ParamSpec,
    /// Transformers gives it to `nn.Embedding` as `padding_idx`: the lookup of this row has no gradient.
    pub pad_token_id: Option<u32>,
    /// What rows are multiplied by.
    pub multiplier: f64,
    /// Whether the multiplier is rounded to the dtype of the activations first.
    pub rounds_multiplier: bool,
    /// On looked-up rows; it has no weight.
    pub norm: Option<Norm>,
}

/// The final norm and the language-model head.
#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    /// Its weight tensors.
    pub params: Vec<ParamSpec>,
    /// The norm before it.
    pub norm: Norm,
    /// Which of [`Head::params`] is `[v, d]`; `None` when the head is the embedding.
    pub lm_head: Option<usize>,
    /// What logits are multiplied by.
    pub logits_multiplier: f64,
    /// `c` in `logits = c * tanh(logits / c)`, after the multiplier.
    pub softcap: Option<f64>,
}

/// A decoder layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer {
    /// Its weight tensors, in the order of use.
    pub params: Vec<ParamSpec>,
    /// What lets a token see others.
    pub mixer: Mixer,
    /// The MLP, or experts in its place.
    pub ffn: Ffn,
    /// On the input of the mixer.
    pub pre_attention_norm: Option<Norm>,
    /// On the output of the mixer, before it joins the residual stream.
    pub post_attention_norm: Option<Norm>,
    /// On the input of the MLP.
    pub pre_ffn_norm: Option<Norm>,
    /// On the output of the MLP, before it joins the residual stream.
    pub post_ffn_norm: Option<Norm>,
    /// Whether both branches read the layer's input. Without a norm of its own the MLP then reads the output of attention's.
    pub is_parallel: bool,
    /// What both branches are multiplied by before they join the residual stream.
    pub residual_multiplier: f64,
    /// Index of a buffer `[1]` that the layer's output is multiplied by.
    pub output_scale: Option<usize>,
}

/// The mixer of tokens of a layer.
#[derive(Debug, Clone, PartialEq)]
pub enum Mixer {
    /// Each token reads all before it.
    Attention(Attention),
    /// Each token reads a state of constant size.
    DeltaNet(DeltaNet),
}

/// A gated delta net: `o(norm(rule(conv(q(x)), conv(k(x)), conv(v(x)), a(x), b(x))) * silu(z(x)))`, where the rule is
/// `sterna_ops::delta_rule` with `g = -exp(A_log) * softplus(a + dt_bias)` and `beta = sigmoid(b)`.
///
/// Source: Yang, Kautz and Hatamizadeh 2024, <https://arxiv.org/abs/2412.06464>, figure 1.
#[derive(Debug, Clone, PartialEq)]
pub struct DeltaNet {
    /// `n`, value heads.
    pub num_value_heads: usize,
    /// `k`, query and key heads; divides `n`.
    pub num_key_heads: usize,
    /// The width of a query or key head.
    pub key_head_dim: usize,
    /// The width of a value head.
    pub value_head_dim: usize,
    /// To `[k * key_head_dim]`.
    pub q: Linear,
    /// To `[k * key_head_dim]`.
    pub k: Linear,
    /// To `[n * value_head_dim]`.
    pub v: Linear,
    /// To `[n * value_head_dim]`: its silu multiplies the output.
    pub z: Linear,
    /// To `[n]`: how much of what is stored is replaced, before its sigmoid.
    pub b: Linear,
    /// To `[n]`: how fast the state decays, before `dt_bias`.
    pub a: Linear,
    /// Index of the weight `[channels, 1, width]` of the convolution; its channels are those of `q`, `k` and `v` in this order.
    pub conv: usize,
    /// Index of `dt_bias` `[n]`.
    pub dt_bias: usize,
    /// Index of `A_log` `[n]`.
    pub a_log: usize,
    /// On each head of the output.
    pub norm: Norm,
    /// From `[n * value_head_dim]` back to `[d]`.
    pub o: Linear,
}

/// Attention of a layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Attention {
    /// `n`, query heads.
    pub num_heads: usize,
    /// `k`, key and value heads; divides `n`.
    pub num_kv_heads: usize,
    /// `h`, the width of a head of queries and keys; even.
    pub head_dim: usize,
    /// The width of a head of values, and of the output; at most `h`.
    pub v_head_dim: usize,
    /// From the input to queries, keys and values.
    pub qkv: Qkv,
    /// To `[n * v_head_dim]` from the same input: its sigmoid multiplies the output of attention.
    pub gate: Option<Linear>,
    /// From `[n * v_head_dim]` back to `[d]`.
    pub o: Linear,
    /// Which of [`Architecture::ropes`] turns queries and keys; `None` turns neither.
    pub rope: Option<usize>,
    /// What multiplies the scores.
    pub scale: f64,
    /// `c` in `scores = c * tanh(scores / c)`, after the scale.
    pub softcap: Option<f64>,
    /// How many tokens a query sees, itself included (`q - k < window`); `None` is all before it.
    pub sliding_window: Option<usize>,
    /// Index of the sinks `[n]`: one more score for every query of a head, without a value.
    pub sinks: Option<usize>,
}

/// From the input of attention to queries, keys and values.
#[derive(Debug, Clone, PartialEq)]
pub enum Qkv {
    /// Each by a map of its own.
    Direct(Direct),
    /// Keys and values of all heads by way of one latent.
    Latent(Latent),
}

/// A map each for queries, keys and values.
#[derive(Debug, Clone, PartialEq)]
pub struct Direct {
    /// To `[n * h]`.
    pub q: Linear,
    /// To `[k * h]`.
    pub k: Linear,
    /// To `[k * v_head_dim]`; `None` where values are what `k` gives, before its norm.
    pub v: Option<Linear>,
    /// What queries, keys and values are clamped to, both ways, right after their projections.
    pub clip_qkv: Option<f64>,
    /// Norms on queries and keys.
    pub qk_norm: Option<QkNorm>,
    /// On each head of the values; it has no weight.
    pub v_norm: Option<Norm>,
}

/// Multi-head latent attention (DeepSeek-AI 2024, <https://arxiv.org/abs/2405.04434>), of `x` `[d]`:
///
/// ```text
/// c, r          = kv_a(x)             c [kv_lora_rank], r [h - nope_head_dim], one for all heads
/// k_nope, v     = kv_b(kv_a_norm(c))  of each head [nope_head_dim] and [v_head_dim]
/// q_nope, q_rot = q(q_latent(x))      of each head [nope_head_dim] and [h - nope_head_dim]
/// q, k          = [q_nope, rope(q_rot)], [k_nope, rope(r)]
/// ```
///
/// There are as many kv heads as query heads.
#[derive(Debug, Clone, PartialEq)]
pub struct Latent {
    /// What queries are made of; `None` is the input itself.
    pub q_latent: Option<QueryLatent>,
    /// To `[n * h]`.
    pub q: Linear,
    /// To `[kv_lora_rank + h - nope_head_dim]`.
    pub kv_a: Linear,
    /// On the latent.
    pub kv_a_norm: Norm,
    /// From the latent to `[n * (nope_head_dim + v_head_dim)]`.
    pub kv_b: Linear,
    /// How many values of a head of queries and keys do not turn, its first.
    pub nope_head_dim: usize,
}

/// A narrower form of the input that queries are made of.
#[derive(Debug, Clone, PartialEq)]
pub struct QueryLatent {
    /// To `[q_lora_rank]`.
    pub map: Linear,
    /// On what it gives.
    pub norm: Norm,
}

/// Norms on queries and keys.
#[derive(Debug, Clone, PartialEq)]
pub struct QkNorm {
    /// On queries.
    pub q: Norm,
    /// On keys.
    pub k: Norm,
    /// What a mean is over, and what has a weight of its own.
    pub width: QkNormWidth,
    /// Whether they come after the rotary embedding.
    pub is_after_rope: bool,
}

/// What the mean of a norm on queries or keys is over, and what has a weight of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNormWidth {
    /// A head; the weight is `[h]`, for all heads alike.
    Head,
    /// A head; the weight is `[heads, h]`.
    HeadWithRow,
    /// A head, each with a weight `[h]` in a tensor of its own: [`Norm::weight`] is the index of the first.
    HeadWithTensor,
    /// All heads of a token; the weight is `[heads * h]`.
    AllHeads,
}

/// What follows the mixer in a layer.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "a layer has one, and takes more itself")]
pub enum Ffn {
    /// One MLP for all tokens.
    Dense(Dense),
    /// Several, of which each token takes a few.
    Moe(Moe),
}

/// Experts: `y = sum over the chosen e of w_e * expert_e(x)`, and an expert of all tokens beside them.
#[derive(Debug, Clone, PartialEq)]
pub struct Moe {
    /// Which of them a token takes, and their weights.
    pub router: Router,
    /// The experts, all of one size.
    pub experts: Vec<Dense>,
    /// Which experts are gathered at once, in order: all, unless [`Architecture::group_experts`] cuts them.
    pub groups: Vec<Range<usize>>,
    /// What every token goes through, too; its output is added.
    pub shared: Option<SharedExpert>,
    /// Norms that make the experts a branch of their own beside the shared one.
    pub norms: Option<ExpertNorms>,
}

/// Norms of experts that read the residual stream `r`, as their router does, and not what the layer's norm makes of it:
/// `output(sum over the chosen e of w_e * expert_e(input(r)))`. Not in a layer whose branches are parallel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExpertNorms {
    /// On what they read.
    pub input: Norm,
    /// On what they give.
    pub output: Norm,
}

/// The choice of a token's experts:
///
/// ```text
/// p    scores of all experts, from x or a norm of it
/// e    the num_experts_per_tok largest of p + correction_bias, in the groups of experts that may be chosen
/// w    p_e, or p_e / max(added + sum over the chosen of p, least), times scale and what the expert has of its own
/// ```
///
/// The softmax of the logits of the chosen alone, which some classes take, is that of all over its sum of the chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Router {
    /// To `[experts]`, logits.
    pub map: Linear,
    /// From logits to scores.
    pub scores: RouterScores,
    /// Whether it multiplies in single precision, and not in the dtype of the activations.
    pub is_fp32: bool,
    /// Index of a buffer `[experts]` that is added for the choice, and for nothing else.
    pub correction_bias: Option<usize>,
    /// The groups of experts of which a token chooses some first.
    pub expert_groups: Option<ExpertGroups>,
    /// How many experts a token takes.
    pub num_experts_per_tok: usize,
    /// What the scores of the chosen are divided by; `None` is 1.
    pub topk_norm: Option<TopkNorm>,
    /// What they are multiplied by.
    pub scale: f64,
    /// Index of `[experts]`, what the weight of each is multiplied by beside that.
    pub expert_scales: Option<usize>,
    /// On what it reads.
    pub norm: Option<RouterNorm>,
}

/// What a router does to its input: `multiplier * norm(x)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RouterNorm {
    /// The norm.
    pub norm: Norm,
    /// What multiplies it.
    pub multiplier: f64,
}

/// From the logits of a router to scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouterScores {
    /// Over all experts.
    Softmax,
    /// Of each by itself.
    Sigmoid,
}

/// Runs of equally many experts. A token takes experts of those groups whose best scores have the largest sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertGroups {
    /// How many there are; a divisor of the number of experts.
    pub num: usize,
    /// Of how many a token takes experts.
    pub num_chosen: usize,
    /// How many scores of a group are summed, its best.
    pub num_best: usize,
}

/// What the scores of the chosen experts are divided by: `max(added + their sum, least)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TopkNorm {
    /// Added to the sum.
    pub added: f64,
    /// The least that divides.
    pub least: f64,
}

/// An expert that every token takes: `mlp(x)`, or `sigmoid(gate(x)) * mlp(x)`, and a norm of that.
#[derive(Debug, Clone, PartialEq)]
pub struct SharedExpert {
    /// The MLP.
    pub mlp: Dense,
    /// To `[1]`.
    pub gate: Option<Linear>,
    /// On what it gives.
    pub output_norm: Option<Norm>,
}

/// An MLP: `down(act(gate(x)) * up(x))`, or `down(act(up(x)))` without a gate.
#[derive(Debug, Clone, PartialEq)]
pub struct Dense {
    /// `f`, its width.
    pub intermediate_size: usize,
    /// To `[f]`.
    pub gate: Option<Linear>,
    /// To `[f]`.
    pub up: Linear,
    /// Back to `[d]`.
    pub down: Linear,
    /// Of the gate, or of `up` where there is none.
    pub activation: Activation,
}

/// The activation of an MLP.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    /// A function without weights.
    Elementwise(Elementwise),
    /// Of gate and `up` together, `(up' + 1) * gate' * sigmoid(alpha * gate')`, where `gate'` is at most `limit` and `up'` lies between
    /// `-limit` and `limit`.
    ClampedSwiglu {
        /// What the gate is multiplied by inside the sigmoid.
        alpha: f64,
        /// What both are clamped to.
        limit: f64,
    },
    /// `a_p x^2 + b x` above zero, `a_n (exp(min(x, eps)) - 1 - x) + b x` below, where `a_p = softplus(alpha_p)` and
    /// `a_n = b + softplus(alpha_n)` (Huang and Schlag 2024, <https://arxiv.org/abs/2411.13010>).
    Xielu {
        /// Index of `alpha_p` `[1]` in [`Layer::params`].
        alpha_p: usize,
        /// Index of `alpha_n` `[1]`.
        alpha_n: usize,
        /// Index of the buffer `b` `[]`.
        beta: usize,
        /// Index of the buffer `eps` `[]`, below zero; `exp` sees nothing larger.
        eps: usize,
    },
}

/// A function of one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Elementwise {
    /// `x * sigmoid(x)`.
    Silu,
    /// `x * Phi(x)`, with the distribution function of the normal distribution.
    Gelu,
    /// [`Elementwise::Gelu`] with its approximation by `tanh`.
    GeluTanh,
    /// `max(x, 0)^2`.
    Relu2,
}

/// A linear map: some rows of a weight, and of a bias.
#[derive(Debug, Clone, PartialEq)]
pub struct Linear {
    /// Index of the weight `[out, in]` in [`Layer::params`]. Of one with more dimensions all but the last count as rows.
    pub weight: usize,
    /// Index of the bias `[out]`.
    pub bias: Option<usize>,
    /// The rows of both that it has. All, unless a checkpoint stores several maps in one tensor (`qkv_proj`, `gate_up_proj`).
    pub rows: Range<usize>,
    /// How the rows of several maps alternate in the tensor; `None` where those of each follow each other. [`Linear::rows`] then counts
    /// the map's own.
    pub alternate: Option<Alternate>,
    /// Which of a stack of transposed maps it is: the weight is `[maps, in, out]` and the bias `[maps, out]`. [`Linear::rows`] then counts
    /// those of one map of the stack.
    pub of_stack: Option<usize>,
    /// Values that it reads.
    pub in_features: usize,
    /// What is trained in its place.
    pub low_rank: Option<LowRank>,
}

/// A low-rank adapter of a linear map (`adapters.rs`), by the indices of its weights in [`Layer::params`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LowRank {
    /// A `[r, in]`.
    pub a: usize,
    /// B `[out, r]`, of which a map has the same rows as of its weight.
    pub b: usize,
    /// The magnitudes of DoRA `[out]`, likewise.
    pub magnitude: Option<usize>,
    /// What multiplies `B A`.
    pub scale: f64,
}

/// Maps whose rows alternate in one tensor: of every `stride` rows, a map has `len` from the `offset`-th on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alternate {
    /// Rows that follow each other.
    pub len: usize,
    /// From the first of them to the first of the next.
    pub stride: usize,
    /// The first, counted from the first row of the tensor.
    pub offset: usize,
}

/// A norm over the last dimension.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Norm {
    /// What it computes.
    pub kind: NormKind,
    /// Added to the mean square.
    pub eps: f64,
    /// Index of the weight in the parameters of its layer or of the head; `None` multiplies by nothing.
    pub weight: Option<usize>,
    /// Index of the bias.
    pub bias: Option<usize>,
}

/// What a norm computes, `z` being its input divided by the root of its mean square.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// `weight * z`, where `z` is rounded to the dtype of the input before the weight multiplies it.
    Rms,
    /// `weight * z`, rounded once.
    RmsRoundedOnce,
    /// `(1 + weight) * z`, rounded once.
    RmsOnePlus,
    /// `weight * z + bias` of the input less its mean, rounded once.
    Layer,
    /// `(1 + weight) * z + bias` of the input less its mean, rounded once.
    LayerOnePlus,
}

impl Architecture {
    /// Every weight tensor: embedding, layers in order, final norm, head. A tied head is no tensor of its own.
    pub fn params(&self) -> impl Iterator<Item = &ParamSpec> {
        std::iter::once(&self.embed.weight)
            .chain(self.layers.iter().flat_map(|layer| &layer.params))
            .chain(&self.head.params)
    }

    /// The number of weights, those of adapters among them; a tied head counts once, buffers do not.
    pub fn num_parameters(&self) -> usize {
        let numels = self.params().filter(|spec| spec.role != Role::Buffer).map(ParamSpec::numel);
        numels.fold(0, usize::saturating_add)
    }

    /// The number of weights that are trained.
    pub fn num_trained(&self) -> usize {
        let trained = self.params().filter(|spec| spec.is_trained()).map(ParamSpec::numel);
        trained.fold(0, usize::saturating_add)
    }

    /// [`Architecture::params`], to be changed.
    pub(crate) fn all_params_mut(&mut self) -> impl Iterator<Item = &mut ParamSpec> {
        std::iter::once(&mut self.embed.weight)
            .chain(self.layers.iter_mut().flat_map(|layer| &mut layer.params))
            .chain(&mut self.head.params)
    }

    /// Gives every weight tensor another name.
    pub(crate) fn rename(&mut self, new_name: impl Fn(&str) -> String) {
        self.all_params_mut().for_each(|spec| spec.name = new_name(&spec.name));
    }

    /// Whether some of it is frozen under adapters.
    pub fn has_adapters(&self) -> bool {
        self.params().any(|spec| spec.role == Role::Adapter)
    }

    /// The layers that have experts.
    pub fn moe_layers(&self) -> impl Iterator<Item = &Moe> {
        self.layers.iter().filter_map(|layer| match &layer.ffn {
            Ffn::Dense(_) => None,
            Ffn::Moe(moe) => Some(moe),
        })
    }

    /// Whether the head is the transposed embedding.
    pub fn is_tied(&self) -> bool {
        self.head.lm_head.is_none()
    }

    /// The largest of a number of each layer.
    pub fn largest(&self, of: impl Fn(&Layer) -> usize) -> usize {
        self.layers.iter().map(of).max().unwrap_or(0)
    }

    /// Query heads, or value heads of a delta net, of the layer that has the fewest: at most so many ranks can share a sequence.
    pub fn fewest_heads(&self) -> usize {
        self.layers.iter().map(|layer| layer.mixer.num_heads()).min().unwrap_or(0)
    }

    /// The attention of the first layer that has it.
    ///
    /// # Panics
    ///
    /// If none has: a config is refused for this when it is read.
    pub fn first_attention(&self) -> &Attention {
        let mut all = self.layers.iter().filter_map(|layer| layer.mixer.attention());
        all.next().expect("a config without attention is refused")
    }
}

impl Mixer {
    /// The heads of each of `sp_size` ranks.
    ///
    /// # Errors
    ///
    /// [`crate::Error::MoreRanksThanHeads`].
    pub fn split(&self, sp_size: usize) -> Result<Vec<HeadSplit>> {
        HeadSplit::of_all_ranks(self.num_heads(), self.num_kv_heads(), sp_size)
    }

    /// Attention, if it is that.
    pub fn attention(&self) -> Option<&Attention> {
        match self {
            Mixer::Attention(attention) => Some(attention),
            Mixer::DeltaNet(_) => None,
        }
    }

    /// A gated delta net, if it is that.
    pub fn delta_net(&self) -> Option<&DeltaNet> {
        match self {
            Mixer::Attention(_) => None,
            Mixer::DeltaNet(net) => Some(net),
        }
    }

    /// Heads of its output: query heads, or value heads of a delta net.
    pub fn num_heads(&self) -> usize {
        match self {
            Mixer::Attention(attention) => attention.num_heads,
            Mixer::DeltaNet(net) => net.num_value_heads,
        }
    }

    /// Heads that several of those may share: kv heads, or query and key heads of a delta net.
    pub fn num_kv_heads(&self) -> usize {
        match self {
            Mixer::Attention(attention) => attention.num_kv_heads,
            Mixer::DeltaNet(net) => net.num_key_heads,
        }
    }

    /// Values of a token in its output, before the projection back.
    pub fn output_width(&self) -> usize {
        match self {
            Mixer::Attention(attention) => attention.o_width(),
            Mixer::DeltaNet(net) => net.value_width(),
        }
    }

    /// Which of [`Architecture::ropes`] turns its queries and keys.
    pub fn rope(&self) -> Option<usize> {
        self.attention().and_then(|attention| attention.rope)
    }

    /// Back to `[d]`.
    pub fn o(&self) -> &Linear {
        match self {
            Mixer::Attention(attention) => &attention.o,
            Mixer::DeltaNet(net) => &net.o,
        }
    }

    /// The largest weight of its projections, in elements.
    pub fn largest_projection(&self) -> usize {
        match self {
            Mixer::Attention(attention) => attention.qkv.largest_weight(),
            Mixer::DeltaNet(net) => net.value_width() * net.o.out_features(),
        }
    }

    fn linears(&self) -> impl Iterator<Item = &Linear> {
        let linears: Vec<&Linear> = match self {
            Mixer::Attention(Attention { qkv, gate, o, .. }) => {
                qkv.linears().into_iter().chain(gate).chain([o]).collect()
            }
            Mixer::DeltaNet(DeltaNet { q, k, v, z, b, a, o, .. }) => vec![q, k, v, z, b, a, o],
        };
        linears.into_iter()
    }
}

impl DeltaNet {
    /// `k * key_head_dim`.
    pub fn key_width(&self) -> usize {
        self.num_key_heads * self.key_head_dim
    }

    /// `n * value_head_dim`.
    pub fn value_width(&self) -> usize {
        self.num_value_heads * self.value_head_dim
    }
}

impl Attention {
    /// `n * h`.
    pub fn q_width(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// `k * h`.
    pub fn k_width(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    /// `k * v_head_dim`.
    pub fn v_width(&self) -> usize {
        self.num_kv_heads * self.v_head_dim
    }

    /// `n * v_head_dim`.
    pub fn o_width(&self) -> usize {
        self.num_heads * self.v_head_dim
    }
}

impl Direct {
    /// Whether the backward reads what the projections of queries and keys gave: norms and clamps do, rotary embeddings do not.
    pub fn backward_reads_qk(&self) -> bool {
        self.clip_qkv.is_some() || self.qk_norm.is_some()
    }

    /// The same of values, where they have a projection of their own.
    pub fn backward_reads_v(&self) -> bool {
        self.v.is_some() && (self.clip_qkv.is_some() || self.v_norm.is_some())
    }
}

impl Qkv {
    /// Its linear maps.
    pub fn linears(&self) -> Vec<&Linear> {
        match self {
            Qkv::Direct(Direct { q, k, v, .. }) => [q, k].into_iter().chain(v).collect(),
            Qkv::Latent(Latent { q_latent, q, kv_a, kv_b, .. }) => {
                let q_a = q_latent.iter().map(|latent| &latent.map);
                q_a.chain([q, kv_a, kv_b]).collect()
            }
        }
    }

    fn linears_mut(&mut self) -> Vec<&mut Linear> {
        match self {
            Qkv::Direct(Direct { q, k, v, .. }) => [q, k].into_iter().chain(v).collect(),
            Qkv::Latent(Latent { q_latent, q, kv_a, kv_b, .. }) => {
                let q_a = q_latent.iter_mut().map(|latent| &mut latent.map);
                q_a.chain([q, kv_a, kv_b]).collect()
            }
        }
    }

    /// The largest weight of it, in elements.
    pub fn largest_weight(&self) -> usize {
        let weights = self.linears().into_iter().map(|map| map.out_features() * map.in_features);
        weights.max().unwrap_or(0)
    }
}

impl Latent {
    /// `kv_lora_rank`.
    pub fn kv_lora_rank(&self) -> usize {
        self.kv_b.in_features
    }

    /// The widths of the latents and of the keys that turn, together.
    pub fn width(&self) -> usize {
        let q_lora_rank = self.q_latent.as_ref().map_or(0, |latent| latent.map.out_features());
        q_lora_rank + self.kv_a.out_features()
    }
}

impl Layer {
    /// Whether a product multiplies by it or adds it.
    pub fn is_of_product(&self, param_idx: usize) -> bool {
        self.linears().any(|linear| linear.params().any(|of_linear| of_linear == param_idx))
    }

    /// The linear map of its router, if it has experts.
    pub fn router(&self) -> Option<&Linear> {
        match &self.ffn {
            Ffn::Dense(_) => None,
            Ffn::Moe(moe) => Some(&moe.router.map),
        }
    }

    /// [`Layer::linears`], to be changed.
    pub(crate) fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let of_mixer: Vec<&mut Linear> = match &mut self.mixer {
            Mixer::Attention(Attention { qkv, gate, o, .. }) => {
                qkv.linears_mut().into_iter().chain(gate).chain([o]).collect()
            }
            Mixer::DeltaNet(DeltaNet { q, k, v, z, b, a, o, .. }) => vec![q, k, v, z, b, a, o],
        };
        let (router, mlps, shared) = match &mut self.ffn {
            Ffn::Dense(dense) => (None, std::slice::from_mut(dense), None),
            Ffn::Moe(moe) => (Some(&mut moe.router.map), &mut moe.experts[..], moe.shared.as_mut()),
        };
        let shared = shared
            .into_iter()
            .flat_map(|SharedExpert { mlp, gate, .. }| mlp.linears_mut().chain(gate));
        let mlps = mlps.iter_mut().flat_map(Dense::linears_mut);
        of_mixer.into_iter().chain(router).chain(mlps).chain(shared).collect()
    }

    /// Its linear maps.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        let (router, mlps, shared) = match &self.ffn {
            Ffn::Dense(dense) => (None, std::slice::from_ref(dense), None),
            Ffn::Moe(moe) => (Some(&moe.router.map), &moe.experts[..], moe.shared.as_ref()),
        };
        let shared = shared.into_iter().flat_map(|shared| shared.mlp.linears().chain(&shared.gate));
        let mlps = mlps.iter().flat_map(Dense::linears);
        self.mixer.linears().chain(router).chain(mlps).chain(shared)
    }
}

impl Dense {
    /// Its linear maps.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.gate.iter().chain([&self.up, &self.down])
    }

    fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.gate.iter_mut().chain([&mut self.up, &mut self.down])
    }
}

impl Moe {
    /// The indices in [`Layer::params`] of what a group of experts has.
    pub fn params_of(&self, group: &Range<usize>) -> Vec<usize> {
        let linears = self.experts[group.clone()].iter().flat_map(Dense::linears);
        // Two maps may be rows of one tensor.
        linears.flat_map(Linear::params).collect::<BTreeSet<_>>().into_iter().collect()
    }
}

impl Ffn {
    /// The widths of all MLPs that a token goes through.
    pub fn width(&self) -> usize {
        match self {
            Ffn::Dense(dense) => dense.intermediate_size,
            Ffn::Moe(moe) => {
                let shared = moe.shared.as_ref().map_or(0, |shared| shared.mlp.intermediate_size);
                moe.router.num_experts_per_tok * moe.experts[0].intermediate_size + shared
            }
        }
    }

    /// The largest weight of it, in elements.
    pub fn largest_weight(&self) -> usize {
        let mlps = match self {
            Ffn::Dense(dense) => [Some(dense), None],
            Ffn::Moe(moe) => [Some(&moe.experts[0]), moe.shared.as_ref().map(|shared| &shared.mlp)],
        };
        let linears = mlps.into_iter().flatten().flat_map(Dense::linears);
        linears.map(|linear| linear.out_features() * linear.in_features).max().unwrap_or(0)
    }

    /// Whether its MLPs have a gate.
    pub fn is_gated(&self) -> bool {
        match self {
            Ffn::Dense(dense) => dense.gate.is_some(),
            Ffn::Moe(moe) => moe.experts[0].gate.is_some(),
        }
    }
}

impl LowRank {
    /// Whether it has magnitudes.
    pub fn is_dora(&self) -> bool {
        self.magnitude.is_some()
    }
}

impl Linear {
    /// The indices in [`Layer::params`] of what it has, in part or whole.
    pub fn params(&self) -> impl Iterator<Item = usize> {
        let of_adapter = self.low_rank.into_iter();
        let of_adapter = of_adapter.flat_map(|low| [low.a, low.b].into_iter().chain(low.magnitude));
        [self.weight].into_iter().chain(self.bias).chain(of_adapter)
    }

    /// Values that it writes.
    pub fn out_features(&self) -> usize {
        self.rows.len()
    }

    /// The map that has of every `stride` rows of the tensor `len` from the `offset`-th on.
    pub(crate) fn alternating(&self, len: usize, stride: usize, offset: usize) -> Linear {
        let alternate = Some(Alternate { len, stride, offset });
        Linear { rows: 0..self.rows.len() / stride * len, alternate, ..self.clone() }
    }

    /// The part of it that computes outputs `outputs`.
    #[must_use]
    pub fn part(&self, outputs: &Range<usize>) -> Linear {
        let rows = self.rows.start + outputs.start..self.rows.start + outputs.end;
        debug_assert!(rows.end <= self.rows.end, "outputs {outputs:?} of {:?}", self.rows);
        Linear { rows, ..self.clone() }
    }
}
