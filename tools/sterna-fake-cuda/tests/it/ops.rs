//! Ops on the device compute what they compute on the CPU, and refuse what a real device refuses.

use tch::{Device, Kind, Tensor};

use crate::{GPU, alone};

fn rand(size: &[i64]) -> Tensor {
    Tensor::randn(size, (Kind::Float, Device::Cpu))
}

fn assert_on_gpu(actual: &Tensor, expected: &Tensor) {
    assert_eq!(actual.device(), GPU);
    assert!(actual.to_device(Device::Cpu).equal(expected), "{actual:?} against {expected:?}");
}

#[test]
fn ops_are_the_cpus_bit_for_bit() {
    let _alone = alone();
    let (a, b) = (rand(&[5, 7]), rand(&[7, 3]));
    let (ga, gb) = (a.to_device(GPU), b.to_device(GPU));
    assert_on_gpu(&ga.matmul(&gb), &a.matmul(&b));
    assert_on_gpu(&ga.softmax(-1, Kind::Float), &a.softmax(-1, Kind::Float));
    assert_on_gpu(&(&ga * 2.0), &(&a * 2.0));
    assert_on_gpu(&Tensor::cat(&[&ga, &ga], 0), &Tensor::cat(&[&a, &a], 0));
    assert_on_gpu(
        &ga.sum_dim_intlist([0].as_slice(), true, Kind::Double),
        &a.sum_dim_intlist([0].as_slice(), true, Kind::Double),
    );
    // Two results, of which one is of another kind.
    let ((values, idx), (gvalues, gidx)) = (a.sort(1, true), ga.sort(1, true));
    assert_on_gpu(&gvalues, &values);
    assert_on_gpu(&gidx, &idx);
    assert_on_gpu(
        &Tensor::arange(5, (Kind::Int64, GPU)),
        &Tensor::arange(5, (Kind::Int64, Device::Cpu)),
    );
}

#[test]
fn ops_in_place_and_views_share_memory() {
    let _alone = alone();
    let a = rand(&[4, 6]);
    let ga = a.to_device(GPU);
    let rows = ga.narrow(0, 1, 2);
    assert_eq!(rows.data_ptr(), ga.data_ptr().wrapping_byte_add(6 * 4));
    let _ = rows.shallow_clone().fill_(3.0);
    let _ = ga
        .transpose(0, 1)
        .select(0, 5)
        .view([2, 2])
        .g_add_(&Tensor::ones([2, 2], (Kind::Float, GPU)));
    let _ = a.narrow(0, 1, 2).fill_(3.0);
    let _ = a.select(1, 5).g_add_(&Tensor::ones([4], (Kind::Float, Device::Cpu)));
    assert_on_gpu(&ga, &a);
    let _ = ga.shallow_clone().index_put_(
        &[Some(Tensor::from_slice(&[0_i64]).to_device(GPU))],
        &Tensor::zeros([6], (Kind::Float, GPU)),
        false,
    );
    assert_on_gpu(&ga.get(0), &Tensor::zeros([6], (Kind::Float, Device::Cpu)));
}

#[test]
fn an_output_given_is_the_one_written_and_grows() {
    let _alone = alone();
    let (a, b) = (rand(&[3, 3]).to_device(GPU), rand(&[3, 3]).to_device(GPU));
    let out = Tensor::empty([3, 3], (Kind::Float, GPU));
    let before = out.data_ptr();
    let _ = a.matmul_out(&out, &b);
    assert_eq!(out.data_ptr(), before);
    assert!(out.equal(&a.matmul(&b)));
    let mut small = Tensor::ones([2], (Kind::Float, GPU));
    let _ = small.resize_([64]);
    assert_eq!((small.size(), small.device()), (vec![64], GPU));
    assert_on_gpu(&small.narrow(0, 0, 2), &Tensor::ones([2], (Kind::Float, Device::Cpu)));
    let other = Tensor::ones([5], (Kind::Float, GPU));
    let _ = small.set_source_tensor_(&other);
    assert_eq!((small.size(), small.data_ptr()), (vec![5], other.data_ptr()));
}

#[test]
fn gradients_are_the_cpus() {
    let _alone = alone();
    let x = rand(&[5, 4]);
    let grad = |x: Tensor| {
        let x = x.set_requires_grad(true);
        (x.matmul(&x.tr()).silu() * &x.narrow(1, 0, 1)).sum(Kind::Float).backward();
        x.grad()
    };
    assert_on_gpu(&grad(x.to_device(GPU)), &grad(x.copy()));
}

#[test]
fn tensors_of_the_host_are_refused() {
    let _alone = alone();
    let (a, b) = (rand(&[3, 3]), rand(&[3, 3]).to_device(GPU));
    for error in [
        a.f_matmul(&b).map(|_| ()),
        b.f_matmul(&a).map(|_| ()),
        b.f_add(&a).map(|_| ()),
        a.shallow_clone().f_add_(&b).map(|_| ()),
        Tensor::f_cat(&[&a, &b], 0).map(|_| ()),
        b.f_index_select(0, &Tensor::from_slice(&[0_i64])).map(|_| ()),
        // A value of the host may be read, not written.
        Tensor::from(1.0_f32).f_add_(&b.get(0).get(0)).map(|_| ()),
    ] {
        let message = error.expect_err("host and device are mixed").to_string();
        assert!(message.contains("same device"), "{message}");
    }
    assert_on_gpu(&(&b * Tensor::from(2.0_f32)), &(b.to_device(Device::Cpu) * 2.0));
}

#[test]
fn what_nobody_wrote_is_nan() {
    let _alone = alone();
    for kind in [Kind::Float, Kind::BFloat16, Kind::Half, Kind::Double] {
        assert!(Tensor::empty([9], (kind, GPU)).isnan().all().int64_value(&[]) == 1, "{kind:?}");
    }
}
