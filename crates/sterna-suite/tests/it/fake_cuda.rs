//! The checks of fused kernels on a device that is not the host: that they compare what the device computed.

use sterna_suite::ops;
use tch::Device;

#[test]
fn fused_kernels_of_a_device_are_within_their_bounds() {
    sterna_fake_cuda::install();
    let failures = ops::fused(Device::Cuda(0));
    assert!(failures.is_empty(), "{failures:#?}");
}
