//! Rotary position embedding: pairs of values of a head turn by an angle that grows with the position.

use sterna_arch::RopeLayout;
use sterna_torch_sys::{copies::upload, kernels};
use tch::{Kind, Tensor};

use crate::KERNEL;

/// The angles of a run of tokens, as cosines and sines `[s, 1, r]`, both halves of a row alike.
///
/// `r` values of a head turn, its first.
#[derive(Debug)]
pub struct RopeTable {
    layout: RopeLayout,
    cos: Tensor,
    sin: Tensor,
    /// `[s, 1, 1]`.
    query_scale: Option<Tensor>,
}

impl RopeTable {
    /// Computes the table of the given positions.
    ///
    /// `inv_freq` holds the `r/2` inverse frequencies; `attention_factor` multiplies cosines and sines (yarn; 1 elsewhere).
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
        layout: RopeLayout,
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
            layout,
            cos: (angles.cos() * attention_factor).to_kind(kind),
            sin: (angles.sin() * attention_factor).to_kind(kind),
            query_scale: None,
        }
    }

    /// The same table, with a factor for each token's queries, `[s]` in single precision.
    ///
    /// # Panics
    ///
    /// If there is not one factor for each token.
    #[must_use]
    pub fn with_query_scale(mut self, scale: &Tensor) -> RopeTable {
        self.query_scale = Some(scale.to_kind(self.cos.kind()).view([self.len(), 1, 1]));
        self
    }

    /// What queries are multiplied by after they have turned, `[s, 1, 1]`.
    pub fn query_scale(&self) -> Option<&Tensor> {
        self.query_scale.as_ref()
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
        let [cos, sin] = [&self.cos, &self.sin].map(|x| x.narrow(0, start, len));
        let query_scale = self.query_scale.as_ref().map(|x| x.narrow(0, start, len));
        RopeTable { layout: self.layout, cos, sin, query_scale }
    }
}

/// Turns every head of `x`: each pair `(a, b)` becomes `(a cos - b sin, b cos + a sin)`.
///
/// Pairs of neighbours come back as halves, all first values and then all second: the same order for queries and keys leaves
/// their products as they are, and nothing else reads them.
///
/// # Shapes
///
/// `x` `[s, n, h]`; returns the same.
///
/// # Panics
///
/// If `x` and the table have different lengths, or the heads are narrower than what turns.
pub fn forward(x: &Tensor, table: &RopeTable) -> Tensor {
    with_rest(x, table, |x| match table.layout {
        RopeLayout::Halves => rotate_halves(x, &table.cos, &table.sin, false),
        RopeLayout::Pairs => {
            let [cos, sin] = table.of_pairs();
            let pairs = x.unflatten(2, [-1, 2]);
            let (a, b) = (pairs.select(3, 0), pairs.select(3, 1));
            Tensor::cat(&[&a * &cos - &b * &sin, b * cos + a * sin], 2)
        }
    })
}

/// The gradient of `x`: the rotation the other way.
///
/// # Shapes
///
/// `d_y` `[s, n, h]`; returns the same.
///
/// # Panics
///
/// As [`forward`].
pub fn backward(d_y: &Tensor, table: &RopeTable) -> Tensor {
    with_rest(d_y, table, |d_y| match table.layout {
        // dL/dx = d_y * cos + rotate_half^T(d_y * sin), and since both halves of a row of `sin` are equal, the latter is
        // -rotate_half(d_y) * sin.
        RopeLayout::Halves => rotate_halves(d_y, &table.cos, &table.sin, true),
        RopeLayout::Pairs => {
            let [cos, sin] = table.of_pairs();
            let half = d_y.size()[2] / 2;
            let (a, b) = (d_y.narrow(2, 0, half), d_y.narrow(2, half, half));
            Tensor::stack(&[&a * &cos + &b * &sin, b * cos - a * sin], 3).flatten(2, 3)
        }
    })
}

impl RopeTable {
    /// Cosines and sines of each pair once, `[s, 1, r/2]`.
    fn of_pairs(&self) -> [Tensor; 2] {
        [&self.cos, &self.sin].map(|x| x.narrow(2, 0, x.size()[2] / 2))
    }
}

/// Applies `turn` to what turns of each head, and leaves the rest as it is.
fn with_rest(x: &Tensor, table: &RopeTable, turn: impl Fn(&Tensor) -> Tensor) -> Tensor {
    let (size, table_size) = (x.size(), table.cos.size());
    assert!(
        size.len() == 3 && size[0] == table_size[0] && size[2] >= table_size[2],
        "rope: x is {size:?} and the table {table_size:?}, which must be [s, n, h] and [s, 1, r] with r at most h"
    );
    // A table in single precision turns in it, and the result is rounded once.
    let (width, table_kind) = (table_size[2], table.cos.kind());
    let turn = |x: &Tensor| turn(&x.to_kind(table_kind)).to_kind(x.kind());
    if size[2] == width {
        return turn(x);
    }
    let rest = x.narrow(2, width, size[2] - width);
    Tensor::cat(&[turn(&x.narrow(2, 0, width)), rest], 2)
}

/// `x * cos + rotate_half(x) * sin`, where `rotate_half([a, b]) = [-b, a]`.
fn rotate_halves(x: &Tensor, cos: &Tensor, sin: &Tensor, inverse: bool) -> Tensor {
    if kernels::supports(&[x, cos, sin]) {
        let x = if x.stride()[2] == 1 { x.shallow_clone() } else { x.contiguous() };
        return kernels::rope(&x, cos, sin, inverse).expect(KERNEL);
    }
    let half = x.size()[2] / 2;
    let (a, b) = (x.narrow(2, 0, half), x.narrow(2, half, half));
    let turned =
        if inverse { Tensor::cat(&[&b, &a.neg()], 2) } else { Tensor::cat(&[&b.neg(), &a], 2) };
    let mut y = x * cos;
    let _ = y.g_add_(&(turned * sin));
    y
}
