//! The weights of a layer, the buffers of their gradients, and the linear maps and norms that read and write them.

use std::cell::RefCell;
use std::collections::BTreeMap;

use sterna_arch::{Layer, Linear, LowRank, Norm};
use sterna_ops::low_rank::{self, Magnitude};
use sterna_ops::{is_widened, linear, norm};
use sterna_torch_sys::memory::{self, MemoryKind};
use tch::{Kind, Tensor};

use crate::error::{ModelError, check_shape};

/// The weights of one unit of a layer, the layer without its experts or a group of those, by their index in [`Layer::params`]: those of
/// products in the dtype that they multiply in, the others in that of the activations.
#[derive(Debug)]
pub struct BlockParams {
    params: Vec<Option<Tensor>>,
    /// The norms that DoRA divides by, by the index of its magnitudes, once they are computed.
    row_norms: RefCell<BTreeMap<usize, Tensor>>,
}

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
        let params = place(layer, param_idxs, tensors.into_iter().map(Some))?;
        Ok(BlockParams { params, row_norms: RefCell::default() })
    }

    /// The same with weights and biases of products in single precision, where products are widened ([`sterna_ops::is_widened`]): once for
    /// all tiles. The others stay as they are.
    ///
    /// # Memory
    ///
    /// 4 bytes for each weight of a product, or nothing.
    #[must_use]
    pub fn widened_for_products(self, layer: &Layer) -> BlockParams {
        if !self.params.iter().flatten().next().is_some_and(is_widened) {
            return self;
        }
        let _memory = memory::scope(MemoryKind::Weights);
        let widened = |(param_idx, x): (usize, Option<Tensor>)| {
            let is_of_product = x.is_some() && layer.is_of_product(param_idx);
            if is_of_product { x.map(|x| x.to_kind(Kind::Float)) } else { x }
        };
        let params = self.params.into_iter().enumerate().map(widened).collect();
        BlockParams { params, row_norms: self.row_norms }
    }

    /// One of [`Layer::params`].
    pub(crate) fn get(&self, param_idx: usize) -> &Tensor {
        self.params[param_idx].as_ref().expect("a weight is read while its unit is at hand")
    }

    /// A norm with its weights.
    pub(crate) fn norm(&self, norm: &Norm) -> norm::Norm<'_> {
        norm_of(norm, |param_idx| self.get(param_idx))
    }

    /// `x` `[s, in]` through a linear map, `[s, out]`.
    pub(crate) fn project(&self, map: &Linear, x: &Tensor) -> Tensor {
        let (weight, bias) = self.of(map);
        let Some(low_rank) = &map.low_rank else {
            return linear::forward(x, &weight, bias.as_ref());
        };
        let mut y = linear::forward(x, &weight, bias.as_ref().filter(|_| !low_rank.is_dora()));
        self.add_low_rank(map, low_rank, &mut y, x, bias.as_ref());
        y
    }

    /// [`BlockParams::project`] into `y`, which may be a part of a longer tensor.
    pub(crate) fn project_into(&self, y: &mut Tensor, map: &Linear, x: &Tensor) {
        let (weight, bias) = self.of(map);
        let Some(low_rank) = &map.low_rank else {
            return linear::forward_into(y, x, &weight, bias.as_ref());
        };
        linear::forward_into(y, x, &weight, bias.as_ref().filter(|_| !low_rank.is_dora()));
        self.add_low_rank(map, low_rank, y, x, bias.as_ref());
    }

    /// The gradient of `x` `[s, in]` from that of the result; those of weight, bias and adapter are added to `grads`.
    pub(crate) fn project_backward(
        &self,
        grads: &mut BlockGrads,
        map: &Linear,
        x: &Tensor,
        d_y: &Tensor,
    ) -> Tensor {
        grads.accumulate(map, x, d_y);
        let weight = self.of(map).0;
        let Some(low_rank) = &map.low_rank else { return linear::backward_input(d_y, &weight) };
        let d_z = self.low_rank_output_backward(grads, map, low_rank, x, d_y);
        let mut d_x = linear::backward_input(&d_z, &weight);
        self.add_low_rank_backward(grads, map, low_rank, x, &d_z, &mut d_x);
        d_x
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
        let weight = self.of(map).0;
        let Some(low_rank) = &map.low_rank else {
            return linear::add_backward_input(d_x, d_y, &weight);
        };
        let d_z = self.low_rank_output_backward(grads, map, low_rank, x, d_y);
        linear::add_backward_input(d_x, &d_z, &weight);
        self.add_low_rank_backward(grads, map, low_rank, x, &d_z, d_x);
    }

    /// Makes the result of a linear map of what its weight gives, with its bias unless the adapter is DoRA's.
    fn add_low_rank(
        &self,
        map: &Linear,
        low_rank: &LowRank,
        y: &mut Tensor,
        x: &Tensor,
        bias: Option<&Tensor>,
    ) {
        let b = self.rows(map, low_rank.b);
        self.low_rank(low_rank, &b).add_forward(y, x);
        if let Some(magnitude) = self.magnitude(map, low_rank) {
            magnitude.forward_(y);
            if let Some(bias) = bias {
                let _ = y.g_add_(bias);
            }
        }
    }

    /// The gradient of what weight and adapter give together, `[s, out]`, from that of the result; that of DoRA's magnitude is added.
    fn low_rank_output_backward(
        &self,
        grads: &mut BlockGrads,
        map: &Linear,
        low_rank: &LowRank,
        x: &Tensor,
        d_y: &Tensor,
    ) -> Tensor {
        let (Some(magnitude), Some(idx)) = (self.magnitude(map, low_rank), low_rank.magnitude)
        else {
            return d_y.shallow_clone();
        };
        let b = self.rows(map, low_rank.b);
        let mut z = linear::forward(x, &self.of(map).0, None);
        self.low_rank(low_rank, &b).add_forward(&mut z, x);
        grads.with_rows(map, idx, |d_magnitude| magnitude.backward(d_y, &z, d_magnitude))
    }

    /// Adds to `d_x` the gradient through the adapter, and those of A and B to `grads`.
    fn add_low_rank_backward(
        &self,
        grads: &mut BlockGrads,
        map: &Linear,
        low_rank: &LowRank,
        x: &Tensor,
        d_z: &Tensor,
        d_x: &mut Tensor,
    ) {
        let b = self.rows(map, low_rank.b);
        let op = self.low_rank(low_rank, &b);
        let mut d_a = grads.get(low_rank.a).map(|grad| grad.shallow_clone());
        grads.with_rows(map, low_rank.b, |d_b| op.add_backward(d_x, d_z, x, d_a.as_mut(), d_b));
    }

    /// An adapter whose B has the rows of a map.
    fn low_rank<'a>(&'a self, low_rank: &LowRank, b: &'a Tensor) -> low_rank::LowRank<'a> {
        low_rank::LowRank { a: self.get(low_rank.a), b, scale: low_rank.scale }
    }

    /// DoRA's magnitudes of the rows of a map.
    fn magnitude(&self, map: &Linear, low_rank: &LowRank) -> Option<Magnitude> {
        let idx = low_rank.magnitude?;
        let mut row_norms = self.row_norms.borrow_mut();
        let norms = row_norms.entry(idx).or_insert_with(|| {
            let whole = self.low_rank(low_rank, self.get(low_rank.b));
            whole.row_norms(self.get(map.weight))
        });
        Some(Magnitude { magnitude: self.rows(map, idx), norms: own_rows(map, norms) })
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
        (self.rows(map, map.weight), map.bias.map(|bias| self.rows(map, bias)))
    }

    /// The rows of one of [`Layer::params`] that a linear map has.
    fn rows(&self, map: &Linear, param_idx: usize) -> Tensor {
        own_rows(map, self.get(param_idx))
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
        self.with_rows(map, map.weight, |d_weight| linear::backward_params(d_y, x, d_weight, None));
        if let Some(bias) = map.bias {
            self.with_rows(map, bias, |d_bias| linear::backward_params(d_y, x, None, d_bias));
        }
    }

    /// Lets `add` add to the rows of a gradient that a linear map has; `None` if it is not wanted.
    fn with_rows<R>(
        &mut self,
        map: &Linear,
        param_idx: usize,
        add: impl FnOnce(Option<&mut Tensor>) -> R,
    ) -> R {
        let Some(grad) = &self.0[param_idx] else { return add(None) };
        let mut pieces = pieces_of(map, grad);
        if map.alternate.is_none() && map.of_stack.is_none() {
            return add(pieces.first_mut());
        }
        // A product adds to rows that follow each other, values of each next to each other.
        let dims_of_rows = if map.alternate.is_some() { 2 } else { 1 };
        let row_size = pieces.first().map(|piece| piece.size()[dims_of_rows..].to_vec());
        let size = [vec![map.out_features() as i64], row_size.unwrap_or_default()].concat();
        let mut following = Tensor::zeros(size, (grad.kind(), grad.device()));
        let added = add(Some(&mut following));
        let mut first = 0;
        for mut piece in pieces {
            let num_rows = piece.size()[..dims_of_rows].iter().product::<i64>();
            let _ = piece.g_add_(&following.narrow(0, first, num_rows).view_as(&piece));
            first += num_rows;
        }
        added
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

/// The rows of a weight or bias that a linear map has, `[out, ..]`, sharing memory unless they alternate with others.
fn own_rows(map: &Linear, x: &Tensor) -> Tensor {
    let mut pieces = pieces_of(map, x);
    if map.alternate.is_some() {
        pieces = pieces.into_iter().map(|runs| runs.flatten(0, 1)).collect();
    }
    if pieces.len() == 1 { pieces.remove(0) } else { Tensor::cat(&pieces, 0) }
}

/// The rows of a weight or bias that a linear map has, in pieces that share its memory: one `[out, ..]`, or where they alternate with those of
/// others `[runs, rows of a run, ..]`, with a piece of its own for a part of a run at either end.
fn pieces_of(map: &Linear, x: &Tensor) -> Vec<Tensor> {
    let x = match map.of_stack {
        Some(map_idx) if x.dim() > 2 => x.get(map_idx as i64).tr(),
        Some(map_idx) => x.get(map_idx as i64),
        None if x.dim() > 2 => x.flatten(0, -2),
        None => x.shallow_clone(),
    };
    let [mut row, end] = [map.rows.start, map.rows.end].map(|row| row as i64);
    let Some(alternate) = &map.alternate else { return vec![x.narrow(0, row, end - row)] };
    let [run, stride, offset] =
        [alternate.len, alternate.stride, alternate.offset].map(|rows| rows as i64);
    let mut pieces = Vec::new();
    while row < end {
        let in_run = row % run;
        let (num_runs, len) = if in_run == 0 && end - row >= run {
            ((end - row) / run, run)
        } else {
            (1, (run - in_run).min(end - row))
        };
        let runs = x.narrow(0, row / run * stride, num_runs * stride);
        pieces.push(runs.unflatten(0, [num_runs, stride]).narrow(1, offset + in_run, len));
        row += num_runs * len;
    }
    pieces
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
