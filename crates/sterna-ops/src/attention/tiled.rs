//! Exact attention from matrix products of tiles, on any device and in any dtype.
//!
//! For what no fused kernel of a CUDA device takes, single and double precision and head sizes that are not multiples of 8, and for
//! softcapped scores on any device. A tile of scores is in memory at a time, for all heads of a call; queries and keys outside of each other's sight are never
//! multiplied. Several launches for each tile, so it is far from fused kernels in speed.

use std::ops::Range;

use sterna_torch_sys::attention::VisibleKeys;
use tch::{Kind, Tensor};

use crate::tile::tiles;
use crate::{accumulate_kind, softcap};

/// Queries and keys of a tile. With 32 heads its scores are 32 MiB in single precision; the backward has four like it.
const TILE_LEN: i64 = 512;

/// Below every score, and finite, so that differences of maxima are never infinite minus infinite.
const LOWEST: f64 = -1e30;

/// Writes `o` `[kv, group, queries, h]` and `lse` `[kv, group, queries]`.
///
/// `q` `[kv, group, queries, h]`, `k` and `v` `[kv, keys, h]`. Each query sees a key.
pub(super) fn forward(
    [q, k, v]: [&Tensor; 3],
    [o, lse]: [&Tensor; 2],
    visible: VisibleKeys,
    scale: f64,
    cap: Option<f64>,
) {
    let kind = accumulate_kind(q.kind());
    let [num_queries, num_keys] = [q.size()[2], k.size()[1]];
    for rows in tiles(num_queries, TILE_LEN) {
        let q = rows_of(q, &rows).to_kind(kind) * scale;
        let mut max = Tensor::full(&q.size()[..3], LOWEST, (kind, q.device()));
        let (mut sum, mut total) = (max.zeros_like(), q.zeros_like());
        for columns in visible_tiles(&rows, num_keys, visible) {
            let [k, v] = [k, v].map(|x| columns_of(x, &columns, kind));
            let scores = hidden(capped(&q, &k, cap), &rows, &columns, visible);
            let max_here = max.maximum(&scores.amax(-1_i64, false));
            let shrink = (&max - &max_here).exp();
            let p = (scores - max_here.unsqueeze(-1)).exp();
            sum = sum * &shrink + p.sum_dim_intlist(-1_i64, false, kind);
            total = total * shrink.unsqueeze(-1) + p.matmul(&v);
            max = max_here;
        }
        rows_of(o, &rows).copy_(&(total / sum.unsqueeze(-1)));
        lse.narrow(2, rows.start, rows.end - rows.start).copy_(&(max + sum.log()));
    }
}

/// Adds to `d_q` `[kv, group, queries, h]` and returns `d_k` and `d_v` `[kv, group, keys, h]`, in single precision (double for
/// double). `o` and `lse` may be those of more keys.
pub(super) fn backward(
    [d_o, q, k, v, o, lse]: [&Tensor; 6],
    d_q: &Tensor,
    visible: VisibleKeys,
    scale: f64,
    cap: Option<f64>,
) -> (Tensor, Tensor) {
    let kind = accumulate_kind(q.kind());
    let [num_kv, group_size, num_queries, h] = q.size()[..] else {
        unreachable!("q is [kv, group, queries, h]")
    };
    let num_keys = k.size()[1];
    let d_k = Tensor::zeros([num_kv, group_size, num_keys, h], (kind, q.device()));
    let d_v = d_k.zeros_like();
    for rows in tiles(num_queries, TILE_LEN) {
        let [d_o, o] = [d_o, o].map(|x| rows_of(x, &rows).to_kind(kind));
        let q = rows_of(q, &rows).to_kind(kind) * scale;
        let lse = lse.narrow(2, rows.start, rows.end - rows.start).unsqueeze(-1);
        // What a gradient of a score reads of all other keys.
        let d_o_dot_o = (&d_o * o).sum_dim_intlist(-1_i64, true, kind);
        let mut d_q_rows = q.zeros_like();
        for columns in visible_tiles(&rows, num_keys, visible) {
            let [k, v] = [k, v].map(|x| columns_of(x, &columns, kind));
            let capped = capped(&q, &k, cap);
            let slope = cap.map(|cap| softcap::slope_(capped.copy(), cap));
            let p = (hidden(capped, &rows, &columns, visible) - &lse).exp();
            let mut d_scores = &p * (d_o.matmul(&v.transpose(-2, -1)) - &d_o_dot_o);
            if let Some(slope) = slope {
                d_scores *= slope;
            }
            let _ = rows_of(&d_v, &columns).g_add_(&p.transpose(-2, -1).matmul(&d_o));
            // `q` is scaled already.
            let _ = rows_of(&d_k, &columns).g_add_(&d_scores.transpose(-2, -1).matmul(&q));
            d_q_rows += d_scores.matmul(&k) * scale;
        }
        let _ = rows_of(d_q, &rows).g_add_(&d_q_rows);
    }
    (d_k, d_v)
}

fn rows_of(x: &Tensor, rows: &Range<i64>) -> Tensor {
    x.narrow(2, rows.start, rows.end - rows.start)
}

/// Some of `[kv, keys, h]`, as `[kv, 1, columns, h]`: the product with a group repeats nothing in memory that it need not.
fn columns_of(x: &Tensor, columns: &Range<i64>, kind: Kind) -> Tensor {
    x.narrow(1, columns.start, columns.end - columns.start).to_kind(kind).unsqueeze(1)
}

/// The tiles of keys of which some query of `rows` sees a part.
fn visible_tiles(
    rows: &Range<i64>,
    num_keys: i64,
    VisibleKeys { keys_before, window }: VisibleKeys,
) -> impl Iterator<Item = Range<i64>> + use<> {
    let first = (rows.start + keys_before - (window - 1)).max(0);
    let end = (rows.end + keys_before).min(num_keys);
    tiles((end - first).max(0), TILE_LEN).map(move |tile| first + tile.start..first + tile.end)
}

/// The scores of a tile. `q` is scaled.
fn capped(q: &Tensor, k: &Tensor, cap: Option<f64>) -> Tensor {
    let scores = q.matmul(&k.transpose(-2, -1));
    match cap {
        Some(cap) => softcap::forward_(scores, cap),
        None => scores,
    }
}

/// Scores, and minus infinity where a query does not see a key.
fn hidden(
    scores: Tensor,
    rows: &Range<i64>,
    columns: &Range<i64>,
    VisibleKeys { keys_before, window }: VisibleKeys,
) -> Tensor {
    // How far a query is behind a key: of the first query and the last key, and of the last and the first.
    let (least, most) =
        (rows.start + keys_before - (columns.end - 1), rows.end - 1 + keys_before - columns.start);
    if 0 <= least && most < window {
        return scores;
    }
    let places = |range: &Range<i64>| {
        Tensor::arange_start(range.start, range.end, (Kind::Int64, scores.device()))
    };
    let behind = (places(rows) + keys_before).unsqueeze(-1) - places(columns);
    let is_hidden = behind.lt(0).logical_or(&behind.ge(window));
    scores.masked_fill(&is_hidden, f64::NEG_INFINITY)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(shape: &[i64], seed: f64) -> Tensor {
        let numel: i64 = shape.iter().product();
        let noise: Tensor =
            Tensor::arange(numel, (Kind::Double, tch::Device::Cpu)) * 12.9898 + seed;
        (noise.sin() * 43_758.545_3).frac().view(shape)
    }

    fn assert_close(actual: &Tensor, expected: &Tensor) {
        assert_eq!(actual.size(), expected.size());
        let difference = (actual - expected).abs().max().double_value(&[]);
        assert!(difference < 1e-12, "differs by {difference:e}");
    }

    /// Against an explicit softmax over an explicit mask, and its gradients as formulas of whole matrices.
    fn check(num_queries: i64, num_keys: i64, keys_before: i64, window: i64, cap: Option<f64>) {
        let (num_kv, group, h) = (2, 3, 4);
        let q = random(&[num_kv, group, num_queries, h], 1.0) * 3.0;
        let d_o = random(&q.size(), 2.0);
        let [k, v] = [3.0, 4.0].map(|seed| random(&[num_kv, num_keys, h], seed) * 2.0);
        let visible = VisibleKeys { keys_before, window };
        let (o, lse) = (q.zeros_like(), random(&q.size()[..3], 0.0));
        forward([&q, &k, &v], [&o, &lse], visible, 0.7, cap);

        let hidden: Vec<f64> = (0..num_queries)
            .flat_map(|i| (0..num_keys).map(move |j| i + keys_before - j))
            .map(|behind| if (0..window).contains(&behind) { 0.0 } else { f64::NEG_INFINITY })
            .collect();
        let mask = Tensor::from_slice(&hidden).view([num_queries, num_keys]);
        let [k_all, v_all] = [&k, &v].map(|x| x.unsqueeze(1).expand([-1, group, -1, -1], false));
        let uncapped = q.matmul(&k_all.transpose(-2, -1)) * 0.7;
        let (capped, slope) = match cap {
            Some(cap) => {
                let tanh = (uncapped / cap).tanh();
                (&tanh * cap, 1.0 - tanh.square())
            }
            None => (uncapped.copy(), uncapped.ones_like()),
        };
        let scores = capped + mask;
        let p = scores.softmax(-1, None::<Kind>);
        assert_close(&o, &p.matmul(&v_all));
        assert_close(&lse, &scores.logsumexp(-1_i64, false));

        let d_q = q.ones_like();
        let (d_k, d_v) = backward([&d_o, &q, &k, &v, &o, &lse], &d_q, visible, 0.7, cap);
        let d_p = d_o.matmul(&v_all.transpose(-2, -1));
        let mean = (&p * &d_p).sum_dim_intlist(-1_i64, true, Kind::Double);
        let d_scores = &p * (d_p - mean) * slope * 0.7;
        assert_close(&d_q, &(d_scores.matmul(&k_all) + 1.0));
        assert_close(&d_k, &d_scores.transpose(-2, -1).matmul(&q));
        assert_close(&d_v, &p.transpose(-2, -1).matmul(&d_o));
    }

    #[test]
    fn triangles_rectangles_and_windows_of_one_and_many_tiles() {
        let none = VisibleKeys::NO_WINDOW;
        for (num_queries, num_keys, keys_before, window) in [
            (7, 7, 0, none),
            (5, 9, 4, none),
            (5, 9, 8, none),
            (1, 1, 0, 1),
            (9, 9, 0, 3),
            (6, 10, 6, 9),
            (TILE_LEN + 3, TILE_LEN + 3, 0, none),
            (TILE_LEN + 3, TILE_LEN + 30, 27, 40),
            (30, 2 * TILE_LEN, 2 * TILE_LEN - 30, none),
        ] {
            check(num_queries, num_keys, keys_before, window, None);
            check(num_queries, num_keys, keys_before, window, Some(1.5));
        }
    }
}
