//! Rotary position embedding in the half-split layout of Hugging Face weights: dimension `i` turns with `i + h/2`.

use sterna_torch_sys::{copies::upload, kernels};
use tch::{Kind, Tensor};

use crate::KERNEL;

/// The angles of a run of tokens, as cosines and sines `[s, 1, h]` in the dtype of the activations.
#[derive(Debug)]
pub struct RopeTable {
    cos: Tensor,
    sin: Tensor,
}

impl RopeTable {
    /// Computes the table of the given positions.
    ///
    /// `inv_freq` holds the `h/2` inverse frequencies; `attention_factor` multiplies cosines and sines (yarn; 1 elsewhere).
    ///
    /// # Shapes
    ///
    /// `position_ids` `[s]`, integers.
    ///
    /// # Numerics
    ///
    /// As transformers: angles, cosines and sines in single precision, then rounded to `kind`. A `kind` of double computes in
    /// double throughout.
    ///
    /// # Panics
    ///
    /// If `position_ids` has more than one dimension.
    pub fn new(
        position_ids: &Tensor,
        inv_freq: &[f32],
        attention_factor: f64,
        kind: Kind,
    ) -> RopeTable {
        assert!(
            position_ids.dim() == 1,
            "rope: position_ids is {:?}, which must be [s]",
            position_ids.size()
        );
        let compute_kind = crate::accumulate_kind(kind);
        let inv_freq = Tensor::from_slice(inv_freq).to_kind(compute_kind);
        let inv_freq = upload(inv_freq, position_ids.device());
        let angles = position_ids.to_kind(compute_kind).outer(&inv_freq);
        let angles = Tensor::cat(&[&angles, &angles], -1).unsqueeze(1);
        RopeTable {
            cos: (angles.cos() * attention_factor).to_kind(kind),
            sin: (angles.sin() * attention_factor).to_kind(kind),
        }
    }

    /// The number of tokens.
    pub fn len(&self) -> i64 {
        self.cos.size()[0]
    }

    /// Whether there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The table of tokens `start..start + len`, sharing memory with this one.
    ///
    /// # Panics
    ///
    /// If the table is shorter.
    #[must_use]
    pub fn narrow(&self, start: i64, len: i64) -> RopeTable {
        RopeTable { cos: self.cos.narrow(0, start, len), sin: self.sin.narrow(0, start, len) }
    }
}

/// Turns every head of `x`: `y = x * cos + rotate_half(x) * sin`, where `rotate_half([a, b]) = [-b, a]`.
///
/// # Shapes
///
/// `x` `[s, n, h]`; returns the same.
///
/// # Panics
///
/// If `x` and the table have different lengths or head sizes.
pub fn forward(x: &Tensor, table: &RopeTable) -> Tensor {
    rotate(x, &table.cos, &table.sin, false)
}

/// The gradient of `x`: the rotation the other way.
///
/// `dL/dx = d_y * cos + rotate_half^T(d_y * sin)`, and since both halves of a row of `sin` are equal, `rotate_half^T(d_y * sin)`
/// is `-rotate_half(d_y) * sin`.
///
/// # Shapes
///
/// `d_y` `[s, n, h]`; returns the same.
///
/// # Panics
///
/// If `d_y` and the table have different lengths or head sizes.
pub fn backward(d_y: &Tensor, table: &RopeTable) -> Tensor {
    rotate(d_y, &table.cos, &table.sin, true)
}

fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor, inverse: bool) -> Tensor {
    let (x_size, table_size) = (x.size(), cos.size());
    assert!(
        x_size.len() == 3 && x_size[0] == table_size[0] && x_size[2] == table_size[2],
        "rope: x is {x_size:?} and the table {table_size:?}, which must be [s, n, h] and [s, 1, h]"
    );
    if kernels::supports(&[x, cos, sin]) {
        let x = if x.stride()[2] == 1 { x.shallow_clone() } else { x.contiguous() };
        return kernels::rope(&x, cos, sin, inverse).expect(KERNEL);
    }
    let half = x_size[2] / 2;
    let (a, b) = (x.narrow(2, 0, half), x.narrow(2, half, half));
    let turned =
        if inverse { Tensor::cat(&[&b, &a.neg()], 2) } else { Tensor::cat(&[&b.neg(), &a], 2) };
    let mut y = x * cos;
    let _ = y.g_add_(&(turned * sin));
    y
}
