//! Python's `random.Random`.

use std::collections::HashSet;

use super::mt19937::Mt19937;

/// `random.Random(seed)` for a non-negative integer seed.
pub struct PythonRandom {
    rng: Mt19937,
}

impl PythonRandom {
    /// The generator in the state that `random.Random(seed)` starts in.
    pub fn new(seed: u64) -> Self {
        // The key is the seed in 32-bit words, least significant first, without leading zero words.
        let (low, high) = (seed as u32, (seed >> 32) as u32);
        let key = [low, high];
        Self { rng: Mt19937::from_key(if high == 0 { &key[..1] } else { &key }) }
    }

    /// `random()`: uniform in `[0, 1)` with 53 bits.
    pub fn random(&mut self) -> f64 {
        let high = f64::from(self.rng.next_u32() >> 5);
        let low = f64::from(self.rng.next_u32() >> 6);
        (high * 67_108_864.0 + low) / 9_007_199_254_740_992.0
    }

    /// `sample(range(population), count)`: `count` different numbers, in random order.
    ///
    /// # Panics
    ///
    /// If `count` is larger than `population`.
    pub fn sample(&mut self, population: usize, count: usize) -> Vec<usize> {
        assert!(
            count <= population,
            "a sample of {count} does not fit in a population of {population}"
        );
        // CPython keeps a pool when that is smaller than the set it would need to reject repeats; the two ways draw differently.
        let mut set_size = 21.0;
        if count > 5 {
            set_size += 4_f64.powf(((count as f64 * 3.0).ln() / 4_f64.ln()).ceil());
        }
        if population as f64 <= set_size {
            let mut pool: Vec<usize> = (0..population).collect();
            (0..count)
                .map(|i| {
                    let j = self.below(population - i);
                    let chosen = pool[j];
                    pool[j] = pool[population - i - 1];
                    chosen
                })
                .collect()
        } else {
            let mut seen = HashSet::with_capacity(count);
            (0..count)
                .map(|_| {
                    loop {
                        let j = self.below(population);
                        if seen.insert(j) {
                            return j;
                        }
                    }
                })
                .collect()
        }
    }

    /// `_randbelow(bound)` for `bound > 0`: bits of the right width, drawn again until below the bound.
    fn below(&mut self, bound: usize) -> usize {
        let width = usize::BITS - bound.leading_zeros();
        loop {
            let draw = self.bits(width);
            if draw < bound {
                return draw;
            }
        }
    }

    /// `getrandbits(width)` for `0 < width <= 64`: least significant word first, the last one cut from the top.
    fn bits(&mut self, width: u32) -> usize {
        if width <= 32 {
            return (self.rng.next_u32() >> (32 - width)) as usize;
        }
        let low = self.rng.next_u32() as usize;
        let high = (self.rng.next_u32() >> (64 - width)) as usize;
        low | (high << 32)
    }
}
