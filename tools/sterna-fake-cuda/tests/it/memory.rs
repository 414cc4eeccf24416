//! Allocations are counted as the real allocator counts them.

use sterna_fake_cuda::{AllocatedBytes, allocated_bytes};
use tch::{Kind, Tensor};

use crate::{GPU, alone};

#[test]
fn what_tensors_hold_is_counted_while_they_live() {
    let _alone = alone();
    let before = allocated_bytes(0).current;
    let small = Tensor::empty([3], (Kind::Float, GPU));
    let large = Tensor::empty([1 << 20], (Kind::Double, GPU));
    let view = large.narrow(0, 8, 8);
    let both = before + 512 + (8 << 20);
    assert_eq!(allocated_bytes(0).current, both);
    drop((small, large));
    assert_eq!(allocated_bytes(0).current, both - 512, "a view keeps the memory");
    drop(view);
    let AllocatedBytes { current, peak } = allocated_bytes(0);
    assert_eq!(current, before);
    assert!(peak >= both);
    let there = Tensor::empty([3], (Kind::Float, tch::Device::Cuda(1)));
    assert_eq!(allocated_bytes(1).current, 512);
    drop(there);
}

#[test]
fn temporaries_of_ops_are_gone_after_them() {
    let _alone = alone();
    let a = Tensor::ones([64, 64], (Kind::Float, GPU));
    let before = allocated_bytes(0).current;
    let sum = (&a * 2.0).matmul(&a).tr().contiguous().sum(Kind::Float);
    assert_eq!(allocated_bytes(0).current, before + 512);
    drop(sum);
    assert_eq!(allocated_bytes(0).current, before);
}

#[test]
fn more_than_the_device_has_is_refused() {
    let _alone = alone();
    let error = Tensor::f_empty([1 << 40], (Kind::Float, GPU)).expect_err("4 TiB").to_string();
    assert!(error.contains("CUDA out of memory"), "{error}");
}
