//! The filter of a memtable: whether it may hold a place.
//!
//! A Bloom filter in pieces of one word: a hash picks the word and four bits in it, so that adding and
//! asking are one access to memory each. A search in the list costs twenty of them, and a key that is
//! read is rarely one that was just written. At 10 bits an entry one of 25 questions is answered "maybe"
//! in vain.

use crate::sync::atomic::{AtomicU64, Ordering};

/// One bit for so many bytes of the memtable: 10 bits for an entry of 120.
const BYTES_PER_BIT: usize = 12;

/// Which places were added, some others, and no fewer.
pub(crate) struct PlaceFilter {
    words: Vec<AtomicU64>,
}

impl PlaceFilter {
    /// For a memtable with this many bytes.
    pub(crate) fn new(capacity: usize) -> Self {
        let count = (capacity / BYTES_PER_BIT / 64).max(1);
        let mut words = Vec::new();
        words.resize_with(count, AtomicU64::default);
        PlaceFilter { words }
    }

    /// Adds the hash of a place. Known to whoever sees as visible what was written under it.
    pub(crate) fn add(&self, hash: u64) {
        let (word, bits) = self.at(hash);
        word.fetch_or(bits, Ordering::Relaxed);
    }

    /// Whether a place with this hash may have been added.
    pub(crate) fn may_hold(&self, hash: u64) -> bool {
        let (word, bits) = self.at(hash);
        word.load(Ordering::Relaxed) & bits == bits
    }

    fn at(&self, hash: u64) -> (&AtomicU64, u64) {
        let n = ((hash >> 32) * self.words.len() as u64) >> 32;
        let bit = |n: u32| 1_u64 << ((hash >> (6 * n)) & 63);
        let bits = bit(0) | bit(1) | bit(2) | bit(3);
        // A hash below 2^32 times the length, over 2^32, is below the length.
        (&self.words[n as usize], bits)
    }

    pub(crate) fn size_bytes(&self) -> usize {
        8 * self.words.len()
    }
}
