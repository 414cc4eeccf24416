//! The Mersenne Twister, as both Python and PyTorch seed and read it.

const STATE_LEN: usize = 624;
const MIDDLE: usize = 397;

/// MT19937 with 32-bit output.
pub(super) struct Mt19937 {
    state: [u32; STATE_LEN],
    next: usize,
}

impl Mt19937 {
    /// Seeding with one word: PyTorch's generator, and the base of [`Self::from_key`].
    pub(super) fn from_word(seed: u32) -> Self {
        let mut state = [seed; STATE_LEN];
        for i in 1..STATE_LEN {
            let previous = state[i - 1] ^ (state[i - 1] >> 30);
            state[i] = previous.wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        Self { state, next: STATE_LEN }
    }

    /// Seeding with a non-empty key: Python's `random.Random`.
    pub(super) fn from_key(key: &[u32]) -> Self {
        let mut rng = Self::from_word(19_650_218);
        let state = &mut rng.state;
        let mut i = 1;
        for k in 0..STATE_LEN.max(key.len()) {
            let j = k % key.len();
            let previous = state[i - 1] ^ (state[i - 1] >> 30);
            state[i] = (state[i] ^ previous.wrapping_mul(1_664_525))
                .wrapping_add(key[j])
                .wrapping_add(j as u32);
            i += 1;
            if i == STATE_LEN {
                state[0] = state[STATE_LEN - 1];
                i = 1;
            }
        }
        for _ in 1..STATE_LEN {
            let previous = state[i - 1] ^ (state[i - 1] >> 30);
            state[i] = (state[i] ^ previous.wrapping_mul(1_566_083_941)).wrapping_sub(i as u32);
            i += 1;
            if i == STATE_LEN {
                state[0] = state[STATE_LEN - 1];
                i = 1;
            }
        }
        state[0] = 0x8000_0000;
        rng
    }

    pub(super) fn next_u32(&mut self) -> u32 {
        if self.next == STATE_LEN {
            self.refill();
        }
        let mut word = self.state[self.next];
        self.next += 1;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9d2c_5680;
        word ^= (word << 15) & 0xefc6_0000;
        word ^ (word >> 18)
    }

    fn refill(&mut self) {
        for i in 0..STATE_LEN {
            let joined =
                (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % STATE_LEN] & 0x7fff_ffff);
            let twist = if joined & 1 == 0 { 0 } else { 0x9908_b0df };
            self.state[i] = self.state[(i + MIDDLE) % STATE_LEN] ^ (joined >> 1) ^ twist;
        }
        self.next = 0;
    }
}
