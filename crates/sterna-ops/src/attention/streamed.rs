//! Attention of one tile of queries whose keys and values arrive in chunks, from wherever they are kept.
//!
//! A chunk gives a share `(o_c, lse_c)` of the output, normalised by itself. Shares merge exactly:
//! `lse = ln(sum_c exp(lse_c))` and `o = sum_c exp(lse_c - lse) * o_c`. In the backward a chunk's share needs no other chunk at
//! all, once `o` and `lse` of the whole are known: the probabilities are `exp(scale * q_i . k_j - lse_i)`, and what a gradient of
//! a score reads of the other keys is `d_o_i . o_i`.
//!
//! Queries are the outer loop, because they are what is large: with 32 query heads on 8, `q`, `o` and their gradients are eight
//! times as wide as `k` and `v`, and all of that exists for one tile only. Gradients of keys and values are handed back as they
//! arise. If the tiles are taken from the last to the first, those of a tile's own tokens are complete when the tile is done.

use std::ops::Range;

use tch::Tensor;

use super::calls::{Call, calls};
use super::choice::{Problem, log_first_use};
use super::kernel::Runner;
use super::{AttentionSpec, Documents, check_heads};
use crate::accumulate_kind;
use crate::tile::tiles;

/// The keys and values of a packed sequence, wherever they are kept.
pub trait KeysValues {
    /// Why keys and values could not be had.
    type Error;

    /// `k` and `v` `[tokens, k, h]` of a run of tokens, on the device of the queries.
    ///
    /// # Errors
    ///
    /// If they cannot be had.
    fn fetch(&mut self, tokens: &Range<i64>) -> Result<(Tensor, Tensor), Self::Error>;

    /// Told of the next fetch before the work on the one before it begins, so that reading and copying can go on beside it.
    ///
    /// # Errors
    ///
    /// If the transfer cannot be started.
    fn prefetch(&mut self, tokens: &Range<i64>) -> Result<(), Self::Error>;
}

/// Attention that is computed for one tile of queries at a time.
#[derive(Debug, Clone, Copy)]
pub struct Streamed<'a> {
    /// The heads.
    pub spec: &'a AttentionSpec,
    /// The documents of the whole packed sequence.
    pub documents: &'a Documents,
    /// At most how many tokens are fetched at once. The sequence is cut by [`tiles`], so fetches of all tiles of queries share
    /// their boundaries; only the first and the last chunk that a tile sees are cut shorter.
    pub key_chunk_len: i64,
}

impl Streamed<'_> {
    /// The output `o` and the log-sum-exp `lse` of a tile of queries, which are those of [`super::forward`].
    ///
    /// # Shapes
    ///
    /// `q` `[tokens, n, h]`; returns `o` `[tokens, n, h]` and `lse` `[n, tokens]`. `tokens` says which tokens of the packed
    /// sequence these are.
    ///
    /// # Memory
    ///
    /// Beside the results: one chunk of keys and values (two, if the source reads ahead), the output once more in single
    /// precision, and the results of one kernel call.
    ///
    /// # Numerics
    ///
    /// Shares are in the dtype of `q` and merged in single precision (double for double). A document whose tokens all lie in the
    /// tile and in one chunk has the very bits of the unstreamed result.
    ///
    /// # Errors
    ///
    /// Those of `kv`.
    ///
    /// # Panics
    ///
    /// If the shapes, the tokens, the documents and the head map do not fit each other.
    pub fn forward<S: KeysValues + ?Sized>(
        &self,
        q: &Tensor,
        tokens: &Range<i64>,
        kv: &mut S,
    ) -> Result<(Tensor, Tensor), S::Error> {
        self.check(q, tokens);
        self.forward_of(&Problem::new(self.spec, q), q, tokens, kv)
    }

    pub(super) fn forward_of<S: KeysValues + ?Sized>(
        &self,
        problem: &Problem,
        q: &Tensor,
        tokens: &Range<i64>,
        kv: &mut S,
    ) -> Result<(Tensor, Tensor), S::Error> {
        let size = q.size();
        let options = (accumulate_kind(q.kind()), q.device());
        let o = Tensor::zeros(&size, options);
        let lse = Tensor::full([size[1], size[0]], f64::NEG_INFINITY, options);
        let runner = Runner::new(problem, self.spec, self.documents, q);
        self.for_each_chunk(q, tokens, kv, |chunk, k, v| {
            let calls = calls(problem, self.spec, self.documents, tokens, chunk);
            log_first_use(problem, &calls, self.documents);
            for call in calls {
                let o_share = call.queries(q).empty_like();
                let lse_share = call.log_sums(&lse).empty_like();
                let share = (o_share.shallow_clone(), lse_share.shallow_clone());
                runner.forward(&call, [q, k, v], o_share, lse_share);
                merge(&call, &o, &lse, share);
            }
            Ok(())
        })?;
        Ok((o.to_kind(q.kind()), lse))
    }

    /// The gradient of a tile of queries; those of the keys and values that it sees are handed to `add`.
    ///
    /// `add` is called once for each chunk that the tile sees, with its tokens and the tile's shares of `d_k` and `d_v`, to be
    /// summed over the tiles.
    ///
    /// # Shapes
    ///
    /// As [`Streamed::forward`]; `d_o` `[tokens, n, h]`; returns `d_q` `[tokens, n, h]` in the dtype of `q`. Shares are
    /// `[chunk, k, h]`, single precision (double for double).
    ///
    /// # Memory
    ///
    /// Beside the result: one chunk of keys and values (two, if the source reads ahead) and of their gradients, `d_q` once more
    /// in single precision, and the results of one kernel call.
    ///
    /// # Numerics
    ///
    /// Sums over chunks, and over the query heads that read a kv head, are single precision (double for double).
    ///
    /// # Errors
    ///
    /// Those of `kv` and of `add`.
    ///
    /// # Panics
    ///
    /// As [`Streamed::forward`].
    #[expect(
        clippy::too_many_arguments,
        reason = "the gradient of the output, what the forward read and returned, and where gradients go"
    )]
    pub fn backward<S: KeysValues + ?Sized>(
        &self,
        d_o: &Tensor,
        q: &Tensor,
        o: &Tensor,
        lse: &Tensor,
        tokens: &Range<i64>,
        kv: &mut S,
        add: impl FnMut(&Range<i64>, Tensor, Tensor) -> Result<(), S::Error>,
    ) -> Result<Tensor, S::Error> {
        self.check(q, tokens);
        self.backward_of(&Problem::new(self.spec, q), [d_o, q, o, lse], tokens, kv, add)
    }

    pub(super) fn backward_of<S: KeysValues + ?Sized>(
        &self,
        problem: &Problem,
        [d_o, q, o, lse]: [&Tensor; 4],
        tokens: &Range<i64>,
        kv: &mut S,
        mut add: impl FnMut(&Range<i64>, Tensor, Tensor) -> Result<(), S::Error>,
    ) -> Result<Tensor, S::Error> {
        let kind = accumulate_kind(q.kind());
        let d_q = Tensor::zeros(q.size(), (kind, q.device()));
        let runner = Runner::new(problem, self.spec, self.documents, q);
        self.for_each_chunk(q, tokens, kv, |chunk, k, v| {
            let d_k = Tensor::zeros(k.size(), (kind, k.device()));
            let d_v = d_k.zeros_like();
            for call in calls(problem, self.spec, self.documents, tokens, chunk) {
                runner.backward(&call, [d_o, q, k, v, o, lse], [&d_q, &d_k, &d_v]);
            }
            add(chunk, d_k, d_v)
        })?;
        Ok(d_q.to_kind(q.kind()))
    }

    /// Fetches all keys and values that some query of the tile sees, in order.
    fn for_each_chunk<S: KeysValues + ?Sized>(
        &self,
        q: &Tensor,
        tokens: &Range<i64>,
        kv: &mut S,
        mut body: impl FnMut(&Range<i64>, &Tensor, &Tensor) -> Result<(), S::Error>,
    ) -> Result<(), S::Error> {
        let mut chunks = self.chunks(tokens).into_iter().peekable();
        while let Some(chunk) = chunks.next() {
            let (k, v) = kv.fetch(&chunk)?;
            assert!(
                k.size() == v.size()
                    && k.dim() == 3
                    && k.size()[0] == chunk.end - chunk.start
                    && k.size()[2] == q.size()[2],
                "attention: k and v of tokens {chunk:?} are {:?} and {:?}, which must be [tokens, k, h] with the head size of q {:?}",
                k.size(),
                v.size(),
                q.size()
            );
            check_heads(self.spec, q.size()[1], k.size()[1]);
            if let Some(next) = chunks.peek() {
                kv.prefetch(next)?;
            }
            body(&chunk, &k, &v)?;
        }
        Ok(())
    }

    /// The runs of tokens whose keys a tile of queries sees.
    fn chunks(&self, tokens: &Range<i64>) -> Vec<Range<i64>> {
        let Some(document) = self.documents.within(tokens).first() else { return Vec::new() };
        let first_key = match self.spec.sliding_window {
            Some(window) => document.start.max(tokens.start - (window - 1)),
            None => document.start,
        };
        tiles(self.documents.num_tokens(), self.key_chunk_len)
            .map(|chunk| chunk.start.max(first_key)..chunk.end.min(tokens.end))
            .filter(|chunk| !chunk.is_empty())
            .collect()
    }

    /// Checks the tile of queries.
    fn check(&self, q: &Tensor, tokens: &Range<i64>) {
        let size = q.size();
        let num_tokens = self.documents.num_tokens();
        assert!(
            size.len() == 3
                && 0 <= tokens.start
                && tokens.start + size[0] == tokens.end
                && tokens.end <= num_tokens,
            "attention: q is {size:?}, which must be [s, n, h] of tokens {tokens:?} of {num_tokens}"
        );
    }
}

/// Adds the share of a call to the sums `o` `[tokens, n, h]` and `lse` `[n, tokens]`.
///
/// The first share replaces the zeros and minus infinities of the sums bit for bit.
fn merge(call: &Call, o: &Tensor, lse: &Tensor, (o_share, lse_share): (Tensor, Tensor)) {
    let (mut o, mut lse) = (call.queries(o), call.log_sums(lse));
    let merged = lse.logaddexp(&lse_share);
    let weight = |part: &Tensor| (part - &merged).exp_().unsqueeze(-1);
    let _ = o.g_mul_(&weight(&lse));
    let _ = o.addcmul_(&o_share.to_kind(o.kind()), &weight(&lse_share));
    lse.copy_(&merged);
}
