//! What libtorch's allocator reports is kept by what it is for (`sterna_torch_sys::memory`).

use std::thread;

use sterna_fake_cuda::allocated_bytes;
use sterna_torch_sys::{
    cuda,
    memory::{self, MemoryKind},
};
use tch::{Kind, Tensor};

use crate::{GPU, alone};

const MIB: u64 = 1 << 20;

fn mib(count: i64) -> Tensor {
    Tensor::empty([count << 20], (Kind::Uint8, GPU))
}

fn live(kind: MemoryKind) -> u64 {
    memory::device_usage().live[kind] / MIB
}

#[test]
fn tensors_of_a_device_are_counted_by_what_they_are_for() {
    let _alone = alone();
    cuda::set_device(0).expect("a device");
    let (weights, kept) = {
        let _scope = memory::scope(MemoryKind::Weights);
        let kept = {
            let _scope = memory::scope(MemoryKind::Attention);
            mib(4)
        };
        (mib(2), kept)
    };
    assert_eq!((live(MemoryKind::Weights), live(MemoryKind::Attention)), (2, 4));
    memory::reset_peak();
    {
        let _scope = memory::scope(MemoryKind::TileScratch);
        drop(mib(8));
        drop(mib(1));
    }
    memory::retag(&kept.narrow(0, 7, 1), MemoryKind::KeptActivations);
    let usage = memory::device_usage();
    assert_eq!((live(MemoryKind::Attention), live(MemoryKind::KeptActivations)), (0, 4));
    assert_eq!(usage.live.total(), allocated_bytes(0).current);
    assert_eq!(usage.reserved, allocated_bytes(0).current);
    // Of the moment when most was held.
    assert_eq!(usage.peak[MemoryKind::TileScratch], 8 * MIB);
    assert_eq!(
        (usage.peak[MemoryKind::Attention], usage.peak[MemoryKind::Weights]),
        (4 * MIB, 2 * MIB)
    );
    drop((weights, kept));
    assert_eq!((live(MemoryKind::Weights), live(MemoryKind::KeptActivations)), (0, 0));
}

/// A thread that reports nothing, as those of NCCL: the sums stay those of the allocator.
#[test]
fn what_other_threads_do_is_seen_in_the_sums() {
    let _alone = alone();
    cuda::set_device(0).expect("a device");
    let sent = {
        let _scope = memory::scope(MemoryKind::Communication);
        mib(4)
    };
    let other_before = live(MemoryKind::Other);
    let received = thread::spawn(move || {
        drop(sent);
        mib(16)
    });
    let received = received.join().expect("no panic");
    // The next report has the sums.
    drop(mib(1));
    assert_eq!(memory::device_usage().live.total(), allocated_bytes(0).current);
    assert_eq!(live(MemoryKind::Other) + live(MemoryKind::Communication), other_before + 16);
    drop(received);
    drop(mib(1));
    assert_eq!(memory::device_usage().live.total(), allocated_bytes(0).current);
}

#[test]
fn a_refusal_says_what_was_asked_for_and_where() {
    let _alone = alone();
    cuda::set_device(0).expect("a device");
    let held = {
        let _scope = memory::scope(MemoryKind::Optimizer);
        mib(3)
    };
    let error = {
        let _step = memory::place("step", None);
        let _block = memory::place("block", Some(7));
        let _scope = memory::scope(MemoryKind::Gradients);
        Tensor::f_empty([1 << 40], (Kind::Uint8, GPU)).expect_err("1 TiB").to_string()
    };
    assert!(error.contains("CUDA out of memory"), "{error}");
    let refusal = memory::take_refusal().expect("a refusal");
    assert_eq!(
        (refusal.device, refusal.asked, refusal.kind),
        (Some(0), 1 << 40, MemoryKind::Gradients)
    );
    assert_eq!(refusal.place, "step, block 7");
    assert_eq!(refusal.live[MemoryKind::Optimizer], 3 * MIB);
    assert_eq!(refusal.live.total(), allocated_bytes(0).current);
    assert_eq!(memory::take_refusal(), None);
    drop(held);
}

#[test]
fn marks_measure_the_time_between_them() {
    let _alone = alone();
    cuda::set_device(0).expect("a device");
    assert_eq!(cuda::current_device(), Some(0));
    let start = cuda::Mark::record(0).expect("recorded");
    thread::sleep(std::time::Duration::from_millis(2));
    let end = cuda::Mark::record(0).expect("recorded");
    end.wait().expect("it comes");
    let took = end.since(&start).expect("both have come");
    assert!(took.as_millis() >= 2, "{took:?}");
    assert_eq!(thread::spawn(cuda::current_device).join().expect("no panic"), None);
}

#[test]
fn a_device_has_a_name_and_numbers() {
    let _alone = alone();
    let properties = cuda::properties(1).expect("described");
    assert_eq!((properties.name.as_str(), properties.compute_capability), ("Fake GPU", (9, 0)));
    assert_eq!((properties.total_memory, properties.driver_cuda), (16 << 30, (13, 0)));
    assert_eq!(properties.uuid, "GPU-00000000-0000-0000-0000-000000000001");
}
