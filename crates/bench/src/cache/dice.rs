//! [`Dice`]: numbers by chance, from a seed; and keys of which some are asked for often.

/// SplitMix64.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Dice(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed(self.0)
    }

    /// Below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// The numbers of a row, spread.
pub fn mixed(n: u64) -> u64 {
    let z = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Keys by Zipf's law with exponent 0.99, as in YCSB; the first is the most frequent.
#[derive(Debug, Clone)]
pub struct Zipf(Vec<u32>);

impl Zipf {
    /// How finely shares are told apart.
    const SLOTS: usize = 1 << 14;

    pub fn new(keys: usize) -> Self {
        let weight = |key: usize| 1.0 / ((key + 1) as f64).powf(0.99);
        let all: f64 = (0..keys).map(weight).sum();
        let mut slots = Vec::with_capacity(Self::SLOTS + keys);
        for key in 0..keys {
            let share = (weight(key) / all * Self::SLOTS as f64).round().max(1.0);
            slots.extend(std::iter::repeat_n(key as u32, share as usize));
        }
        Zipf(slots)
    }

    pub fn key(&self, dice: &mut Dice) -> usize {
        self.0[dice.below(self.0.len() as u64) as usize] as usize
    }
}
