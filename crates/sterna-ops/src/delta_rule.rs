//! The gated delta rule over packed documents, forward and backward from the states that the forward leaves.
//!
//! A head has a state `S` `[k, v]`, zero where a document begins. Each token decays it, replaces what it has stored under the token's key
//! by a part of the token's value, and reads it with the query:
//!
//! ```text
//! S_t = exp(g_t) S_{t-1} + k_t d_t^T        d_t = beta_t (v_t - exp(g_t) S_{t-1}^T k_t)        o_t = S_t^T q_t
//! ```
//!
//! where queries and keys are divided by their length ([`crate::l2_norm`]), and queries by the root of their width. Tokens go through it
//! in chunks of 64, inside of which everything is matrix products and one triangular solve; chunks follow each other through their states
//! (`segment.rs` has the algebra). Runs of chunks are computed at once, so that what exists in single precision does not grow with the
//! sequence. The forward leaves the state before each run that does not begin a document, and the backward computes a run again from it.
//!
//! # Source
//!
//! Yang, Kautz and Hatamizadeh 2024, <https://arxiv.org/abs/2412.06464>: the rule is equation 10, its chunks are section 3.3. Yang et al.
//! 2024, <https://arxiv.org/abs/2406.06484>, equations 8 to 11: the same without decay. The backward is derived in `segment.rs`.

mod chunks;
mod segment;

use tch::Tensor;

use self::chunks::Segment;
use self::segment::Computed;
use crate::attention::Documents;
use crate::{accumulate_kind, upcast};

/// The inputs of the rule.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// Queries `[s, k, h_k]`, of any length.
    pub q: &'a Tensor,
    /// Keys `[s, k, h_k]`, of any length.
    pub k: &'a Tensor,
    /// Values `[s, n, h_v]`.
    pub v: &'a Tensor,
    /// The logarithm of the decay, `[s, n]`, at most 0; single precision (double for double).
    pub g: &'a Tensor,
    /// How much of what is stored is replaced, `[s, n]`, from 0 to 1.
    pub beta: &'a Tensor,
    /// For each value head, the index of the query and key head that it reads. Never decreasing; need not be even.
    pub key_of_value: &'a [usize],
    /// Where states begin anew.
    pub documents: &'a Documents,
}

/// The gradients of [`Inputs`], of their shapes and dtypes.
#[derive(Debug)]
pub struct Gradients {
    /// Of the queries.
    pub q: Tensor,
    /// Of the keys.
    pub k: Tensor,
    /// Of the values.
    pub v: Tensor,
    /// Of the logarithm of the decay.
    pub g: Tensor,
    /// Of `beta`.
    pub beta: Tensor,
}

/// The output `o`, and the states that [`backward`] begins with.
///
/// # Shapes
///
/// `o` `[s, n, h_v]` in the dtype of `v`; states `[runs, n, h_k, h_v]`, one for every 1,024 tokens of a document but its first
/// ([`num_states`]).
///
/// # Memory
///
/// Beside the results, one run of 16 chunks in single precision: about `(6 h_k + 5 h_v + 192) * 1024 * 4` bytes for each value head, and
/// 16 states.
///
/// # Numerics
///
/// Everything is single precision (double for double); `o` is rounded once, states stay in that precision.
///
/// # Panics
///
/// If the shapes, the documents and the map of heads do not fit each other.
pub fn forward(inputs: &Inputs<'_>) -> (Tensor, Tensor) {
    inputs.check();
    let (v, options) = (inputs.v, (accumulate_kind(inputs.v.kind()), inputs.v.device()));
    let o = v.empty_like();
    let segments = chunks::segments(inputs.documents, v.device());
    let states = Tensor::empty(inputs.states_size(&segments), options);
    let mut state = Tensor::zeros(inputs.state_size(), options);
    let mut state_idx = 0;
    for segment in &segments {
        if segment.continues() {
            states.get(state_idx).copy_(&state);
            state_idx += 1;
        }
        let computed = Computed::new(segment, inputs, &state);
        computed.output(segment, &o);
        state = computed.into_last_state();
    }
    (o, states)
}

/// The gradients of all inputs, from that of `o` and the states of the forward.
///
/// # Shapes
///
/// `d_o` `[s, n, h_v]`; `states` as [`forward`] has left them.
///
/// # Memory
///
/// As [`forward`], about twice.
///
/// # Numerics
///
/// Everything is single precision (double for double), also the sum over the value heads that read a key, but for the sums that make the
/// gradient of `g`, whose terms cancel: they are double. Gradients are rounded once.
///
/// # Panics
///
/// As [`forward`].
pub fn backward(d_o: &Tensor, inputs: &Inputs<'_>, states: &Tensor) -> Gradients {
    inputs.check();
    let segments = chunks::segments(inputs.documents, inputs.v.device());
    let size = inputs.states_size(&segments);
    assert!(states.size() == size, "delta rule: states are {:?}, not {size:?}", states.size());
    let empty = |x: &Tensor| Tensor::empty(x.size(), (x.kind(), x.device()));
    let grads = Gradients {
        q: empty(inputs.q),
        k: empty(inputs.k),
        v: empty(inputs.v),
        g: empty(inputs.g),
        beta: empty(inputs.beta),
    };
    let options = (accumulate_kind(inputs.v.kind()), inputs.v.device());
    let zeros = Tensor::zeros(inputs.state_size(), options);
    let mut d_state = zeros.shallow_clone();
    let mut state_idx = states.size()[0];
    for segment in segments.iter().rev() {
        let state = if segment.continues() {
            state_idx -= 1;
            states.get(state_idx)
        } else {
            zeros.shallow_clone()
        };
        let computed = Computed::new(segment, inputs, &state);
        d_state = computed.backward(segment, inputs, d_o, &d_state, &grads);
    }
    grads
}

/// How many states [`forward`] leaves of these documents.
pub fn num_states(documents: &Documents) -> usize {
    chunks::num_continuing(documents)
}

impl Inputs<'_> {
    fn state_size(&self) -> [i64; 3] {
        let (k, v) = (self.k.size(), self.v.size());
        [v[1], k[2], v[2]]
    }

    fn states_size(&self, segments: &[Segment]) -> [i64; 4] {
        let num_states = segments.iter().filter(|segment| segment.continues()).count();
        let [n, h_k, h_v] = self.state_size();
        [num_states as i64, n, h_k, h_v]
    }

    fn check(&self) {
        let [q, k, v, g, beta] = [self.q, self.k, self.v, self.g, self.beta].map(Tensor::size);
        assert!(
            q.len() == 3 && q == k && v.len() == 3 && v[0] == k[0],
            "delta rule: q is {q:?}, k {k:?}, v {v:?}, which must be [s, k, h_k], [s, k, h_k], [s, n, h_v]"
        );
        assert!(
            g == v[..2] && beta == v[..2],
            "delta rule: g is {g:?} and beta {beta:?} for values {v:?}, which must be [s, n]"
        );
        let num_tokens = self.documents.num_tokens();
        assert!(num_tokens == v[0], "delta rule: documents cover {num_tokens} tokens of {}", v[0]);
        let map = self.key_of_value;
        assert!(
            map.len() as i64 == v[1]
                && map.is_sorted()
                && map.last().is_none_or(|key| (*key as i64) < k[1]),
            "delta rule: the head map {map:?} must be one ascending index below {} for each of {} value heads",
            k[1],
            v[1]
        );
    }
}

/// The logarithm of the decay, `g = -exp(A_log) * softplus(a + dt_bias)`.
///
/// # Shapes
///
/// `a` `[s, n]`, `a_log` and `dt_bias` `[n]`; returns `[s, n]` in single precision (double for double).
pub fn log_decay(a: &Tensor, a_log: &Tensor, dt_bias: &Tensor) -> Tensor {
    let rate = upcast(a_log).exp();
    -(upcast(a) + upcast(dt_bias)).softplus() * rate
}

/// The gradient of `a` from that of [`log_decay`]; those of `A_log` and `dt_bias` are added to `d_a_log` and `d_dt_bias`.
///
/// `dL/da = -d_g * exp(A_log) * sigmoid(a + dt_bias)`, `dL/ddt_bias = sum over s of dL/da`, `dL/dA_log = sum over s of d_g * g`.
///
/// # Shapes
///
/// `d_g` and `a` `[s, n]`, the others `[n]`; returns `[s, n]` in the dtype of `a`.
///
/// # Numerics
///
/// Single precision (double for double); `dL/da` is rounded once, after its sum over the tokens.
pub fn log_decay_backward(
    d_g: &Tensor,
    a: &Tensor,
    a_log: &Tensor,
    dt_bias: &Tensor,
    d_a_log: Option<&mut Tensor>,
    d_dt_bias: Option<&mut Tensor>,
) -> Tensor {
    let (d_g, rate) = (upcast(d_g), upcast(a_log).exp());
    let shifted = upcast(a) + upcast(dt_bias);
    let scaled = d_g * -rate;
    let over_tokens = |x: &Tensor| x.sum_dim_intlist(0_i64, false, x.kind());
    if let Some(d_a_log) = d_a_log {
        let _ = d_a_log.g_add_(&over_tokens(&(&scaled * shifted.softplus())));
    }
    let d_a = scaled * shifted.sigmoid();
    if let Some(d_dt_bias) = d_dt_bias {
        let _ = d_dt_bias.g_add_(&over_tokens(&d_a));
    }
    d_a.to_kind(a.kind())
}
