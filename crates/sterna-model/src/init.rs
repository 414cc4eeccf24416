//! Random weights, distributed as transformers' `_init_weights` draws them.
//!
//! Each element is a function of the seed, the tensor's name and the element's index, so that a rank draws just the elements it
//! owns and any number of ranks gets the same model.

use std::f64::consts::TAU;
use std::ops::Range;
use std::thread;

use sterna_hf::{ModelConfig, ParamSpec};
use tch::{Kind, Tensor};

/// Elements `range` of a flattened tensor in single precision, without drawing the rest.
///
/// Norm weights are ones, biases zeros, everything else is normal with standard deviation `initializer_range`; the embedding's row
/// of `pad_token_id` is zeros.
///
/// # Shapes
///
/// Returns `[range.len()]`.
///
/// # Panics
///
/// If the range reaches beyond the tensor.
pub fn random_slice(
    spec: &ParamSpec,
    config: &ModelConfig,
    seed: u64,
    range: &Range<usize>,
) -> Tensor {
    assert!(
        range.end <= spec.numel(),
        "elements {range:?} of `{}`, which has {}",
        spec.name,
        spec.numel()
    );
    let len = range.len() as i64;
    if spec.name.ends_with("norm.weight") {
        return Tensor::ones(len, (Kind::Float, tch::Device::Cpu));
    }
    if spec.name.rsplit('.').next() == Some("bias") {
        return Tensor::zeros(len, (Kind::Float, tch::Device::Cpu));
    }
    let stream = name_stream(seed, &spec.name);
    let mut values = vec![0.0; range.len()];
    for_each_share(&mut values, |first, share| {
        for (i, value) in share.iter_mut().enumerate() {
            let index = range.start + first + i;
            *value = (config.initializer_range * normal(stream, index as u64)) as f32;
        }
    });
    if let (true, Some(pad)) = (spec.name.ends_with("embed_tokens.weight"), config.pad_token_id) {
        let row = pad as usize * config.hidden_size..(pad as usize + 1) * config.hidden_size;
        let clip = |index: usize| index.clamp(range.start, range.end) - range.start;
        values[clip(row.start)..clip(row.end)].fill(0.0);
    }
    Tensor::from_slice(&values)
}

/// Gives each thread of libtorch's pool its share of `values`, with the index of the share's first: a model of 8 billion parameters
/// takes minutes on one.
fn for_each_share(values: &mut [f32], fill: impl Fn(usize, &mut [f32]) + Sync) {
    // Drawn in less time than a thread takes to start.
    const LEAST: usize = 1 << 14;
    let num_threads = tch::get_num_threads().max(1) as usize;
    let len = values.len().div_ceil(num_threads).max(LEAST);
    thread::scope(|scope| {
        for (i, share) in values.chunks_mut(len).enumerate() {
            let fill = &fill;
            scope.spawn(move || fill(i * len, share));
        }
    });
}

/// A standard normal number: Box-Muller on two uniforms that are hashes of the index.
fn normal(stream: u64, index: u64) -> f64 {
    // 53 random bits, at the middle of their interval so that the logarithm is finite.
    let uniform =
        |counter: u64| ((mix(stream ^ mix(counter)) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    let (a, b) = (uniform(2 * index), uniform(2 * index + 1));
    (-2.0 * a.ln()).sqrt() * (TAU * b).cos()
}

/// The stream of random numbers of one tensor.
fn name_stream(seed: u64, name: &str) -> u64 {
    name.bytes().fold(mix(seed), |stream, byte| mix(stream ^ u64::from(byte)))
}

/// The output function of `SplitMix64` (Steele, Lea and Flood 2014), a bijection that passes for random.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
