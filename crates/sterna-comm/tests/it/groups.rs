use sterna_comm::ReduceOp;
use sterna_mesh::Axis;
use sterna_testkit::spawn_ranks;
use tch::Tensor;

use crate::join;

/// The ranks of a group, as its members tell each other.
fn members(group: &sterna_comm::Group, rank: usize) -> Vec<usize> {
    let told = group.all_gather_bytes(&[rank as u8]).unwrap();
    told.into_iter().map(|bytes| usize::from(bytes[0])).collect()
}

#[test]
fn groups_have_the_ranks_of_the_mesh_in_its_order() {
    spawn_ranks(4, |rank| {
        let comm = join(2);
        assert_eq!(members(comm.world(), rank.rank), [0, 1, 2, 3]);
        assert_eq!(members(comm.sp(), rank.rank), comm.mesh.ranks(Axis::Sp).collect::<Vec<_>>());
        assert_eq!(members(comm.dp(), rank.rank), comm.mesh.ranks(Axis::Dp).collect::<Vec<_>>());
        assert_eq!(
            (comm.sp().rank(), comm.dp().rank()),
            (comm.mesh.local_rank(Axis::Sp), comm.mesh.local_rank(Axis::Dp))
        );
        // The sum over sp, then dp, is the sum over the world.
        let sum = Tensor::from_slice(&[1_i64 << (8 * rank.rank)]);
        comm.sp().all_reduce_(&sum, ReduceOp::Sum).unwrap();
        comm.dp().all_reduce_(&sum, ReduceOp::Sum).unwrap();
        assert_eq!(sum.int64_value(&[0]), 0x0101_0101);
        comm.world().barrier().unwrap();
    });
}

#[test]
fn an_axis_of_one_rank_needs_nobody() {
    for sp_size in [1, 2] {
        spawn_ranks(2, |_| {
            let comm = join(sp_size);
            let (alone, all) =
                if sp_size == 1 { (comm.sp(), comm.dp()) } else { (comm.dp(), comm.sp()) };
            assert_eq!((alone.size(), alone.rank(), all.size()), (1, 0, 2));
            // Only one rank calls it: an operation among several would wait for the other.
            if comm.mesh.rank() == 0 {
                alone.barrier().unwrap();
                assert_eq!(members(alone, 5), [5]);
            }
            assert_eq!(members(all, comm.mesh.rank()), [0, 1]);
        });
    }
}
