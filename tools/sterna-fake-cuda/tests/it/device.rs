//! What libtorch believes of the device.

use sterna_torch_sys::cuda;
use tch::{Cuda, Kind, Tensor};

use crate::{GPU, alone};

#[test]
fn libtorch_sees_the_devices() {
    let _alone = alone();
    assert!(Cuda::is_available());
    assert_eq!(Cuda::device_count(), 2);
}

#[test]
fn production_code_finds_it_in_place_of_the_real_libraries() {
    let _alone = alone();
    assert_eq!(cuda::load(), Ok(2));
    let memory = cuda::memory(0).expect("it has statistics");
    assert!(memory.free <= memory.total && memory.total > 0);
}

#[test]
fn each_device_has_its_own_tensors() {
    let _alone = alone();
    let a = Tensor::ones([2], (Kind::Float, GPU));
    let b = Tensor::ones([2], (Kind::Float, tch::Device::Cuda(1)));
    assert_eq!(b.device(), tch::Device::Cuda(1));
    let message = a.f_add(&b).expect_err("tensors of two devices").to_string();
    assert!(message.contains("same device"), "{message}");
    assert_eq!(&a + b.to_device(GPU), Tensor::full([2], 2.0, (Kind::Float, GPU)));
}

/// libtorch's allocator has no figures before its first use, and says so in an exception.
#[test]
fn figures_are_there_before_the_first_tensor() {
    let _alone = alone();
    assert_eq!(cuda::load(), Ok(2));
    assert_eq!(cuda::memory(1).expect("it has statistics").allocated, 0);
    cuda::reset_peak(1).expect("as above");
}
