//! The rule on a run of chunks: the algebra of a chunk, and the two passes along the states, forward and backward.
//!
//! Of one chunk and head, with a row for each of the `C` tokens in `Q`, `K` `[C, h_k]`, `V` `[C, h_v]`; `Q` and `K` normalised, `Q`
//! scaled; `y_t` the sum of `g` up to token `t`, and `S` `[h_k, h_v]` the state before the chunk:
//!
//! ```text
//! G_ts = exp(y_t - y_s) for s <= t           decay from token s to t
//! A = G o (K K^T), below the diagonal        L = beta A
//! P = G o (Q K^T), with the diagonal
//! K1 = exp(y) K       Q1 = exp(y) Q          as they read S
//! K2 = exp(y_C - y) K                        as they enter the next state
//! E = V - K1 S                               what S does not know
//! D = (I + L)^-1 (beta E) = U - W S          what is written, where U = (I + L)^-1 beta V and W = (I + L)^-1 beta K1
//! O = Q1 S + P D
//! S' = exp(y_C) S + K2^T D
//! ```
//!
//! `U` and `W` need no state: they are computed for all chunks at once, and only `D` and `S'` follow each other. Backward, with `Z'` the
//! gradient of `S'` and `Z` that of `S`:
//!
//! ```text
//! dD = P^T dO + K2 Z'
//! Z  = exp(y_C) Z' + Q1^T dO - W^T dD        these two follow each other, the rest is for all chunks at once
//! dR = (I + L)^-T dD                         R = beta E
//! dL = -dR D^T, below the diagonal           since (I + L) D = R
//! dbeta = rows of dR o E + rows of dL o A    dV = beta dR
//! dP = dO D^T, with the diagonal             dQ1 = dO S^T       dK1 = -dV S^T       dK2 = D Z'^T
//! X = beta dL o G      Y = dP o G
//! dQ = exp(y) dQ1 + Y K
//! dK = exp(y) dK1 + exp(y_C - y) dK2 + (X + X^T) K + Y^T Q
//! dy = rows of (dL o L + dP o P) - columns of the same + rows of (dQ1 o Q1 + dK1 o K1 - dK2 o K2)
//! dy_C += sum of dK2 o K2 + exp(y_C) sum of Z' o S
//! dg_s = sum of dy_t over t >= s
//! ```
//!
//! No exponent is above 0. A place without a token has `beta` and `g` 0: it writes nothing, decays nothing, and its output is left out.

use tch::{Kind, Tensor};

use super::chunks::{CHUNK_LEN, Segment};
use super::{Gradients, Inputs};
use crate::l2_norm;

/// What a run has computed forward, `[chunks * n, 64, ..]` each.
pub(super) struct Computed {
    /// Value heads, `n`.
    num_heads: i64,
    q: Normalised,
    k: Normalised,
    v: Tensor,
    /// `[.., 64, 1]`, as the next three.
    beta: Tensor,
    /// `exp(y)`.
    decay: Tensor,
    /// `exp(y_C - y)`.
    decay_after: Tensor,
    /// `exp(y_C)`, `[.., 1, 1]`.
    decay_of_chunk: Tensor,
    /// `G`, `[.., 64, 64]`; zeros above the diagonal.
    decays: Tensor,
    /// `K K^T`, of which only what is below the diagonal is read.
    gram: Tensor,
    /// `P`, `[.., 64, 64]`.
    p: Tensor,
    /// `(I + L)^-1`, `[.., 64, 64]`.
    inverse: Tensor,
    /// `-W`, `[.., 64, h_k]`.
    minus_w: Tensor,
    /// `D`, `[.., 64, h_v]`.
    d: Tensor,
    /// `S` before each chunk and after the last, `[(chunks + 1) * n, h_k, h_v]`.
    states: Tensor,
}

/// Queries or keys.
struct Normalised {
    /// Of their own heads, `[chunks, k, 64, h_k]`.
    own: Tensor,
    /// One over their length, `[chunks, k, 64, 1]`.
    r: Tensor,
    /// As value heads read them, `[chunks * n, 64, h_k]`; queries scaled.
    read: Tensor,
    scale: Option<f64>,
    /// Which head each value head reads; `None` if each has its own.
    map: Option<Tensor>,
}

impl Normalised {
    fn new(segment: &Segment, x: &Tensor, map: Option<&Tensor>, scale: Option<f64>) -> Self {
        let (own, r) = l2_norm::forward(&segment.take(x));
        let read = Self::of_values(&own, map).flatten(0, 1);
        let read = match scale {
            Some(scale) => read * scale,
            None => read,
        };
        Self { own, r, read, scale, map: map.map(Tensor::shallow_clone) }
    }

    /// `[chunks, k, ..]` as value heads read it.
    fn of_values(own: &Tensor, map: Option<&Tensor>) -> Tensor {
        map.map_or_else(|| own.shallow_clone(), |map| own.index_select(1, map))
    }

    /// The gradient of the input `[chunks, k, 64, h_k]` from that of what is read.
    fn backward(&self, d_read: &Tensor) -> Tensor {
        let size = self.own.size();
        let d = d_read.view([size[0], -1, size[2], size[3]]);
        let d = match self.scale {
            Some(scale) => d * scale,
            None => d,
        };
        let d_own = match &self.map {
            Some(map) => self.own.zeros_like().index_add_(1, map, &d),
            None => d,
        };
        l2_norm::backward(&d_own, &self.own, &self.r)
    }
}

impl Computed {
    /// Computes a run whose first chunk begins with `state` `[n, h_k, h_v]`, or with none where it begins a document.
    pub(super) fn new(segment: &Segment, inputs: &Inputs<'_>, state: &Tensor) -> Self {
        let device = inputs.v.device();
        let key_of_value = inputs.key_of_value;
        let is_own = key_of_value.iter().copied().eq(0..inputs.k.size()[1] as usize);
        let map = (!is_own).then(|| Segment::index(key_of_value, device));
        let scale = 1.0 / (inputs.k.size()[2] as f64).sqrt();
        let q = Normalised::new(segment, inputs.q, map.as_ref(), Some(scale));
        let k = Normalised::new(segment, inputs.k, map.as_ref(), None);
        let v = segment.take(inputs.v).flatten(0, 1);
        let column = |x: &Tensor| segment.take_numbers(x).flatten(0, 1).unsqueeze(2);
        let beta = column(inputs.beta);
        let sums = column(inputs.g).cumsum(1, None::<Kind>);
        let last = sums.narrow(1, CHUNK_LEN - 1, 1);
        let (decay, decay_after, decay_of_chunk) = (sums.exp(), (&last - &sums).exp(), last.exp());
        let decays = (&sums - sums.transpose(1, 2)).tril_(0).exp_().tril_(0);

        // Products of queries and keys are the same for all value heads that read them.
        let products = |x: &Tensor| {
            let of_keys = x.matmul(&k.own.transpose(2, 3));
            Normalised::of_values(&of_keys, map.as_ref()).flatten(0, 1)
        };
        let (gram, p) = (products(&k.own), products(&q.own) * &decays * scale);
        let system = &decays * &gram * &beta;
        // Of the system only what is below the diagonal is read, and a diagonal of ones. Its inverse serves three products, each of
        // which is faster on a CPU than a triangular solve of many columns.
        let ones = Tensor::eye(CHUNK_LEN, (v.kind(), device)).expand_as(&system);
        let inverse = system.linalg_solve_triangular(&ones, false, true, true);
        let u = inverse.bmm(&(&v * &beta));
        let minus_w = inverse.bmm(&(&k.read * (&decay * &beta).neg()));
        let (h_k, h_v) = (k.read.size()[2], v.size()[2]);

        let num_heads = v.size()[0] / segment.num_chunks();
        let options = (v.kind(), device);
        let d = Tensor::empty(v.size(), options);
        let states = Tensor::empty([v.size()[0] + num_heads, h_k, h_v], options);
        let keys_after = (&k.read * &decay_after).transpose(1, 2);
        let of = |x: &Tensor, chunk_idx: i64| x.narrow(0, chunk_idx * num_heads, num_heads);
        of(&states, 0).copy_(state);
        for (chunk, chunk_idx) in segment.chunks.iter().zip(0..) {
            let (state, next) = (of(&states, chunk_idx), of(&states, chunk_idx + 1));
            let (u, d) = (of(&u, chunk_idx), of(&d, chunk_idx));
            let keys_after = of(&keys_after, chunk_idx);
            // Nothing reads the state after a document.
            let is_last = segment.chunks.get(chunk_idx as usize + 1).is_some_and(|x| x.is_first);
            if chunk.is_first {
                let _ = state.shallow_clone().zero_();
                d.shallow_clone().copy_(&u);
                if !is_last {
                    let _ = keys_after.bmm_out(&next, &d);
                }
            } else {
                let _ = u.baddbmm_out(&d, &of(&minus_w, chunk_idx), &state);
                if !is_last {
                    let decayed = state * of(&decay_of_chunk, chunk_idx);
                    let _ = decayed.baddbmm_out(&next, &keys_after, &d);
                }
            }
        }
        Self {
            num_heads,
            q,
            k,
            v,
            beta,
            decay,
            decay_after,
            decay_of_chunk,
            decays,
            gram,
            p,
            inverse,
            minus_w,
            d,
            states,
        }
    }

    /// Writes the output of the run's tokens to `o` `[s, n, h_v]`.
    pub(super) fn output(&self, segment: &Segment, o: &Tensor) {
        let mut of_run = (&self.q.read * &self.decay).bmm(&self.states_before());
        let _ = of_run.baddbmm_(&self.p, &self.d);
        segment.put(&self.by_chunk(&of_run), o);
    }

    /// The state after the run, `[n, h_k, h_v]`.
    pub(super) fn into_last_state(self) -> Tensor {
        let start = self.states.size()[0] - self.num_heads;
        self.states.narrow(0, start, self.num_heads).copy()
    }

    /// Writes the gradients of the run's tokens, from those of its output and of the state after it, `d_state` `[n, h_k, h_v]`; returns
    /// that of the state before it.
    pub(super) fn backward(
        self,
        segment: &Segment,
        inputs: &Inputs<'_>,
        d_o: &Tensor,
        d_state: &Tensor,
        grads: &Gradients,
    ) -> Tensor {
        let num_heads = self.num_heads;
        let (all, transposed) = (self.v.size()[0], |x: &Tensor| x.transpose(1, 2));
        let d_o = segment.take_or_zero(d_o).flatten(0, 1);
        let queries = &self.q.read * &self.decay;
        let keys_after = &self.k.read * &self.decay_after;
        let d_d = transposed(&self.p).bmm(&d_o);
        // The gradient of the state before the run and after each chunk; that before a chunk begins as what its queries give.
        let d_states = self.states.empty_like();
        let of = |x: &Tensor, chunk_idx: i64| x.narrow(0, chunk_idx * num_heads, num_heads);
        let _ = transposed(&queries).bmm_out(&d_states.narrow(0, 0, all), &d_o);
        of(&d_states, segment.num_chunks()).copy_(d_state);
        for (chunk, chunk_idx) in segment.chunks.iter().rev().zip((0..segment.num_chunks()).rev()) {
            let (mut before, after) = (of(&d_states, chunk_idx), of(&d_states, chunk_idx + 1));
            let mut d_d = of(&d_d, chunk_idx);
            let _ = d_d.baddbmm_(&of(&keys_after, chunk_idx), &after);
            if chunk.is_first {
                let _ = before.zero_();
            } else {
                let _ = before.addcmul_(&after, &of(&self.decay_of_chunk, chunk_idx));
                let _ = before.baddbmm_(&transposed(&of(&self.minus_w, chunk_idx)), &d_d);
            }
        }
        let d_before = of(&d_states, 0).copy();
        let d_after = d_states.narrow(0, num_heads, all);
        let states = self.states_before();

        let rows = |x: &Tensor| x.sum_dim_intlist(2_i64, true, None::<Kind>);
        let keys = &self.k.read * &self.decay;
        let below = (&self.decays * &self.gram).tril_(-1);
        let system = &below * &self.beta;
        let d_r = transposed(&self.inverse).bmm(&d_d);
        drop(d_d);
        let unknown = &self.v - keys.bmm(&states);
        let d_system = d_r.bmm(&transposed(&self.d)).neg().tril_(-1);
        let d_beta = rows(&(&d_r * unknown)) + rows(&(&d_system * &below));
        drop(below);
        let d_v = d_r * &self.beta;
        let d_p = d_o.bmm(&transposed(&self.d)).tril_(0);
        let d_queries = d_o.bmm(&transposed(&states));
        let d_keys = d_v.bmm(&transposed(&states)).neg();
        let d_keys_after = self.d.bmm(&transposed(&d_after));

        // A pair of tokens counts between them only: what it adds after the later is taken back before the earlier, and the sum over the
        // tokens would make rounding errors of both as large as the rest. Numbers of tokens are few enough to add up in double.
        let exact = |x: &Tensor, dims: &[i64]| x.sum_dim_intlist(dims, true, Kind::Double);
        let of_decays = &d_system * &system + &d_p * &self.p;
        let leaving = exact(&(&d_keys_after * &keys_after), &[2]);
        let mut d_sums = exact(&of_decays, &[2]) - transposed(&exact(&of_decays, &[1])) - &leaving;
        let _ = d_sums.g_add_(&exact(&(&d_queries * &queries + &d_keys * &keys), &[2]));
        let kept = exact(&(&d_after * &states), &[1, 2]) * &self.decay_of_chunk;
        let of_last = exact(&leaving, &[1]) + kept;
        let _ = d_sums.narrow(1, CHUNK_LEN - 1, 1).g_add_(&of_last);
        drop((of_decays, queries, keys, keys_after, d_states));
        let d_g = d_sums.flip([1]).cumsum(1, None::<Kind>).flip([1]);

        let of_gram = d_system * &self.beta * &self.decays;
        let of_p = d_p * &self.decays;
        let mut d_q = d_queries * &self.decay;
        let _ = d_q.baddbmm_(&of_p, &self.k.read);
        let mut d_k = (d_keys * &self.decay).g_add_(&(d_keys_after * &self.decay_after));
        let _ = d_k.baddbmm_(&(&of_gram + transposed(&of_gram)), &self.k.read);
        let _ = d_k.baddbmm_(&transposed(&of_p), &self.q.read);

        segment.put(&self.q.backward(&d_q), &grads.q);
        segment.put(&self.k.backward(&d_k), &grads.k);
        segment.put(&self.by_chunk(&d_v), &grads.v);
        segment.put_numbers(&self.by_chunk(&d_g).squeeze_dim(3), &grads.g);
        segment.put_numbers(&self.by_chunk(&d_beta).squeeze_dim(3), &grads.beta);
        debug_assert!(grads.v.size() == inputs.v.size());
        d_before
    }

    /// `S` before each chunk.
    fn states_before(&self) -> Tensor {
        self.states.narrow(0, 0, self.v.size()[0])
    }

    /// `[chunks * n, ..]` as `[chunks, n, ..]`.
    fn by_chunk(&self, x: &Tensor) -> Tensor {
        x.unflatten(0, [-1, self.num_heads])
    }
}
