//! Which attention heads a rank of the sequence-parallel group works on, and which of them at once.

use std::ops::Range;

use sterna_arch::{HeadSplit, Mixer};
use tch::Tensor;

use crate::error::ModelError;

/// Heads that follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    /// The first.
    pub(crate) start: i64,
    end: i64,
}

impl Run {
    pub(crate) fn new(range: &Range<usize>) -> Run {
        Run { start: range.start as i64, end: range.end as i64 }
    }

    /// How many they are.
    pub(crate) fn len(&self) -> i64 {
        self.end - self.start
    }

    /// The outputs of a projection that are these heads.
    pub(crate) fn outputs(&self, head_dim: usize) -> Range<usize> {
        self.start as usize * head_dim..self.end as usize * head_dim
    }
}

/// Heads that a mixer computes at once, on all ranks of the sequence-parallel group. In a delta net the query heads are those of the values,
/// and the kv heads those of queries and keys.
///
/// With several groups, each rank's query heads are cut into as many runs as even as they go, and group `i` has the `i`-th run of
/// every rank, with the kv heads that it reads. A kv head that two runs read is projected, and travels, once for each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeadGroup {
    /// The query heads, in the order in which the group's projection has them.
    q: Vec<Run>,
    /// The kv heads, in the same way.
    kv: Vec<Run>,
    /// Which of them each rank has, numbered as the projection has them.
    splits: Vec<HeadSplit>,
    /// For each rank and each of its query heads, which of its kv heads that reads.
    kv_of_q: Vec<Vec<usize>>,
}

impl HeadGroup {
    /// Cuts the heads into `num_groups` groups over `sp_size` ranks.
    ///
    /// # Errors
    ///
    /// [`ModelError::Arch`] or [`ModelError::MoreGroupsThanHeads`] if a rank, or a group of a rank, would have none.
    ///
    /// # Panics
    ///
    /// If `sp_size` or `num_groups` is 0.
    pub fn of_all_ranks(
        mixer: &Mixer,
        sp_size: usize,
        num_groups: usize,
    ) -> Result<Vec<HeadGroup>, ModelError> {
        let splits = mixer.split(sp_size)?;
        Self::new(mixer.num_heads(), mixer.num_kv_heads(), splits, num_groups)
    }

    fn new(
        num_attention_heads: usize,
        num_key_value_heads: usize,
        splits: Vec<HeadSplit>,
        num_groups: usize,
    ) -> Result<Vec<HeadGroup>, ModelError> {
        let sp_size = splits.len();
        let num_heads = num_attention_heads / sp_size;
        if num_groups > num_heads {
            return Err(ModelError::MoreGroupsThanHeads { num_groups, num_heads });
        }
        let group_size = num_attention_heads / num_key_value_heads;
        let kv_of_q = |q: &Range<usize>, first_kv: usize| -> Vec<usize> {
            q.clone().map(|q| q / group_size - first_kv).collect()
        };
        if num_groups == 1 {
            // Every head once, in the model's order: ranks share the kv heads that both read.
            return Ok(vec![HeadGroup {
                q: vec![Run::new(&(0..num_attention_heads))],
                kv: vec![Run::new(&(0..num_key_value_heads))],
                kv_of_q: splits.iter().map(|split| kv_of_q(&split.q, split.kv.start)).collect(),
                splits,
            }]);
        }
        let group = |group_idx: usize| {
            let mut group = HeadGroup { q: vec![], kv: vec![], splits: vec![], kv_of_q: vec![] };
            let (mut q_end, mut kv_end) = (0, 0);
            for split in &splits {
                let (short, num_long) = (split.q.len() / num_groups, split.q.len() % num_groups);
                let start = |idx: usize| split.q.start + idx * short + idx.min(num_long);
                let q = start(group_idx)..start(group_idx + 1);
                let kv = q.start / group_size..q.end.div_ceil(group_size);
                group.q.push(Run::new(&q));
                group.kv.push(Run::new(&kv));
                group.kv_of_q.push(kv_of_q(&q, kv.start));
                let (q_start, kv_start) = (q_end, kv_end);
                (q_end, kv_end) = (q_end + q.len(), kv_end + kv.len());
                group.splits.push(HeadSplit { q: q_start..q_end, kv: kv_start..kv_end });
            }
            group
        };
        Ok((0..num_groups).map(group).collect())
    }

    /// The query heads, in the order in which the group's projection has them.
    pub(crate) fn q(&self) -> &[Run] {
        &self.q
    }

    /// The kv heads, in the same way.
    pub(crate) fn kv(&self) -> &[Run] {
        &self.kv
    }

    /// Which heads of the projection each rank has.
    pub(crate) fn splits(&self) -> &[HeadSplit] {
        &self.splits
    }

    /// For each query head of `rank` in this group, which of its kv heads that reads.
    pub(crate) fn kv_of_q(&self, rank: usize) -> &[usize] {
        &self.kv_of_q[rank]
    }

    /// The query heads of `rank` in this group, by their numbers in the model.
    pub(crate) fn own_q(&self, rank: usize) -> Range<usize> {
        own(&self.q, &self.splits[rank].q)
    }

    /// The kv heads, in the same way.
    pub(crate) fn own_kv(&self, rank: usize) -> Range<usize> {
        own(&self.kv, &self.splits[rank].kv)
    }

    /// The group's heads of a tensor with all query heads, `[tokens, n, h]`; a view where they follow each other.
    pub(crate) fn queries_of(&self, x: &Tensor) -> Tensor {
        let of_run = |run: &Run| x.narrow(1, run.start, run.len());
        match &self.q[..] {
            [run] => of_run(run),
            runs => Tensor::cat(&runs.iter().map(of_run).collect::<Vec<_>>(), 1),
        }
    }

    /// The inverse of [`HeadGroup::queries_of`] for all groups together: `[tokens, heads of the group, h]` each to
    /// `[tokens, n, h]`. Each is freed as soon as it is in place.
    pub(crate) fn join(groups: &[HeadGroup], mut outputs: Vec<Tensor>) -> Tensor {
        if outputs.len() == 1 {
            return outputs.remove(0);
        }
        let num_heads: i64 = outputs.iter().map(|output| output.size()[1]).sum();
        let size = outputs[0].size();
        let joined =
            Tensor::empty([size[0], num_heads, size[2]], (outputs[0].kind(), outputs[0].device()));
        for (group, output) in groups.iter().zip(outputs) {
            let mut offset = 0;
            for run in &group.q {
                let of_run = output.narrow(1, offset, run.len());
                joined.narrow(1, run.start, run.len()).copy_(&of_run);
                offset += run.len();
            }
        }
        joined
    }
}

/// The heads `range` of those of all runs, counted one after the other. They are all of one run.
fn own(runs: &[Run], range: &Range<usize>) -> Range<usize> {
    let mut start = 0;
    for run in runs {
        let len = run.len() as usize;
        if range.start < start + len {
            let first = run.start as usize + range.start - start;
            return first..first + range.len();
        }
        start += len;
    }
    unreachable!("a rank has heads of the group")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups(
        n: usize,
        k: usize,
        p: usize,
        num_groups: usize,
    ) -> Result<Vec<HeadGroup>, ModelError> {
        HeadGroup::new(n, k, HeadSplit::of_all_ranks(n, k, p).unwrap(), num_groups)
    }

    #[test]
    fn one_kv_head_is_read_on_every_rank() {
        assert_eq!(groups(4, 1, 4, 1).unwrap()[0].kv_of_q(2), [0]);
    }

    #[test]
    fn kv_indices_are_local() {
        let groups = groups(9, 3, 2, 1).unwrap();
        assert_eq!(groups[0].kv_of_q(0), [0, 0, 0, 1, 1]);
        assert_eq!(groups[0].kv_of_q(1), [0, 1, 1, 1]);
    }

    #[test]
    fn a_kv_head_that_two_groups_read_is_in_both() {
        // Ranks have heads 0..5 and 5..9; the first group has 0..3 and 5..7, the second 3..5 and 7..9.
        let groups = groups(9, 3, 2, 2).unwrap();
        let run = |start, end| Run { start, end };
        assert_eq!(groups[0].q, [run(0, 3), run(5, 7)]);
        assert_eq!(groups[0].kv, [run(0, 1), run(1, 3)]);
        assert_eq!(groups[1].q, [run(3, 5), run(7, 9)]);
        assert_eq!(groups[1].kv, [run(1, 2), run(2, 3)]);
        assert_eq!(groups[0].splits[1], HeadSplit { q: 3..5, kv: 1..3 });
        assert_eq!(groups[0].kv_of_q, [vec![0, 0, 0], vec![0, 1]]);
        assert_eq!((groups[1].own_q(1), groups[1].own_kv(1)), (7..9, 2..3));
    }

    #[test]
    fn more_groups_than_heads_of_a_rank_are_refused() {
        assert!(groups(9, 3, 2, 4).is_ok());
        let error = groups(9, 3, 2, 5).unwrap_err();
        assert_eq!(
            error.to_string(),
            "attention_head_groups `5` is larger than the `4` query heads of a rank"
        );
    }
}
