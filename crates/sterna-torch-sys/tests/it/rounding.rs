//! Stochastic rounding against its definition.

use sterna_torch_sys::{Error, round_stochastically};
use tch::{Device, Kind, Tensor};

fn rounded(source: &Tensor, key: u64, position: u64) -> Tensor {
    let mut target = Tensor::zeros(source.size(), (Kind::BFloat16, Device::Cpu));
    round_stochastically(source, &mut target, key, position).unwrap();
    target
}

fn bits(x: &Tensor) -> Vec<i16> {
    Vec::try_from(x.view_dtype(Kind::Int16)).unwrap()
}

#[test]
fn values_round_to_a_neighbour_in_proportion_to_the_distance() {
    // 1 and 1 + 2^-7 are neighbours of bf16.
    const LEN: i64 = 1 << 20;
    for sign in [1.0, -1.0] {
        for fraction in [0.0, 1.0 / 65_536.0, 0.1, 0.25, 0.5, 0.9] {
            let x =
                Tensor::full([LEN], sign * (1.0 + fraction / 128.0), (Kind::Float, Device::Cpu));
            let ups = (rounded(&x, 7, 0).to_kind(Kind::Double).abs() - 1.0) * 128.0;
            assert_eq!(ups.fmod(1.0).count_nonzero(0).int64_value(&[]), 0, "neighbours only");
            let mean = ups.mean(Kind::Double).double_value(&[]);
            // Five deviations of a mean of LEN draws.
            let bound = 5.0 * (fraction * (1.0 - fraction) / LEN as f64).sqrt();
            assert!((mean - fraction).abs() <= bound, "{sign} {fraction}: {mean}");
        }
    }
}

#[test]
fn draws_of_neighbouring_elements_keys_and_positions_are_independent() {
    const LEN: i64 = 1 << 20;
    let half = Tensor::full([LEN], 1.0 + 0.5 / 128.0, (Kind::Float, Device::Cpu));
    let signs =
        |key, position| (rounded(&half, key, position).to_kind(Kind::Double) - 1.0) * 256.0 - 1.0;
    let base = signs(1, 0);
    let others = [
        signs(2, 0),
        signs(1 << 32, 0),
        signs(1, 1),
        signs(1, 2),
        signs(1, 1 << 32),
        signs(1, 12_345),
    ];
    for (idx, other) in others.iter().enumerate() {
        let correlation = (&base * other).mean(Kind::Double).double_value(&[]);
        assert!(correlation.abs() < 5.0 / (LEN as f64).sqrt(), "{idx}: {correlation}");
    }
}

#[test]
fn cutting_the_tensor_or_its_threads_elsewhere_changes_nothing() {
    let x = Tensor::randn([100_003], (Kind::Float, Device::Cpu));
    // The position passes 2^32 inside.
    let start = (1_u64 << 32) - 50_000;
    let whole = bits(&rounded(&x, 3, start));
    let mut parts = Vec::new();
    for cut in [0, 1, 17, 49_999, 50_001, 100_003_i64].windows(2) {
        let part = x.narrow(0, cut[0], cut[1] - cut[0]);
        parts.extend(bits(&rounded(&part, 3, start + cut[0] as u64)));
    }
    assert_eq!(parts, whole);
}

#[test]
fn what_bf16_can_hold_stays() {
    let held = [0.0, -0.0, 1.5, -2.0, f32::INFINITY, f32::NEG_INFINITY, 1e-40_f32.trunc()];
    let held = Tensor::from_slice(&held);
    for key in 0..50 {
        assert_eq!(bits(&rounded(&held, key, 0)), bits(&held.to_kind(Kind::BFloat16)));
        // A NaN whose bits all lie below those that stay.
        let nan = Tensor::from_slice(&[f32::from_bits(0x7f80_0001), f32::from_bits(0xffc0_0000)]);
        assert_eq!(rounded(&nan, key, 0).isnan().all().int64_value(&[]), 1);
    }
}

#[test]
fn other_dtypes_and_shapes_are_refused() {
    let x = Tensor::zeros([8], (Kind::Float, Device::Cpu));
    let refused = |source: &Tensor, target: &Tensor| {
        round_stochastically(source, &mut target.shallow_clone(), 0, 0).unwrap_err()
    };
    let bf16 = |len: i64| Tensor::zeros([len], (Kind::BFloat16, Device::Cpu));
    for (error, text) in [
        (refused(&x, &x), "`target` is [8] Float on Cpu, must be bf16"),
        (refused(&bf16(8), &bf16(8)), "`source` is [8] BFloat16 on Cpu, must be fp32"),
        (refused(&x, &bf16(7)), "`target` is [7] BFloat16"),
        (refused(&x, &bf16(16).slice(0, 0, 16, 2)), "`target` is [8] BFloat16, not contiguous"),
    ] {
        assert!(matches!(error, Error::Operand { .. }));
        assert!(error.to_string().contains(text), "{error}");
    }
}
