//! Causal attention over packed documents, forward and backward from `(o, lse)`.
//!
//! A packed sequence holds several documents; a token attends to the tokens of its own document before it, and to itself. Each
//! document is a kernel call of its own, so it costs its own length squared and no mask of the whole sequence ever exists. The
//! backward works from the output and the log-sum-exp of the scores, which are all that has to be kept. [`Streamed`] does the same
//! for one tile of queries, with keys and values that arrive in chunks.
//!
//! Query heads that share a kv head read it as it is: keys and values are never repeated in memory. Their gradients come back
//! repeated, though, and are summed in place. That is small for a short document; a long one is one call for each kv head, so that
//! only one head's are repeated at a time.

mod calls;
mod choice;
#[cfg(test)]
mod device_tests;
mod kernel;
mod pack;
pub mod sinks;
mod streamed;
mod tiled;

use std::ops::Range;

use tch::Tensor;

use self::calls::calls;
pub use self::choice::{Implementation, NotFlash};
use self::choice::{Problem, log_first_use};
use self::kernel::Runner;
pub use self::streamed::{KeysValues, Streamed};
use crate::accumulate_kind;

/// How the heads and positions of one attention relate.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionSpec {
    /// For each query head, the index of the kv head it reads. Never decreasing; need not be even.
    pub kv_of_q: Vec<usize>,
    /// Multiplies the scores before the softmax; usually `1 / sqrt(h)`.
    pub scale: f64,
    /// `c` in `c * tanh(score / c)`, after the scale.
    pub softcap: Option<f64>,
    /// How many tokens a query sees, itself included: key `j` is visible from query `i` if `0 <= i - j < window`.
    pub sliding_window: Option<i64>,
    /// Which kernels may compute it on a CUDA device.
    pub implementation: Implementation,
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
/// Scores and sums are single precision (double for double); `lse` is in that precision, `o` in the dtype of `q`. With a half
/// precision, probabilities are rounded to it before they multiply the values; not where products are widened
/// ([`crate::is_widened`]), which is libtorch's kernel on operands in single precision.
///
/// # Panics
///
/// If the shapes, the documents and the head map do not fit each other.
///
/// # Source
///
/// Dao 2023, <https://arxiv.org/abs/2307.08691>. Kernels: `aten::_scaled_dot_product_flash_attention_for_cpu`, and
/// [`sterna_torch_sys::attention`] for bf16 on processors with bf16 dot products of 512 bits.
pub fn forward(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    spec: &AttentionSpec,
    documents: &Documents,
) -> (Tensor, Tensor) {
    check(q, k, v, spec, documents);
    forward_of(&Problem::new(spec, q), [q, k, v], spec, documents)
}

fn forward_of(
    problem: &Problem,
    [q, k, v]: [&Tensor; 3],
    spec: &AttentionSpec,
    documents: &Documents,
) -> (Tensor, Tensor) {
    let size = q.size();
    let runner = Runner::new(problem, spec, documents, q);
    let all = 0..documents.num_tokens();
    let calls = calls(problem, spec, documents, &all, &all);
    log_first_use(problem, &calls, documents);
    if let Some(results) = runner.whole_forward(&calls, [q, k, v]) {
        return results;
    }
    let o = Tensor::empty(&size, (q.kind(), q.device()));
    let lse = Tensor::empty([size[1], size[0]], (accumulate_kind(q.kind()), q.device()));
    for call in &calls {
        runner.forward(call, [q, k, v], call.queries(&o), call.log_sums(&lse));
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
/// As [`forward`]; the gradients of keys and values of a call exist once for each query head. Where products are widened, also what
/// a call reads, in single precision.
///
/// # Numerics
///
/// Gradients of a kv head are summed over the query heads that read it, and over the query tiles of a sliding window, in single
/// precision (double for double). Within a call and a query head libtorch's kernel sums in the dtype of what it is given, ours in
/// single precision.
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
    check(q, k, v, spec, documents);
    backward_of(&Problem::new(spec, q), [d_o, q, k, v, o, lse], spec, documents)
}

fn backward_of(
    problem: &Problem,
    [d_o, q, k, v, o, lse]: [&Tensor; 6],
    spec: &AttentionSpec,
    documents: &Documents,
) -> (Tensor, Tensor, Tensor) {
    let runner = Runner::new(problem, spec, documents, q);
    let all = 0..documents.num_tokens();
    let calls = calls(problem, spec, documents, &all, &all);
    if let Some([d_q, d_k, d_v]) = runner.whole_backward(&calls, [d_o, q, k, v, o, lse]) {
        return (d_q, d_k, d_v);
    }
    let d_q = Tensor::zeros(q.size(), (q.kind(), q.device()));
    // With libtorch's kernel and a window, several tiles add to a key.
    let kind = if spec.sliding_window.is_some() { accumulate_kind(k.kind()) } else { k.kind() };
    let d_k = Tensor::zeros(k.size(), (kind, k.device()));
    let d_v = Tensor::zeros(v.size(), (kind, v.device()));
    for call in &calls {
        runner.backward(call, [d_o, q, k, v, o, lse], [&d_q, &d_k, &d_v]);
    }
    (d_q, d_k.to_kind(k.kind()), d_v.to_kind(v.kind()))
}

/// Checks all shapes.
fn check(q: &Tensor, k: &Tensor, v: &Tensor, spec: &AttentionSpec, documents: &Documents) {
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
