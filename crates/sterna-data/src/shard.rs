//! One rank's part of a micro-batch along the sequence.

use crate::collate::MicroBatch;

/// The columns of a [`MicroBatch`] that one rank of a sequence-parallel group holds: `b` rows of `s/p` tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeqShard {
    /// Token ids, `[b, s/p]`.
    pub input_ids: Vec<i64>,
    /// Labels shifted over the full sequence before it was cut, so that a shard's last token predicts the next shard's first, `[b, s/p]`.
    pub shift_labels: Vec<i64>,
    /// Positions in the full sequence, `[b, s/p]`.
    pub position_ids: Vec<i64>,
    /// `b`.
    pub rows: usize,
    /// `s/p`.
    pub len: usize,
}

impl MicroBatch {
    /// Cuts the part of rank `sp_rank` out of `sp_size` equal parts.
    ///
    /// # Panics
    ///
    /// If `sp_size` does not divide the length: [`MicroBatch::pad_to_multiple`] comes first, as the collator does.
    ///
    /// # Source
    ///
    /// DeepSpeed `UlyssesSPDataLoaderAdapter`: labels are shifted before the cut.
    pub fn shard(&self, sp_size: usize, sp_rank: usize) -> SeqShard {
        assert!(
            self.len.is_multiple_of(sp_size) && sp_rank < sp_size,
            "a row of {} tokens has no part {sp_rank} of {sp_size}",
            self.len
        );
        let len = self.len / sp_size;
        let columns = sp_rank * len..(sp_rank + 1) * len;
        let cut = |values: &[i64]| -> Vec<i64> {
            values
                .chunks_exact(self.len.max(1))
                .flat_map(|row| row[columns.clone()].iter().copied())
                .collect()
        };
        SeqShard {
            input_ids: cut(&self.input_ids),
            shift_labels: cut(&self.shift_labels()),
            position_ids: cut(&self.position_ids),
            rows: self.rows,
            len,
        }
    }
}
