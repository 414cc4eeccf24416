//! Rotary position embeddings: inverse frequencies and the attention factor, as transformers' `modeling_rope_utils` computes them.
//!
//! Transformers computes in single precision, so each step here rounds to `f32` where it does; powers and logarithms are taken in
//! double precision first, which differs from torch's own single-precision functions by at most the last digit.

use std::f64::consts::TAU;

/// A rotary embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Which values of a head make a pair that turns together.
    pub layout: RopeLayout,
    /// How many values of a head turn, its first; even. Those behind them stay as they are.
    pub dim: usize,
    /// The base of the geometric series of wavelengths (`rope_theta`).
    pub theta: f64,
    /// How the series is stretched beyond the pretraining length.
    pub scaling: RopeScaling,
    /// Whether it turns in single precision, and rounds once.
    pub rounds_once: bool,
    /// What turned queries are multiplied by.
    pub query_scale: Option<QueryScale>,
}

/// A factor of queries that grows with their position: `1 + beta * ln(1 + floor(position / original_max_position_embeddings))`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QueryScale {
    /// `llama_4_scaling_beta`.
    pub beta: f64,
    /// Length of pretraining in tokens.
    pub original_max_position_embeddings: usize,
}

impl QueryScale {
    /// The factors of tokens at these positions.
    pub fn of(&self, position_ids: &[i64]) -> Vec<f32> {
        let of_position = |position: &i64| {
            let periods = (*position as f32 / self.original_max_position_embeddings as f32).floor();
            1.0 + self.beta as f32 * (1.0 + periods).ln()
        };
        position_ids.iter().map(of_position).collect()
    }
}

/// Which of `dim` values make a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeLayout {
    /// `i` and `i + dim / 2`.
    Halves,
    /// `2i` and `2i + 1`.
    Pairs,
}

/// The `rope_type` of a config with its parameters, defaults filled in.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// No scaling.
    Default,
    /// Every frequency divided by `factor`.
    Linear {
        /// How many times longer the context is.
        factor: f64,
    },
    /// The base grows with the sequence once it is longer than `max_position_embeddings` (dynamic NTK).
    Dynamic {
        /// How many times longer the context is.
        factor: f64,
        /// Length in tokens up to which nothing is scaled.
        max_position_embeddings: usize,
    },
    /// Interpolates low frequencies, keeps high ones, blends between (Peng et al. 2023, <https://arxiv.org/abs/2309.00071>).
    Yarn {
        /// How many times longer the context is.
        factor: f64,
        /// Length of pretraining in tokens.
        original_max_position_embeddings: usize,
        /// Multiplies cos and sin; given, or inferred from `factor`, `mscale` and `mscale_all_dim`.
        attention_factor: f64,
        /// Rotations over the pretraining length above which a frequency is kept.
        beta_fast: f64,
        /// Rotations over the pretraining length below which a frequency is interpolated.
        beta_slow: f64,
        /// Whether the bounds of the blend are rounded outwards to whole dimensions.
        truncate: bool,
    },
    /// Llama 3.1: divides low frequencies by `factor`, keeps high ones, blends between.
    Llama3 {
        /// How many times longer the context is.
        factor: f64,
        /// Wavelengths longer than the pretraining length over this are divided.
        low_freq_factor: f64,
        /// Wavelengths shorter than the pretraining length over this are kept.
        high_freq_factor: f64,
        /// Length of pretraining in tokens.
        original_max_position_embeddings: usize,
    },
    /// The first pairs turn, by frequencies as if all did; the others do not.
    Proportional {
        /// How many pairs turn.
        num_pairs: usize,
        /// Every frequency is divided by it.
        factor: f64,
    },
    /// A divisor for each frequency, from one list up to the pretraining length and from another beyond it (Ding et al. 2024,
    /// <https://arxiv.org/abs/2402.13753>).
    LongRope {
        /// For micro-batches whose longest document is within the pretraining length, `dim / 2` divisors.
        short_factor: Vec<f64>,
        /// For the others.
        long_factor: Vec<f64>,
        /// Length of pretraining in tokens.
        original_max_position_embeddings: usize,
        /// Multiplies cos and sin.
        attention_factor: f64,
    },
}

impl Rope {
    /// The inverse frequencies of the `dim / 2` rotated pairs, and the factor that multiplies cos and sin.
    ///
    /// `seq_len` is the largest position plus one, in tokens; only [`RopeScaling::Dynamic`] and [`RopeScaling::LongRope`] look at it.
    pub fn inverse_frequencies(&self, seq_len: usize) -> (Vec<f32>, f64) {
        let head_dim = self.dim;
        match self.scaling {
            RopeScaling::Default => (inverse(&powers(self.theta, head_dim)), 1.0),
            RopeScaling::Linear { factor } => {
                let inv_freq = inverse(&powers(self.theta, head_dim));
                (inv_freq.into_iter().map(|x| x / factor as f32).collect(), 1.0)
            }
            RopeScaling::Dynamic { factor, max_position_embeddings } => {
                let stretch =
                    seq_len.max(max_position_embeddings) as f64 / max_position_embeddings as f64;
                let dim = head_dim as f64;
                let theta =
                    self.theta * (factor * stretch - (factor - 1.0)).powf(dim / (dim - 2.0));
                (inverse(&powers(theta, head_dim)), 1.0)
            }
            RopeScaling::Yarn {
                factor,
                original_max_position_embeddings,
                attention_factor,
                beta_fast,
                beta_slow,
                truncate,
            } => {
                let bounds = yarn_bounds(
                    self.theta,
                    head_dim,
                    original_max_position_embeddings,
                    (beta_fast, beta_slow),
                    truncate,
                );
                (yarn(&powers(self.theta, head_dim), factor, bounds), attention_factor)
            }
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => {
                let inv_freq = inverse(&powers(self.theta, head_dim));
                let original_len = original_max_position_embeddings as f64;
                (llama3(inv_freq, factor, low_freq_factor, high_freq_factor, original_len), 1.0)
            }
            RopeScaling::Proportional { num_pairs, factor } => {
                let mut inv_freq = inverse(&powers(self.theta, head_dim));
                for x in &mut inv_freq {
                    *x /= factor as f32;
                }
                inv_freq[num_pairs..].fill(0.0);
                (inv_freq, 1.0)
            }
            RopeScaling::LongRope {
                ref short_factor,
                ref long_factor,
                original_max_position_embeddings,
                attention_factor,
            } => {
                let is_long = seq_len > original_max_position_embeddings;
                let factors = if is_long { long_factor } else { short_factor };
                let powers = powers(self.theta, head_dim);
                let inv_freq =
                    powers.iter().zip(factors).map(|(x, factor)| 1.0 / (*factor as f32 * x));
                (inv_freq.collect(), attention_factor)
            }
        }
    }
}

/// `theta ^ (2i / head_dim)`.
fn powers(theta: f64, head_dim: usize) -> Vec<f32> {
    (0..head_dim)
        .step_by(2)
        .map(|i| {
            let exponent = i as f32 / head_dim as f32;
            (f64::from(theta as f32)).powf(f64::from(exponent)) as f32
        })
        .collect()
}

fn inverse(powers: &[f32]) -> Vec<f32> {
    powers.iter().map(|x| 1.0 / x).collect()
}

/// The dimensions between which yarn blends, as `find_correction_range`.
fn yarn_bounds(
    theta: f64,
    head_dim: usize,
    original_len: usize,
    (beta_fast, beta_slow): (f64, f64),
    truncate: bool,
) -> (f64, f64) {
    let dim_of = |rotations: f64| {
        (head_dim as f64 * (original_len as f64 / (rotations * TAU)).ln()) / (2.0 * theta.ln())
    };
    let (mut low, mut high) = (dim_of(beta_fast), dim_of(beta_slow));
    if truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    (low.max(0.0), high.min(head_dim as f64 - 1.0))
}

fn yarn(powers: &[f32], factor: f64, (low, mut high): (f64, f64)) -> Vec<f32> {
    #[expect(clippy::float_cmp, reason = "the singularity is exact equality, as in transformers")]
    if low == high {
        high += 0.001;
    }
    powers
        .iter()
        .enumerate()
        .map(|(i, power)| {
            let ramp = ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
            let extrapolation = 1.0 - ramp;
            let interpolated = 1.0 / (factor as f32 * power);
            interpolated * (1.0 - extrapolation) + (1.0 / power) * extrapolation
        })
        .collect()
}

fn llama3(
    inv_freq: Vec<f32>,
    factor: f64,
    low_freq_factor: f64,
    high_freq_factor: f64,
    original_len: f64,
) -> Vec<f32> {
    let low_freq_wavelen = (original_len / low_freq_factor) as f32;
    let high_freq_wavelen = (original_len / high_freq_factor) as f32;
    let (factor, original_len) = (factor as f32, original_len as f32);
    let width = (high_freq_factor - low_freq_factor) as f32;
    inv_freq
        .into_iter()
        .map(|inv_freq| {
            let wavelen = TAU as f32 / inv_freq;
            if wavelen < high_freq_wavelen {
                inv_freq
            } else if wavelen > low_freq_wavelen {
                inv_freq / factor
            } else {
                let smooth = (original_len / wavelen - low_freq_factor as f32) / width;
                (1.0 - smooth) * inv_freq / factor + smooth * inv_freq
            }
        })
        .collect()
}
