//! Causal attention over packed documents, forward and backward from `(o, lse)`.
//!
//! A packed sequence holds several documents; a token attends to the tokens of its own document before it, and to itself. Each
//! document is one call of libtorch's flash attention, so it costs its own length squared and no mask of the whole sequence ever
//! exists. A sliding window becomes query tiles against a band of keys. The backward works from the output and the log-sum-exp of
//! the scores, which are all that has to be kept.
//!
//! Many short documents stay cheap: 35 of 117 tokens take 18 ms forward and 78 ms backward on one core (9 heads on 3, bf16), one of
//! 4,096 takes 256 and 374. Batching documents of equal length into one call was measured and changes nothing (19 and 79 ms): the
//! kernel's cost is per head and block, not per call.
//!
//! Query heads that share a kv head read it through a view with a stride of zero: keys and values are never repeated in memory.
//! Their gradients come back repeated, though, and a call's results exist twice until they are in place. That is small for a short
//! document; a long one is one call for each kv head, so that only one head's results exist twice.

mod calls;
mod streamed;

use std::ops::Range;

use tch::Tensor;

use self::calls::{BandMask, calls};
pub use self::streamed::{KeysValues, Streamed};
use crate::accumulate_kind;

/// How the heads and positions of one attention relate.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionSpec {
    /// For each query head, the index of the kv head it reads. Never decreasing; need not be even.
    pub kv_of_q: Vec<usize>,
    /// Multiplies the scores before the softmax; usually `1 / sqrt(h)`.
    pub scale: f64,
    /// How many tokens a query sees, itself included: key `j` is visible from query `i` if `0 <= i - j < window`.
    pub sliding_window: Option<i64>,
}

/// The documents of a packed sequence: ranges of tokens, in order, that cover it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Documents(Vec<Range<i64>>);

impl Documents {
    /// Takes ranges that follow each other from token 0.
    ///
    /// # Panics
    ///
    /// If a range is empty or does not start where the one before it ends.
    pub fn new(ranges: Vec<Range<i64>>) -> Documents {
        let mut end = 0;
        for range in &ranges {
            assert!(
                range.start == end && range.start < range.end,
                "document {range:?} must start at {end} and have tokens"
            );
            end = range.end;
        }
        Documents(ranges)
    }

    /// The ranges, in order.
    pub fn ranges(&self) -> &[Range<i64>] {
        &self.0
    }

    /// The documents that have tokens in a run of tokens, whole.
    fn within(&self, tokens: &Range<i64>) -> &[Range<i64>] {
        let first = self.0.partition_point(|document| document.end <= tokens.start);
        let last = self.0.partition_point(|document| document.start < tokens.end);
        &self.0[first..last.max(first)]
    }

    /// The number of tokens.
    pub fn num_tokens(&self) -> i64 {
        self.0.last().map_or(0, |range| range.end)
    }
}

/// The attention output `o` and the log-sum-exp `lse` of every query's scores.
///
/// `o_i = sum over visible j of p_ij * v_j`, `p_ij = exp(scale * q_i . k_j - lse_i)`.
///
/// # Shapes
///
/// `q` `[s, n, h]`, `k` and `v` `[s, k, h]`, with any strides whose last is 1; returns `o` `[s, n, h]` and `lse` `[n, s]`.
///
/// # Memory
///
/// Beside the results, those of one kernel call: all heads of a document, or of one kv head if it has more than 8,192 tokens.
///
/// # Numerics
///
/// Scores and sums are single precision (double for double); `lse` is in that precision, `o` in the dtype of `q`.
///
/// # Panics
///
/// If the shapes, the documents and the head map do not fit each other.
///
/// # Source
///
/// `aten::_scaled_dot_product_flash_attention_for_cpu`.
pub fn forward(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    spec: &AttentionSpec,
    documents: &Documents,
) -> (Tensor, Tensor) {
    let size = check(q, k, v, spec, documents);
    let o = Tensor::empty(&size, (q.kind(), q.device()));
    let lse = Tensor::empty([size[1], size[0]], (accumulate_kind(q.kind()), q.device()));
    let mask = BandMask::new(spec, documents, q);
    let all = 0..documents.num_tokens();
    for call in calls(spec, documents, &all, &all) {
        let (o_call, lse_call) = call.forward(q, k, v, spec, mask.as_ref());
        call.queries(&o).copy_(&o_call);
        call.log_sums(&lse).copy_(&lse_call);
    }
    (o, lse)
}

/// The gradients of `q`, `k` and `v`, from those of `o`.
///
/// With `dp_ij = d_o_i . v_j` and `ds_ij = p_ij * (dp_ij - d_o_i . o_i)`:
/// `dL/dv_j = sum_i p_ij * d_o_i`, `dL/dq_i = scale * sum_j ds_ij * k_j`, `dL/dk_j = scale * sum_i ds_ij * q_i`.
///
/// # Shapes
///
/// As [`forward`]; `d_o` and `o` `[s, n, h]`; returns `d_q` `[s, n, h]`, `d_k` and `d_v` `[s, k, h]`, in the dtype of `q`.
///
/// # Memory
///
/// As [`forward`]; the gradients of keys and values of a call exist once for each query head.
///
/// # Numerics
///
/// Gradients of a kv head are summed over the query heads that read it, and over the query tiles of a sliding window, in single
/// precision (double for double).
///
/// # Panics
///
/// As [`forward`].
#[expect(
    clippy::too_many_arguments,
    reason = "the gradient of the output and everything the forward read and returned"
)]
pub fn backward(
    d_o: &Tensor,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    o: &Tensor,
    lse: &Tensor,
    spec: &AttentionSpec,
    documents: &Documents,
) -> (Tensor, Tensor, Tensor) {
    let size = check(q, k, v, spec, documents);
    let d_q = Tensor::empty(&size, (q.kind(), q.device()));
    // Zeros: with a window, several tiles add to a key; without, a kv head that no local query head reads has none.
    let kind = if spec.sliding_window.is_some() { accumulate_kind(k.kind()) } else { k.kind() };
    let d_k = Tensor::zeros(k.size(), (kind, k.device()));
    let d_v = Tensor::zeros(v.size(), (kind, v.device()));
    let mask = BandMask::new(spec, documents, q);
    let all = 0..documents.num_tokens();
    for call in calls(spec, documents, &all, &all) {
        let (d_q_call, d_k_call, d_v_call) =
            call.backward([d_o, q, k, v, o, lse], spec, mask.as_ref());
        call.queries(&d_q).copy_(&d_q_call);
        drop(d_q_call);
        call.add_to_keys(&d_k, &d_k_call);
        drop(d_k_call);
        call.add_to_keys(&d_v, &d_v_call);
    }
    (d_q, d_k.to_kind(k.kind()), d_v.to_kind(v.kind()))
}

/// Checks all shapes and returns that of `q`.
fn check(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    spec: &AttentionSpec,
    documents: &Documents,
) -> Vec<i64> {
    let (q, k, v) = (q.size(), k.size(), v.size());
    assert!(
        q.len() == 3 && k.len() == 3 && k == v && q[0] == k[0] && q[2] == k[2],
        "attention: q is {q:?}, k {k:?}, v {v:?}, which must be [s, n, h], [s, k, h], [s, k, h]"
    );
    assert!(
        documents.num_tokens() == q[0],
        "attention: documents cover {} tokens of {}",
        documents.num_tokens(),
        q[0]
    );
    check_heads(spec, q[1], k[1]);
    q
}

/// Checks that a head map and a window fit the numbers of heads.
fn check_heads(spec: &AttentionSpec, num_q: i64, num_kv: i64) {
    let map = &spec.kv_of_q;
    assert!(
        map.len() as i64 == num_q
            && map.is_sorted()
            && map.last().is_none_or(|kv| (*kv as i64) < num_kv),
        "attention: the head map {map:?} must be one ascending index below {num_kv} for each of {num_q} query heads"
    );
    assert!(
        spec.sliding_window.is_none_or(|window| window > 0),
        "attention: the window must be positive"
    );
}
