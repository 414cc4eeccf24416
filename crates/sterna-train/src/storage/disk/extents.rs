//! Which parts of a scratch file are in use.

use std::collections::BTreeMap;

/// Extents start at multiples of this, bytes: a page, so that neighbours share none.
const ALIGNMENT: u64 = 4096;

/// The unused parts of a file that grows as it must.
#[derive(Debug)]
pub(super) struct FreeList {
    /// Offset to length, no two of them adjacent.
    holes: BTreeMap<u64, u64>,
    end: u64,
}

/// Where an extent was placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Placed {
    pub(super) offset: u64,
    /// Bytes by which the file has to be longer than it was.
    pub(super) growth: u64,
}

impl FreeList {
    /// All of a file of `bytes` is free.
    pub(super) fn new(bytes: u64) -> Self {
        let end = bytes / ALIGNMENT * ALIGNMENT;
        Self { holes: (end > 0).then_some((0, end)).into_iter().collect(), end }
    }

    /// Takes the smallest hole that has `bytes`, else the end of the file. Sizes repeat every step, so the smallest that
    /// fits is mostly one that fits exactly.
    pub(super) fn allocate(&mut self, bytes: u64) -> Placed {
        let len = rounded(bytes);
        let fitting = self.holes.iter().filter(|&(_, &hole)| hole >= len);
        if let Some((&offset, &hole)) = fitting.min_by_key(|&(_, &hole)| hole) {
            self.holes.remove(&offset);
            if hole > len {
                self.holes.insert(offset + len, hole - len);
            }
            return Placed { offset, growth: 0 };
        }
        let last = self.holes.last_key_value().map(|(&offset, &hole)| (offset, offset + hole));
        let offset = match last {
            Some((offset, hole_end)) if hole_end == self.end => {
                self.holes.remove(&offset);
                offset
            }
            _ => self.end,
        };
        let growth = offset + len - self.end;
        self.end = offset + len;
        Placed { offset, growth }
    }

    /// Gives back what [`FreeList::allocate`] placed at `offset` for `bytes`.
    pub(super) fn free(&mut self, offset: u64, bytes: u64) {
        let (mut start, mut end) = (offset, offset + rounded(bytes));
        if let Some((&before, &hole)) = self.holes.range(..offset).next_back()
            && before + hole == start
        {
            self.holes.remove(&before);
            start = before;
        }
        if let Some(hole) = self.holes.remove(&end) {
            end += hole;
        }
        self.holes.insert(start, end - start);
    }
}

/// What an extent takes up; an empty one has a place of its own as well.
fn rounded(bytes: u64) -> u64 {
    bytes.max(1).next_multiple_of(ALIGNMENT)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_freed_extent_is_used_again_and_neighbours_become_one() {
        let mut list = FreeList::new(3 * ALIGNMENT);
        let offsets = [1, ALIGNMENT, 0].map(|bytes| list.allocate(bytes));
        let at = |pages: u64, growth: u64| Placed { offset: pages * ALIGNMENT, growth };
        assert_eq!(offsets, [at(0, 0), at(1, 0), at(2, 0)]);
        assert_eq!(list.allocate(ALIGNMENT + 1), at(3, 2 * ALIGNMENT));
        list.free(0, 1);
        list.free(2 * ALIGNMENT, 0);
        list.free(ALIGNMENT, ALIGNMENT);
        assert_eq!(list.allocate(3 * ALIGNMENT), at(0, 0));
        // A hole at the end grows by what it lacks.
        list.free(3 * ALIGNMENT, ALIGNMENT + 1);
        assert_eq!(list.allocate(3 * ALIGNMENT), at(3, ALIGNMENT));
    }

    proptest! {
        /// However extents come and go, no two share a byte, and the file never shrinks.
        #[test]
        fn extents_never_overlap(
            reserved in 0_u64..100_000,
            steps in prop::collection::vec((any::<bool>(), 0_u64..50_000, any::<prop::sample::Index>()), 1..80),
        ) {
            let mut list = FreeList::new(reserved);
            let mut end = reserved / ALIGNMENT * ALIGNMENT;
            let mut live: Vec<(u64, u64)> = Vec::new();
            for (is_free, bytes, index) in steps {
                if is_free && !live.is_empty() {
                    let (offset, bytes) = live.swap_remove(index.index(live.len()));
                    list.free(offset, bytes);
                } else {
                    let Placed { offset, growth } = list.allocate(bytes);
                    end += growth;
                    prop_assert!(offset + bytes <= end);
                    for &(other, other_bytes) in &live {
                        prop_assert!(offset >= other + other_bytes || other >= offset + bytes);
                    }
                    live.push((offset, bytes));
                }
            }
            // Nothing is lost: with all extents back, the whole file is one hole.
            for (offset, bytes) in live {
                list.free(offset, bytes);
            }
            prop_assert_eq!(list.holes.into_iter().collect::<Vec<_>>(), if end > 0 { vec![(0, end)] } else { vec![] });
        }
    }
}
