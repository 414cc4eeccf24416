//! The weight tensors of a model, by their Hugging Face names, in the order the model uses them.

use crate::config::ModelConfig;

/// One weight tensor: its Hugging Face name and shape.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ParamSpec {
    /// The fully qualified name, such as `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// Sizes, outermost first. A linear layer is `[out, in]`, as in PyTorch.
    pub shape: Vec<usize>,
}

impl ParamSpec {
    /// The number of elements.
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }
}

/// All weight tensors of a model, grouped as training handles them: embedding, blocks, final norm, head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameters {
    /// `model.embed_tokens.weight`, `[v, d]`.
    pub embed: ParamSpec,
    /// One list for each block, in this order: `input_layernorm.weight` `[d]`; `self_attn.q_proj` `[n*h, d]`, `k_proj` `[k*h, d]`,
    /// `v_proj` `[k*h, d]`, each weight followed by its bias if the family has one; `q_norm.weight` and `k_norm.weight` `[h]` if
    /// the family has them; `o_proj` `[d, n*h]`; `post_attention_layernorm.weight` `[d]`; `mlp.gate_proj` `[f, d]`, `up_proj`
    /// `[f, d]`, `down_proj` `[d, f]`, again with biases.
    pub layers: Vec<Vec<ParamSpec>>,
    /// `model.norm.weight`, `[d]`.
    pub norm: ParamSpec,
    /// `lm_head.weight`, `[v, d]`; `None` when the head is the embedding.
    pub lm_head: Option<ParamSpec>,
}

impl Parameters {
    pub(crate) fn of(config: &ModelConfig) -> Parameters {
        let spec = |name: String, shape: &[usize]| ParamSpec { name, shape: shape.to_vec() };
        let (v, d) = (config.vocab_size, config.hidden_size);
        Parameters {
            embed: spec("model.embed_tokens.weight".to_owned(), &[v, d]),
            layers: (0..config.num_hidden_layers)
                .map(|layer_idx| layer(config, layer_idx))
                .collect(),
            norm: spec("model.norm.weight".to_owned(), &[d]),
            lm_head: (!config.tie_word_embeddings)
                .then(|| spec("lm_head.weight".to_owned(), &[v, d])),
        }
    }

    /// Every tensor: embedding, blocks in order, final norm, head.
    pub fn iter(&self) -> impl Iterator<Item = &ParamSpec> {
        std::iter::once(&self.embed)
            .chain(self.layers.iter().flatten())
            .chain([&self.norm])
            .chain(&self.lm_head)
    }

    /// The number of elements of all tensors together; a tied head counts once.
    pub fn numel(&self) -> usize {
        self.iter().map(ParamSpec::numel).sum()
    }
}

fn layer(config: &ModelConfig, layer_idx: usize) -> Vec<ParamSpec> {
    let (d, f, h) = (config.hidden_size, config.intermediate_size, config.head_dim);
    let q_size = config.num_attention_heads * h;
    let kv_size = config.num_key_value_heads * h;
    let mut specs = Vec::new();
    let mut push = |name: &str, shape: &[usize]| {
        specs.push(ParamSpec {
            name: format!("model.layers.{layer_idx}.{name}"),
            shape: shape.to_vec(),
        });
    };
    let linear = |push: &mut dyn FnMut(&str, &[usize]),
                  name: &str,
                  out_size: usize,
                  in_size: usize,
                  bias: bool| {
        push(&format!("{name}.weight"), &[out_size, in_size]);
        if bias {
            push(&format!("{name}.bias"), &[out_size]);
        }
    };
    push("input_layernorm.weight", &[d]);
    linear(&mut push, "self_attn.q_proj", q_size, d, config.qkv_bias);
    linear(&mut push, "self_attn.k_proj", kv_size, d, config.qkv_bias);
    linear(&mut push, "self_attn.v_proj", kv_size, d, config.qkv_bias);
    if config.qk_norm {
        push("self_attn.q_norm.weight", &[h]);
        push("self_attn.k_norm.weight", &[h]);
    }
    linear(&mut push, "self_attn.o_proj", d, q_size, config.o_bias);
    push("post_attention_layernorm.weight", &[d]);
    linear(&mut push, "mlp.gate_proj", f, d, config.mlp_bias);
    linear(&mut push, "mlp.up_proj", f, d, config.mlp_bias);
    linear(&mut push, "mlp.down_proj", d, f, config.mlp_bias);
    specs
}
