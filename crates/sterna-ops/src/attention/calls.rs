//! Which kernel calls compute an attention: their heads, queries and keys, and the parts of whole tensors that each reads and writes.

use std::ops::Range;

use tch::Tensor;

use super::{AttentionSpec, Documents};

/// A call with more keys than this computes one kv head and the query heads that read it.
///
/// From here on a head is thousands of the kernel's blocks, so a call for each costs no time, and all heads at once cost room: with
/// 32 query heads of 128 on 8, one document of 1,048,576 tokens in bf16 has 8 GiB of `o`, held twice in the forward, and 24 GiB of
/// `d_q`, `d_k` and `d_v` at query width in the backward; a head at a time adds 1 and 3. Measured for 8 heads of 64 on 4 over 10,000
/// tokens in fp32, on one core, results included: 30 MiB and 1.3 s forward, 54 MiB and 3.2 s backward; all heads at once take 40 and
/// 118 MiB, and no less time.
const LONG_CALL_LEN: i64 = 8192;

/// One call of the kernel: a run of queries of one document against the keys they see, for kv heads that are each read by the
/// same number of query heads.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Call {
    heads: HeadGroup,
    queries: Range<i64>,
    keys: Range<i64>,
    visible: Visible,
}

/// Which keys of a call a query sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Visible {
    All,
    /// Query `i` sees keys `0..=i`.
    Causal,
    /// Query `i` sees the keys of a window that ends `keys_before` after key `i`. Needs a mask.
    Band {
        keys_before: i64,
    },
}

/// Consecutive kv heads, each read by `group_size` consecutive query heads.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct HeadGroup {
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
    /// `o` `[kv, group, queries, h]` and `lse` `[kv, group, queries]` of these queries, if there were no other keys.
    pub(super) fn forward(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        spec: &AttentionSpec,
        band: Option<&BandMask>,
    ) -> (Tensor, Tensor) {
        Tensor::internal_scaled_dot_product_flash_attention_for_cpu(
            &self.queries(q),
            &self.keys(k),
            &self.keys(v),
            0.0,
            self.is_causal(),
            self.mask(band),
            spec.scale,
        )
    }

    /// The shares of `d_q` `[kv, group, queries, h]` and of `d_k` and `d_v` `[kv, group, keys, h]` that these pairs have.
    ///
    /// `o` and `lse` are those of all keys.
    pub(super) fn backward(
        &self,
        [d_o, q, k, v, o, lse]: [&Tensor; 6],
        spec: &AttentionSpec,
        band: Option<&BandMask>,
    ) -> (Tensor, Tensor, Tensor) {
        Tensor::internal_scaled_dot_product_flash_attention_for_cpu_backward(
            &self.queries(d_o),
            &self.queries(q),
            &self.keys(k),
            &self.keys(v),
            &self.queries(o),
            &self.log_sums(lse),
            0.0,
            self.is_causal(),
            self.mask(band),
            spec.scale,
        )
    }

    /// The part of `[s, n, h]` that this call reads or writes, as `[kv, group, queries, h]`.
    pub(super) fn queries(&self, x: &Tensor) -> Tensor {
        let HeadGroup { q_start, num_kv, group_size, .. } = self.heads;
        x.narrow(0, self.queries.start, self.num_queries())
            .narrow(1, q_start, num_kv * group_size)
            .unflatten(1, [num_kv, group_size])
            .permute([1, 2, 0, 3])
    }

    /// The part of `[s, k, h]` that this call reads, as `[kv, group, keys, h]`, without a copy for each member of the group.
    pub(super) fn keys(&self, x: &Tensor) -> Tensor {
        let HeadGroup { num_kv, group_size, .. } = self.heads;
        self.own_keys(x).unsqueeze(1).expand([num_kv, group_size, -1, -1], false)
    }

    fn own_keys(&self, x: &Tensor) -> Tensor {
        x.narrow(0, self.keys.start, self.num_keys())
            .narrow(1, self.heads.kv_start, self.heads.num_kv)
            .permute([1, 0, 2])
    }

    /// Adds a gradient `[kv, group, keys, h]` to `[s, k, h]`, summed over the group.
    pub(super) fn add_to_keys(&self, total: &Tensor, d_keys: &Tensor) {
        let mut total = self.own_keys(total);
        let _ = total.g_add_(&d_keys.sum_dim_intlist(1_i64, false, total.kind()));
    }

    /// The part of `[n, s]` that belongs to the queries, as `[kv, group, queries]`.
    pub(super) fn log_sums(&self, lse: &Tensor) -> Tensor {
        let HeadGroup { q_start, num_kv, group_size, .. } = self.heads;
        lse.narrow(0, q_start, num_kv * group_size)
            .narrow(1, self.queries.start, self.num_queries())
            .unflatten(0, [num_kv, group_size])
    }

    pub(super) fn is_causal(&self) -> bool {
        self.visible == Visible::Causal
    }

    pub(super) fn mask(&self, band: Option<&BandMask>) -> Option<Tensor> {
        let Visible::Band { keys_before } = self.visible else { return None };
        let band = band.expect("a banded call has a window, and a window has a mask");
        Some(band.of(self.num_queries(), self.num_keys(), keys_before))
    }

    fn num_queries(&self) -> i64 {
        self.queries.end - self.queries.start
    }

    fn num_keys(&self) -> i64 {
        self.keys.end - self.keys.start
    }
}

/// Which keys of a band a tile of queries sees: zeros and minus infinities, to add to the scores.
pub(super) struct BandMask {
    /// `[tile, tile + window - 1]`: row `i` sees columns `i .. i + window`.
    mask: Tensor,
}

impl BandMask {
    /// The one mask that all tiles of all documents are cut from, if any document is longer than the window.
    pub(super) fn new(spec: &AttentionSpec, documents: &Documents, q: &Tensor) -> Option<BandMask> {
        let window = spec.sliding_window?;
        let longest = documents.ranges().iter().map(|range| range.end - range.start).max()?;
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
    fn of(&self, num_queries: i64, num_keys: i64, keys_before: i64) -> Tensor {
        let window = self.mask.size()[1] - self.mask.size()[0] + 1;
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

/// The kernel calls of a run of queries against a run of keys, documents outermost.
///
/// Both are runs of tokens of the packed sequence; the calls count from their starts. Each query is in one call with each key
/// that it sees in the run, and in no call where it sees none: the kernel has no log-sum-exp of nothing.
pub(super) fn calls(
    spec: &AttentionSpec,
    documents: &Documents,
    queries: &Range<i64>,
    keys: &Range<i64>,
) -> Vec<Call> {
    let groups = head_groups(&spec.kv_of_q);
    let single_heads: Vec<HeadGroup> = groups.iter().flat_map(HeadGroup::kv_heads).collect();
    let mut calls = Vec::new();
    for document in documents.within(queries) {
        let window = spec.sliding_window.filter(|window| *window < document.end - document.start);
        let (queries_here, keys_here) = (common(queries, document), common(keys, document));
        if keys_here.is_empty() {
            continue;
        }
        let blocks = match window {
            Some(window) => bands(&queries_here, &keys_here, window),
            None => trapezoid(&queries_here, &keys_here),
        };
        let most_keys = blocks.iter().map(|block| block.keys.end - block.keys.start).max();
        let is_long = most_keys.is_some_and(|num_keys| num_keys > LONG_CALL_LEN);
        for heads in if is_long { &single_heads } else { &groups } {
            calls.extend(blocks.iter().map(|block| Call {
                heads: heads.clone(),
                queries: shifted(&block.queries, -queries.start),
                keys: shifted(&block.keys, -keys.start),
                visible: block.visible,
            }));
        }
    }
    calls
}

/// Queries and keys of a call, as tokens of the packed sequence.
struct Block {
    queries: Range<i64>,
    keys: Range<i64>,
    visible: Visible,
}

/// Cuts what a run of queries sees of a run of keys into a triangle and the rectangles beside and below it.
///
/// The kernel's causal mask lets its first query see its first key, so a triangle needs a call of its own.
fn trapezoid(queries: &Range<i64>, keys: &Range<i64>) -> Vec<Block> {
    let both = common(queries, keys);
    let before = keys.start..keys.end.min(both.start);
    let after = queries.start.max(keys.end)..queries.end;
    [
        Block { queries: both.clone(), keys: both.clone(), visible: Visible::Causal },
        Block { queries: both, keys: before, visible: Visible::All },
        Block { queries: after, keys: keys.clone(), visible: Visible::All },
    ]
    .into_iter()
    .filter(|block| !block.queries.is_empty() && !block.keys.is_empty())
    .collect()
}

/// Cuts a run of queries into tiles, each against the keys of its band.
fn bands(queries: &Range<i64>, keys: &Range<i64>, window: i64) -> Vec<Block> {
    let tile_len = query_tile_len(window);
    // Earlier queries precede all keys; to later ones all keys are too old.
    let queries = queries.start.max(keys.start)..queries.end.min(keys.end + window - 1);
    (queries.start..queries.end)
        .step_by(tile_len as usize)
        .map(|start| {
            let end = (start + tile_len).min(queries.end);
            let first_key = keys.start.max(start - (window - 1));
            Block {
                queries: start..end,
                keys: first_key..keys.end.min(end),
                visible: Visible::Band { keys_before: start - first_key },
            }
        })
        .collect()
}

fn common(a: &Range<i64>, b: &Range<i64>) -> Range<i64> {
    a.start.max(b.start)..a.end.min(b.end)
}

fn shifted(range: &Range<i64>, by: i64) -> Range<i64> {
    range.start + by..range.end + by
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
                calls(&spec, &Documents::new(iter::once(0..len).collect()), &(0..len), &(0..len))
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
        let causal: Vec<bool> =
            calls(&spec, &documents, &(0..17), &(0..17)).iter().map(Call::is_causal).collect();
        assert_eq!(causal, [true, false]);
    }
}
