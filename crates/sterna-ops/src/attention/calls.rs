//! Which kernel calls compute an attention: their heads, queries and keys, and the parts of whole tensors that each reads and writes.

use std::iter;
use std::ops::Range;
use std::rc::Rc;

use sterna_torch_sys::attention::VisibleKeys;
use tch::Tensor;

use super::choice::{Kernel, Problem};
use super::pack::{MOST_DOCUMENTS, Pack, packs};
use super::{AttentionSpec, Documents};
use crate::accumulate_kind;
use crate::tile::tiles;

/// A call with more keys than this computes few kv heads and the query heads that read them: one, or as many as give each thread
/// work.
///
/// From here on a head is thousands of the kernel's blocks, so a call for each costs no time, and all heads at once cost room: with
/// 32 query heads of 128 on 8, one document of 1,048,576 tokens in bf16 has 8 GiB of `o`, held twice in the forward, and 24 GiB of
/// `d_q`, `d_k` and `d_v` at query width in the backward; a head at a time adds 1 and 3. Measured for 8 heads of 64 on 4 over 10,000
/// tokens in fp32, on one core, results included: 30 MiB and 1.3 s forward, 54 MiB and 3.2 s backward; all heads at once take 40 and
/// 118 MiB, and no less time.
const LONG_CALL_LEN: i64 = 8192;

/// One call of a kernel: a run of queries against keys that they see, for kv heads that are each read by the same number of query
/// heads.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) kernel: Kernel,
    pub(super) heads: HeadGroup,
    pub(super) queries: Range<i64>,
    pub(super) keys: Range<i64>,
    pub(super) seen: Seen,
}

/// What the queries of a call see of its keys.
#[derive(Debug, Clone)]
pub(super) enum Seen {
    /// The queries and keys are of one document.
    Document(VisibleKeys),
    /// They are those of many.
    Pack(Rc<Pack>),
}

/// Consecutive kv heads, each read by `group_size` consecutive query heads.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct HeadGroup {
    q_start: i64,
    kv_start: i64,
    num_kv: i64,
    pub(super) group_size: i64,
}

impl HeadGroup {
    /// Runs of kv heads with at least `least_q` query heads that read them, or as many as there are.
    fn runs(&self, least_q: i64) -> impl Iterator<Item = HeadGroup> + use<> {
        self.runs_of((least_q as u64).div_ceil(self.group_size as u64).max(1) as i64)
    }

    /// Runs of at most `most_kv` kv heads.
    fn runs_of(&self, most_kv: i64) -> impl Iterator<Item = HeadGroup> + use<> {
        let HeadGroup { q_start, kv_start, num_kv, group_size } = *self;
        tiles(num_kv, most_kv).map(move |run| HeadGroup {
            q_start: q_start + run.start * group_size,
            kv_start: kv_start + run.start,
            num_kv: run.end - run.start,
            group_size,
        })
    }
}

impl Call {
    /// The visible keys of a call of one document.
    pub(super) fn visible(&self) -> VisibleKeys {
        match &self.seen {
            Seen::Document(visible) => *visible,
            Seen::Pack(_) => unreachable!("only the kernel for packs has calls of packs"),
        }
    }

    /// The part of `[s, n, h]` that this call reads or writes, as it lies there: `[queries, kv * group, h]`.
    pub(super) fn flat_queries(&self, x: &Tensor) -> Tensor {
        let HeadGroup { q_start, num_kv, group_size, .. } = self.heads;
        x.narrow(0, self.queries.start, self.num_queries()).narrow(1, q_start, num_kv * group_size)
    }

    /// The part of `[s, k, h]` that this call reads or writes, as it lies there: `[keys, kv, h]`.
    pub(super) fn flat_keys(&self, x: &Tensor) -> Tensor {
        x.narrow(0, self.keys.start, self.num_keys()).narrow(
            1,
            self.heads.kv_start,
            self.heads.num_kv,
        )
    }

    /// The part of `[s, n, h]` that this call reads or writes, as `[kv, group, queries, h]`.
    pub(super) fn queries(&self, x: &Tensor) -> Tensor {
        let HeadGroup { num_kv, group_size, .. } = self.heads;
        self.flat_queries(x).unflatten(1, [num_kv, group_size]).permute([1, 2, 0, 3])
    }

    /// The part of `[s, k, h]` that this call reads, as `[kv, keys, h]`.
    pub(super) fn keys(&self, x: &Tensor) -> Tensor {
        self.flat_keys(x).permute([1, 0, 2])
    }

    /// Adds a gradient `[kv, group, keys, h]` to `[s, k, h]`, summed over the group.
    pub(super) fn add_to_keys(&self, total: &Tensor, d_keys: &Tensor) {
        let mut total = self.keys(total);
        // A sum asked for in half precision would round what it sums.
        let kind = accumulate_kind(d_keys.kind());
        let _ = total.g_add_(&d_keys.sum_dim_intlist(1_i64, false, kind));
    }

    /// The part of `[n, s]` that belongs to the queries, as `[kv, group, queries]`.
    pub(super) fn log_sums(&self, lse: &Tensor) -> Tensor {
        let HeadGroup { q_start, num_kv, group_size, .. } = self.heads;
        lse.narrow(0, q_start, num_kv * group_size)
            .narrow(1, self.queries.start, self.num_queries())
            .unflatten(0, [num_kv, group_size])
    }

    pub(super) fn num_queries(&self) -> i64 {
        self.queries.end - self.queries.start
    }

    pub(super) fn num_keys(&self) -> i64 {
        self.keys.end - self.keys.start
    }
}

/// Queries of a tile against a band of `tile + window - 1` keys, where a window needs a mask.
///
/// A long tile wastes work on masked scores, a short one leaves the kernel's own blocks empty. Measured for a window of 512 over
/// 4,096 tokens, forward and backward in ms: tiles of 64: 52 and 146; 128: 51 and 138; 256: 54 and 111; 512: 75 and 155.
///
/// At most 512, so that the mask grows with the window and not with its square: 68 MB in single precision for a window of 32,768.
pub(super) fn query_tile_len(window: i64) -> i64 {
    (window / 2).clamp(128, 512)
}

/// The kernel calls of a run of queries against a run of keys, documents outermost.
///
/// Both are runs of tokens of the packed sequence; the calls count from their starts. Each query is in one call with each key
/// that it sees in the run, and in no call where it sees none: a kernel has no log-sum-exp of nothing.
pub(super) fn calls(
    problem: &Problem,
    spec: &AttentionSpec,
    documents: &Documents,
    queries: &Range<i64>,
    keys: &Range<i64>,
) -> Vec<Call> {
    let groups = head_groups(&spec.kv_of_q);
    let kernel_of = |document: &Range<i64>| problem.kernel(document.end - document.start);
    // One kernel takes many documents at once.
    let is_pack = |a: &Range<i64>, b: &Range<i64>| [a, b].map(kernel_of) == [Kernel::Flash; 2];
    let mut calls = Vec::new();
    for run in documents.within(queries).chunk_by(is_pack) {
        let (kernel, len) = (kernel_of(&run[0]), run[0].end - run[0].start);
        let blocks = run.iter().map(|document| (common(queries, document), common(keys, document)));
        let window = spec.sliding_window.filter(|window| *window < len);
        let parts: Vec<Part> = match kernel {
            Kernel::Flash => of_packs(blocks, spec.sliding_window),
            Kernel::Blocked | Kernel::Tiled => {
                blocks.flat_map(|block| seen(block, window)).map(|b| visible(b, window)).collect()
            }
            Kernel::Libtorch => {
                let cut = |block| match window {
                    Some(window) => bands(block, window),
                    None => trapezoid(&block),
                };
                blocks.flat_map(cut).map(|b| visible(b, window)).collect()
            }
            Kernel::Cudnn => blocks.flat_map(|block| of_cudnn(problem, &block)).collect(),
        };
        for heads in heads_of_a_call(problem, kernel, &groups, &parts) {
            calls.extend(parts.iter().map(|((queries_here, keys_here), seen)| Call {
                kernel: if matches!(seen, Seen::Pack(_)) { Kernel::Flash } else { kernel },
                heads: heads.clone(),
                queries: shifted(queries_here, -queries.start),
                keys: shifted(keys_here, -keys.start),
                seen: seen.clone(),
            }));
        }
    }
    calls
}

/// A block of queries and keys, and what the former see of the latter.
type Part = (Block, Seen);

fn of_packs(blocks: impl Iterator<Item = Block>, window: Option<i64>) -> Vec<Part> {
    let packs = packs(blocks, window, MOST_DOCUMENTS).into_iter();
    packs.map(|(block, pack)| (block, Seen::Pack(Rc::new(pack)))).collect()
}

/// Cuts a long document into calls of cuDNN, and of the kernel for packs where what is cut off is small.
fn of_cudnn(problem: &Problem, block: &Block) -> Vec<Part> {
    let cut = |block: Block| {
        if problem.is_cudnn_block(&block) {
            vec![visible(block, None)]
        } else {
            of_packs(iter::once(block), None)
        }
    };
    trapezoid(block).into_iter().flat_map(cut).collect()
}

fn visible((queries, keys): Block, window: Option<i64>) -> Part {
    let visible = VisibleKeys {
        keys_before: queries.start - keys.start,
        window: window.unwrap_or(VisibleKeys::NO_WINDOW),
    };
    ((queries, keys), Seen::Document(visible))
}

/// The heads that a kernel computes at once of these parts.
fn heads_of_a_call(
    problem: &Problem,
    kernel: Kernel,
    groups: &[HeadGroup],
    parts: &[Part],
) -> Vec<HeadGroup> {
    let longest = |len: fn(&Block) -> i64| parts.iter().map(|(block, _)| len(block)).max();
    let least_q = match kernel {
        Kernel::Flash | Kernel::Cudnn => {
            let num_queries = longest(|(queries, _)| queries.end - queries.start).unwrap_or(0);
            let most_kv = |group: &HeadGroup| {
                let elements = num_queries * group.group_size * problem.head_dim;
                (problem.most_query_elements / elements.max(1)).max(1)
            };
            return groups.iter().flat_map(|group| group.runs_of(most_kv(group))).collect();
        }
        Kernel::Libtorch | Kernel::Tiled => 1,
        // Its backward gives each thread a query head: enough of them that the last round is not a large part.
        Kernel::Blocked => 2 * i64::from(tch::get_num_threads()),
    };
    if longest(|(_, keys)| keys.end - keys.start).is_some_and(|len| len > LONG_CALL_LEN) {
        groups.iter().flat_map(|group| group.runs(least_q)).collect()
    } else {
        groups.to_vec()
    }
}

/// Queries and keys of a call, as tokens of the packed sequence.
pub(super) type Block = (Range<i64>, Range<i64>);

/// The queries that see one of the keys, and the keys that one of the queries sees.
pub(super) fn seen((queries, keys): Block, window: Option<i64>) -> Vec<Block> {
    let reach = window.map_or(VisibleKeys::NO_WINDOW, |window| window - 1);
    let queries = queries.start.max(keys.start)..queries.end.min(keys.end + reach);
    let keys = keys.start.max(queries.start - reach)..keys.end.min(queries.end);
    if queries.is_empty() || keys.is_empty() { Vec::new() } else { vec![(queries, keys)] }
}

/// Cuts what a run of queries sees of a run of keys into a triangle and the rectangles beside and below it.
///
/// The causal masks of libtorch's CPU kernel and of cuDNN let a call's first query see its first key, so a triangle needs a call of
/// its own.
fn trapezoid((queries, keys): &Block) -> Vec<Block> {
    let both = common(queries, keys);
    let before = keys.start..keys.end.min(both.start);
    let after = queries.start.max(keys.end)..queries.end;
    [(both.clone(), both.clone()), (both, before), (after, keys.clone())]
        .into_iter()
        .filter(|(queries, keys)| !queries.is_empty() && !keys.is_empty())
        .collect()
}

/// Cuts a run of queries into tiles, each against the keys of its band.
fn bands(block: Block, window: i64) -> Vec<Block> {
    let tile_len = query_tile_len(window);
    seen(block, Some(window))
        .into_iter()
        .flat_map(|(queries, keys)| {
            (queries.start..queries.end).step_by(tile_len as usize).map(move |start| {
                let end = (start + tile_len).min(queries.end);
                (start..end, keys.start.max(start - (window - 1))..keys.end.min(end))
            })
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
pub(super) fn head_groups(kv_of_q: &[usize]) -> Vec<HeadGroup> {
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
    use super::super::Implementation;
    use super::super::choice::tests::problem;
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
            let spec = AttentionSpec {
                kv_of_q: vec![0, 0, 1, 1, 2],
                scale: 1.0,
                softcap: None,
                sliding_window,
                implementation: Implementation::Automatic,
            };
            let mut heads: Vec<HeadGroup> = calls(
                &Problem { sliding_window, ..problem(false) },
                &spec,
                &Documents::new(iter::once(0..len).collect()),
                &(0..len),
                &(0..len),
            )
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
    fn a_window_that_covers_the_document_needs_no_band() {
        let spec = AttentionSpec {
            kv_of_q: vec![0],
            scale: 1.0,
            softcap: None,
            sliding_window: Some(8),
            implementation: Implementation::Automatic,
        };
        let documents = Documents::new(vec![0..8, 8..17]);
        let libtorch = Problem { sliding_window: Some(8), ..problem(false) };
        let tiled = Problem { kind: tch::Kind::Float, is_cuda: true, ..libtorch };
        for problem in [libtorch, Problem { is_blocked: true, ..libtorch }, tiled] {
            let windows: Vec<i64> = calls(&problem, &spec, &documents, &(0..17), &(0..17))
                .iter()
                .map(|call| call.visible().window)
                .collect();
            assert_eq!(windows, [VisibleKeys::NO_WINDOW, 8]);
        }
    }
}
