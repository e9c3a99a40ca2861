//! Random numbers: one stream from one seed, shared by whoever holds a clone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A source of random numbers (SplitMix64). Not for secrets. Clones share one stream.
#[derive(Debug, Clone)]
pub struct Random {
    state: Arc<AtomicU64>,
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

impl Random {
    /// The stream of this seed.
    pub fn from_seed(seed: u64) -> Self {
        Random {
            state: Arc::new(AtomicU64::new(seed)),
        }
    }

    /// A stream that nobody can repeat: the standard library's hasher keys are seeded by the
    /// operating system.
    pub fn from_os() -> Self {
        use std::hash::{BuildHasher, RandomState};
        Random::from_seed(RandomState::new().hash_one(std::process::id()))
    }

    /// The next number, uniform over all `u64`.
    pub fn next_u64(&self) -> u64 {
        let mut z = self
            .state
            .fetch_add(GOLDEN, Ordering::Relaxed)
            .wrapping_add(GOLDEN);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is above 0.
    pub fn below(&self, bound: u64) -> u64 {
        debug_assert!(bound > 0, "the range is empty");
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// True once in `n` calls, on average.
    pub fn one_in(&self, n: u64) -> bool {
        self.below(n) == 0
    }
}
