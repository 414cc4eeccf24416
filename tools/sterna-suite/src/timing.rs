//! Times of work on a device.

use std::time::Instant;

use sterna_bench::figures::shortest_and_median;

use crate::context::Context;

/// Seconds of one repetition.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Times {
    /// Of the very first, with what is compiled and loaded for it.
    pub first: f64,
    /// The shortest.
    pub shortest: f64,
    /// The one in the middle.
    pub median: f64,
}

/// Repetitions that are timed, after one that counts as [`Times::first`] and one more to warm up.
const REPEATS: usize = 7;

/// A measurement takes at least so long, so that starting the work and reading the clock do not count.
const LEAST_SECONDS: f64 = 0.01;

/// Times `work`, which must not wait for the device itself.
///
/// The device is waited for before the clock is read. Work shorter than 10 ms is repeated in one measurement.
pub fn time(context: &Context, mut work: impl FnMut()) -> Times {
    let mut measure = |repeats: usize| {
        context.synchronize();
        let started = Instant::now();
        for _ in 0..repeats {
            work();
        }
        context.synchronize();
        started.elapsed().as_secs_f64() / repeats as f64
    };
    let first = measure(1);
    let warm = measure(1);
    let at_once = (LEAST_SECONDS / warm.max(1e-6)).ceil().clamp(1.0, 1000.0) as usize;
    let repeats = if context.is_tiny { 3 } else { REPEATS };
    let times: Vec<f64> = (0..repeats).map(|_| measure(at_once)).collect();
    let (shortest, median) = shortest_and_median(times).unwrap_or_default();
    Times { first, shortest, median }
}
