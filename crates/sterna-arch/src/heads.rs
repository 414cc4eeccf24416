//! Which attention heads each rank of a sequence-parallel group works on.

use std::ops::Range;

use crate::error::{Error, Result};

/// The heads of one rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeadSplit {
    /// Query heads.
    pub q: Range<usize>,
    /// The kv heads that those query heads read. Ranks next to each other may have one in common.
    pub kv: Range<usize>,
}

impl HeadSplit {
    /// Splits the heads over `sp_size` ranks: contiguous runs of query heads, as even as they go, the first ranks one more.
    ///
    /// # Errors
    ///
    /// [`Error::MoreRanksThanHeads`] if a rank would have none.
    ///
    /// # Panics
    ///
    /// If `num_kv_heads` does not divide `num_heads`, or `sp_size` is 0.
    pub fn of_all_ranks(
        num_heads: usize,
        num_kv_heads: usize,
        sp_size: usize,
    ) -> Result<Vec<HeadSplit>> {
        assert!(
            num_heads.is_multiple_of(num_kv_heads),
            "a config is checked for this when it is read"
        );
        if sp_size > num_heads {
            return Err(Error::MoreRanksThanHeads { sp_size, num_attention_heads: num_heads });
        }
        let group_size = num_heads / num_kv_heads;
        let (short, num_long) = (num_heads / sp_size, num_heads % sp_size);
        let start = |rank: usize| rank * short + rank.min(num_long);
        Ok((0..sp_size)
            .map(|rank| {
                let q = start(rank)..start(rank + 1);
                let kv = q.start / group_size..q.end.div_ceil(group_size);
                HeadSplit { q, kv }
            })
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(n: usize, k: usize, p: usize) -> Vec<(Range<usize>, Range<usize>)> {
        let splits = HeadSplit::of_all_ranks(n, k, p).expect("enough heads");
        splits.into_iter().map(|split| (split.q, split.kv)).collect()
    }

    #[test]
    fn nine_heads_split_over_two_three_and_four_ranks() {
        // SmolLM2-135M: three query heads read one kv head. With two ranks both need kv head 1.
        assert_eq!(split(9, 3, 2), [(0..5, 0..2), (5..9, 1..3)]);
        assert_eq!(split(9, 3, 3), [(0..3, 0..1), (3..6, 1..2), (6..9, 2..3)]);
        assert_eq!(split(9, 3, 4), [(0..3, 0..1), (3..5, 1..2), (5..7, 1..3), (7..9, 2..3)]);
    }

    #[test]
    fn one_kv_head_goes_to_every_rank() {
        assert_eq!(split(4, 1, 4), [(0..1, 0..1), (1..2, 0..1), (2..3, 0..1), (3..4, 0..1)]);
    }

    #[test]
    fn more_ranks_than_heads_are_refused() {
        let error = HeadSplit::of_all_ranks(9, 3, 10).expect_err("a rank without a head");
        assert_eq!(
            error.to_string(),
            "sequence_parallel_size `10` is larger than num_attention_heads `9`"
        );
    }

    proptest! {
        #[test]
        fn every_query_head_has_one_rank_and_its_kv_head(
            kv in 1usize..9,
            group in 1usize..9,
            sp in 1usize..64,
        ) {
            let n = kv * group;
            let sp = sp.min(n);
            let mut next = 0;
            for (q, of_rank) in split(n, kv, sp) {
                prop_assert_eq!(q.start, next);
                prop_assert!(q.len() == n / sp || q.len() == n / sp + 1);
                prop_assert!(q.clone().all(|head| of_rank.contains(&(head / group))));
                prop_assert_eq!(of_rank.clone(), q.start / group..(q.end - 1) / group + 1);
                next = q.end;
            }
            prop_assert_eq!(next, n);
        }
    }
}
