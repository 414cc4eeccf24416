//! What a layer costs: values that exist at once, and multiply-adds.

use crate::dtype::DType;
use crate::layer::{
    Activation, Architecture, Attention, DeltaNet, Ffn, Layer, Linear, LowRank, Mixer, Qkv,
};
use crate::parameters::Role;

impl Layer {
    /// Elements of the weights that a token multiplies by, without adapters: of experts, those that it takes.
    pub fn product_weights(&self) -> usize {
        self.per_token(|linear| linear.out_features() * linear.in_features)
    }

    /// Of those, what is frozen.
    pub fn frozen_product_weights(&self) -> usize {
        self.per_token(|linear| match self.params[linear.weight].role {
            Role::Frozen => linear.out_features() * linear.in_features,
            _ => 0,
        })
    }

    /// Elements of the adapters that a token multiplies by.
    pub fn adapter_product_weights(&self) -> usize {
        self.per_token(|linear| match linear.low_rank {
            Some(LowRank { a, .. }) => {
                let rank = self.params[a].shape[0];
                rank * (linear.out_features() + linear.in_features)
            }
            None => 0,
        })
    }

    /// Values at the peak of what DoRA adds to the tile of so many tokens: a weight in single precision beside the sum of it and its adapter,
    /// or the output of a map with its gradient, each in single precision, too.
    pub fn dora_values(&self, tile_len: usize) -> usize {
        let of = |linear: &Linear| match linear.low_rank {
            Some(low_rank) if low_rank.is_dora() => {
                let (out, in_features) = (linear.out_features(), linear.in_features);
                (2 * out * in_features).max(6 * tile_len * out)
            }
            _ => 0,
        };
        self.linears().map(of).max().unwrap_or(0)
    }

    /// The sum over the linear maps that a token goes through.
    fn per_token(&self, of: impl Fn(&Linear) -> usize) -> usize {
        let all: usize = self.linears().map(&of).sum();
        match &self.ffn {
            Ffn::Dense(_) => all,
            Ffn::Moe(moe) => {
                let of_expert: usize = moe.experts[0].linears().map(of).sum();
                all - (moe.experts.len() - moe.router.num_experts_per_tok) * of_expert
            }
        }
    }

    /// Values of a token that the backward of norm and projections reads: the output of the norm, and what norms on queries, keys and
    /// latents or clamps read.
    pub fn saved_before_attention(&self) -> usize {
        let normed = if self.pre_attention_norm.is_some() { self.hidden_size() } else { 0 };
        let of = |is_read: bool, width: usize| if is_read { width } else { 0 };
        normed
            + match &self.mixer {
                Mixer::Attention(attention) => match &attention.qkv {
                    Qkv::Direct(direct) => {
                        of(direct.backward_reads_qk(), attention.q_width() + attention.k_width())
                            + of(direct.backward_reads_v(), attention.v_width())
                    }
                    Qkv::Latent(latent) => latent.width(),
                },
                Mixer::DeltaNet(_) => 0,
            }
    }

    /// Values of a token that are kept of output projection and MLP: the residual stream between the branches and the input of the MLP; of the MLP's width, one or two projections and the activation; what norms on outputs read.
    pub fn saved_after_attention(&self) -> usize {
        let d = self.hidden_size();
        let normed = if self.pre_ffn_norm.is_some() || self.is_parallel { d } else { 0 };
        let outputs = d * self.num_output_norms();
        d + normed
            + outputs
            + self.ffn.width() * (2 + usize::from(self.ffn.is_gated()))
            + self.saved_of_routes()
    }

    /// Values of a token at the peak of the backward of norm and projections: the norm, and q, k, v with their gradients; latents before and
    /// after their norms, too, with theirs; of a delta net also a and b.
    pub fn peak_before_attention(&self) -> usize {
        let latents = match &self.mixer {
            Mixer::Attention(Attention { qkv: Qkv::Latent(latent), .. }) => 4 * latent.width(),
            Mixer::Attention(_) | Mixer::DeltaNet(_) => 0,
        };
        2 * self.hidden_size() + 2 * self.mixer.projected_width() + latents
    }

    /// Values of a token at the peak of the backward of output projection and MLP: the residual stream, the input of the MLP, what
    /// norms on outputs read, and of the MLP's width its projections and the gradients of those and of the activation.
    pub fn peak_after_attention(&self) -> usize {
        let (d, f) = (self.hidden_size(), self.ffn.width());
        let widths = self.ffn.peak_widths();
        let of_ffn = match &self.ffn {
            Ffn::Dense(_) => widths * f,
            // Rows that experts read and give: with the MLP's tensors, or with the gradient of their weights.
            Ffn::Moe(moe) => {
                let shared = moe.shared.as_ref().map_or(0, |shared| shared.mlp.intermediate_size);
                let (rows, f) = (moe.router.num_experts_per_tok * d, f - shared);
                let of_experts = (2 * rows + widths * f).max(4 * rows + (widths - 2) * f);
                of_experts.max(d + widths * shared) + 2 * moe.experts.len()
            }
        };
        let of_output = match &self.mixer {
            Mixer::Attention(_) => 0,
            // The output, normed and gated, z, and their gradients.
            Mixer::DeltaNet(net) => 6 * net.value_width(),
        };
        ((2 + self.num_output_norms()) * d + of_ffn).max(2 * d + of_output)
    }

    /// Values of a token that exist while the experts of all tokens compute: the residual stream, what the experts read, the gradients of
    /// that and of what they give, and what norms on outputs read.
    pub fn peak_beside_experts(&self) -> usize {
        match &self.ffn {
            Ffn::Dense(_) => 0,
            Ffn::Moe(moe) => {
                // With norms of their own also what the MLP beside them reads, their output and its gradient.
                let of_branch = if moe.norms.is_some() { 3 } else { 0 };
                (4 + of_branch + self.num_output_norms()) * self.hidden_size()
            }
        }
    }

    /// Of experts: what each reads and gives, token by token, and the router's probabilities, which are single precision.
    fn saved_of_routes(&self) -> usize {
        match &self.ffn {
            Ffn::Dense(_) => 0,
            Ffn::Moe(moe) => {
                2 * moe.router.num_experts_per_tok * self.hidden_size() + 2 * moe.experts.len()
            }
        }
    }

    /// Bytes of a token that a layer with experts keeps beside its input: which it takes, each a 16-bit integer.
    pub fn route_bytes(&self) -> usize {
        match &self.ffn {
            Ffn::Dense(_) => 0,
            Ffn::Moe(moe) => 2 * moe.router.num_experts_per_tok,
        }
    }

    fn num_output_norms(&self) -> usize {
        [&self.post_attention_norm, &self.post_ffn_norm].into_iter().flatten().count()
    }

    /// `d`.
    pub fn hidden_size(&self) -> usize {
        self.mixer.o().out_features()
    }
}

impl Ffn {
    /// Values of a token at the peak of the backward of an MLP, in widths of it.
    fn peak_widths(&self) -> usize {
        let mlp = match self {
            Ffn::Dense(dense) => dense,
            Ffn::Moe(moe) => &moe.experts[0],
        };
        match (mlp.activation, &mlp.gate) {
            // Six in single precision, beside three that its backward reads and one that it has given.
            (Activation::ClampedSwiglu { .. }, _) => 16,
            (_, Some(_)) => 5,
            (_, None) => 3,
        }
    }
}

impl Mixer {
    /// Bytes of each tensor that it keeps for its backward, at most, on the rank with the most of its heads: the output with all heads of
    /// the rank's `local_tokens` tokens, of `size` bytes a value; for its own heads of the tokens of all `sp_size` ranks, the log-sum-exp
    /// of attention, or a state of a delta net for every [`DeltaNet::TOKENS_OF_STATE`].
    pub fn kept_bytes(&self, local_tokens: usize, sp_size: usize, size: usize) -> [usize; 2] {
        let own_heads = self.num_heads().div_ceil(sp_size);
        let all_tokens = local_tokens * sp_size;
        let of_head = match self {
            Mixer::Attention(_) => all_tokens,
            Mixer::DeltaNet(net) => {
                all_tokens / DeltaNet::TOKENS_OF_STATE * net.key_head_dim * net.value_head_dim
            }
        };
        [local_tokens * self.output_width() * size, own_heads * of_head * DType::F32.size()]
    }

    /// Values of a token that its projections give and others read.
    pub fn projected_width(&self) -> usize {
        match self {
            Mixer::Attention(attention) => {
                attention.q_width() + attention.k_width() + attention.v_width()
            }
            Mixer::DeltaNet(net) => {
                2 * net.key_width() + net.value_width() + 2 * net.num_value_heads
            }
        }
    }
}

impl DeltaNet {
    /// Tokens of a document after which its state is kept (`sterna_ops::delta_rule`).
    pub const TOKENS_OF_STATE: usize = 1024;

    /// Multiply-adds of a token in the rule: reading the state under a key, writing to it, and reading it with a query.
    pub fn rule_products(&self) -> usize {
        3 * self.num_value_heads * self.key_head_dim * self.value_head_dim
    }
}

impl Architecture {
    /// Multiply-adds of a token in the products of all layers.
    pub fn product_weights_of_layers(&self) -> usize {
        self.layers.iter().map(Layer::product_weights).sum()
    }

    /// Of those, what is frozen, whose backward computes no gradient of weights.
    pub fn frozen_product_weights_of_layers(&self) -> usize {
        self.layers.iter().map(Layer::frozen_product_weights).sum()
    }

    /// Multiply-adds of a token in the adapters of all layers.
    pub fn adapter_product_weights(&self) -> usize {
        self.layers.iter().map(Layer::adapter_product_weights).sum()
    }

    /// Whether the head's weight is frozen.
    pub fn has_frozen_head(&self) -> bool {
        let lm_head = self.head.lm_head.map_or(&self.embed.weight, |idx| &self.head.params[idx]);
        lm_head.role == Role::Frozen
    }

    /// Multiply-adds of a token in the head.
    pub fn product_weights_of_head(&self) -> usize {
        self.vocab_size * self.hidden_size
    }
}
