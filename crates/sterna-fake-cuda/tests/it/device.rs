//! What libtorch believes of the device.

use tch::{Cuda, Kind, Tensor};

use crate::{GPU, alone};

#[test]
fn libtorch_sees_the_devices() {
    let _alone = alone();
    assert!(Cuda::is_available());
    assert_eq!(Cuda::device_count(), 2);
}

#[test]
fn the_name_of_the_real_library_leads_to_this_one() {
    let _alone = alone();
    // SAFETY: with RTLD_NOLOAD nothing is loaded, let alone run.
    let handle =
        unsafe { libc::dlopen(c"libtorch_cuda.so".as_ptr(), libc::RTLD_NOW | libc::RTLD_NOLOAD) };
    assert!(!handle.is_null(), "libtorch_cuda.so is not loaded under its name");
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
