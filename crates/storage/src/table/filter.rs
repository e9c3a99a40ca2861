//! The filter of a table: whether it may hold a place.
//!
//! A Bloom filter in pieces of 64 bytes: a hash picks the piece and all bits in it, so that a lookup
//! touches one cache line (Putze, Sanders, Singler: Cache-, hash- and space-efficient Bloom filters,
//! 2007). At 10 bits a key about one lookup in 90 is answered "maybe" in vain.

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use crate::prefix::hash_prefix;

const LINE_BYTES: usize = 64;

/// The hash that filters are made of.
pub(crate) fn hash_place(place: &[u8]) -> u64 {
    xxh3_64(place)
}

/// How many hashes are gathered in one piece: a single vector would be copied each time it grows, and
/// leave its old sizes to the allocator.
const PIECE: usize = 8192;

/// Gathers hashes and makes a filter of them.
pub(crate) struct FilterBuilder {
    /// All but the last are full.
    pieces: Vec<Vec<u64>>,
    last_place: Option<u64>,
    last_prefix: Option<u64>,
    bits_per_key: u32,
}

impl FilterBuilder {
    pub(crate) fn new(bits_per_key: u32) -> Self {
        FilterBuilder {
            pieces: Vec::new(),
            last_place: None,
            last_prefix: None,
            bits_per_key,
        }
    }

    /// Adds a place; adding one twice in a row costs nothing.
    pub(crate) fn add(&mut self, place: &[u8]) {
        let hash = hash_place(place);
        if self.bits_per_key > 0 && self.last_place != Some(hash) {
            self.last_place = Some(hash);
            self.push(hash);
        }
    }

    /// Adds a prefix of places; adding one again before another comes costs nothing.
    pub(crate) fn add_prefix(&mut self, prefix: &[u8]) {
        let hash = hash_prefix(prefix);
        if self.bits_per_key > 0 && self.last_prefix != Some(hash) {
            self.last_prefix = Some(hash);
            self.push(hash);
        }
    }

    fn push(&mut self, hash: u64) {
        match self.pieces.last_mut() {
            Some(piece) if piece.len() < PIECE => piece.push(hash),
            _ => {
                let mut piece = Vec::with_capacity(PIECE);
                piece.push(hash);
                self.pieces.push(piece);
            }
        }
    }

    /// The filter: lines of bits, then the number of probes. Empty when there is to be none.
    pub(crate) fn finish(&self) -> Vec<u8> {
        let count: usize = self.pieces.iter().map(Vec::len).sum();
        if count == 0 {
            return Vec::new();
        }
        let bits = count as u64 * u64::from(self.bits_per_key);
        let lines = bits.div_ceil(8 * LINE_BYTES as u64).max(1);
        // 0.69 probes for each bit is best, a little less in short lines.
        let probes = (u64::from(self.bits_per_key) * 6 / 10).clamp(1, 12) as u8;
        let mut out = vec![0; lines as usize * LINE_BYTES + 1];
        for hash in self.pieces.iter().flatten() {
            let line = line_of(*hash, lines) * LINE_BYTES;
            for bit in bits_of(*hash, probes) {
                out[line + bit / 8] |= 1 << (bit % 8);
            }
        }
        if let Some(last) = out.last_mut() {
            *last = probes;
        }
        out
    }
}

fn line_of(hash: u64, lines: u64) -> usize {
    (((hash >> 32) * lines) >> 32) as usize
}

fn bits_of(hash: u64, probes: u8) -> impl Iterator<Item = usize> {
    let mut h = hash as u32;
    (0..probes).map(move |_| {
        let bit = h >> (32 - 9);
        h = h.wrapping_mul(0x9e37_79b9);
        bit as usize
    })
}

/// A filter in memory.
#[derive(Debug, Clone)]
pub(crate) struct Filter {
    lines: Bytes,
    count: u64,
    probes: u8,
}

impl Filter {
    /// Reads what the builder made; no bytes are a filter that always says "maybe".
    pub(crate) fn new(bytes: Bytes) -> Result<Filter, super::block::Damage> {
        let Some((&probes, lines)) = bytes.split_last() else {
            return Ok(Filter {
                lines: bytes,
                count: 0,
                probes: 0,
            });
        };
        if lines.is_empty() || lines.len() % LINE_BYTES != 0 || !(1..=12).contains(&probes) {
            return Err("the filter is nonsense");
        }
        let count = (lines.len() / LINE_BYTES) as u64;
        Ok(Filter {
            lines: bytes,
            count,
            probes,
        })
    }

    /// False if no place with this hash is there.
    pub(crate) fn may_hold(&self, hash: u64) -> bool {
        if self.count == 0 {
            return true;
        }
        let start = line_of(hash, self.count) * LINE_BYTES;
        let line = &self.lines[start..start + LINE_BYTES];
        bits_of(hash, self.probes).all(|bit| line[bit / 8] & 1 << (bit % 8) != 0)
    }

    pub(crate) fn size_bytes(&self) -> usize {
        self.lines.len()
    }
}
