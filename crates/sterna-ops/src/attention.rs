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

use std::ops::Range;

use tch::Tensor;

use crate::accumulate_kind;

/// A call with more keys than this computes one kv head and the query heads that read it.
///
/// From here on a head is thousands of the kernel's blocks, so a call for each costs no time, and all heads at once cost room: with
/// 32 query heads of 128 on 8, one document of 1,048,576 tokens in bf16 has 8 GiB of `o`, held twice in the forward, and 24 GiB of
/// `d_q`, `d_k` and `d_v` at query width in the backward; a head at a time adds 1 and 3. Measured for 8 heads of 64 on 4 over 10,000
/// tokens in fp32, on one core, results included: 30 MiB and 1.3 s forward, 54 MiB and 3.2 s backward; all heads at once take 40 and
/// 118 MiB, and no less time.
const LONG_CALL_LEN: i64 = 8192;

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
    for call in calls(spec, documents) {
        let (o_call, lse_call) = Tensor::internal_scaled_dot_product_flash_attention_for_cpu(
            &call.queries(q),
            &call.keys(k),
            &call.keys(v),
            0.0,
            call.is_causal(),
            call.mask(mask.as_ref()),
            spec.scale,
        );
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
    for call in calls(spec, documents) {
        let (d_q_call, d_k_call, d_v_call) =
            Tensor::internal_scaled_dot_product_flash_attention_for_cpu_backward(
                &call.queries(d_o),
                &call.queries(q),
                &call.keys(k),
                &call.keys(v),
                &call.queries(o),
                &call.log_sums(lse),
                0.0,
                call.is_causal(),
                call.mask(mask.as_ref()),
                spec.scale,
            );
        call.queries(&d_q).copy_(&d_q_call);
        drop(d_q_call);
        call.add_to_keys(&d_k, &d_k_call);
        drop(d_k_call);
        call.add_to_keys(&d_v, &d_v_call);
    }
    (d_q, d_k.to_kind(k.kind()), d_v.to_kind(v.kind()))
}

/// One call of the kernel: a run of queries of one document against the keys they see, for kv heads that are each read by the
/// same number of query heads.
#[derive(Debug, Clone, PartialEq)]
struct Call {
    heads: HeadGroup,
    queries: Range<i64>,
    keys: Range<i64>,
    /// Whether a mask is needed to say which keys a query sees.
    is_banded: bool,
}

/// Consecutive kv heads, each read by `group_size` consecutive query heads.
#[derive(Debug, Clone, PartialEq)]
struct HeadGroup {
    q_start: i64,
    kv_start: i64,
    num_kv: i64,
    group_size: i64,
}

impl HeadGroup {
    /// Each kv head with the query heads that read it.
    fn kv_heads(&self) -> impl Iterator<Item = HeadGroup> + '_ {
        let HeadGroup { q_start, kv_start, num_kv, group_size } = *self;
        (0..num_kv).map(move |kv| HeadGroup {
            q_start: q_start + kv * group_size,
            kv_start: kv_start + kv,
            num_kv: 1,
            group_size,
        })
    }
}

impl Call {
    /// The part of `[s, n, h]` that this call reads or writes, as `[kv, group, queries, h]`.
    fn queries(&self, x: &Tensor) -> Tensor {
        let HeadGroup { q_start, num_kv, group_size, .. } = self.heads;
        x.narrow(0, self.queries.start, self.queries.end - self.queries.start)
            .narrow(1, q_start, num_kv * group_size)
            .unflatten(1, [num_kv, group_size])
            .permute([1, 2, 0, 3])
    }

    /// The part of `[s, k, h]` that this call reads, as `[kv, group, keys, h]`, without a copy for each member of the group.
    fn keys(&self, x: &Tensor) -> Tensor {
        let HeadGroup { num_kv, group_size, .. } = self.heads;
        self.own_keys(x).unsqueeze(1).expand([num_kv, group_size, -1, -1], false)
    }

    fn own_keys(&self, x: &Tensor) -> Tensor {
        x.narrow(0, self.keys.start, self.keys.end - self.keys.start)
            .narrow(1, self.heads.kv_start, self.heads.num_kv)
            .permute([1, 0, 2])
    }

    /// Adds a gradient `[kv, group, keys, h]` to `[s, k, h]`, summed over the group.
    fn add_to_keys(&self, total: &Tensor, d_keys: &Tensor) {
        let mut total = self.own_keys(total);
        let sum = d_keys.sum_dim_intlist(1_i64, false, total.kind());
        if self.is_banded {
            let _ = total.g_add_(&sum);
        } else {
            total.copy_(&sum);
        }
    }

    /// The part of `[n, s]` that belongs to the queries, as `[kv, group, queries]`.
    fn log_sums(&self, lse: &Tensor) -> Tensor {
        let HeadGroup { q_start, num_kv, group_size, .. } = self.heads;
        lse.narrow(0, q_start, num_kv * group_size)
            .narrow(1, self.queries.start, self.queries.end - self.queries.start)
            .unflatten(0, [num_kv, group_size])
    }

    fn is_causal(&self) -> bool {
        !self.is_banded
    }

    fn mask(&self, band: Option<&BandMask>) -> Option<Tensor> {
        self.is_banded
            .then(|| band.expect("a banded call has a window, and a window has a mask").of(self))
    }
}

/// Which keys of a band a tile of queries sees: zeros and minus infinities, to add to the scores.
struct BandMask {
    /// `[tile, tile + window - 1]`: row `i` sees columns `i .. i + window`.
    mask: Tensor,
}

impl BandMask {
    /// The one mask that all tiles of all documents are cut from, if any document is longer than the window.
    fn new(spec: &AttentionSpec, documents: &Documents, q: &Tensor) -> Option<BandMask> {
        let window = spec.sliding_window?;
        let longest = documents.0.iter().map(|range| range.end - range.start).max()?;
        if longest <= window {
            return None;
        }
        let tile_len = query_tile_len(window).min(longest);
        let num_columns = tile_len + window - 1;
        let options = (q.kind(), q.device());
        let mask = Tensor::full([tile_len, num_columns], f64::NEG_INFINITY, options);
        // A row further and a column further: the band is a rectangle of these strides.
        let _ = mask.as_strided([tile_len, window], [num_columns + 1, 1], None).zero_();
        Some(BandMask { mask })
    }

    /// The first tiles of a document have fewer keys before them than the band is wide, the last has fewer queries.
    fn of(&self, call: &Call) -> Tensor {
        let num_queries = call.queries.end - call.queries.start;
        let num_keys = call.keys.end - call.keys.start;
        let window = self.mask.size()[1] - self.mask.size()[0] + 1;
        let keys_before = call.queries.start - call.keys.start;
        self.mask.narrow(0, 0, num_queries).narrow(1, window - 1 - keys_before, num_keys)
    }
}

/// Queries of a tile against a band of `tile + window - 1` keys.
///
/// A long tile wastes work on masked scores, a short one leaves the kernel's own blocks empty. Measured for a window of 512 over
/// 4,096 tokens, forward and backward in ms: tiles of 64: 52 and 146; 128: 51 and 138; 256: 54 and 111; 512: 75 and 155.
///
/// At most 512, so that the mask grows with the window and not with its square: 34 MB in half precision for a window of 32,768.
fn query_tile_len(window: i64) -> i64 {
    (window / 2).clamp(128, 512)
}

/// All kernel calls of an attention, documents outermost.
fn calls(spec: &AttentionSpec, documents: &Documents) -> Vec<Call> {
    let groups = head_groups(&spec.kv_of_q);
    let single_heads: Vec<HeadGroup> = groups.iter().flat_map(HeadGroup::kv_heads).collect();
    let mut calls = Vec::new();
    for document in &documents.0 {
        let len = document.end - document.start;
        let window = spec.sliding_window.filter(|window| *window < len);
        let num_keys = window.map_or(len, |window| len.min(window - 1 + query_tile_len(window)));
        for heads in if num_keys > LONG_CALL_LEN { &single_heads } else { &groups } {
            match window {
                Some(window) => calls.extend(band_calls(document, window, heads)),
                None => calls.push(Call {
                    heads: heads.clone(),
                    queries: document.clone(),
                    keys: document.clone(),
                    is_banded: false,
                }),
            }
        }
    }
    calls
}

fn band_calls<'a>(
    document: &'a Range<i64>,
    window: i64,
    heads: &'a HeadGroup,
) -> impl Iterator<Item = Call> + 'a {
    let tile_len = query_tile_len(window);
    (document.start..document.end).step_by(tile_len as usize).map(move |start| {
        let end = (start + tile_len).min(document.end);
        let first_key = (start - (window - 1)).max(document.start);
        Call { heads: heads.clone(), queries: start..end, keys: first_key..end, is_banded: true }
    })
}

/// Splits a head map into as few groups as can each be one kernel call.
fn head_groups(kv_of_q: &[usize]) -> Vec<HeadGroup> {
    let mut groups: Vec<HeadGroup> = Vec::new();
    let mut q_start = 0;
    for run in kv_of_q.chunk_by(|a, b| a == b) {
        let (kv_start, group_size) = (run[0] as i64, run.len() as i64);
        match groups.last_mut() {
            Some(last)
                if last.group_size == group_size && last.kv_start + last.num_kv == kv_start =>
            {
                last.num_kv += 1;
            }
            _ => groups.push(HeadGroup { q_start, kv_start, num_kv: 1, group_size }),
        }
        q_start += group_size;
    }
    groups
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
    let map = &spec.kv_of_q;
    assert!(
        map.len() as i64 == q[1]
            && map.is_sorted()
            && map.last().is_none_or(|kv| (*kv as i64) < k[1]),
        "attention: the head map {map:?} must be one ascending index below {} for each of {} query heads",
        k[1],
        q[1]
    );
    assert!(
        spec.sliding_window.is_none_or(|window| window > 0),
        "attention: the window must be positive"
    );
    q
}

#[cfg(test)]
mod tests {
    use std::iter;

    use super::*;

    fn group(q_start: i64, kv_start: i64, num_kv: i64, group_size: i64) -> HeadGroup {
        HeadGroup { q_start, kv_start, num_kv, group_size }
    }

    #[test]
    fn an_even_map_is_one_group_and_an_uneven_one_few() {
        assert_eq!(head_groups(&[0, 0, 0, 1, 1, 1, 2, 2, 2]), [group(0, 0, 3, 3)]);
        // Nine heads on three kv heads over two ranks: five heads here.
        assert_eq!(head_groups(&[0, 0, 0, 1, 1]), [group(0, 0, 1, 3), group(3, 1, 1, 2)]);
        // The same on the other rank: the first kv head is shared with the first rank.
        assert_eq!(head_groups(&[0, 1, 1, 1]), [group(0, 0, 1, 1), group(1, 1, 1, 3)]);
        assert_eq!(head_groups(&[]), []);
    }

    #[test]
    fn only_a_call_with_many_keys_is_made_for_each_kv_head() {
        let heads_of = |len: i64, sliding_window: Option<i64>| {
            let spec = AttentionSpec { kv_of_q: vec![0, 0, 1, 1, 2], scale: 1.0, sliding_window };
            let mut heads: Vec<HeadGroup> =
                calls(&spec, &Documents::new(iter::once(0..len).collect()))
                    .into_iter()
                    .map(|call| call.heads)
                    .collect();
            heads.dedup();
            heads
        };
        let together = [group(0, 0, 2, 2), group(4, 2, 1, 1)];
        let apart = [group(0, 0, 1, 2), group(2, 1, 1, 2), group(4, 2, 1, 1)];
        assert_eq!(heads_of(LONG_CALL_LEN, None), together);
        assert_eq!(heads_of(LONG_CALL_LEN + 1, None), apart);
        // A window bounds the keys of a call, however long the document.
        assert_eq!(heads_of(LONG_CALL_LEN + 1, Some(4096)), together);
        assert_eq!(heads_of(2 * LONG_CALL_LEN, Some(LONG_CALL_LEN)), apart);
    }

    #[test]
    fn the_mask_of_a_long_window_has_few_rows() {
        let spec = AttentionSpec { kv_of_q: vec![0], scale: 1.0, sliding_window: Some(32_768) };
        let documents = Documents::new(iter::once(0..65_536).collect());
        let q = Tensor::zeros([0], (tch::Kind::BFloat16, tch::Device::Cpu));
        let mask = BandMask::new(&spec, &documents, &q).expect("a window needs a mask").mask;
        assert_eq!(mask.size(), [512, 512 + 32_768 - 1]);
    }

    #[test]
    fn a_window_that_covers_the_document_needs_no_band() {
        let spec = AttentionSpec { kv_of_q: vec![0], scale: 1.0, sliding_window: Some(8) };
        let documents = Documents::new(vec![0..8, 8..17]);
        let banded: Vec<bool> =
            calls(&spec, &documents).iter().map(|call| call.is_banded).collect();
        assert_eq!(banded, [false, true]);
    }
}
