//! The tensors of one block by name, and the buffers of their gradients.

use sterna_hf::ModelConfig;
use sterna_ops::{is_widened, linear};
use sterna_torch_sys::memory::{self, MemoryKind};
use tch::{Kind, Tensor};

use crate::error::{ModelError, check_shape};

/// A linear layer: `weight` `[out, in]` and, in some families, `bias` `[out]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Linear<T> {
    /// `[out, in]`.
    pub weight: T,
    /// `[out]`.
    pub bias: Option<T>,
}

/// One value for each tensor of a block, under the names that Hugging Face gives them.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockTensors<T> {
    /// `[d]`.
    pub input_layernorm: T,
    /// `[n * h, d]`.
    pub q_proj: Linear<T>,
    /// `[k * h, d]`.
    pub k_proj: Linear<T>,
    /// `[k * h, d]`.
    pub v_proj: Linear<T>,
    /// `[h]`, in families that normalise queries and keys.
    pub q_norm: Option<T>,
    /// `[h]`, in families that normalise queries and keys.
    pub k_norm: Option<T>,
    /// `[d, n * h]`.
    pub o_proj: Linear<T>,
    /// `[d]`.
    pub post_attention_layernorm: T,
    /// `[f, d]`.
    pub gate_proj: Linear<T>,
    /// `[f, d]`.
    pub up_proj: Linear<T>,
    /// `[d, f]`.
    pub down_proj: Linear<T>,
}

/// The weights of a block: those of products in the dtype that they multiply in, the others in that of the activations.
pub type BlockParams = BlockTensors<Tensor>;

/// The gradients of a block's weights, to which a backward adds: single precision (double for double weights); `None` for a
/// weight whose gradient is not wanted.
pub type BlockGrads = BlockTensors<Option<Tensor>>;

impl BlockParams {
    /// Names the tensors of a block, given in the order of [`sterna_hf::Parameters::layers`]. They are shared, not copied.
    ///
    /// # Errors
    ///
    /// [`ModelError::ParamCount`] or [`ModelError::Shape`] if they are not the tensors of a block of this model.
    pub fn new(config: &ModelConfig, tensors: &[Tensor]) -> Result<BlockParams, ModelError> {
        let params = BlockTensors::from_ordered(config, tensors.iter().map(Tensor::shallow_clone))?;
        for ((name, tensor), (_, shape)) in params.iter().zip(shapes(config).iter()) {
            check_shape(name, &tensor.size(), shape)?;
        }
        Ok(params)
    }

    /// The same with weights and biases of products in single precision, where products are widened ([`sterna_ops::is_widened`]): once for
    /// all tiles. The weights of norms stay as they are.
    ///
    /// # Memory
    ///
    /// 4 bytes for each weight of a product, or nothing.
    #[must_use]
    pub fn widened_for_products(self) -> BlockParams {
        if !is_widened(&self.q_proj.weight) {
            return self;
        }
        let _memory = memory::scope(MemoryKind::Weights);
        let wide = |x: &Tensor| x.to_kind(Kind::Float);
        let widened = |proj: &Linear<Tensor>| Linear {
            weight: wide(&proj.weight),
            bias: proj.bias.as_ref().map(wide),
        };
        BlockTensors {
            q_proj: widened(&self.q_proj),
            k_proj: widened(&self.k_proj),
            v_proj: widened(&self.v_proj),
            o_proj: widened(&self.o_proj),
            gate_proj: widened(&self.gate_proj),
            up_proj: widened(&self.up_proj),
            down_proj: widened(&self.down_proj),
            ..self
        }
    }
}

impl BlockGrads {
    /// Names the gradient buffers of a block, given in the order of [`sterna_hf::Parameters::layers`].
    ///
    /// # Errors
    ///
    /// [`ModelError::ParamCount`] or [`ModelError::Shape`] if they do not fit a block of this model.
    pub fn new(
        config: &ModelConfig,
        tensors: Vec<Option<Tensor>>,
    ) -> Result<BlockGrads, ModelError> {
        let grads = BlockTensors::from_ordered(config, tensors)?;
        for ((name, tensor), (_, shape)) in grads.iter().zip(shapes(config).iter()) {
            if let Some(tensor) = tensor {
                check_shape(name, &tensor.size(), shape)?;
            }
        }
        Ok(grads)
    }
}

impl Linear<Tensor> {
    /// The part that computes outputs `start..start + len`, sharing memory.
    pub(crate) fn rows(&self, start: i64, len: i64) -> Linear<Tensor> {
        let narrow = |x: &Tensor| x.narrow(0, start, len);
        Linear { weight: narrow(&self.weight), bias: self.bias.as_ref().map(narrow) }
    }
}

impl Linear<Option<Tensor>> {
    /// The gradients of the part that computes outputs `start..start + len`, sharing memory.
    pub(crate) fn rows(&self, start: i64, len: i64) -> Linear<Option<Tensor>> {
        let narrow = |x: &Option<Tensor>| x.as_ref().map(|x| x.narrow(0, start, len));
        Linear { weight: narrow(&self.weight), bias: self.bias.as_ref().map(narrow) }
    }

    /// Adds the gradients of weight and bias, `d_y` `[s, out]` and `x` `[s, in]`.
    pub(crate) fn accumulate(&mut self, d_y: &Tensor, x: &Tensor) {
        let bias = self.bias.as_mut().and_then(Option::as_mut);
        linear::backward_params(d_y, x, self.weight.as_mut(), bias);
    }
}

impl<T> BlockTensors<T> {
    fn from_ordered(
        config: &ModelConfig,
        values: impl IntoIterator<Item = T, IntoIter: ExactSizeIterator>,
    ) -> Result<BlockTensors<T>, ModelError> {
        let mut values = values.into_iter();
        let found = values.len();
        let required = 9
            + 3 * usize::from(config.qkv_bias)
            + 2 * usize::from(config.qk_norm)
            + usize::from(config.o_bias)
            + 3 * usize::from(config.mlp_bias);
        if found != required {
            return Err(ModelError::ParamCount { found, required });
        }
        let mut next = || values.next().expect("the number of values has been checked");
        let linear = |next: &mut dyn FnMut() -> T, has_bias: bool| {
            let weight = next();
            Linear { weight, bias: has_bias.then(next) }
        };
        Ok(BlockTensors {
            input_layernorm: next(),
            q_proj: linear(&mut next, config.qkv_bias),
            k_proj: linear(&mut next, config.qkv_bias),
            v_proj: linear(&mut next, config.qkv_bias),
            q_norm: config.qk_norm.then(&mut next),
            k_norm: config.qk_norm.then(&mut next),
            o_proj: linear(&mut next, config.o_bias),
            post_attention_layernorm: next(),
            gate_proj: linear(&mut next, config.mlp_bias),
            up_proj: linear(&mut next, config.mlp_bias),
            down_proj: linear(&mut next, config.mlp_bias),
        })
    }

    /// Every value with the name of its parameter inside the block, in the order of [`sterna_hf::Parameters::layers`].
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &T)> {
        fn linear<'a, T>(
            weight_name: &'static str,
            bias_name: &'static str,
            linear: &'a Linear<T>,
        ) -> impl Iterator<Item = (&'static str, &'a T)> {
            std::iter::once((weight_name, &linear.weight))
                .chain(linear.bias.as_ref().map(|bias| (bias_name, bias)))
        }
        std::iter::once(("input_layernorm.weight", &self.input_layernorm))
            .chain(linear("self_attn.q_proj.weight", "self_attn.q_proj.bias", &self.q_proj))
            .chain(linear("self_attn.k_proj.weight", "self_attn.k_proj.bias", &self.k_proj))
            .chain(linear("self_attn.v_proj.weight", "self_attn.v_proj.bias", &self.v_proj))
            .chain(self.q_norm.as_ref().map(|norm| ("self_attn.q_norm.weight", norm)))
            .chain(self.k_norm.as_ref().map(|norm| ("self_attn.k_norm.weight", norm)))
            .chain(linear("self_attn.o_proj.weight", "self_attn.o_proj.bias", &self.o_proj))
            .chain([("post_attention_layernorm.weight", &self.post_attention_layernorm)])
            .chain(linear("mlp.gate_proj.weight", "mlp.gate_proj.bias", &self.gate_proj))
            .chain(linear("mlp.up_proj.weight", "mlp.up_proj.bias", &self.up_proj))
            .chain(linear("mlp.down_proj.weight", "mlp.down_proj.bias", &self.down_proj))
    }
}

/// The shape of every tensor of a block.
fn shapes(config: &ModelConfig) -> BlockTensors<Vec<i64>> {
    let (d, f, h) =
        (config.hidden_size as i64, config.intermediate_size as i64, config.head_dim as i64);
    let (n, k) = (config.num_attention_heads as i64, config.num_key_value_heads as i64);
    let linear = |out_size: i64, in_size: i64, has_bias: bool| Linear {
        weight: vec![out_size, in_size],
        bias: has_bias.then(|| vec![out_size]),
    };
    BlockTensors {
        input_layernorm: vec![d],
        q_proj: linear(n * h, d, config.qkv_bias),
        k_proj: linear(k * h, d, config.qkv_bias),
        v_proj: linear(k * h, d, config.qkv_bias),
        q_norm: config.qk_norm.then(|| vec![h]),
        k_norm: config.qk_norm.then(|| vec![h]),
        o_proj: linear(d, n * h, config.o_bias),
        post_attention_layernorm: vec![d],
        gate_proj: linear(f, d, config.mlp_bias),
        up_proj: linear(f, d, config.mlp_bias),
        down_proj: linear(d, f, config.mlp_bias),
    }
}
