//! The CUDA kernels of `sterna-torch-sys`, run on the host, against the operations of libtorch that define them.
//!
//! `sterna-ops` takes the kernels where tensors are on the GPU and the definitions where they are on the CPU.

use sterna_arch::RopeLayout;
use sterna_ops::{
    cross_entropy::{self, IGNORE_INDEX},
    rms_norm,
    rope::{self, RopeTable},
    swiglu,
};
use sterna_testkit::assert_close;
use sterna_torch_sys::{kernels, random, round_stochastically};
use tch::{Device, Kind, Tensor};

use crate::{GPU, alone};

const KINDS: [Kind; 2] = [Kind::BFloat16, Kind::Float];

/// A unit in the last place of bf16's 8 digits, or a few of fp32's: exponentials and sums differ that much among libraries.
fn tolerance(kind: Kind) -> f64 {
    if kind == Kind::BFloat16 { 1.0 / 128.0 } else { 2e-5 }
}

fn random(size: &[i64], kind: Kind, seed: i64) -> Tensor {
    tch::manual_seed(seed);
    Tensor::randn(size, (Kind::Float, Device::Cpu)).to_kind(kind)
}

fn gpu(x: &Tensor) -> Tensor {
    x.to_device(GPU)
}

/// A third of the rows have no label; the first and the last of the vocabulary are labels.
fn labels(len: i64, vocab_size: i64) -> Tensor {
    let label = |row| if row % 3 == 1 { IGNORE_INDEX } else { row * 7919 % vocab_size };
    let mut labels: Vec<i64> = (0..len).map(label).collect();
    labels[0] = vocab_size - 1;
    Tensor::from_slice(&labels)
}

/// `(rows, vocabulary, columns before and after it)`: with a column more, rows lie apart and at odd addresses.
const TILES: [(i64, i64, i64); 6] =
    [(1, 1, 0), (1, 49_152, 0), (5, 128_256, 0), (7, 1000, 1), (70, 37, 0), (3, 513, 3)];

#[test]
fn cross_entropy_is_that_of_its_definition() {
    let _alone = alone();
    for kind in KINDS {
        for (len, vocab_size, more) in TILES {
            let name = format!("{kind:?} [{len}, {vocab_size}]");
            let whole = random(&[len, vocab_size + 2 * more], kind, len) * 4.0;
            let (on_gpu, labels) = (gpu(&whole), labels(len, vocab_size));
            let logits = whole.narrow(1, more, vocab_size);
            let gpu_logits = on_gpu.narrow(1, more, vocab_size);
            // The definition in double precision: the kernel rounds once.
            let exact = logits.to_kind(Kind::Double);
            let weights = random(&[len], Kind::Double, len + 1);
            let expected = cross_entropy::forward_backward(&exact, &labels, &weights);
            let losses = cross_entropy::forward(&gpu_logits, &gpu(&labels));
            assert_close(&name, &losses.of_rows, &expected.of_rows, 1e-5, 1e-6);
            assert_close(&name, &losses.sum, &expected.sum, 1e-5, 1e-6);
            let untouched = on_gpu.to_device(Device::Cpu);
            assert!(untouched.equal(&whole), "{name}: forward changes its logits");
            let (gpu_labels, weights) = (gpu(&labels), gpu(&weights));
            let losses = cross_entropy::forward_backward(&gpu_logits, &gpu_labels, &weights);
            assert_close(&name, &losses.of_rows, &expected.of_rows, 1e-5, 1e-6);
            let (rtol, atol) = (tolerance(kind) / 2.0, 1e-8);
            assert_close(&name, &gpu_logits, &exact, rtol, atol);
            for (start, len) in [(0, more), (more + vocab_size, more)] {
                let margin = on_gpu.narrow(1, start, len).to_device(Device::Cpu);
                assert!(margin.equal(&whole.narrow(1, start, len)), "{name}: a margin has changed");
            }
        }
    }
}

#[test]
fn cross_entropy_of_infinite_logits_is_that_of_its_definition() {
    let _alone = alone();
    let logits = random(&[4, 600], Kind::Float, 1);
    // Masked logits, the first of all among them; a row that a thread has seen nothing else of; a NaN.
    let _ = logits.get(0).narrow(0, 0, 300).fill_(f64::NEG_INFINITY);
    let _ = logits.get(1).narrow(0, 0, 599).fill_(f64::NEG_INFINITY);
    let _ = logits.get(2).narrow(0, 7, 1).fill_(f64::NAN);
    let labels = Tensor::from_slice(&[599_i64, 599, 599, 599]);
    let gpu_logits = gpu(&logits);
    let losses = kernels::cross_entropy_forward(&gpu_logits, &gpu(&labels)).unwrap();
    let log_p = logits.to_kind(Kind::Double).log_softmax(-1, Kind::Double);
    assert_close("losses", &losses, &-log_p.select(1, 599), 1e-5, 1e-6);
    let weights = labels.ones_like().to_kind(Kind::Double);
    let _ = cross_entropy::forward_backward(&gpu_logits, &gpu(&labels), &gpu(&weights));
    let _ = cross_entropy::forward_backward(&logits, &labels, &weights);
    assert_close("d_logits", &gpu_logits, &logits, 1e-5, 1e-8);
}

#[test]
fn a_label_outside_of_the_vocabulary_fails_the_launch() {
    let _alone = alone();
    let logits = gpu(&random(&[2, 10], Kind::Float, 1));
    for label in [10_i64, -1] {
        let labels = gpu(&Tensor::from_slice(&[0, label]));
        let error = kernels::cross_entropy_forward(&logits, &labels).unwrap_err();
        assert!(error.to_string().contains("LAUNCH_FAILED"), "{error}");
    }
}

#[test]
fn rope_is_that_of_its_definition_bit_for_bit() {
    let _alone = alone();
    for kind in KINDS {
        for (s, n, h) in [(1, 1, 2), (5, 3, 64), (33, 4, 128), (2, 9, 80)] {
            let positions = Tensor::arange(s + 3, (Kind::Int64, Device::Cpu)) * 1013;
            let inv_freq: Vec<f32> =
                (0..h / 2).map(|i| 10_000_f32.powf(-2.0 * i as f32 / h as f32)).collect();
            let table = |device| {
                RopeTable::new(
                    &positions.to_device(device),
                    RopeLayout::Halves,
                    &inv_freq,
                    1.0,
                    kind,
                )
                .narrow(3, s)
            };
            // As sliced from one product of q, k and v; and with heads before tokens.
            let strided = random(&[s, n + 2, h], kind, s).narrow(1, 1, n);
            let transposed = random(&[n, s, h], kind, n).transpose(0, 1);
            for x in [strided, transposed] {
                let (on_gpu, on_cpu) = (gpu(&x), x.shallow_clone());
                let on_gpu = if x.is_contiguous() { on_gpu } else { strided_like(&x) };
                for turn in [rope::forward, rope::backward] {
                    let y = turn(&on_gpu, &table(GPU)).to_device(Device::Cpu);
                    let expected = turn(&on_cpu, &table(Device::Cpu));
                    assert!(y.equal(&expected), "{kind:?} [{s}, {n}, {h}]");
                }
            }
        }
    }
}

/// A copy on the GPU with the strides of `x`, which libtorch's own copies need not keep.
fn strided_like(x: &Tensor) -> Tensor {
    let mut copy = Tensor::empty_strided(x.size(), x.stride(), (x.kind(), GPU));
    copy.copy_(x);
    copy
}

#[test]
fn swiglu_is_that_of_its_definition() {
    let _alone = alone();
    for kind in KINDS {
        // A pack and a rest; less than a pack; more than the threads of the device.
        for len in [1, 7, 8, 1031, 40_000] {
            // From the second element on nothing is aligned to 16 bytes.
            for skip in [0, 1] {
                let name = format!("{kind:?} {len} from {skip}");
                let input = |seed| random(&[len + skip], kind, seed) * 3.0;
                let of = |x: &Tensor| x.narrow(0, skip, len).unsqueeze(0);
                let (gate, up, d_y) = (input(1), input(2), input(3));
                let (rtol, atol) = (tolerance(kind), 1e-6);
                let y = swiglu::forward(&of(&gpu(&gate)), &of(&gpu(&up)));
                assert_close(&name, &y, &swiglu::forward(&of(&gate), &of(&up)), rtol, atol);
                let (d_gate, d_up) =
                    swiglu::backward(&of(&gpu(&d_y)), &of(&gpu(&gate)), &of(&gpu(&up)));
                let expected = swiglu::backward(&of(&d_y), &of(&gate), &of(&up));
                assert_close(&name, &d_gate, &expected.0, rtol, atol);
                assert_close(&name, &d_up, &expected.1, rtol, atol);
            }
        }
    }
}

#[test]
fn rms_norm_is_that_of_its_definition() {
    let _alone = alone();
    for kind in KINDS {
        // Packs of 16 bytes, one a thread and several; values one by one; rows longer than a block keeps.
        for (s, d) in
            [(1, 1), (1, 4096), (37, 576), (20, 257), (9, 33), (3, 8000), (2, 32_768), (5, 16_380)]
        {
            let name = format!("{kind:?} [{s}, {d}]");
            let (x, d_y) = (random(&[s, d], kind, s), random(&[s, d], kind, d));
            let weight = random(&[d], kind, 3);
            let rtol = tolerance(kind);
            let y = rms_norm::forward(&gpu(&x), &gpu(&weight), 1e-5);
            assert_close(&name, &y, &rms_norm::forward(&x, &weight, 1e-5), rtol, 1e-6);
            let mut d_weight = Tensor::ones([d], (Kind::Float, Device::Cpu));
            let mut gpu_d_weight = gpu(&d_weight);
            let d_x = rms_norm::backward(
                &gpu(&d_y),
                &gpu(&x),
                &gpu(&weight),
                1e-5,
                Some(&mut gpu_d_weight),
            );
            let expected = rms_norm::backward(&d_y, &x, &weight, 1e-5, Some(&mut d_weight));
            // Differences of numbers near 1 may come out near 0.
            assert_close(&name, &d_x, &expected, rtol, 2e-6);
            assert_close(&name, &gpu_d_weight, &d_weight, 2e-5, 2e-5);
            let frozen = rms_norm::backward(&gpu(&d_y), &gpu(&x), &gpu(&weight), 1e-5, None);
            assert!(frozen.to_device(Device::Cpu).equal(&d_x.to_device(Device::Cpu)), "{name}");
        }
    }
}

#[test]
fn stochastic_rounding_is_the_cpus_bit_for_bit() {
    let _alone = alone();
    let source = random(&[20_011], Kind::Float, 1);
    let special = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 0.0, -0.0, f32::MAX, 1e-40];
    source.narrow(0, 5, 7).copy_(&Tensor::from_slice(&special));
    let bf16 = |device| Tensor::zeros([20_011], (Kind::BFloat16, device));
    // The last run crosses the position at which 32 bits end.
    for (key, position) in [(0, 0), (0x1234_5678_9abc_def0, 77), (u64::MAX, (1 << 32) - 1000)] {
        let (mut expected, mut target) = (bf16(Device::Cpu), bf16(GPU));
        round_stochastically(&source, &mut expected, key, position).unwrap();
        round_stochastically(&gpu(&source), &mut target, key, position).unwrap();
        let bits = |x: &Tensor| x.to_device(Device::Cpu).view_dtype(Kind::Int16);
        assert!(bits(&target).equal(&bits(&expected)), "key {key:#x} from {position}");
    }
}

#[test]
fn normal_numbers_are_the_cpus_bit_for_bit() {
    let _alone = alone();
    for kind in KINDS {
        for (stream, first) in [(0, 0), (0x1234_5678_9abc_def0, 77), (u64::MAX, (1 << 33) - 1000)] {
            let draw = |device| {
                let mut x = Tensor::zeros([20_011], (kind, device));
                random::fill_normal(&mut x, stream, first, 0.02).unwrap();
                x.to_device(Device::Cpu)
            };
            assert!(
                draw(GPU).equal(&draw(Device::Cpu)),
                "{kind:?}, stream {stream:#x} from {first}"
            );
        }
    }
}

#[test]
fn operands_that_do_not_fit_are_refused() {
    let _alone = alone();
    let x = gpu(&random(&[4, 6], Kind::Float, 1));
    let labels = gpu(&labels(4, 6));
    let refused = |error: sterna_torch_sys::Error| error.to_string();
    let error = refused(kernels::cross_entropy_forward(&x.tr(), &labels).unwrap_err());
    assert!(error.starts_with("`logits` is [6, 4] Float, not contiguous on Cuda(0)"), "{error}");
    let error =
        refused(kernels::cross_entropy_forward(&x, &labels.to_device(Device::Cpu)).unwrap_err());
    assert!(error.starts_with("`labels` is [4] Int64 on Cpu"), "{error}");
    let error = refused(kernels::swiglu_forward(&x, &x.to_kind(Kind::BFloat16)).unwrap_err());
    assert!(error.starts_with("`up` is [4, 6] BFloat16"), "{error}");
    let error = refused(kernels::rms_norm_forward(&x, &x, 1e-5).unwrap_err());
    assert!(error.starts_with("`weight` is [4, 6]"), "{error}");
    assert!(!kernels::supports(&[&x.to_kind(Kind::Double)]), "double has no kernels");
}
