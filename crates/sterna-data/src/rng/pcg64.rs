//! NumPy's `default_rng`: `SeedSequence`, PCG64 (XSL-RR 128/64), `random_interval` and the Fisher-Yates shuffle.

const INIT_A: u32 = 0x43b0_d7e5;
const MULT_A: u32 = 0x931e_8875;
const INIT_B: u32 = 0x8b51_f9dd;
const MULT_B: u32 = 0x58f3_8ded;
const MIX_MULT_L: u32 = 0xca01_f9dd;
const MIX_MULT_R: u32 = 0x4973_f715;
const POOL_LEN: usize = 4;

const PCG_MULTIPLIER: u128 = 0x2360_ED05_1FC6_5DA4_4385_DF64_9FCC_F645;

/// `numpy.random.default_rng(seed).permutation(len)`, which is also the order of `datasets.Dataset.shuffle(seed)`.
///
/// # Panics
///
/// If `len` does not fit in 32 bits; NumPy draws differently from there on.
///
/// # Source
///
/// NumPy `_generator.pyx` (`permutation`, `_shuffle_raw`), `distributions.c` (`random_interval`), `pcg64.h`, `bit_generator.pyx`.
pub fn numpy_permutation(seed: u64, len: usize) -> Vec<usize> {
    let mut rng = Pcg64::from_seed(seed);
    let len = u32::try_from(len).expect("fewer than 2^32 samples");
    let mut order: Vec<usize> = (0..len as usize).collect();
    for i in (1..len).rev() {
        order.swap(i as usize, rng.interval(i) as usize);
    }
    order
}

struct Pcg64 {
    state: u128,
    increment: u128,
    /// The upper half of a 64-bit draw whose lower half was used for a 32-bit draw.
    spare: Option<u32>,
}

impl Pcg64 {
    fn from_seed(seed: u64) -> Self {
        let words = seed_sequence(seed);
        let initial = (u128::from(words[0]) << 64) | u128::from(words[1]);
        let stream = (u128::from(words[2]) << 64) | u128::from(words[3]);
        let mut rng = Self { state: 0, increment: (stream << 1) | 1, spare: None };
        rng.step();
        rng.state = rng.state.wrapping_add(initial);
        rng.step();
        rng
    }

    fn step(&mut self) {
        self.state = self.state.wrapping_mul(PCG_MULTIPLIER).wrapping_add(self.increment);
    }

    fn next_u64(&mut self) -> u64 {
        self.step();
        let folded = (self.state >> 64) as u64 ^ self.state as u64;
        folded.rotate_right((self.state >> 122) as u32)
    }

    fn next_u32(&mut self) -> u32 {
        if let Some(high) = self.spare.take() {
            return high;
        }
        let word = self.next_u64();
        self.spare = Some((word >> 32) as u32);
        word as u32
    }

    /// A uniform draw from `0..=max`: as many bits as `max` has, drawn again until they are not above it.
    fn interval(&mut self, max: u32) -> u32 {
        let mask = u32::MAX >> max.leading_zeros();
        loop {
            let draw = self.next_u32() & mask;
            if draw <= max {
                return draw;
            }
        }
    }
}

/// `SeedSequence(seed).generate_state(4, uint64)`.
fn seed_sequence(seed: u64) -> [u64; 4] {
    // The entropy is the seed in 32-bit words, least significant first; missing words count as zero.
    let entropy = [seed as u32, (seed >> 32) as u32, 0, 0];
    let mut hash_const = INIT_A;
    let mut hash_mix = |value: u32| {
        let mixed = value ^ hash_const;
        hash_const = hash_const.wrapping_mul(MULT_A);
        let mixed = mixed.wrapping_mul(hash_const);
        mixed ^ (mixed >> 16)
    };
    let mut pool = entropy.map(&mut hash_mix);
    for source in 0..POOL_LEN {
        for target in 0..POOL_LEN {
            if source != target {
                let hashed = hash_mix(pool[source]);
                let mixed = MIX_MULT_L
                    .wrapping_mul(pool[target])
                    .wrapping_sub(MIX_MULT_R.wrapping_mul(hashed));
                pool[target] = mixed ^ (mixed >> 16);
            }
        }
    }
    let mut hash_const = INIT_B;
    let mut words = [0_u32; 8];
    for (i, word) in words.iter_mut().enumerate() {
        let mixed = pool[i % POOL_LEN] ^ hash_const;
        hash_const = hash_const.wrapping_mul(MULT_B);
        let mixed = mixed.wrapping_mul(hash_const);
        *word = mixed ^ (mixed >> 16);
    }
    std::array::from_fn(|i| u64::from(words[2 * i]) | (u64::from(words[2 * i + 1]) << 32))
}
