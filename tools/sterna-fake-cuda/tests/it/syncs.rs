//! What makes the host wait is counted.

use sterna_fake_cuda::{host_sync_causes, host_syncs, reset_host_syncs};
use tch::{Cuda, Device, Kind, Tensor};

use crate::{GPU, alone};

/// How often the host waited in `f`.
fn syncs_of<T>(f: impl FnOnce() -> T) -> u64 {
    reset_host_syncs();
    let _ = f();
    host_syncs()
}

#[test]
fn values_read_back_wait() {
    let _alone = alone();
    let a = Tensor::ones([3], (Kind::Float, GPU));
    assert_eq!(syncs_of(|| a.double_value(&[1])), 1);
    assert_eq!(host_sync_causes(), [("aten::_local_scalar_dense".to_owned(), 1)]);
    assert_eq!(syncs_of(|| a.nonzero()), 1);
    assert_eq!(syncs_of(|| a.equal(&a)), 1);
    assert_eq!(syncs_of(|| a.index(&[Some(a.ge(0.0))])), 1);
    assert_eq!(syncs_of(|| (&a + &a).matmul(&a).sqrt().to_kind(Kind::BFloat16)), 0);
    assert_eq!(syncs_of(|| Cuda::synchronize(0)), 1);
}

#[test]
fn copies_wait_unless_pinned_and_not_blocking() {
    let _alone = alone();
    let host = Tensor::ones([2, 3], (Kind::Float, Device::Cpu));
    let pinned = host.pin_memory(GPU);
    assert!(pinned.is_pinned(GPU) && !host.is_pinned(GPU));
    assert!(pinned.get(1).is_pinned(GPU), "a view of pinned memory is pinned");
    let device = host.to_device(GPU);
    for (host, non_blocking, expected) in
        [(&host, false, 1), (&host, true, 1), (&pinned, false, 1), (&pinned, true, 0)]
    {
        let to = || host.to_device_(GPU, Kind::Float, non_blocking, true);
        assert_eq!(syncs_of(to), expected, "to the device, {non_blocking}");
        let from = || host.shallow_clone().f_copy_(&device);
        assert_eq!(syncs_of(from), 1, "from the device");
    }
    assert_eq!(syncs_of(|| device.to_device_(GPU, Kind::Double, false, true)), 0);
    assert_eq!(syncs_of(|| device.to_device(Device::Cpu)), 1);
    assert_eq!(host_sync_causes(), [("aten::copy_ from the device, Float [2, 3]".to_owned(), 1)]);
}
