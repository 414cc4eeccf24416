//! How the ranks of a job are laid out: a grid with named axes, as torch's `DeviceMesh`. The plan, the data order and the process
//! groups all read it. No torch.

/// The world cannot be cut into sequence-parallel groups of this size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("sequence_parallel_size `{sp_size}` does not divide the world size `{world_size}`")]
pub struct NotDivisible {
    /// The size asked for.
    pub sp_size: usize,
    /// Number of processes in the job.
    pub world_size: usize,
}

/// An axis of the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axis {
    /// Ranks that work on different sequences.
    Dp,
    /// Ranks that share their sequences.
    Sp,
}

impl Axis {
    /// The axes, the outermost first.
    pub const ALL: [Axis; 2] = [Axis::Dp, Axis::Sp];

    /// `dp` or `sp`.
    pub fn name(self) -> &'static str {
        match self {
            Axis::Dp => "dp",
            Axis::Sp => "sp",
        }
    }
}

/// The mesh `world = dp x sp`, as one rank sees it.
///
/// The ranks of the last axis are neighbours, so that the all-to-alls of a sequence stay inside a machine where they can:
/// `rank = dp * sp_size + sp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mesh {
    rank: usize,
    /// Of [`Axis::ALL`].
    sizes: [usize; Axis::ALL.len()],
}

impl Mesh {
    /// Places `rank` on the mesh.
    ///
    /// # Errors
    ///
    /// [`NotDivisible`] if `sp_size` does not divide `world_size`.
    ///
    /// # Panics
    ///
    /// If `rank` is not below `world_size`.
    pub fn new(rank: usize, world_size: usize, sp_size: usize) -> Result<Self, NotDivisible> {
        assert!(rank < world_size, "rank {rank} is not below the world size {world_size}");
        if sp_size == 0 || !world_size.is_multiple_of(sp_size) {
            return Err(NotDivisible { sp_size, world_size });
        }
        Ok(Self { rank, sizes: [world_size / sp_size, sp_size] })
    }

    /// Number of this process among all.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Number of processes in the job.
    pub fn world_size(&self) -> usize {
        self.sizes.iter().product()
    }

    /// Number of ranks along an axis.
    pub fn size(&self, axis: Axis) -> usize {
        self.sizes[axis as usize]
    }

    /// Where this rank is on an axis, `0..size`.
    pub fn local_rank(&self, axis: Axis) -> usize {
        self.rank / self.stride(axis) % self.size(axis)
    }

    /// The ranks that differ from this one on that axis at most, in its order.
    pub fn ranks(&self, axis: Axis) -> impl Iterator<Item = usize> + use<> {
        let stride = self.stride(axis);
        let first = self.rank - self.local_rank(axis) * stride;
        (0..self.size(axis)).map(move |local_rank| first + local_rank * stride)
    }

    /// Which of the groups of an axis this rank is in: its rank on the mesh without the axis.
    pub fn group_index(&self, axis: Axis) -> usize {
        let stride = self.stride(axis);
        self.rank / (stride * self.size(axis)) * stride + self.rank % stride
    }

    /// How far apart neighbours on an axis are.
    fn stride(&self, axis: Axis) -> usize {
        self.sizes[axis as usize + 1..].iter().product()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_rank_has_its_own_place(sp_size in 1_usize..9, dp_size in 1_usize..9) {
            let world_size = sp_size * dp_size;
            let mut places = BTreeSet::new();
            for rank in 0..world_size {
                let mesh = Mesh::new(rank, world_size, sp_size).expect("it divides");
                prop_assert_eq!((mesh.rank(), mesh.world_size()), (rank, world_size));
                prop_assert_eq!((mesh.size(Axis::Sp), mesh.size(Axis::Dp)), (sp_size, dp_size));
                let place = Axis::ALL.map(|axis| mesh.local_rank(axis));
                prop_assert!(place[0] < dp_size && place[1] < sp_size);
                prop_assert!(places.insert(place), "two ranks in one place");
                for axis in Axis::ALL {
                    // A group lists this rank at its own index, and every member sees the same group.
                    prop_assert_eq!(mesh.ranks(axis).nth(mesh.local_rank(axis)), Some(rank));
                    prop_assert_eq!(mesh.ranks(axis).count(), mesh.size(axis));
                    for peer in mesh.ranks(axis) {
                        let peer = Mesh::new(peer, world_size, sp_size).expect("it divides");
                        prop_assert!(peer.ranks(axis).eq(mesh.ranks(axis)));
                        prop_assert_eq!(peer.group_index(axis), mesh.group_index(axis));
                    }
                    let groups: BTreeSet<usize> = (0..world_size)
                        .map(|rank| Mesh::new(rank, world_size, sp_size).expect("it divides").group_index(axis))
                        .collect();
                    prop_assert!(groups.into_iter().eq(0..world_size / mesh.size(axis)));
                }
            }
        }
    }

    #[test]
    fn sequence_parallel_groups_are_contiguous() {
        let mesh = Mesh::new(5, 8, 4).expect("it divides");
        assert_eq!((mesh.local_rank(Axis::Sp), mesh.local_rank(Axis::Dp)), (1, 1));
        assert!(mesh.ranks(Axis::Sp).eq(4..8));
        assert!(mesh.ranks(Axis::Dp).eq([1, 5]));
        assert_eq!((mesh.group_index(Axis::Sp), mesh.group_index(Axis::Dp)), (1, 1));
    }

    #[test]
    fn a_size_that_does_not_divide_the_world_is_refused() {
        for sp_size in [0, 3, 16] {
            let error = Mesh::new(0, 8, sp_size).expect_err("it does not divide");
            assert_eq!(
                error.to_string(),
                format!("sequence_parallel_size `{sp_size}` does not divide the world size `8`")
            );
        }
    }
}
