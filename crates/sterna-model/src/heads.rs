//! Which attention heads a rank of the sequence-parallel group works on.

use std::ops::Range;

use crate::error::ModelError;

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
    /// [`ModelError::MoreRanksThanHeads`] if a rank would have none.
    ///
    /// # Panics
    ///
    /// If `num_key_value_heads` does not divide `num_attention_heads`, or `sp_size` is 0.
    pub fn of_all_ranks(
        num_attention_heads: usize,
        num_key_value_heads: usize,
        sp_size: usize,
    ) -> Result<Vec<HeadSplit>, ModelError> {
        assert!(
            num_attention_heads.is_multiple_of(num_key_value_heads),
            "a config is checked for this when it is read"
        );
        if sp_size > num_attention_heads {
            return Err(ModelError::MoreRanksThanHeads { sp_size, num_attention_heads });
        }
        let group_size = num_attention_heads / num_key_value_heads;
        let (short, num_long) = (num_attention_heads / sp_size, num_attention_heads % sp_size);
        let start = |rank: usize| rank * short + rank.min(num_long);
        Ok((0..sp_size)
            .map(|rank| {
                let q = start(rank)..start(rank + 1);
                let kv = q.start / group_size..q.end.div_ceil(group_size);
                HeadSplit { q, kv }
            })
            .collect())
    }

    /// For each query head of the rank, which of the rank's kv heads it reads.
    pub(crate) fn kv_of_q(&self, group_size: usize) -> Vec<usize> {
        self.q.clone().map(|q| q / group_size - self.kv.start).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(n: usize, k: usize, p: usize) -> Vec<(Range<usize>, Range<usize>)> {
        HeadSplit::of_all_ranks(n, k, p)
            .unwrap()
            .into_iter()
            .map(|split| (split.q, split.kv))
            .collect()
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
        assert_eq!(HeadSplit::of_all_ranks(4, 1, 4).unwrap()[2].kv_of_q(4), [0]);
    }

    #[test]
    fn kv_indices_are_local() {
        let splits = HeadSplit::of_all_ranks(9, 3, 2).unwrap();
        assert_eq!(splits[0].kv_of_q(3), [0, 0, 0, 1, 1]);
        assert_eq!(splits[1].kv_of_q(3), [0, 1, 1, 1]);
    }

    #[test]
    fn more_ranks_than_heads_are_refused() {
        let error = HeadSplit::of_all_ranks(9, 3, 10).unwrap_err();
        assert_eq!(
            error.to_string(),
            "sequence_parallel_size `10` is larger than num_attention_heads `9`"
        );
    }
}
