//! The two axes on which ranks are laid out.

use std::ops::Range;

use crate::error::CommError;

/// The place of a rank on the mesh `world = dp x sp`.
///
/// An sp group is a run of contiguous ranks, so that its all-to-alls stay inside a machine where they can:
/// `rank = dp_rank * sp_size + sp_rank`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mesh {
    /// Number of this process among all.
    pub rank: usize,
    /// Number of processes in the job.
    pub world_size: usize,
    /// Which part of the sequence this rank holds, `0..sp_size`.
    pub sp_rank: usize,
    /// Number of ranks that share one sequence.
    pub sp_size: usize,
    /// Which stream of sequences this rank works on, `0..dp_size`.
    pub dp_rank: usize,
    /// Number of streams of sequences.
    pub dp_size: usize,
}

impl Mesh {
    /// Places `rank` on the mesh.
    ///
    /// # Errors
    ///
    /// [`CommError::SequenceParallelSize`] if `sp_size` does not divide `world_size`.
    ///
    /// # Panics
    ///
    /// If `rank` is not below `world_size`, which [`crate::RankEnv`] rules out.
    pub fn new(rank: usize, world_size: usize, sp_size: usize) -> Result<Self, CommError> {
        assert!(rank < world_size, "rank {rank} is not below the world size {world_size}");
        if sp_size == 0 || !world_size.is_multiple_of(sp_size) {
            return Err(CommError::SequenceParallelSize { sp_size, world_size });
        }
        Ok(Self {
            rank,
            world_size,
            sp_rank: rank % sp_size,
            sp_size,
            dp_rank: rank / sp_size,
            dp_size: world_size / sp_size,
        })
    }

    /// The ranks that share this rank's sequences, in the order of their `sp_rank`.
    pub fn sp_ranks(&self) -> Range<usize> {
        self.dp_rank * self.sp_size..(self.dp_rank + 1) * self.sp_size
    }

    /// The ranks that hold the same part of other sequences, in the order of their `dp_rank`.
    pub fn dp_ranks(&self) -> impl Iterator<Item = usize> + use<> {
        (self.sp_rank..self.world_size).step_by(self.sp_size)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_rank_has_its_own_place(sp_size in 1_usize..9, dp_size in 1_usize..9) {
            let world_size = sp_size * dp_size;
            let mut places = vec![None; world_size];
            for rank in 0..world_size {
                let mesh = Mesh::new(rank, world_size, sp_size).unwrap();
                prop_assert_eq!((mesh.sp_size, mesh.dp_size), (sp_size, dp_size));
                prop_assert!(mesh.sp_rank < sp_size && mesh.dp_rank < dp_size);
                let place = &mut places[mesh.dp_rank * sp_size + mesh.sp_rank];
                prop_assert_eq!(place.replace(rank), None, "two ranks in one place");
                // A group lists this rank at its own index, and every member sees the same group.
                prop_assert_eq!(mesh.sp_ranks().nth(mesh.sp_rank), Some(rank));
                prop_assert_eq!(mesh.dp_ranks().nth(mesh.dp_rank), Some(rank));
                prop_assert_eq!((mesh.sp_ranks().len(), mesh.dp_ranks().count()), (sp_size, dp_size));
                for peer in mesh.sp_ranks() {
                    let peer = Mesh::new(peer, world_size, sp_size).unwrap();
                    prop_assert_eq!(peer.sp_ranks(), mesh.sp_ranks());
                }
                for peer in mesh.dp_ranks() {
                    let peer = Mesh::new(peer, world_size, sp_size).unwrap();
                    prop_assert!(peer.dp_ranks().eq(mesh.dp_ranks()));
                }
            }
        }
    }

    #[test]
    fn sequence_parallel_groups_are_contiguous() {
        let mesh = Mesh::new(5, 8, 4).unwrap();
        assert_eq!((mesh.sp_rank, mesh.dp_rank), (1, 1));
        assert_eq!(mesh.sp_ranks(), 4..8);
        assert_eq!(mesh.dp_ranks().collect::<Vec<_>>(), [1, 5]);
    }

    #[test]
    fn a_size_that_does_not_divide_the_world_is_refused() {
        for sp_size in [0, 3, 16] {
            let error = Mesh::new(0, 8, sp_size).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("sequence_parallel_size `{sp_size}` does not divide the world size `8`")
            );
        }
    }
}
