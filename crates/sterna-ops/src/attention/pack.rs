//! Documents of a pack as one kernel call takes them.

use std::cell::OnceCell;

use sterna_torch_sys::copies;
use sterna_torch_sys::cuda_attention::PackedLengths;
use tch::{Device, Tensor};

use super::calls::{Block, seen};

/// The lengths of consecutive documents, and which keys of its own document a query sees.
#[derive(Debug)]
pub(super) struct Pack {
    cu_seqlens_q: Vec<i32>,
    cu_seqlens_k: Vec<i32>,
    max_q: i64,
    max_k: i64,
    left: Option<i64>,
    right: Option<i64>,
    /// Shared by the calls for all heads.
    on_device: OnceCell<PackedLengths>,
}

impl Pack {
    /// `blocks` are the queries and keys of consecutive documents, without gaps.
    fn new(blocks: &[Block], left: Option<i64>, right: Option<i64>) -> Pack {
        let ends = |len: fn(&Block) -> i64| {
            let mut end = 0;
            let ends = blocks.iter().map(|block| {
                end += len(block);
                i32::try_from(end)
                    .expect("a call has fewer than 2^31 tokens: they would not fit a device")
            });
            [0].into_iter().chain(ends).collect()
        };
        let longest = |len: fn(&Block) -> i64| blocks.iter().map(len).max().unwrap_or(0);
        Pack {
            cu_seqlens_q: ends(num_queries),
            cu_seqlens_k: ends(num_keys),
            max_q: longest(num_queries),
            // A side of the window that is not shorter than this would be taken for open.
            max_k: longest(num_keys).max(right.map_or(0, |right| right + 1)),
            left,
            right,
            on_device: OnceCell::new(),
        }
    }

    /// The lengths on the device, copied at the first call. Nothing waits for it.
    pub(super) fn lengths(&self, device: Device) -> &PackedLengths {
        let upload = |ends: &[i32]| copies::upload(Tensor::from_slice(ends), device);
        self.on_device.get_or_init(|| PackedLengths {
            cu_seqlens_q: upload(&self.cu_seqlens_q),
            cu_seqlens_k: upload(&self.cu_seqlens_k),
            max_q: self.max_q,
            max_k: self.max_k,
            left: self.left,
            right: self.right,
        })
    }
}

fn num_queries((queries, _): &Block) -> i64 {
    queries.end - queries.start
}

fn num_keys((_, keys): &Block) -> i64 {
    keys.end - keys.start
}

/// The most documents of a call: they are a dimension of the kernel's grid other than the first (`flash_fwd_launch_template.h`).
pub(super) const MOST_DOCUMENTS: usize = 65_535;

/// The calls for blocks of consecutive documents, at most so many in each: what of a run of queries and of a run of keys belongs to
/// each.
///
/// A kernel for packs sets the last query of a document at its last key. That holds for the queries up to the run's last key, in
/// the same calls for all documents; the queries behind it, of one document at most, are a call of their own.
pub(super) fn packs(
    blocks: impl Iterator<Item = Block>,
    window: Option<i64>,
    most_documents: usize,
) -> Vec<(Block, Pack)> {
    let mut aligned: Vec<Block> = Vec::new();
    let mut behind: Option<Block> = None;
    for (queries, keys) in blocks.flat_map(|block| seen(block, window)) {
        let split = queries.end.min(keys.end);
        if queries.start < split {
            aligned.push((queries.start..split, keys.clone()));
        }
        if split < queries.end {
            behind = Some((queries.start.max(split)..queries.end, keys));
        }
    }
    let mut packs = Vec::new();
    for blocks in aligned.chunks(most_documents) {
        let (first, last) = (&blocks[0], &blocks[blocks.len() - 1]);
        let block = (first.0.start..last.0.end, first.1.start..last.1.end);
        packs.push((block, Pack::new(blocks, window.map(|window| window - 1), Some(0))));
    }
    if let Some((queries, keys)) = behind {
        // A query's own place is behind the keys, by as much as the last query is behind the last key. Only a window looks there.
        let right = window.map(|_| queries.end - keys.end);
        let left = window.zip(right).map(|(window, right)| window - 1 - right);
        let block = (queries.clone(), keys.clone());
        packs.push((block, Pack::new(&[(queries, keys)], left, right)));
    }
    packs
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Which pairs the calls of a kernel for packs compute, by the kernel's own rule.
    fn pairs(packs: &[(Block, Pack)]) -> Vec<(i64, i64)> {
        let mut pairs = Vec::new();
        for ((queries, keys), pack) in packs {
            let ends = pack.cu_seqlens_q.windows(2).zip(pack.cu_seqlens_k.windows(2));
            for (q, k) in ends {
                let (num_queries, num_keys) = (i64::from(q[1] - q[0]), i64::from(k[1] - k[0]));
                assert!(0 < num_queries && num_queries <= pack.max_q);
                assert!(0 < num_keys && num_keys <= pack.max_k);
                let side = |side: Option<i64>| match side {
                    Some(side) if side < pack.max_k => side,
                    _ => i64::MAX / 4,
                };
                let (left, right) = (side(pack.left), side(pack.right));
                for i in 0..num_queries {
                    let at = i + num_keys - num_queries;
                    let seen: Vec<i64> =
                        (0..num_keys).filter(|j| at - left <= *j && *j <= at + right).collect();
                    assert!(!seen.is_empty(), "a query without keys has no log-sum-exp");
                    let query = queries.start + i64::from(q[0]) + i;
                    pairs.extend(seen.iter().map(|j| (query, keys.start + i64::from(k[0]) + j)));
                }
            }
            assert_eq!(queries.start + i64::from(*pack.cu_seqlens_q.last().unwrap()), queries.end);
            assert_eq!(keys.start + i64::from(*pack.cu_seqlens_k.last().unwrap()), keys.end);
        }
        pairs.sort_unstable();
        pairs
    }

    proptest! {
        #[test]
        fn packs_compute_each_visible_pair_once(
            lengths in prop::collection::vec(1_i64..12, 1..6),
            (query_start, num_queries) in (0_i64..40, 1_i64..40),
            (key_start, num_keys) in (0_i64..40, 1_i64..40),
            window in prop::option::of(1_i64..14),
            most_documents in 1_usize..6,
        ) {
            let (queries, keys) =
                (query_start..query_start + num_queries, key_start..key_start + num_keys);
            let common = |a: &std::ops::Range<i64>, b: &std::ops::Range<i64>| {
                a.start.max(b.start)..a.end.min(b.end)
            };
            let mut end = 0;
            let documents: Vec<_> = lengths
                .iter()
                .map(|len| {
                    end += len;
                    end - len..end
                })
                .collect();
            let blocks = documents
                .iter()
                .filter(|document| !common(&queries, document).is_empty())
                .map(|document| (common(&queries, document), common(&keys, document)));
            let mut expected = Vec::new();
            for document in &documents {
                for i in common(&queries, document) {
                    let is_seen = |j: &i64| *j <= i && window.is_none_or(|window| i - j < window);
                    expected.extend(common(&keys, document).filter(is_seen).map(|j| (i, j)));
                }
            }
            let packs = packs(blocks, window, most_documents);
            prop_assert!(packs.iter().all(|(_, pack)| pack.cu_seqlens_q.len() <= most_documents + 1));
            prop_assert_eq!(pairs(&packs), expected);
        }
    }
}
