use sterna_comm::{Comm, CommError, RankEnv, ReduceOp};
use sterna_testkit::{assert_close, spawn_ranks};
use tch::{Device, Kind, Tensor};

use crate::join;

const WORLD_SIZES: [usize; 3] = [1, 2, 3];

/// What rank `rank` brings: small integers, exact in every dtype, different at every place of every rank.
fn brought(rank: usize, numel: i64, kind: Kind) -> Tensor {
    (Tensor::arange(numel, (Kind::Int64, Device::Cpu)) * 3 + 5 * (rank as i64 + 1))
        .remainder(61)
        .to_kind(kind)
}

#[track_caller]
fn assert_same(name: &str, actual: &Tensor, expected: &Tensor) {
    assert_eq!(actual.kind(), expected.kind(), "{name}");
    assert_close(name, actual, expected, 0.0, 0.0);
}

#[test]
fn all_reduce() {
    for world_size in WORLD_SIZES {
        spawn_ranks(world_size, |_| {
            let comm = join(1);
            for kind in [Kind::Float, Kind::BFloat16, Kind::Half, Kind::Double, Kind::Int64] {
                let all: Vec<_> = (0..world_size).map(|rank| brought(rank, 7, kind)).collect();
                let all = Tensor::stack(&all, 0);
                for (op, expected) in [
                    (ReduceOp::Sum, all.sum_dim_intlist(0, false, kind)),
                    (ReduceOp::Min, all.amin(0, false)),
                    (ReduceOp::Max, all.amax(0, false)),
                ] {
                    let tensor = brought(comm.mesh.rank(), 7, kind);
                    comm.world().all_reduce_(&tensor, op).unwrap();
                    assert_same(&format!("{op:?} of {kind:?}"), &tensor, &expected);
                }
            }
        });
    }
}

#[test]
fn all_gather_into_tensor() {
    for world_size in WORLD_SIZES {
        spawn_ranks(world_size, |_| {
            let comm = join(1);
            for kind in [Kind::Float, Kind::BFloat16, Kind::Double, Kind::Int64, Kind::Uint8] {
                let all: Vec<_> = (0..world_size).map(|rank| brought(rank, 6, kind)).collect();
                let output = Tensor::zeros([6 * world_size as i64], (kind, Device::Cpu));
                let input = brought(comm.mesh.rank(), 6, kind).view([2, 3]);
                comm.world().all_gather_into_tensor(&output, &input).unwrap().wait().unwrap();
                assert_same(&format!("{kind:?}"), &output, &Tensor::cat(&all, 0));
            }
        });
    }
}

#[test]
fn all_gather_into_tensor_from_the_output_itself_and_from_nothing() {
    for world_size in WORLD_SIZES {
        spawn_ranks(world_size, |rank| {
            let comm = join(1);
            let kind = Kind::Float;
            let all: Vec<_> = (0..world_size).map(|rank| brought(rank, 6, kind)).collect();
            let output = Tensor::zeros([6 * world_size as i64], (kind, Device::Cpu));
            let mut own = output.narrow(0, 6 * rank.rank as i64, 6);
            own.copy_(&all[rank.rank]);
            comm.world().all_gather_into_tensor(&output, &own).unwrap().wait().unwrap();
            assert_same("a slice of the output", &output, &Tensor::cat(&all, 0));

            let empty = Tensor::zeros([0], (kind, Device::Cpu));
            comm.world().all_gather_into_tensor(&empty, &empty).unwrap().wait().unwrap();
        });
    }
}

#[test]
fn all_gather_into_tensor_needs_no_second_output() {
    /// A field of `/proc/self/status`, in KiB.
    fn status_kib(field: &str) -> i64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    spawn_ranks(2, |rank| {
        let comm = join(1);
        let output_kib = 64 << 10;
        let numel = output_kib << 7;
        let input = Tensor::full([numel], rank.rank as f64 + 1.0, (Kind::Float, Device::Cpu));
        // Filled, so that all of it is resident before.
        let output = Tensor::full([2 * numel], 7.0, (Kind::Float, Device::Cpu));
        let before_kib = status_kib("VmRSS:");
        comm.world().all_gather_into_tensor(&output, &input).unwrap().wait().unwrap();
        let grown_kib = status_kib("VmHWM:") - before_kib;
        assert!(
            grown_kib < output_kib / 4,
            "{grown_kib} KiB more for an output of {output_kib} KiB"
        );
        for (rank, slice) in output.split(numel, 0).iter().enumerate() {
            let value = rank as f64 + 1.0;
            assert_eq!(
                (slice.min().double_value(&[]), slice.max().double_value(&[])),
                (value, value)
            );
        }
    });
}

#[test]
fn reduce_scatter_tensor() {
    for world_size in WORLD_SIZES {
        spawn_ranks(world_size, |_| {
            let comm = join(1);
            let numel = 5 * world_size as i64;
            for kind in [Kind::Float, Kind::BFloat16, Kind::Double, Kind::Int64] {
                let all: Vec<_> = (0..world_size).map(|rank| brought(rank, numel, kind)).collect();
                let all = Tensor::stack(&all, 0).narrow(1, 5 * comm.mesh.rank() as i64, 5);
                for (op, expected) in [
                    (ReduceOp::Sum, all.sum_dim_intlist(0, false, kind)),
                    (ReduceOp::Min, all.amin(0, false)),
                    (ReduceOp::Max, all.amax(0, false)),
                ] {
                    let output = Tensor::zeros([5], (kind, Device::Cpu));
                    let input = brought(comm.mesh.rank(), numel, kind);
                    let kept = input.copy();
                    comm.world()
                        .reduce_scatter_tensor(&output, &input, op)
                        .unwrap()
                        .wait()
                        .unwrap();
                    assert_same(&format!("{op:?} of {kind:?}"), &output, &expected);
                    assert_same("the input is left alone", &input, &kept);
                }
            }
        });
    }
}

#[test]
fn reduce_scatter_rounds_bf16_once() {
    spawn_ranks(3, |_| {
        let comm = join(1);
        // 256 + 1 + 1 is 258 when rounded once, but 256 when rounded to bf16's 8 bits after each addition.
        let value = if comm.mesh.rank() == 0 { 256.0 } else { 1.0 };
        let input = Tensor::full([3], value, (Kind::BFloat16, Device::Cpu));
        let output = Tensor::zeros([1], (Kind::BFloat16, Device::Cpu));
        comm.world().reduce_scatter_tensor(&output, &input, ReduceOp::Sum).unwrap().wait().unwrap();
        assert_close("sum", &output.to_kind(Kind::Double), &Tensor::from_slice(&[258.0]), 0.0, 0.0);
    });
}

#[test]
fn all_to_all_single_with_uneven_splits() {
    for world_size in WORLD_SIZES {
        spawn_ranks(world_size, |_| {
            let comm = join(1);
            let me = comm.mesh.rank();
            // Rank `from` sends `(from + 2 * to) % 4` rows to rank `to`, which is none for some pairs.
            let num_rows = |from: usize, to: usize| ((from + 2 * to) % 4) as i64;
            // A row is two numbers that tell its sender, receiver and place.
            let rows = |from: usize, to: usize, kind| {
                let row = Tensor::arange(2 * num_rows(from, to), (Kind::Int64, Device::Cpu));
                (row + (100 * from + 10 * to) as i64).to_kind(kind).view([-1, 2])
            };
            let input_splits: Vec<_> = (0..world_size).map(|to| num_rows(me, to)).collect();
            let output_splits: Vec<_> = (0..world_size).map(|from| num_rows(from, me)).collect();
            for kind in [Kind::Float, Kind::BFloat16, Kind::Int64] {
                let sent: Vec<_> = (0..world_size).map(|to| rows(me, to, kind)).collect();
                let expected: Vec<_> = (0..world_size).map(|from| rows(from, me, kind)).collect();
                let (sent, expected) = (Tensor::cat(&sent, 0), Tensor::cat(&expected, 0));
                let output = expected.zeros_like();
                let work =
                    comm.world().all_to_all_single(&output, &sent, &output_splits, &input_splits);
                work.unwrap().wait().unwrap();
                assert_same(&format!("{kind:?}"), &output, &expected);
            }
        });
    }
}

#[test]
fn broadcast_from_every_root() {
    for world_size in WORLD_SIZES {
        spawn_ranks(world_size, |_| {
            let comm = join(1);
            for kind in [Kind::Float, Kind::BFloat16, Kind::Int64] {
                for root in 0..world_size {
                    let tensor = brought(comm.mesh.rank(), 9, kind);
                    comm.world().broadcast(&tensor, root).unwrap().wait().unwrap();
                    assert_same(&format!("{kind:?}"), &tensor, &brought(root, 9, kind));
                }
            }
        });
    }
}

#[test]
fn all_gather_bytes_of_different_lengths() {
    for world_size in WORLD_SIZES {
        spawn_ranks(world_size, |_| {
            let comm = join(1);
            let bytes = |rank: usize| vec![7 + rank as u8; 5 * rank];
            let expected: Vec<_> = (0..world_size).map(bytes).collect();
            assert_eq!(comm.world().all_gather_bytes(&bytes(comm.mesh.rank())).unwrap(), expected);
            assert_eq!(
                comm.world().all_gather_bytes(&[]).unwrap(),
                vec![Vec::<u8>::new(); world_size]
            );
        });
    }
}

#[test]
fn operations_under_way_may_be_awaited_in_any_order() {
    spawn_ranks(2, |_| {
        let comm = join(1);
        let numel = 1 << 20;
        let started: Vec<_> = (0..6)
            .map(|i| {
                let input = brought(comm.mesh.rank() + i, numel, Kind::Float);
                let output = Tensor::zeros([2 * numel], (Kind::Float, Device::Cpu));
                let work = comm.world().all_gather_into_tensor(&output, &input).unwrap();
                (i, output, work)
            })
            .collect();
        for (i, output, work) in started.into_iter().rev() {
            work.wait().unwrap();
            let expected = [i, i + 1].map(|rank| brought(rank, numel, Kind::Float));
            assert_same("gathered", &output, &Tensor::cat(&expected, 0));
        }
    });
}

#[test]
fn arguments_that_do_not_fit_are_refused_before_anything_is_sent() {
    let comm = Comm::init(&RankEnv::single(), 1, std::time::Duration::from_secs(1)).unwrap();
    let group = comm.world();
    let floats = |numel: i64| Tensor::zeros([numel], (Kind::Float, Device::Cpu));
    let text = |result: Result<sterna_comm::Work, CommError>| result.err().unwrap().to_string();

    assert_eq!(
        text(group.all_gather_into_tensor(&floats(3), &floats(2))),
        "`all_gather_into_tensor` on group `world`: output has `3` elements, must have `2`"
    );
    assert_eq!(
        text(group.reduce_scatter_tensor(&floats(3), &floats(2), ReduceOp::Sum)),
        "`reduce_scatter_tensor` on group `world`: output has `3` elements, must have `2`"
    );
    assert_eq!(
        text(group.all_gather_into_tensor(&floats(2).to_kind(Kind::Half), &floats(2))),
        "`all_gather_into_tensor` on group `world`: dtype of output is `Half`, must be that of input, `Float`"
    );
    let transposed = Tensor::zeros([2, 3], (Kind::Float, Device::Cpu)).tr();
    assert_eq!(
        text(group.broadcast(&transposed, 0)),
        "`broadcast` on group `world`: `tensor` must be contiguous"
    );
    for splits in [&[3][..], &[1, 1], &[]] {
        assert_eq!(
            text(group.all_to_all_single(&floats(2), &floats(2), splits, &[2])),
            format!(
                "`all_to_all_single` on group `world`: splits `{splits:?}` of `output` must be `1` numbers, none \
                 negative, that add up to its first dim, `2`"
            )
        );
    }
}
