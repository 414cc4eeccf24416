//! Mappings that wait for their next tensor.
//!
//! A fresh mapping costs a page fault and the zeroing of every page, which for a tensor that is written once is as dear as
//! computing it. A step allocates the same sizes again and again, so blocks are kept; but what is kept is resident, and the
//! peak of resident memory is what ends a run. Two bounds keep both: blocks wait only as long as they and the blocks in use
//! together are no more than the blocks in use once were, so that the cache never adds to the peak; and at most
//! so many bytes wait as it is made for.

use super::block::Mapping;

/// The mappings that wait, and how much is in use.
#[derive(Debug)]
pub(super) struct Cache {
    /// The one that has waited longest first. A few hundred at most, so a search reads a few cache lines.
    waiting: Vec<Mapping>,
    /// Bytes of `waiting`.
    num_waiting: usize,
    /// Bytes of the mappings handed out.
    num_in_use: usize,
    /// The most that was ever handed out at once, bytes.
    most_in_use: usize,
    /// The most that may wait, bytes.
    limit: usize,
    /// How long a mapping may be for a tensor of a length, bytes.
    longest_for: fn(usize) -> usize,
}

impl Cache {
    /// Of mappings that are soon made again: at most 512 MiB wait, and none is an eighth longer than what it is used for.
    pub(super) const fn cheap() -> Self {
        Self::new(512 << 20, |len| len + len / 8)
    }

    /// Of mappings that take long to make: all wait, and any that is long enough is used.
    pub(super) const fn dear() -> Self {
        Self::new(usize::MAX, |_| usize::MAX)
    }

    const fn new(limit: usize, longest_for: fn(usize) -> usize) -> Self {
        Self {
            waiting: Vec::new(),
            num_waiting: 0,
            num_in_use: 0,
            most_in_use: 0,
            limit,
            longest_for,
        }
    }

    /// Bytes that wait.
    pub(super) fn num_waiting(&self) -> usize {
        self.num_waiting
    }

    /// Hands out the shortest mapping that fits `len` bytes.
    ///
    /// If none fits, the caller maps one. The mappings returned beside it have to make room for it: they are to be dropped
    /// first, and outside of any lock, because giving memory back takes the system a while.
    pub(super) fn take(&mut self, len: usize) -> (Option<Mapping>, Vec<Mapping>) {
        let longest = (self.longest_for)(len);
        let fitting = |mapping: &Mapping| (len..=longest).contains(&mapping.len());
        // Of equal ones the youngest: part of it may still be in the processor's cache.
        let best = (self.waiting.iter().enumerate().rev())
            .filter(|(_, mapping)| fitting(mapping))
            .min_by_key(|(_, mapping)| mapping.len())
            .map(|(index, _)| index);
        let found = best.map(|index| self.waiting.remove(index));
        self.num_waiting -= found.as_ref().map_or(0, Mapping::len);
        self.num_in_use += found.as_ref().map_or(len, Mapping::len);
        self.most_in_use = self.most_in_use.max(self.num_in_use);
        (found, self.shrink())
    }

    /// Whether one waits that [`Cache::take`] would hand out.
    pub(super) fn has(&self, len: usize) -> bool {
        let longest = (self.longest_for)(len);
        self.waiting.iter().any(|mapping| (len..=longest).contains(&mapping.len()))
    }

    /// Has a mapping wait that nobody has used yet, and counts it to the most that was in use: that is what it is made for.
    pub(super) fn add(&mut self, mapping: Mapping) {
        self.num_waiting += mapping.len();
        self.waiting.push(mapping);
        self.most_in_use = self.most_in_use.max(self.num_in_use + self.num_waiting);
    }

    /// Takes a mapping back. The mappings returned are too many: they are to be dropped outside of any lock.
    pub(super) fn put(&mut self, mapping: Mapping) -> Vec<Mapping> {
        self.num_in_use -= mapping.len();
        self.num_waiting += mapping.len();
        self.waiting.push(mapping);
        self.shrink()
    }

    /// All mappings that wait, to be unmapped.
    pub(super) fn give_up(&mut self) -> Vec<Mapping> {
        self.num_waiting = 0;
        std::mem::take(&mut self.waiting)
    }

    /// Takes back that `len` bytes are in use: there was no memory for them.
    pub(super) fn not_taken(&mut self, len: usize) {
        self.num_in_use -= len;
    }

    /// The mappings that have waited longest, until both bounds hold.
    fn shrink(&mut self) -> Vec<Mapping> {
        let limit = self.limit.min(self.most_in_use - self.num_in_use);
        let mut count = 0;
        for mapping in &self.waiting {
            if self.num_waiting <= limit {
                break;
            }
            self.num_waiting -= mapping.len();
            count += 1;
        }
        self.waiting.drain(..count).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    /// A mapping as the cache's user gets it.
    fn take(cache: &mut Cache, len: usize) -> Mapping {
        let (found, too_many) = cache.take(len);
        drop(too_many);
        found.unwrap_or_else(|| Mapping::new(len).unwrap())
    }

    #[test]
    fn a_block_that_fits_is_used_again() {
        let mut cache = Cache::cheap();
        let (small, large) = (take(&mut cache, 8 * MIB), take(&mut cache, 9 * MIB));
        assert!(cache.put(large).is_empty() && cache.put(small).is_empty());
        // Both are within an eighth of 8 MiB; the smaller one fits better, although the other has waited longer.
        assert_eq!(take(&mut cache, 8 * MIB).len(), 8 * MIB);
        assert_eq!(take(&mut cache, 8 * MIB).len(), 9 * MIB);
        assert_eq!(cache.num_waiting(), 0);
    }

    #[test]
    fn what_waits_never_adds_to_the_peak() {
        let mut cache = Cache::cheap();
        let blocks = [4, 4, 4].map(|mib| take(&mut cache, mib * MIB));
        for block in blocks {
            assert!(cache.put(block).is_empty());
        }
        // 12 MiB were in use at once and wait. A block of 6 fits in no place of 4: two of them have to go for it.
        let (found, evicted) = cache.take(6 * MIB);
        assert!(found.is_none());
        assert_eq!((evicted.len(), cache.num_waiting()), (2, 4 * MIB));
        // Beyond the peak nothing waits.
        let (found, evicted) = cache.take(32 * MIB);
        assert!(found.is_none());
        assert_eq!((evicted.len(), cache.num_waiting()), (1, 0));
    }

    #[test]
    fn no_more_than_the_limit_waits() {
        let mut cache = Cache::cheap();
        // Nobody writes to them, so no memory is used.
        let blocks: Vec<_> = (0..5).map(|_| take(&mut cache, 128 * MIB)).collect();
        let evicted: usize = blocks.into_iter().map(|block| cache.put(block).len()).sum();
        assert_eq!((evicted, cache.num_waiting()), (1, 512 * MIB));
    }

    #[test]
    fn giving_up_empties_it() {
        let mut cache = Cache::cheap();
        let block = take(&mut cache, MIB);
        cache.put(block);
        assert!(cache.take(64 * MIB).0.is_none());
        cache.not_taken(64 * MIB);
        assert_eq!(cache.give_up().len(), 0, "taking beyond the peak has emptied it");
        assert_eq!((cache.num_in_use, cache.num_waiting), (0, 0));
    }

    #[test]
    fn what_was_made_ahead_waits_until_it_is_used() {
        let mut cache = Cache::dear();
        for _ in 0..3 {
            cache.add(Mapping::new(4 * MIB).unwrap());
        }
        assert!(cache.has(4 * MIB) && !cache.has(5 * MIB));
        let blocks = [4, 4, 4].map(|mib| cache.take(mib * MIB).0.expect("one that waits"));
        for block in blocks {
            assert!(cache.put(block).is_empty());
        }
        assert_eq!(cache.num_waiting(), 12 * MIB);
    }

    #[test]
    fn dear_mappings_serve_whatever_is_shorter() {
        let mut cache = Cache::dear();
        let blocks = [9; 5].map(|mib| take(&mut cache, mib * MIB));
        for block in blocks {
            assert!(cache.put(block).is_empty());
        }
        // A shorter sequence, and then the longer one again: nothing is mapped anew, and nothing goes.
        for mib in [5, 9] {
            let blocks: Vec<_> = (0..5)
                .map(|_| {
                    let (found, evicted) = cache.take(mib * MIB);
                    assert!(evicted.is_empty());
                    found.expect("one that waits")
                })
                .collect();
            for block in blocks {
                assert!(cache.put(block).is_empty());
            }
        }
        assert_eq!(cache.num_waiting(), 45 * MIB);
    }
}
