//! The gradients of weights, which a CUDA device sums and adds in single precision at once.

use sterna_ops::linear;
use sterna_torch_sys::cuda;
use tch::{Device, Kind, Tensor};

use crate::{GPU, alone};

const TOKENS: i64 = 300;
const INPUTS: i64 = 96;
const OUTPUTS: i64 = 80;

fn random(size: &[i64], seed: i64) -> Tensor {
    tch::manual_seed(seed);
    Tensor::randn(size, (Kind::Float, Device::Cpu))
}

/// The largest error of a gradient that three tiles add to, against double precision.
fn largest_error(kind: Kind, device: Device) -> f64 {
    let start = random(&[OUTPUTS, INPUTS], 1);
    let mut d_weight = start.to_device(device);
    let mut exact = start.to_kind(Kind::Double);
    for tile in 0..3 {
        // Some columns of a wider tensor, as those of one product of queries, keys and values.
        let wide = random(&[TOKENS, OUTPUTS + 16], 2 + tile).to_kind(kind);
        let d_y = wide.narrow(1, 8, OUTPUTS);
        let x = random(&[TOKENS, INPUTS], 9 + tile).to_kind(kind);
        exact += d_y.to_kind(Kind::Double).tr().mm(&x.to_kind(Kind::Double));
        let d_y = wide.to_device(device).narrow(1, 8, OUTPUTS);
        linear::backward_params(&d_y, &x.to_device(device), Some(&mut d_weight), None);
    }
    (d_weight.to_device(Device::Cpu).to_kind(Kind::Double) - exact).abs().max().double_value(&[])
}

#[test]
fn weight_gradients_are_added_without_being_rounded_to_half_precision() {
    let _alone = alone();
    for kind in [Kind::BFloat16, Kind::Half] {
        // Sums of 300 products of about 1 have a size of about 70 at most: single precision keeps 5 digits after the point.
        let error = largest_error(kind, GPU);
        assert!(error < 1e-4, "{kind:?}: {error:e}");
        // bf16 keeps 8 bits, fp16 11: what the CPU's way loses, this one must not.
        let rounded = largest_error(kind, Device::Cpu);
        assert!(rounded > 1e-2, "{kind:?}: {rounded:e}");
    }
}

#[test]
fn weight_gradients_take_no_memory_but_their_own() {
    let _alone = alone();
    let d_y = random(&[4, 512], 1).to_kind(Kind::BFloat16).to_device(GPU);
    let x = random(&[4, 1024], 2).to_kind(Kind::BFloat16).to_device(GPU);
    let mut d_weight = Tensor::zeros([512, 1024], (Kind::Float, GPU));
    cuda::reset_peak(0).expect("the fake device has statistics");
    let before = cuda::memory(0).expect("as above").allocated;
    linear::backward_params(&d_y, &x, Some(&mut d_weight), None);
    assert_eq!(cuda::memory(0).expect("as above").allocated_peak, before);
}

#[test]
fn a_bias_is_added_in_single_precision() {
    let _alone = alone();
    let d_y = random(&[TOKENS, OUTPUTS], 1).to_kind(Kind::BFloat16);
    let x = random(&[TOKENS, INPUTS], 2).to_kind(Kind::BFloat16);
    let mut d_bias = Tensor::ones([OUTPUTS], (Kind::Float, GPU));
    linear::backward_params(&d_y.to_device(GPU), &x.to_device(GPU), None, Some(&mut d_bias));
    let exact = d_y.to_kind(Kind::Double).sum_dim_intlist(0_i64, false, Kind::Double) + 1.0;
    let error = (d_bias.to_device(Device::Cpu) - exact).abs().max().double_value(&[]);
    assert!(error < 1e-4, "{error:e}");
}
