//! The weight tensors of a model: their Hugging Face names, shapes and first values, and whether AdamW decays them.

/// Parts of a lower-cased name that exempt a parameter from weight decay.
///
/// Source: ArcticTraining `arctic_training/optimizer/adam_factory.py`.
const NO_DECAY: [&str; 5] =
    ["bias", "layer_norm.weight", "layernorm.weight", "norm.weight", "ln_f.weight"];

/// One weight tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct ParamSpec {
    /// The fully qualified name, such as `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// Sizes, outermost first. A linear layer is `[out, in]`, as in PyTorch.
    pub shape: Vec<usize>,
    /// Its values in a model that is not read from a checkpoint.
    pub init: Init,
    /// Whether weight decay applies to it.
    pub is_decayed: bool,
    /// Whether it is trained, and which files have it.
    pub role: Role,
    /// Whether it is in single precision whatever the dtype of the model, here and in exports.
    pub is_fp32: bool,
}

/// Whether a parameter is trained, and which files have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A weight of the model that is trained.
    Trained,
    /// A buffer: no gradient reaches it. Checkpoints and exports have it.
    Buffer,
    /// A weight of a base under adapters: no gradient reaches it, and only the model's folder has it.
    Frozen,
    /// A weight of an adapter, which is trained and which the model's folder has not.
    Adapter,
}

/// The values that a parameter begins with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// The same everywhere.
    Constant(f64),
    /// The logarithm of what is uniform between two numbers.
    LogUniform {
        /// The smallest, above 0.
        low: f64,
        /// The largest.
        high: f64,
    },
    /// Uniform between `-bound` and `bound`.
    Uniform {
        /// Above 0.
        bound: f64,
    },
    /// The l2 norm of each row of the weight of the same module.
    RowNorms {
        /// Elements of a row.
        row_len: usize,
    },
    /// Normal around zero.
    Normal {
        /// Standard deviation.
        std: f64,
        /// A row of zeros: what `nn.Embedding` has at its `padding_idx`.
        zero_row: Option<usize>,
    },
}

impl ParamSpec {
    /// A parameter that is decayed unless the reference's rule exempts its name.
    pub fn new(name: impl Into<String>, shape: impl Into<Vec<usize>>, init: Init) -> Self {
        let name = name.into();
        let lower = name.to_lowercase();
        let is_decayed = !NO_DECAY.iter().any(|part| lower.contains(part));
        Self { name, shape: shape.into(), init, is_decayed, role: Role::Trained, is_fp32: false }
    }

    /// A buffer that checkpoints hold.
    pub fn buffer(name: impl Into<String>, shape: impl Into<Vec<usize>>, init: Init) -> Self {
        Self { is_decayed: false, role: Role::Buffer, ..Self::new(name, shape, init) }
    }

    /// Whether it has a gradient and optimizer state.
    pub fn is_trained(&self) -> bool {
        matches!(self.role, Role::Trained | Role::Adapter)
    }

    /// The number of elements; the largest there is if they are more.
    pub fn numel(&self) -> usize {
        self.shape.iter().fold(1, |numel, size| numel.saturating_mul(*size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norms_and_biases_are_not_decayed() {
        let is_decayed = |name: &str| ParamSpec::new(name, [4], Init::Constant(1.0)).is_decayed;
        assert!(is_decayed("model.embed_tokens.weight"));
        assert!(is_decayed("model.layers.0.self_attn.q_proj.weight"));
        assert!(!is_decayed("model.layers.0.self_attn.q_proj.bias"));
        assert!(!is_decayed("model.layers.0.self_attn.q_norm.weight"));
        assert!(!is_decayed("model.layers.0.input_layernorm.weight"));
        assert!(!is_decayed("model.norm.weight"));
    }
}
