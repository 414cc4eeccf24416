//! Who has how much memory. The books are the process's, so each test has a process of its own.

use sterna_testkit::spawn_ranks;
use sterna_torch_sys::{
    Error,
    memory::{self, MemoryKind, Usage},
    vjp,
};
use tch::{Device, Kind, Tensor};

const MIB: u64 = 1 << 20;

/// A tensor of `mib` MiB, written to.
fn ones(mib: i64) -> Tensor {
    Tensor::ones([mib << 18], (Kind::Float, Device::Cpu))
}

/// What tensors of one kind hold, whole MiB.
fn live(kind: MemoryKind) -> u64 {
    let bytes = memory::usage().live[kind];
    assert_eq!(bytes % MIB, 0);
    bytes / MIB
}

/// Runs `test` in a process whose tensors are counted.
fn counted(test: impl FnOnce()) {
    spawn_ranks(1, |_| {
        memory::install();
        memory::install();
        test();
    });
}

#[test]
fn tensors_are_counted_by_the_scope_they_are_made_in() {
    counted(|| {
        let before = ones(1);
        let (weights, nested) = {
            let _scope = memory::scope(MemoryKind::Weights);
            let nested = {
                let _scope = memory::scope(MemoryKind::Attention);
                ones(4)
            };
            (ones(2), nested)
        };
        let after = ones(8);
        assert_eq!(live(MemoryKind::Weights), 2);
        assert_eq!(live(MemoryKind::Attention), 4);
        assert_eq!(live(MemoryKind::Other), 9);
        // Both scopes have ended, and each block is subtracted from the kind that it was added to.
        drop((weights, before));
        assert_eq!((live(MemoryKind::Weights), live(MemoryKind::Other)), (0, 8));
        drop((nested, after));
        assert_eq!(memory::usage().live.total(), 0);
    });
}

#[test]
fn a_view_costs_nothing_and_keeps_its_storage() {
    counted(|| {
        let tensor = ones(4);
        let view = tensor.narrow(0, 0, 1).shallow_clone();
        assert_eq!(memory::usage().live.total(), 4 * MIB);
        drop(tensor);
        assert_eq!(memory::usage().live.total(), 4 * MIB);
        drop(view);
        assert_eq!(memory::usage().live.total(), 0);
    });
}

#[test]
fn a_retagged_storage_changes_its_kind_with_all_its_views() {
    counted(|| {
        // One block of the heap, one mapping.
        for bytes in [4096, 4 * MIB as i64] {
            let _scope = memory::scope(MemoryKind::TileScratch);
            let tensor = Tensor::zeros([bytes / 4], (Kind::Float, Device::Cpu));
            memory::retag(&tensor.narrow(0, 7, 1), MemoryKind::KeptActivations);
            let usage = memory::usage().live;
            assert_eq!(usage[MemoryKind::TileScratch], 0);
            assert_eq!(usage[MemoryKind::KeptActivations], bytes as u64);
            drop(tensor);
            assert_eq!(memory::usage().live.total(), 0);
        }
    });
}

#[test]
fn foreign_memory_is_left_alone() {
    spawn_ranks(1, |_| {
        let older = ones(1);
        memory::install();
        let mut bytes = [1_u8, 2, 3, 4];
        // SAFETY: the array outlives the tensor.
        let mapped =
            unsafe { Tensor::from_blob(bytes.as_mut_ptr(), &[4], &[1], Kind::Uint8, Device::Cpu) };
        for foreign in [&older, &mapped, &Tensor::new()] {
            memory::retag(foreign, MemoryKind::Weights);
        }
        assert_eq!(memory::usage().live.total(), 0);
        drop((older, mapped));
        assert_eq!(memory::usage().live.total(), 0);
    });
}

#[test]
fn another_thread_frees_and_has_a_scope_of_its_own() {
    counted(|| {
        let _scope = memory::scope(MemoryKind::Gradients);
        let tensor = ones(2);
        let of_thread = std::thread::spawn(move || {
            drop(tensor);
            ones(4)
        });
        let of_thread = of_thread.join().unwrap();
        assert_eq!(live(MemoryKind::Gradients), 0);
        assert_eq!(live(MemoryKind::Other), 4);
        drop(of_thread);
        assert_eq!(memory::usage().live.total(), 0);
    });
}

#[test]
fn many_threads_lose_no_byte() {
    counted(|| {
        std::thread::scope(|threads| {
            for thread_idx in 0..4_usize {
                threads.spawn(move || {
                    let _scope = memory::scope(MemoryKind::ALL[thread_idx]);
                    for round in 0..200_i64 {
                        // From below the threshold of mappings to above it, and some of each kept a while.
                        let sizes = [(round % 7 + 1) << 10, (round % 5 + 1) << 18];
                        let tensors =
                            sizes.map(|len| Tensor::zeros([len], (Kind::Float, Device::Cpu)));
                        assert!(tensors.iter().all(|x| x.count_nonzero(0).int64_value(&[]) == 0));
                    }
                });
            }
        });
        let Usage { live, peak, .. } = memory::usage();
        assert_eq!(live.total(), 0);
        assert!(peak.total() > 0);
    });
}

#[test]
fn the_peak_has_the_composition_of_its_moment() {
    counted(|| {
        let weights = {
            let _scope = memory::scope(MemoryKind::Weights);
            ones(2)
        };
        {
            let _scope = memory::scope(MemoryKind::Attention);
            drop((ones(4), ones(4)));
            // 2 + 8 was the peak so far; this is less, although attention's own maximum is behind it.
            let _less = ones(1);
        }
        let peak = memory::usage().peak;
        assert_eq!((peak[MemoryKind::Weights], peak[MemoryKind::Attention]), (2 * MIB, 8 * MIB));

        memory::reset_peak();
        assert_eq!(memory::usage().peak, memory::usage().live);
        let _scope = memory::scope(MemoryKind::TileScratch);
        drop(weights);
        let _scratch = ones(3);
        let peak = memory::usage().peak;
        assert_eq!((peak[MemoryKind::Weights], peak[MemoryKind::TileScratch]), (0, 3 * MIB));
        assert_eq!(peak[MemoryKind::Attention], 0);
    });
}

#[test]
fn every_block_is_aligned_for_the_widest_vector() {
    counted(|| {
        for len in
            [1, 63, 64, 65, 4096, MIB as i64 - 65, MIB as i64 - 1, MIB as i64, 5 * MIB as i64 + 1]
        {
            let tensors = [0; 3].map(|_| Tensor::empty([len], (Kind::Uint8, Device::Cpu)));
            for tensor in tensors {
                assert_eq!(tensor.data_ptr() as usize % 64, 0, "{len} bytes");
                // Its first and its last byte are its own.
                let _ = tensor.narrow(0, 0, 1).fill_(1);
                let _ = tensor.narrow(0, len - 1, 1).fill_(2);
            }
        }
        assert_eq!(memory::usage().live.total(), 0);
    });
}

#[test]
fn a_tensor_without_elements_may_grow() {
    counted(|| {
        let mut empty = Tensor::empty([0], (Kind::Float, Device::Cpu));
        memory::retag(&empty, MemoryKind::Weights);
        assert_eq!(memory::usage().live.total(), 0);
        let grown = empty.resize_([1 << 20]);
        assert_eq!(memory::usage().live.total(), 4 * MIB);
        drop((grown, empty));
        assert_eq!(memory::usage().live.total(), 0);
    });
}

#[test]
fn a_block_is_used_again_and_counted_as_waiting() {
    counted(|| {
        let first = ones(16);
        let start = first.data_ptr();
        drop(first);
        let cached = memory::usage().cached;
        assert!((16 * MIB..18 * MIB).contains(&cached), "{cached}");
        // A little less than what waits, as the second of two uneven tiles is.
        let second = Tensor::zeros([(4 << 20) - 576], (Kind::Float, Device::Cpu));
        assert_eq!(second.data_ptr(), start);
        assert_eq!(memory::usage().cached, 0);
        assert_eq!(second.count_nonzero(0).int64_value(&[]), 0, "zeros, whatever was there");
    });
}

#[test]
fn what_cannot_be_had_is_an_error_that_says_how_much() {
    counted(|| {
        let _scope = memory::scope(MemoryKind::Weights);
        let weights = ones(2);
        let text = Tensor::f_zeros([1 << 46], (Kind::Float, Device::Cpu)).unwrap_err().to_string();
        let expected = "can't allocate memory: a tensor of 281474976710656 bytes was asked for, and tensors hold \
                        2097152 bytes, weights 2097152";
        assert!(text.contains(expected), "{text}");

        // Through the boundary it has its own kind: the gradient of a selection from 2^46 elements.
        let x = weights.narrow(0, 0, 1).expand([1 << 46], false).set_requires_grad(true);
        let y = x.get(0);
        let error = vjp(&[&y], &[&y.ones_like()], &[&x], false).unwrap_err();
        assert!(
            matches!(&error, Error::OutOfMemory { message } if message.contains("281474976710656")),
            "{error}"
        );
        drop((x, y, weights));
        assert_eq!(memory::usage().live.total(), 0, "a refused block is not counted");
    });
}
