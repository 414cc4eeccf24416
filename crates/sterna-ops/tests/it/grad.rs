//! Norm, rotary, activation and linear: backwards against autograd and differences of plain expressions, in double precision.

use sterna_arch::{Elementwise, NormKind, RopeLayout};
use sterna_ops::low_rank::{LowRank, Magnitude};
use sterna_ops::norm::Norm;
use sterna_ops::rope::RopeTable;
use sterna_ops::xielu::{self, Xielu};
use sterna_ops::{activation, clamped_swiglu, linear, rms_norm, rope, softcap, swiglu};
use tch::{Device, Kind, Tensor};

use crate::oracle::{AUTOGRAD, DIFFERENCES, assert_close, autograd, differences, random};

const F64: (Kind, Device) = (Kind::Double, Device::Cpu);

/// Compares gradients with both oracles.
fn check(
    f: impl Fn(&[Tensor]) -> Tensor,
    inputs: &[&Tensor],
    d_output: &Tensor,
    actual: &[&Tensor],
) {
    for (input_idx, expected) in autograd(&f, inputs, d_output).iter().enumerate() {
        assert_close(
            &format!("input {input_idx}, autograd"),
            actual[input_idx],
            expected,
            AUTOGRAD,
        );
    }
    for (input_idx, expected) in differences(&f, inputs, d_output).iter().enumerate() {
        assert_close(
            &format!("input {input_idx}, differences"),
            actual[input_idx],
            expected,
            DIFFERENCES,
        );
    }
}

fn plain_rms_norm(x: &Tensor, weight: &Tensor) -> Tensor {
    let mean_square = x.square().mean_dim(-1_i64, true, None::<Kind>);
    weight * (x / (mean_square + 1e-5).sqrt())
}

#[test]
fn rms_norm_of_rows() {
    let (x, weight, d_y) = (random(&[5, 6], 1), random(&[6], 2), random(&[5, 6], 3));
    assert_close(
        "y",
        &rms_norm::forward(&x, &weight, 1e-5),
        &plain_rms_norm(&x, &weight),
        AUTOGRAD,
    );
    let mut d_weight = Tensor::zeros([6], F64);
    let d_x = rms_norm::backward(&d_y, &x, &weight, 1e-5, Some(&mut d_weight));
    check(|x| plain_rms_norm(&x[0], &x[1]), &[&x, &weight], &d_y, &[&d_x, &d_weight]);
}

#[test]
fn rms_norm_of_heads() {
    let (x, weight, d_y) = (random(&[3, 2, 4], 1), random(&[4], 2), random(&[3, 2, 4], 3));
    let mut d_weight = Tensor::zeros([4], F64);
    let d_x = rms_norm::backward(&d_y, &x, &weight, 1e-5, Some(&mut d_weight));
    check(|x| plain_rms_norm(&x[0], &x[1]), &[&x, &weight], &d_y, &[&d_x, &d_weight]);
}

/// A sum in bf16 stops growing once a block of rows adds less than half a unit in the last of its 8 bits. Here 128 blocks do.
#[test]
fn rms_norm_of_many_rows_into_a_bf16_accumulator() {
    let (num_rows, d) = (1 << 14, 1 << 11);
    let [x, weight, d_y] = [1, 2, 3].map(|seed| random(&[d], seed).to_kind(Kind::BFloat16));
    let repeat = |row: &Tensor| row.expand([num_rows, d], false);
    let mut d_weight = Tensor::zeros([d], (Kind::BFloat16, Device::Cpu));
    let _ = rms_norm::backward(&repeat(&d_y), &repeat(&x), &weight, 1e-5, Some(&mut d_weight));
    let [x, d_y] = [x, d_y].map(|row| row.to_kind(Kind::Double));
    let expected = d_y * plain_rms_norm(&x, &x.ones_like()) * num_rows;
    let error = (d_weight.to_kind(Kind::Double) - &expected).abs() / (expected.abs() + 1e-30);
    // One rounding to bf16, and what single precision adds to it.
    let worst = error.max().double_value(&[]);
    assert!(worst < 1.01 / 256.0, "relative error {worst}");
}

/// Transformers' `rotate_half` and `apply_rotary_pos_emb`, from angles.
fn plain_rope(x: &Tensor, angles: &Tensor) -> Tensor {
    let angles = Tensor::cat(&[angles, angles], -1).unsqueeze(1);
    let halves = x.chunk(2, -1);
    let rotated = Tensor::cat(&[&-&halves[1], &halves[0]], -1);
    x * angles.cos() * 1.5 + rotated * angles.sin() * 1.5
}

#[test]
fn rope_of_any_positions() {
    let inv_freq = [1.0_f32, 0.25, 0.0625];
    let position_ids = Tensor::from_slice(&[0_i64, 7, 3, 100]);
    let angles = position_ids
        .to_kind(Kind::Double)
        .outer(&Tensor::from_slice(&inv_freq).to_kind(Kind::Double));
    let table = RopeTable::new(&position_ids, RopeLayout::Halves, &inv_freq, 1.5, Kind::Double);
    let (x, d_y) = (random(&[4, 2, 6], 1), random(&[4, 2, 6], 2));
    assert_close("y", &rope::forward(&x, &table), &plain_rope(&x, &angles), AUTOGRAD);
    check(|x| plain_rope(&x[0], &angles), &[&x], &d_y, &[&rope::backward(&d_y, &table)]);
    let (tile, tail) = (table.narrow(1, 2), x.narrow(0, 1, 2));
    assert_close(
        "tile",
        &rope::forward(&tail, &tile),
        &plain_rope(&x, &angles).narrow(0, 1, 2),
        AUTOGRAD,
    );
}

#[test]
fn swiglu_of_a_tile() {
    let plain = |x: &[Tensor]| &x[0] * x[0].sigmoid() * &x[1];
    let (gate, up, d_y) = (random(&[4, 5], 1) * 4.0, random(&[4, 5], 2), random(&[4, 5], 3));
    assert_close("y", &swiglu::forward(&gate, &up), &plain(&[gate.copy(), up.copy()]), AUTOGRAD);
    let (d_gate, d_up) = swiglu::backward(&d_y, &gate, &up);
    check(plain, &[&gate, &up], &d_y, &[&d_gate, &d_up]);
}

/// Of both some are clamped, and none is so near to the limit that a difference crosses it.
#[test]
fn clamped_swiglu_of_a_tile() {
    let clamp = clamped_swiglu::Clamp { alpha: 1.7, limit: 0.8 };
    let plain = |x: &[Tensor]| {
        let (gate, up) = (x[0].clamp_max(clamp.limit), x[1].clamp(-clamp.limit, clamp.limit));
        (up + 1.0) * &gate * (&gate * clamp.alpha).sigmoid()
    };
    let (gate, up, d_y) = (random(&[4, 5], 1) * 2.0, random(&[4, 5], 2) * 2.0, random(&[4, 5], 3));
    let y = clamped_swiglu::forward(&gate, &up, clamp);
    assert_close("y", &y, &plain(&[gate.copy(), up.copy()]), AUTOGRAD);
    let (d_gate, d_up) = clamped_swiglu::backward(&d_y, &gate, &up, clamp);
    check(plain, &[&gate, &up], &d_y, &[&d_gate, &d_up]);
}

#[test]
fn linear_with_and_without_bias() {
    let (x, weight, bias, d_y) =
        (random(&[5, 3], 1), random(&[4, 3], 2), random(&[4], 3), random(&[5, 4], 4));
    let plain = |x: &[Tensor]| x[0].matmul(&x[1].tr()) + &x[2];
    let with_bias = linear::forward(&x, &weight, Some(&bias));
    assert_close("y", &with_bias, &plain(&[x.copy(), weight.copy(), bias.copy()]), AUTOGRAD);
    assert_close("y", &(linear::forward(&x, &weight, None) + &bias), &with_bias, AUTOGRAD);
    let (mut d_weight, mut d_bias) = (Tensor::zeros([4, 3], F64), Tensor::zeros([4], F64));
    linear::backward_params(&d_y, &x, Some(&mut d_weight), Some(&mut d_bias));
    let d_x = linear::backward_input(&d_y, &weight);
    check(plain, &[&x, &weight, &bias], &d_y, &[&d_x, &d_weight, &d_bias]);
}

/// A low-rank adapter with and without a magnitude, whose norms count as constants.
#[test]
fn low_rank_adapters() {
    let (x, weight, d_y) = (random(&[5, 3], 1), random(&[4, 3], 2), random(&[5, 4], 3));
    let (a, b, magnitude) = (random(&[2, 3], 4), random(&[4, 2], 5), random(&[4], 6));
    let low_rank = LowRank { a: &a, b: &b, scale: 0.7 };
    let norms = low_rank.row_norms(&weight);
    let whole = &weight + b.matmul(&a) * 0.7;
    let of_rows = (&whole * &whole).sum_dim_intlist(1_i64, false, Kind::Double).sqrt();
    assert_close("norms", &norms, &of_rows, AUTOGRAD);

    let plain = |x: &[Tensor]| x[0].matmul(&(&weight + x[2].matmul(&x[1]) * 0.7).tr());
    let forward = || {
        let mut z = linear::forward(&x, &weight, None);
        low_rank.add_forward(&mut z, &x);
        z
    };
    let inputs = [&x, &a, &b].map(Tensor::copy);
    assert_close("z", &forward(), &plain(&inputs), AUTOGRAD);
    let backward = |d_z: &Tensor| {
        let (mut d_a, mut d_b) = (Tensor::ones([2, 3], F64), Tensor::ones([4, 2], F64));
        let mut d_x = linear::backward_input(d_z, &weight);
        low_rank.add_backward(&mut d_x, d_z, &x, Some(&mut d_a), Some(&mut d_b));
        [d_x, d_a - 1.0, d_b - 1.0]
    };
    let [d_x, d_a, d_b] = backward(&d_y);
    check(plain, &[&x, &a, &b], &d_y, &[&d_x, &d_a, &d_b]);

    let dora = |x: &[Tensor]| plain(x) * &x[3] / &norms;
    let of = Magnitude { magnitude: magnitude.shallow_clone(), norms: norms.shallow_clone() };
    let mut y = forward();
    of.forward_(&mut y);
    let [x_, a_, b_] = inputs;
    assert_close("y", &y, &dora(&[x_, a_, b_, magnitude.copy()]), AUTOGRAD);
    let mut d_magnitude = Tensor::zeros([4], F64);
    let d_z = of.backward(&d_y, &forward(), Some(&mut d_magnitude));
    let [d_x, d_a, d_b] = backward(&d_z);
    check(dora, &[&x, &a, &b, &magnitude], &d_y, &[&d_x, &d_a, &d_b, &d_magnitude]);
}

/// What single-precision accumulation is for: a sum of many bf16 products loses digits when each partial sum is bf16.
#[test]
fn weight_gradients_of_tiles_add_up_in_single_precision() {
    let (x, d_y) = (
        random(&[4096, 8], 1).to_kind(Kind::BFloat16),
        random(&[4096, 8], 2).to_kind(Kind::BFloat16),
    );
    let expected = d_y.to_kind(Kind::Double).tr().matmul(&x.to_kind(Kind::Double));
    let mut d_weight = Tensor::zeros([8, 8], (Kind::Float, Device::Cpu));
    let mut d_weight_bf16 = Tensor::zeros([8, 8], (Kind::BFloat16, Device::Cpu));
    for start in (0..4096).step_by(16) {
        let (x, d_y) = (x.narrow(0, start, 16), d_y.narrow(0, start, 16));
        linear::backward_params(&d_y, &x, Some(&mut d_weight), None);
        linear::backward_params(&d_y, &x, Some(&mut d_weight_bf16), None);
    }
    let error =
        |sum: &Tensor| (sum.to_kind(Kind::Double) - &expected).abs().max().double_value(&[]);
    assert!(
        error(&d_weight) * 4.0 < error(&d_weight_bf16),
        "{} and {}",
        error(&d_weight),
        error(&d_weight_bf16)
    );
}

/// A norm of each kind, written out.
fn plain_norm(
    kind: NormKind,
    x: &Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
) -> Tensor {
    let is_centred = matches!(kind, NormKind::Layer | NormKind::LayerOnePlus);
    let x = if is_centred { x - x.mean_dim(-1_i64, true, None::<Kind>) } else { x.shallow_clone() };
    let mean_square = x.square().mean_dim(-1_i64, true, None::<Kind>);
    let z = x / (mean_square + 1e-5).sqrt();
    let is_one_more = matches!(kind, NormKind::RmsOnePlus | NormKind::LayerOnePlus);
    let y = match weight {
        Some(weight) if is_one_more => z * (weight + 1.0),
        Some(weight) => z * weight,
        None => z,
    };
    match bias {
        Some(bias) => y + bias,
        None => y,
    }
}

#[test]
fn norms_of_every_kind_with_and_without_weights() {
    let kinds = [
        NormKind::Rms,
        NormKind::RmsRoundedOnce,
        NormKind::RmsOnePlus,
        NormKind::Layer,
        NormKind::LayerOnePlus,
    ];
    // A weight for all rows, and one for each head.
    for weight_size in [&[6][..], &[2, 6]] {
        let (x, d_y) = (random(&[5, 2, 6], 1), random(&[5, 2, 6], 2));
        let (weight, bias) = (random(weight_size, 3), random(weight_size, 4));
        for kind in kinds {
            let norm = Norm { kind, eps: 1e-5, weight: Some(&weight), bias: Some(&bias) };
            let mut grads = [&weight, &bias].map(Tensor::zeros_like);
            if kind == NormKind::Rms {
                // Llama's norm has no bias.
                let norm = Norm { bias: None, ..norm };
                let plain = |x: &[Tensor]| plain_norm(kind, &x[0], Some(&x[1]), None);
                assert_close("y", &norm.forward(&x), &plain(&[x.copy(), weight.copy()]), AUTOGRAD);
                let d_x = norm.backward(&d_y, &x, Some(&mut grads[0]), None);
                check(plain, &[&x, &weight], &d_y, &[&d_x, &grads[0]]);
                continue;
            }
            let plain = |x: &[Tensor]| plain_norm(kind, &x[0], Some(&x[1]), Some(&x[2]));
            let inputs = [x.copy(), weight.copy(), bias.copy()];
            assert_close("y", &norm.forward(&x), &plain(&inputs), AUTOGRAD);
            let [d_weight, d_bias] = &mut grads;
            let d_x = norm.backward(&d_y, &x, Some(d_weight), Some(d_bias));
            check(plain, &[&x, &weight, &bias], &d_y, &[&d_x, d_weight, d_bias]);
        }
    }
    let (x, d_y) = (random(&[5, 2, 6], 1), random(&[5, 2, 6], 2));
    for kind in [NormKind::RmsRoundedOnce, NormKind::Layer] {
        let norm = Norm { kind, eps: 1e-5, weight: None, bias: None };
        let plain = |x: &[Tensor]| plain_norm(kind, &x[0], None, None);
        assert_close("y", &norm.forward(&x), &plain(&[x.copy()]), AUTOGRAD);
        check(plain, &[&x], &d_y, &[&norm.backward(&d_y, &x, None, None)]);
    }
}

#[test]
fn activations_of_one_argument() {
    let (x, d_y) = (random(&[5, 7], 1) * 3.0, random(&[5, 7], 2));
    let tanh = |x: &Tensor| {
        let inner = (x + x.pow_tensor_scalar(3) * 0.044_715) * (2.0 / std::f64::consts::PI).sqrt();
        x * 0.5 * (inner.tanh() + 1.0)
    };
    let plain = |function: Elementwise, x: &Tensor| match function {
        Elementwise::Silu => x * x.sigmoid(),
        Elementwise::Gelu => x * 0.5 * ((x / 2.0_f64.sqrt()).erf() + 1.0),
        Elementwise::GeluTanh => tanh(x),
        Elementwise::Relu2 => x.relu() * x.relu(),
    };
    let functions =
        [Elementwise::Silu, Elementwise::Gelu, Elementwise::GeluTanh, Elementwise::Relu2];
    for function in functions {
        assert_close("y", &activation::forward(function, &x), &plain(function, &x), AUTOGRAD);
        let d_x = activation::backward(function, &d_y, &x);
        check(|x| plain(function, &x[0]), &[&x], &d_y, &[&d_x]);
    }
}

#[test]
fn xielu_and_its_alphas() {
    let (x, d_y) = (random(&[5, 7], 1) * 3.0, random(&[5, 7], 2));
    let [alpha_p, alpha_n] = [0.3, -0.4].map(|alpha| Tensor::from_slice(&[alpha]));
    let [beta, eps] = [0.5, -1e-6].map(Tensor::from);
    let plain = |x: &[Tensor]| {
        let [x, alpha_p, alpha_n] = x else { unreachable!("three inputs") };
        let below = (x.clamp_max(-1e-6).expm1() - x) * (alpha_n.softplus() + 0.5);
        let above = x * x * alpha_p.softplus();
        above.where_self(&x.gt(0.0), &below) + x * 0.5
    };
    let xielu = Xielu { alpha_p: &alpha_p, alpha_n: &alpha_n, beta: &beta, eps: &eps };
    let inputs = [x.copy(), alpha_p.copy(), alpha_n.copy()];
    assert_close("y", &xielu::forward(&x, &xielu), &plain(&inputs), AUTOGRAD);
    let [mut d_alpha_p, mut d_alpha_n] = [&alpha_p, &alpha_n].map(Tensor::zeros_like);
    let d_x = xielu::backward(&d_y, &x, &xielu, Some(&mut d_alpha_p), Some(&mut d_alpha_n));
    check(plain, &[&x, &alpha_p, &alpha_n], &d_y, &[&d_x, &d_alpha_p, &d_alpha_n]);
}

#[test]
fn a_softcap_and_its_slope() {
    let (x, d_y) = (random(&[5, 7], 1) * 3.0, random(&[5, 7], 2));
    let plain = |x: &[Tensor]| (&x[0] / 2.0).tanh() * 2.0;
    let y = softcap::forward_(x.copy(), 2.0);
    assert_close("y", &y, &plain(&[x.copy()]), AUTOGRAD);
    check(plain, &[&x], &d_y, &[&softcap::backward_(d_y.copy(), y, 2.0)]);
}

/// Part of a head turns, in halves or in pairs of neighbours, which come back as halves.
#[test]
fn rope_of_a_part_of_a_head_and_of_neighbours() {
    let inv_freq = [1.0_f32, 0.25];
    let position_ids = Tensor::from_slice(&[0_i64, 7, 3, 100]);
    let angles = position_ids
        .to_kind(Kind::Double)
        .outer(&Tensor::from_slice(&inv_freq).to_kind(Kind::Double))
        .unsqueeze(1);
    let (x, d_y) = (random(&[4, 2, 6], 1), random(&[4, 2, 6], 2));
    for layout in [RopeLayout::Halves, RopeLayout::Pairs] {
        let table = RopeTable::new(&position_ids, layout, &inv_freq, 1.0, Kind::Double);
        let plain = |x: &[Tensor]| {
            let turned = x[0].narrow(2, 0, 4);
            let (a, b) = match layout {
                RopeLayout::Halves => (turned.narrow(2, 0, 2), turned.narrow(2, 2, 2)),
                RopeLayout::Pairs => {
                    let pairs = turned.unflatten(2, [2, 2]);
                    (pairs.select(3, 0), pairs.select(3, 1))
                }
            };
            let (cos, sin) = (angles.cos(), angles.sin());
            let rest = x[0].narrow(2, 4, 2);
            Tensor::cat(&[&a * &cos - &b * &sin, &b * &cos + &a * &sin, rest], 2)
        };
        assert_close("y", &rope::forward(&x, &table), &plain(&[x.copy()]), AUTOGRAD);
        check(plain, &[&x], &d_y, &[&rope::backward(&d_y, &table)]);
    }
}
