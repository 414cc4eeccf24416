//! Normal numbers against the functions of the C library.

use std::f64::consts::TAU;

use sterna_torch_sys::random::{fill_normal, stream};
use tch::{Device, Kind, Tensor};

fn drawn(len: usize, stream: u64, first: u64) -> Vec<f32> {
    let mut x = Tensor::zeros([len as i64], (Kind::Float, Device::Cpu));
    fill_normal(&mut x, stream, first, 1.0).unwrap();
    Vec::try_from(x).unwrap()
}

/// Box and Muller's transform with the logarithm and the cosine of the C library.
fn reference(stream: u64, index: u64) -> f64 {
    fn mix(value: u64) -> u64 {
        let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }
    let uniform =
        |counter: u64| ((mix(stream ^ mix(counter)) >> 12) as f64 + 0.5) / (1_u64 << 52) as f64;
    let (a, b) = (uniform(2 * index), uniform(2 * index + 1));
    (-2.0 * a.ln()).sqrt() * (TAU * b).cos()
}

#[test]
fn numbers_are_those_of_the_c_librarys_functions_in_fp32() {
    let first = (1 << 40) + 12_345;
    let stream = stream(42, "model.embed_tokens.weight");
    let numbers = drawn(200_000, stream, first);
    let mut others = 0;
    for (i, &number) in numbers.iter().enumerate() {
        let expected = reference(stream, first + i as u64);
        // Half a unit in the last place of fp32, and where the cosine passes through zero the error of its argument, 2 pi 2^-53.
        let bound = 1e-7 * expected.abs() + 1e-14;
        assert!((f64::from(number) - expected).abs() < bound, "{i}: {number} {expected}");
        others += usize::from(number.to_bits() != (expected as f32).to_bits());
    }
    // A difference of 2^-50 changes the rounding of one in 2^26.
    assert!(others <= 1, "{others} of 200,000 are rounded to a neighbour");
}

#[test]
fn a_number_depends_on_its_stream_and_its_index_alone() {
    let whole = drawn(100_003, 7, 0);
    for cut in [0, 1, 17, 16_384, 49_999, 100_003].windows(2) {
        assert_eq!(drawn(cut[1] - cut[0], 7, cut[0] as u64), whole[cut[0]..cut[1]]);
    }
    assert_ne!(drawn(10, 8, 0), whole[..10]);
    assert_ne!(stream(1, "a"), stream(1, "b"));
    assert_ne!(stream(1, "a"), stream(2, "a"));
}

#[test]
fn bf16_is_the_nearest_to_fp32() {
    let mut x = Tensor::zeros([5_001], (Kind::BFloat16, Device::Cpu));
    fill_normal(&mut x, 3, 11, 1.0).unwrap();
    let expected = Tensor::from_slice(&drawn(5_001, 3, 11)).to_kind(Kind::BFloat16);
    assert!(x.equal(&expected));
}

#[test]
fn other_dtypes_and_layouts_are_refused() {
    let mut double = Tensor::zeros([8], (Kind::Double, Device::Cpu));
    let error = fill_normal(&mut double, 0, 0, 1.0).unwrap_err();
    assert!(error.to_string().contains("`target` is [8] Double on Cpu"), "{error}");
    let mut strided = Tensor::zeros([8], (Kind::Float, Device::Cpu)).slice(0, 0, 8, 2);
    let error = fill_normal(&mut strided, 0, 0, 1.0).unwrap_err();
    assert!(error.to_string().contains("not contiguous"), "{error}");
}
