//! `sterna_torch_sys::copies` on streams that put every copy off until somebody waits for it.

use sterna_fake_cuda::{host_sync_causes, host_syncs};
use sterna_torch_sys::{
    copies::{Copies, OnHost, upload},
    memory::{self, MemoryKind, PinnedAhead},
};
use tch::{Device, Kind, Tensor};

use crate::{GPU, alone};

fn numbers(len: i64) -> Tensor {
    Tensor::arange(len, (Kind::Float, GPU))
}

fn host_numbers(len: i64) -> Tensor {
    Tensor::arange(len, (Kind::Float, Device::Cpu))
}

#[test]
fn tensors_leave_and_come_back_without_the_host() {
    let _alone = alone();
    let copies = Copies::new(0).unwrap();
    let away: Vec<OnHost> = (1..4)
        .map(|len| {
            let away = copies.to_host(numbers(1000 * len)).unwrap();
            copies.release_sent().unwrap();
            away
        })
        .collect();
    // The last one is still to be written: nobody has waited for it.
    assert_ne!(away[2].tensor(), &host_numbers(3000));
    let in_flight = [2, 1, 0].map(|i: usize| copies.to_device(&away[i]).unwrap());
    drop(away);
    for (in_flight, len) in in_flight.into_iter().zip([3000, 2000, 1000]) {
        let back = in_flight.wait().unwrap();
        assert_eq!(host_syncs(), 0, "{:?}", host_sync_causes());
        assert_eq!(back, numbers(len));
        sterna_fake_cuda::reset_host_syncs();
    }
}

#[test]
fn the_device_lets_go_of_what_leaves_two_blocks_later() {
    let _alone = alone();
    let copies = Copies::new(0).unwrap();
    let before = sterna_fake_cuda::allocated_bytes(0).current;
    let held = || sterna_fake_cuda::allocated_bytes(0).current - before;
    let first = copies.to_host(numbers(1 << 10)).unwrap();
    copies.release_sent().unwrap();
    let second = copies.to_host(numbers(1 << 11)).unwrap();
    assert_eq!(held(), 3 << 12);
    copies.release_sent().unwrap();
    assert_eq!(first.tensor(), &host_numbers(1 << 10), "the device has waited for it");
    assert_eq!(held(), 2 << 12);
    copies.release_sent().unwrap();
    assert_eq!(second.tensor(), &host_numbers(1 << 11));
    copies.release_sent().unwrap();
    assert_eq!(held(), 0);
    assert_eq!(host_syncs(), 0, "{:?}", host_sync_causes());
}

#[test]
fn the_host_reads_when_it_has_waited() {
    let _alone = alone();
    let copies = Copies::new(0).unwrap();
    let away = copies.to_host(numbers(100)).unwrap();
    away.wait().unwrap();
    assert_eq!(away.tensor(), &host_numbers(100));
    assert_eq!(host_sync_causes(), [("event synchronize".to_owned(), 1)]);
    let rows = away.narrow(20, 30);
    assert_eq!(copies.to_device(&rows).unwrap().wait().unwrap(), numbers(100).narrow(0, 20, 30));
}

#[test]
fn memory_of_the_host_is_used_again_when_it_is_read() {
    let _alone = alone();
    let copies = Copies::new(0).unwrap();
    let len = 5 << 18;
    let away = copies.to_host(numbers(len)).unwrap();
    let place = away.tensor().data_ptr();
    let in_flight = copies.to_device(&away).unwrap();
    drop(away);
    let other = OnHost::empty(&[len], Kind::Float).unwrap();
    assert_ne!(other.tensor().data_ptr(), place, "a copy that is to come reads it");
    assert_eq!(in_flight.wait().unwrap(), numbers(len));
    copies.synchronize().unwrap();
    let again = OnHost::empty(&[len], Kind::Float).unwrap();
    assert_eq!(again.tensor().data_ptr(), place, "pinned memory waits for the next tensor");
}

#[test]
fn what_never_arrives_is_not_written_over_the_next_tensor() {
    let _alone = alone();
    let copies = Copies::new(0).unwrap();
    let away = copies.to_host(numbers(1000)).unwrap();
    // The fake ends the process when memory is freed that a copy still writes.
    drop(copies.to_device(&away).unwrap());
    assert_eq!(away.tensor(), &host_numbers(1000));
}

#[test]
fn a_host_ahead_of_its_copies_waits_for_the_oldest() {
    let _alone = alone();
    let copies = Copies::new(0).unwrap();
    let targets: Vec<Tensor> = (0..20).map(|_| Tensor::zeros([10], (Kind::Float, GPU))).collect();
    for (i, target) in targets.iter().enumerate() {
        let source = OnHost::empty(&[10], Kind::Float).unwrap();
        let _ = source.tensor().shallow_clone().fill_(i as i64);
        copies.to_device_at(&source, target).unwrap();
    }
    assert_eq!(host_sync_causes(), [("event synchronize".to_owned(), 4)]);
    copies.synchronize().unwrap();
    for (i, target) in targets.iter().enumerate() {
        assert_eq!(target, &Tensor::full([10], i as i64, (Kind::Float, GPU)));
    }
}

#[test]
fn pinned_memory_is_in_the_books() {
    let _alone = alone();
    // libtorch says of nothing that it is pinned before it has seen a GPU.
    let _ = numbers(1);
    let live = || memory::usage().live[MemoryKind::KeptActivations];
    let before = live();
    let scope = memory::scope(MemoryKind::KeptActivations);
    let pinned = OnHost::empty(&[3, 5], Kind::BFloat16).unwrap();
    drop(scope);
    assert!(pinned.tensor().is_pinned(GPU));
    assert_eq!(live() - before, 30);
    memory::retag(pinned.tensor(), MemoryKind::Other);
    assert_eq!(live(), before);
}

#[test]
fn pinned_memory_made_ahead_is_what_tensors_of_its_length_get() {
    const LEN: i64 = 7 << 20;
    let _alone = alone();
    // libtorch says of nothing that it is pinned before it has seen a GPU.
    let _ = numbers(1);
    let ahead = PinnedAhead::start(0, &[4 * LEN as usize, 3 << 20, 4 * LEN as usize]);
    // Whether or not they are made yet: each waits for its own, and none is made beside them.
    let tensors = [LEN, LEN].map(|len| OnHost::empty(&[len], Kind::Float).unwrap());
    assert!(tensors.iter().all(|x| x.tensor().is_pinned(GPU)));
    let before = memory::usage().cached;
    let small = OnHost::empty(&[3 << 20], Kind::Int8).unwrap();
    let mapped = before - memory::usage().cached;
    assert!((3 << 20..4 << 20).contains(&mapped), "{mapped} bytes were there for it");
    drop((tensors, small));
    drop(ahead);
    assert!(memory::usage().cached >= 2 * 4 * LEN as u64, "they wait for the next ones");
}

#[test]
fn a_tensor_with_gaps_or_of_another_dtype_is_refused() {
    let _alone = alone();
    let copies = Copies::new(0).unwrap();
    let gaps = Tensor::zeros([4, 4], (Kind::Float, GPU)).tr();
    let Err(error) = copies.to_host(gaps) else { panic!("a tensor with gaps was copied") };
    let error = error.to_string();
    assert_eq!(error, "`source` is [4, 4] Float, not contiguous on Cuda(0), must be contiguous");
    let source = OnHost::empty(&[4], Kind::Float).unwrap();
    let target = Tensor::zeros([4], (Kind::BFloat16, GPU));
    let error = copies.to_device_at(&source, &target).expect_err("refused").to_string();
    let expected = "`target` is [4] BFloat16 on Cuda(0), must be contiguous, and of the source's size and dtype";
    assert_eq!(error, expected);
}

#[test]
fn small_tensors_are_uploaded_without_the_host() {
    let _alone = alone();
    let ids = upload(Tensor::from_slice(&[3_i64, 1, 2]), GPU);
    assert_eq!(ids.device(), GPU);
    assert_eq!(host_syncs(), 0, "{:?}", host_sync_causes());
    assert_eq!(Vec::<i64>::try_from(ids).unwrap(), [3, 1, 2]);
}
