//! The weights of a layer, the buffers of their gradients, and the linear maps and norms that read and write them.

use sterna_arch::{Layer, Linear, Norm};
use sterna_ops::{is_widened, linear, norm};
use sterna_torch_sys::memory::{self, MemoryKind};
use tch::{Kind, Tensor};

use crate::error::{ModelError, check_shape};

/// The weights of one unit of a layer, the layer without its experts or a group of those, by their index in [`Layer::params`]: those of
/// products in the dtype that they multiply in, the others in that of the activations.
#[derive(Debug)]
pub struct BlockParams(Vec<Option<Tensor>>);

/// The gradients of such weights, to which a backward adds: single precision (double for double weights); `None` for a weight of another
/// unit, and for one whose gradient is not wanted.
#[derive(Debug)]
pub struct BlockGrads(Vec<Option<Tensor>>);

impl BlockParams {
    /// Takes the tensors of a unit of `layer`, `param_idxs` of [`Layer::params`].
    ///
    /// # Errors
    ///
    /// [`ModelError::ParamCount`] or [`ModelError::Shape`] if they are not these tensors of this layer.
    pub fn new(
        layer: &Layer,
        param_idxs: &[usize],
        tensors: Vec<Tensor>,
    ) -> Result<BlockParams, ModelError> {
        place(layer, param_idxs, tensors.into_iter().map(Some)).map(BlockParams)
    }

    /// The same with weights and biases of products in single precision, where products are widened ([`sterna_ops::is_widened`]): once for
    /// all tiles. The others stay as they are.
    ///
    /// # Memory
    ///
    /// 4 bytes for each weight of a product, or nothing.
    #[must_use]
    pub fn widened_for_products(self, layer: &Layer) -> BlockParams {
        if !self.0.iter().flatten().next().is_some_and(is_widened) {
            return self;
        }
        let _memory = memory::scope(MemoryKind::Weights);
        let widened = |(param_idx, x): (usize, Option<Tensor>)| {
            let is_of_product = x.is_some() && layer.is_of_product(param_idx);
            if is_of_product { x.map(|x| x.to_kind(Kind::Float)) } else { x }
        };
        BlockParams(self.0.into_iter().enumerate().map(widened).collect())
    }

    /// One of [`Layer::params`].
    pub(crate) fn get(&self, param_idx: usize) -> &Tensor {
        self.0[param_idx].as_ref().expect("a weight is read while its unit is at hand")
    }

    /// A norm with its weights.
    pub(crate) fn norm(&self, norm: &Norm) -> norm::Norm<'_> {
        norm_of(norm, |param_idx| self.get(param_idx))
    }

    /// `x` `[s, in]` through a linear map, `[s, out]`.
    pub(crate) fn project(&self, map: &Linear, x: &Tensor) -> Tensor {
        let (weight, bias) = self.of(map);
        linear::forward(x, &weight, bias.as_ref())
    }

    /// [`BlockParams::project`] into `y`, which may be a part of a longer tensor.
    pub(crate) fn project_into(&self, y: &mut Tensor, map: &Linear, x: &Tensor) {
        let (weight, bias) = self.of(map);
        linear::forward_into(y, x, &weight, bias.as_ref());
    }

    /// The gradient of `x` `[s, in]` from that of the result; those of weight and bias are added to `grads`.
    pub(crate) fn project_backward(
        &self,
        grads: &mut BlockGrads,
        map: &Linear,
        x: &Tensor,
        d_y: &Tensor,
    ) -> Tensor {
        grads.accumulate(map, x, d_y);
        linear::backward_input(d_y, &self.of(map).0)
    }

    /// [`BlockParams::project_backward`] that adds the gradient of `x` to `d_x`.
    pub(crate) fn add_project_backward(
        &self,
        grads: &mut BlockGrads,
        map: &Linear,
        x: &Tensor,
        d_y: &Tensor,
        d_x: &mut Tensor,
    ) {
        grads.accumulate(map, x, d_y);
        linear::add_backward_input(d_x, d_y, &self.of(map).0);
    }

    /// [`BlockParams::project`] in the precision of `x`, which is single (double for double) whatever that of the weight.
    pub(crate) fn project_wide(&self, map: &Linear, x: &Tensor) -> Tensor {
        let (weight, bias) = self.of(map);
        let bias = bias.map(|bias| bias.to_kind(x.kind()));
        linear::forward(x, &weight.to_kind(x.kind()), bias.as_ref())
    }

    /// Adds the gradient of `x` through [`BlockParams::project_wide`] to `d_x`, which may be narrower: the sum is rounded once.
    pub(crate) fn add_project_wide_backward(
        &self,
        grads: &mut BlockGrads,
        map: &Linear,
        x: &Tensor,
        d_y: &Tensor,
        d_x: &mut Tensor,
    ) {
        grads.accumulate(map, x, d_y);
        let weight = self.of(map).0.to_kind(d_y.kind());
        let _ = d_x.g_add_(&linear::backward_input(d_y, &weight));
    }

    /// Weight and bias of a linear map, sharing memory unless its rows alternate with others.
    fn of(&self, map: &Linear) -> (Tensor, Option<Tensor>) {
        let rows = |param_idx: usize| {
            let rows = rows_of(map, self.get(param_idx));
            if map.alternate.is_some() { rows.flatten(0, 1) } else { rows }
        };
        (rows(map.weight), map.bias.map(rows))
    }
}

impl BlockGrads {
    /// Takes the gradient buffers of a unit of `layer`, `param_idxs` of [`Layer::params`].
    ///
    /// # Errors
    ///
    /// [`ModelError::ParamCount`] or [`ModelError::Shape`] if they do not fit the layer.
    pub fn new(
        layer: &Layer,
        param_idxs: &[usize],
        tensors: Vec<Option<Tensor>>,
    ) -> Result<BlockGrads, ModelError> {
        place(layer, param_idxs, tensors.into_iter()).map(BlockGrads)
    }

    /// The gradient of one of [`Layer::params`].
    pub(crate) fn get(&mut self, param_idx: usize) -> Option<&mut Tensor> {
        self.0[param_idx].as_mut()
    }

    /// The gradient of `x` through a norm; those of its weight and bias are added.
    pub(crate) fn norm_backward(
        &mut self,
        params: &BlockParams,
        norm: &Norm,
        x: &Tensor,
        d_y: &Tensor,
    ) -> Tensor {
        norm_backward(norm, params.norm(norm), &self.0, x, d_y)
    }

    /// Adds the gradients of weight and bias of a linear map, `d_y` `[s, out]` and `x` `[s, in]`.
    fn accumulate(&mut self, map: &Linear, x: &Tensor, d_y: &Tensor) {
        let rows = |param_idx: usize| self.0[param_idx].as_ref().map(|grad| rows_of(map, grad));
        let (mut weight, mut bias) = (rows(map.weight), map.bias.and_then(rows));
        if map.alternate.is_none() && map.of_stack.is_none() {
            linear::backward_params(d_y, x, weight.as_mut(), bias.as_mut());
            return;
        }
        // A product adds to rows that follow each other, values of each next to each other.
        let zeros = |grad: &Tensor| {
            let mut size = grad.size();
            if map.alternate.is_some() {
                size = [&[size[0] * size[1]], &size[2..]].concat();
            }
            Tensor::zeros(size, (grad.kind(), grad.device()))
        };
        let [mut of_weight, mut of_bias] = [&weight, &bias].map(|grad| grad.as_ref().map(zeros));
        linear::backward_params(d_y, x, of_weight.as_mut(), of_bias.as_mut());
        for (grad, of_map) in [(weight, of_weight), (bias, of_bias)] {
            if let (Some(mut grad), Some(of_map)) = (grad, of_map) {
                let _ = grad.g_add_(&of_map.view_as(&grad));
            }
        }
    }
}

/// A norm with the weights that it names.
pub(crate) fn norm_of<'a>(norm: &Norm, get: impl Fn(usize) -> &'a Tensor) -> norm::Norm<'a> {
    norm::Norm {
        kind: norm.kind,
        eps: norm.eps,
        weight: norm.weight.map(&get),
        bias: norm.bias.map(&get),
    }
}

/// The gradient of `x` through `norm`, which is `with_weights`; those of its weight and bias are added to theirs among `grads`.
pub(crate) fn norm_backward(
    norm: &Norm,
    with_weights: norm::Norm<'_>,
    grads: &[Option<Tensor>],
    x: &Tensor,
    d_y: &Tensor,
) -> Tensor {
    let of = |param_idx: Option<usize>| {
        param_idx.and_then(|idx| grads[idx].as_ref()).map(Tensor::shallow_clone)
    };
    let (mut weight, mut bias) = (of(norm.weight), of(norm.bias));
    with_weights.backward(d_y, x, weight.as_mut(), bias.as_mut())
}

/// The rows of a weight or bias that a linear map has, sharing memory: `[out, ..]`, or `[runs, rows of a run, ..]` where they alternate with
/// those of others.
fn rows_of(map: &Linear, x: &Tensor) -> Tensor {
    let x = match map.of_stack {
        Some(map_idx) if x.dim() > 2 => x.get(map_idx as i64).tr(),
        Some(map_idx) => x.get(map_idx as i64),
        None if x.dim() > 2 => x.flatten(0, -2),
        None => x.shallow_clone(),
    };
    let (start, len) = (map.rows.start, map.rows.len());
    let Some(alternate) = &map.alternate else { return x.narrow(0, start as i64, len as i64) };
    assert!(
        start.is_multiple_of(alternate.len) && len.is_multiple_of(alternate.len),
        "rows {:?} are whole runs of {}",
        map.rows,
        alternate.len
    );
    let [run, stride] = [alternate.len, alternate.stride].map(|rows| rows as i64);
    let (first, num_runs) = (start as i64 / run, len as i64 / run);
    let runs = x.narrow(0, first * stride, num_runs * stride).unflatten(0, [num_runs, stride]);
    runs.narrow(1, alternate.offset as i64, run)
}

/// Puts the tensors of a unit where the layer names them, once their number and shapes are checked.
fn place(
    layer: &Layer,
    param_idxs: &[usize],
    tensors: impl ExactSizeIterator<Item = Option<Tensor>>,
) -> Result<Vec<Option<Tensor>>, ModelError> {
    let (found, required) = (tensors.len(), param_idxs.len());
    if found != required {
        return Err(ModelError::ParamCount { found, required });
    }
    let mut placed: Vec<Option<Tensor>> = Vec::new();
    placed.resize_with(layer.params.len(), || None);
    for (&param_idx, tensor) in param_idxs.iter().zip(tensors) {
        let spec = &layer.params[param_idx];
        let shape: Vec<i64> = spec.shape.iter().map(|size| *size as i64).collect();
        if let Some(tensor) = &tensor {
            check_shape(&spec.name, &tensor.size(), &shape)?;
        }
        placed[param_idx] = tensor;
    }
    Ok(placed)
}
