//! Attention sinks: one more score for every query, of a key whose value is nothing, so that a head may attend to less than all.
//!
//! With `s` the sink of a head, the probabilities are `exp(score - lse')` with `lse' = ln(exp(lse) + exp(s))`: those of attention
//! without the sink times `exp(lse - lse')`, and so is the output. The backward of attention works from output and log-sum-exp, and
//! neither says how many scores there were: fed `o'` and `lse'` it gives the gradients of queries, keys and values as they are with
//! the sink. No kernel has to know of it, whether it runs at once or streamed.
//!
//! Source: Xiao and others 2023, <https://arxiv.org/abs/2309.17453>, section 3.3, with a score for each head in place of a zero.

use tch::{Kind, Tensor};

use super::accumulate_kind;
use crate::tile::tiles;

/// Tokens whose output exists once more in single precision.
const TILE_LEN: i64 = 8192;

/// Makes `o` and `lse` of attention those of attention with sinks, in place: `lse' = ln(exp(lse) + exp(s))`, `o' = o exp(lse - lse')`.
///
/// # Shapes
///
/// `o` `[s, n, h]`, `lse` `[n, s]`, `sinks` `[n]`, of any dtype.
///
/// # Memory
///
/// The output of 8,192 tokens in single precision.
///
/// # Numerics
///
/// Factors are in the dtype of `lse`; the output is rounded to its dtype once more.
///
/// # Panics
///
/// If the shapes do not fit.
pub fn forward(o: &Tensor, lse: &Tensor, sinks: &Tensor) {
    assert_fits(o, lse, sinks);
    let sinks = sinks.to_kind(lse.kind()).unsqueeze(-1);
    for tile in tiles(o.size()[0], TILE_LEN) {
        let (start, len) = (tile.start, tile.end - tile.start);
        let mut lse = lse.narrow(1, start, len);
        let with_sinks = lse.logaddexp(&sinks);
        let factor = (&lse - &with_sinks).exp_().tr().unsqueeze(-1);
        let mut o = o.narrow(0, start, len);
        let scaled = &o * factor;
        o.copy_(&scaled);
        lse.copy_(&with_sinks);
    }
}

/// Adds the gradient of the sinks to `d_sinks`: `dL/ds -= sum over queries of exp(s - lse') * (d_o . o')`.
///
/// A sink has the probability `exp(s - lse')` and no value, so of what attention's backward has for a key, `p (d_o . v - d_o . o')`,
/// the second term is left.
///
/// # Shapes
///
/// `d_o` and `o` `[s, n, h]`, `lse` `[n, s]`, both as [`forward`] leaves them; `sinks` and `d_sinks` `[n]`.
///
/// # Memory
///
/// As [`forward`].
///
/// # Numerics
///
/// Products and sums are in the dtype of `lse`.
///
/// # Panics
///
/// If the shapes do not fit.
pub fn backward(d_o: &Tensor, o: &Tensor, lse: &Tensor, sinks: &Tensor, d_sinks: &mut Tensor) {
    assert_fits(o, lse, sinks);
    assert!(
        d_o.size() == o.size() && d_sinks.size() == sinks.size(),
        "sinks: gradients are {:?} and {:?}, which must be as {:?} and {:?}",
        d_o.size(),
        d_sinks.size(),
        o.size(),
        sinks.size()
    );
    let kind: Kind = accumulate_kind(o.kind());
    let sinks = sinks.to_kind(lse.kind()).unsqueeze(-1);
    for tile in tiles(o.size()[0], TILE_LEN) {
        let of = |x: &Tensor, dim: i64| x.narrow(dim, tile.start, tile.end - tile.start);
        // A product in half precision would round what is summed.
        let along = (of(d_o, 0).to_kind(kind) * of(o, 0)).sum_dim_intlist(-1_i64, false, kind);
        let p = (&sinks - of(lse, 1)).exp_();
        let _ = d_sinks.g_sub_(&(p * along.tr()).sum_dim_intlist(-1_i64, false, kind));
    }
}

fn assert_fits(o: &Tensor, lse: &Tensor, sinks: &Tensor) {
    let (o, lse, sinks) = (o.size(), lse.size(), sinks.size());
    assert!(
        o.len() == 3 && lse == [o[1], o[0]] && sinks == [o[1]],
        "sinks: o is {o:?}, lse {lse:?}, sinks {sinks:?}, which must be [s, n, h], [n, s], [n]"
    );
}
