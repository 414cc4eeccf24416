//! A short causal convolution of each channel by itself, and the activation after it: a token sees the last few of its document.

use std::ops::Range;

use sterna_torch_sys::copies::upload;
use tch::{Kind, Tensor};

use crate::attention::Documents;
use crate::tile::tiles;
use crate::{accumulate_kind, upcast};

/// `y_t = silu(sum over j of weight_j * x_(t - w + 1 + j))`, without what lies before the document of token `t`.
///
/// # Shapes
///
/// `x` `[s, c]`, `weight` `[c, w]`; returns `[s, c]` in the dtype of `x`.
///
/// # Numerics
///
/// Single precision (double for double), rounded once.
///
/// # Panics
///
/// If the shapes and the documents do not fit each other.
///
/// # Source
///
/// transformers `causal_conv1d_fn`, document by document.
pub fn forward(x: &Tensor, weight: &Tensor, documents: &Documents) -> Tensor {
    let conv = Conv::new(x, weight, documents);
    let y = Tensor::empty(x.size(), (x.kind(), x.device()));
    for tile in conv.tiles() {
        let z = conv.before_activation(x, &tile);
        narrow(&y, &tile).copy_(&z.silu());
    }
    y
}

/// The gradient of `x` from that of `y`; that of the weight is added to `d_weight`.
///
/// With `z` what [`forward`] gives to the activation and `d_z = d_y * silu'(z)`:
/// `dL/dx_t = sum over j of weight_j * d_z_(t + w - 1 - j)`, `dL/dweight_j = sum over t of d_z_t * x_(t - w + 1 + j)`, both within
/// documents.
///
/// # Shapes
///
/// `d_y` and `x` `[s, c]`, `weight` and `d_weight` `[c, w]`; returns `[s, c]` in the dtype of `x`.
///
/// # Numerics
///
/// Single precision (double for double), rounded once.
///
/// # Panics
///
/// As [`forward`].
pub fn backward(
    d_y: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    documents: &Documents,
    d_weight: Option<&mut Tensor>,
) -> Tensor {
    let conv = Conv::new(x, weight, documents);
    let (num_tokens, width) = (x.size()[0], conv.columns.len() as i64);
    let d_x = Tensor::empty(x.size(), (x.kind(), x.device()));
    let mut sums: Vec<Tensor> = conv.columns.iter().map(Tensor::zeros_like).collect();
    for tile in conv.tiles() {
        let len = tile.end - tile.start;
        // Tokens after the tile read its last ones.
        let reached = tile.start..num_tokens.min(tile.end + width - 1);
        let z = conv.before_activation(x, &reached);
        let d_z = z.silu_backward(&upcast(&narrow(d_y, &reached)));
        let of_tile = d_z.narrow(0, 0, len);
        let d_x_tile = &of_tile * &conv.columns[0];
        for (lag, column) in (0..).zip(&conv.columns).skip(1) {
            let len = (reached.end - tile.start - lag).min(len);
            if len > 0 {
                let later = d_z.narrow(0, lag, len) * conv.sees(lag, tile.start + lag, len);
                let _ = d_x_tile.narrow(0, 0, len).addcmul_(&later, column);
            }
        }
        narrow(&d_x, &tile).copy_(&d_x_tile);
        if d_weight.is_some() {
            for (lag, sum) in (0..).zip(&mut sums) {
                let first = tile.start.max(lag);
                let len = tile.end - first;
                if len > 0 {
                    let earlier = upcast(&x.narrow(0, first - lag, len));
                    let earlier =
                        if lag == 0 { earlier } else { earlier * conv.sees(lag, first, len) };
                    let products = d_z.narrow(0, first - tile.start, len) * earlier;
                    let _ = sum.g_add_(&products.sum_dim_intlist(0_i64, false, None::<Kind>));
                }
            }
        }
    }
    if let Some(d_weight) = d_weight {
        sums.reverse();
        let _ = d_weight.g_add_(&Tensor::stack(&sums, 1));
    }
    d_x
}

/// The weight by lags, and which tokens see how far.
struct Conv {
    num_channels: i64,
    num_tokens: i64,
    /// Of each lag from 0, what multiplies the token so far before, `[c]`.
    columns: Vec<Tensor>,
    /// Of each lag from 1, 1 for tokens whose document is that long before them and 0 for others, `[s, 1]`.
    sees: Vec<Tensor>,
}

impl Conv {
    fn new(x: &Tensor, weight: &Tensor, documents: &Documents) -> Conv {
        let (size, of_weight) = (x.size(), weight.size());
        assert!(
            size.len() == 2 && of_weight.len() == 2 && size[1] == of_weight[0],
            "convolution: x is {size:?} and the weight {of_weight:?}, which must be [s, c] and [c, w]"
        );
        let num_tokens = documents.num_tokens();
        assert!(
            num_tokens == size[0],
            "convolution: documents cover {num_tokens} tokens of {}",
            size[0]
        );
        let weight = upcast(weight);
        let width = of_weight[1];
        let columns = (0..width).rev().map(|column| weight.select(1, column).contiguous());
        let positions: Vec<i64> =
            documents.ranges().iter().flat_map(|range| 0..range.end - range.start).collect();
        let positions = upload(Tensor::from_slice(&positions), x.device()).unsqueeze(1);
        let kind = accumulate_kind(x.kind());
        Conv {
            num_channels: size[1],
            num_tokens,
            columns: columns.collect(),
            sees: (1..width).map(|lag| positions.ge(lag).to_kind(kind)).collect(),
        }
    }

    /// Rows that are single precision at one time.
    fn tiles(&self) -> impl Iterator<Item = Range<i64>> + use<> {
        tiles(self.num_tokens, ((1 << 18) / self.num_channels.max(1)).max(1))
    }

    fn sees(&self, lag: i64, start: i64, len: i64) -> Tensor {
        self.sees[lag as usize - 1].narrow(0, start, len)
    }

    /// The sums of a tile's tokens, in single precision or better.
    fn before_activation(&self, x: &Tensor, tile: &Range<i64>) -> Tensor {
        let seen = 0.max(tile.start + 1 - self.columns.len() as i64);
        let read = upcast(&narrow(x, &(seen..tile.end)));
        let z = narrow(&read, &(tile.start - seen..tile.end - seen)) * &self.columns[0];
        for (lag, column) in (0..).zip(&self.columns).skip(1) {
            let first = tile.start.max(lag);
            let len = tile.end - first;
            if len > 0 {
                let earlier = read.narrow(0, first - lag - seen, len) * self.sees(lag, first, len);
                let _ = z.narrow(0, first - tile.start, len).addcmul_(&earlier, column);
            }
        }
        z
    }
}

fn narrow(x: &Tensor, tokens: &Range<i64>) -> Tensor {
    x.narrow(0, tokens.start, tokens.end - tokens.start)
}
