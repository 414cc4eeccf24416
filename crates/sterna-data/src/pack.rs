//! Putting several samples into one sequence.
//!
//! Packing only ever looks at lengths, so it works on indices: a [`Packs`] says which samples make up which pack, and the tokens
//! stay where they are until a micro-batch is built. That keeps the plan of a data set of millions of samples in memory, and
//! lets a change of `max_length` or `packing` reuse every cached token.

use std::ops::Range;

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
