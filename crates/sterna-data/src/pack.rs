//! Putting several samples into one sequence.
//!
//! Packing only ever looks at lengths, so it works on indices: a [`Packs`] says which samples make up which pack, and the tokens
//! stay where they are until a micro-batch is built. That keeps the plan of a data set of millions of samples in memory, and
//! lets a change of `max_length` or `packing` reuse every cached token.

use std::{collections::VecDeque, ops::Range};

use crate::rng::PythonRandom;

/// Most samples that the reference gives to one packing batch.
const REFERENCE_BATCH_CAP: usize = 1000;

/// Which samples make up which pack. A data set that is not packed has packs of one sample.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packs {
    /// Sample indices, pack after pack.
    members: Vec<u32>,
    /// End of each pack in `members`.
    ends: Vec<usize>,
    /// Whether the positions of a pack run through it instead of restarting at each sample.
    fused: Vec<bool>,
}

impl Packs {
    /// One pack for each of `samples`, in that order.
    pub fn singletons(samples: &[u32]) -> Self {
        Self {
            members: samples.to_vec(),
            ends: (1..=samples.len()).collect(),
            fused: vec![false; samples.len()],
        }
    }

    /// Packs of so many samples each, which are numbered through.
    pub fn consecutive(lens: impl IntoIterator<Item = usize>) -> Self {
        let mut packs = Self::default();
        for len in lens {
            let start = packs.members.len() as u32;
            let members: Vec<u32> = (start..start + len as u32).collect();
            packs.push(&members, false);
        }
        packs
    }

    /// Number of packs.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is no pack.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The samples of pack `index`, in order.
    pub fn members(&self, index: usize) -> &[u32] {
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.members[start..self.ends[index]]
    }

    /// Whether the positions of pack `index` are one run.
    pub fn is_fused(&self, index: usize) -> bool {
        self.fused[index]
    }

    fn push(&mut self, members: &[u32], fused: bool) {
        self.members.extend_from_slice(members);
        self.ends.push(self.members.len());
        self.fused.push(fused);
    }
}

/// The recipe's packing keys.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PackRule {
    /// Tokens that a pack is filled to.
    pub max_length: usize,
    /// Close a pack only once it is longer than `max_length`.
    pub always_max_length: bool,
    /// Leave out the last pack of each packing batch.
    pub drop_last: bool,
    /// Probability that a pack's positions are one run.
    pub fuse_positions_prob: f64,
    /// Seeds the choice of those packs.
    pub seed: u64,
}

/// Packs as the reference does: `datasets.map` cuts `samples` into `num_proc` contiguous shards, each shard into batches of
/// `min(len / num_proc + 1, 1000)` samples, and every batch is packed by itself.
///
/// `lengths[i]` is the number of tokens of sample `i`; `samples` are shuffled already.
///
/// # Source
///
/// ArcticTraining `sft_factory.py` (`pack_dataset`, `pack_sft_batch`), datasets `Dataset.map` and `Dataset.shard`.
pub fn pack_reference(samples: &[u32], lengths: &[u32], num_proc: usize, rule: &PackRule) -> Packs {
    let batch_len = (samples.len() / num_proc + 1).min(REFERENCE_BATCH_CAP);
    let mut packs = Packs::default();
    // datasets.map never starts more processes than there are rows.
    for shard in contiguous_shards(samples.len(), num_proc.min(samples.len())) {
        for batch in samples[shard].chunks(batch_len) {
            pack_batch(batch, lengths, rule, &mut packs);
        }
    }
    packs
}

/// A run of tokens of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The sample.
    pub sample: u32,
    /// Its first token.
    pub start: u32,
    /// Tokens.
    pub len: u32,
}

/// Cuts texts into rows of exactly `max_length` tokens as the reference does, in each of the `num_proc` contiguous shards that
/// `datasets.map` cuts `samples` into: a text as long as a row or longer becomes rows of its own, and what is shorter waits until it fills
/// one, whose last text goes on in the next. Returns the rows and the number of tokens that fill none.
///
/// `lengths[i]` is the number of tokens of sample `i`; `samples` are shuffled already.
///
/// # Source
///
/// ArcticTraining `causal_factory.py` (`slice_and_pack_dataset`, `slice_and_pack_causal_batch`).
pub fn slice_reference(
    samples: &[u32],
    lengths: &[u32],
    num_proc: usize,
    max_length: u32,
) -> (Vec<Vec<Slice>>, u64) {
    let (mut rows, mut left_over) = (Vec::new(), 0);
    for shard in contiguous_shards(samples.len(), num_proc.min(samples.len())) {
        let (mut waiting, mut num_waiting) = (VecDeque::<Slice>::new(), 0);
        for &sample in &samples[shard] {
            let len = lengths[sample as usize];
            let num_whole = len / max_length;
            let whole = (0..num_whole)
                .map(|i| vec![Slice { sample, start: i * max_length, len: max_length }]);
            rows.extend(whole);
            let rest = len % max_length;
            // A text of no tokens waits too: it is one of its row's.
            if rest > 0 || num_whole == 0 {
                waiting.push_back(Slice { sample, start: num_whole * max_length, len: rest });
                num_waiting += u64::from(rest);
            }
            if num_waiting >= u64::from(max_length) {
                rows.push(row_of(&mut waiting, max_length));
                num_waiting -= u64::from(max_length);
            }
        }
        left_over += num_waiting;
    }
    (rows, left_over)
}

/// Takes a row from texts that are enough for one. Texts of no tokens right behind a full row are in it.
fn row_of(waiting: &mut VecDeque<Slice>, max_length: u32) -> Vec<Slice> {
    let (mut row, mut room) = (Vec::new(), max_length);
    while let Some(slice) = waiting.pop_front() {
        if slice.len <= room {
            room -= slice.len;
            row.push(slice);
            continue;
        }
        row.push(Slice { len: room, ..slice });
        waiting.push_front(Slice { start: slice.start + room, len: slice.len - room, ..slice });
        break;
    }
    row
}

/// Packs all of `samples` as one batch, whatever their number, so that a `max_length` of millions is filled.
///
/// Next fit: a pack ends where the next sample would exceed `max_length`. Nothing is reordered, so that the shuffle
/// alone decides which samples are neighbours.
pub fn pack_global(samples: &[u32], lengths: &[u32], rule: &PackRule) -> Packs {
    let mut packs = Packs::default();
    pack_batch(samples, lengths, rule, &mut packs);
    packs
}

fn pack_batch(batch: &[u32], lengths: &[u32], rule: &PackRule, packs: &mut Packs) {
    // The reference seeds a new generator for each batch.
    let mut rng = PythonRandom::new(rule.seed);
    let mut flush = |pack: &mut Vec<u32>| {
        if !pack.is_empty() {
            let fused = rule.fuse_positions_prob > 0.0 && rng.random() <= rule.fuse_positions_prob;
            packs.push(pack, fused);
            pack.clear();
        }
    };
    let mut pack = Vec::new();
    let mut total = 0;
    for &sample in batch {
        let len = lengths[sample as usize] as usize;
        if total > rule.max_length || (!rule.always_max_length && total + len > rule.max_length) {
            flush(&mut pack);
            total = 0;
        }
        pack.push(sample);
        total += len;
    }
    if !rule.drop_last {
        flush(&mut pack);
    }
}

/// The ranges of `datasets.Dataset.shard(num_shards, contiguous=True)`: the first ones get the rows that do not divide.
fn contiguous_shards(len: usize, num_shards: usize) -> impl Iterator<Item = Range<usize>> {
    let (each, extra) = len.checked_div(num_shards).map_or((0, 0), |each| (each, len % num_shards));
    (0..num_shards).map(move |i| {
        let start = each * i + extra.min(i);
        start..start + each + usize::from(i < extra)
    })
}

/// Repeats `samples` until they would fill `max_length` tokens: as many whole rounds as fit, at least one, and then a prefix.
///
/// # Source
///
/// ArcticTraining `sft_factory.py` (`repeat_dataset`).
pub fn repeat_to_max_length(samples: &[u32], lengths: &[u32], max_length: usize) -> Vec<u32> {
    let round: usize = samples.iter().map(|&i| lengths[i as usize] as usize).sum();
    let rounds = (max_length.checked_div(round).unwrap_or(1)).max(1);
    let mut room = max_length.saturating_sub(rounds * round);
    let mut repeated = samples.repeat(rounds);
    for &sample in samples {
        let len = lengths[sample as usize] as usize;
        if len > room {
            break;
        }
        room -= len;
        repeated.push(sample);
    }
    repeated
}
