//! Tensors of GPUs that several ranks share, on the fake device: they travel through the host.

use sterna_comm::{GpuTransport, Group, ReduceOp};
use sterna_testkit::spawn_ranks;
use tch::{Device, Kind, Tensor};

use crate::join;

/// What each operation gives on `device`, as tensors of the host.
fn results(world: &Group, device: Device) -> Vec<Tensor> {
    let (rank, size) = (world.rank() as i64, world.size() as i64);
    let own = |len: i64| Tensor::arange(len, (Kind::Float, device)) + 100 * rank;
    let empty = |len: i64| Tensor::empty([len], (Kind::Float, device));

    let reduced = own(5);
    world.all_reduce_(&reduced, ReduceOp::Sum).unwrap();

    let gathered = empty(3 * size);
    world.all_gather_into_tensor(&gathered, &own(3)).unwrap().wait().unwrap();
    // As ZeRO's stages 1 and 2 do: from this rank's own slice of the output.
    let in_place = empty(3 * size);
    let slice = in_place.narrow(0, 3 * rank, 3);
    slice.shallow_clone().copy_(&own(3));
    world.all_gather_into_tensor(&in_place, &slice).unwrap().wait().unwrap();

    let scattered = empty(2);
    world.reduce_scatter_tensor(&scattered, &own(2 * size), ReduceOp::Sum).unwrap().wait().unwrap();

    // Rank r sends r + 1 rows to everybody.
    let input = own(size * (rank + 1));
    let output_splits: Vec<i64> = (1..=size).collect();
    let traded = empty(output_splits.iter().sum());
    let input_splits = vec![rank + 1; size as usize];
    let work = world.all_to_all_single(&traded, &input, &output_splits, &input_splits).unwrap();
    work.wait().unwrap();

    let told = own(4);
    world.broadcast(&told, 1).unwrap().wait().unwrap();

    [reduced, gathered, in_place, scattered, traded, told]
        .into_iter()
        .map(|x| x.to_device(Device::Cpu))
        .collect()
}

#[test]
fn ranks_that_share_a_gpu_get_what_they_get_on_the_host() {
    spawn_ranks(3, |_| {
        sterna_fake_cuda::install();
        let comm = join(1);
        assert_eq!(comm.connect_gpus(false).unwrap(), GpuTransport::Host);
        let device = Device::Cuda(0);
        assert_eq!(results(comm.world(), device), results(comm.world(), Device::Cpu));
    });
}

/// One rank without a GPU of its own decides for all; a build or machine without NCCL says so on every rank that has one.
#[test]
fn gpus_are_connected_only_if_each_rank_has_one() {
    spawn_ranks(2, |rank| {
        // It has no NCCL, whatever this machine has.
        sterna_fake_cuda::install();
        let comm = join(1);
        assert_eq!(comm.connect_gpus(rank.rank == 0).unwrap(), GpuTransport::Host);
        let error = comm.connect_gpus(true).unwrap_err();
        assert!(error.to_string().contains("cannot connect its GPU"), "{error}");
        assert!(error.hint().is_some());
    });
}
