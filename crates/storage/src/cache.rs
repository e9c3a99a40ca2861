//! The cache of blocks.
//!
//! The only file that knows which cache it is.

use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};

use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};

use crate::planted::{self, Bug};
use crate::table::Block;

/// A block: the number of its table, and where it lies in it.
type BlockId = (u64, u64);

fn block_id(table: u64, offset: u64) -> BlockId {
    match planted::is_on(Bug::CacheWithoutTable) {
        true => (0, offset),
        false => (table, offset),
    }
}

/// Blocks in memory, up to a sum of bytes.
pub(crate) struct BlockCache {
    blocks: Cache<BlockId, Block, ByBytes, Mix>,
    hits: AtomicU64,
    misses: AtomicU64,
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<BlockId, Block> for ByBytes {
    fn weight(&self, _: &BlockId, block: &Block) -> u64 {
        // The cache's own part is about this.
        block.size_bytes() as u64 + 96
    }
}

/// A hash of two numbers that are not of an enemy's choosing.
#[derive(Clone, Default)]
struct Mix;

struct MixHasher(u64);

impl BuildHasher for Mix {
    type Hasher = MixHasher;

    fn build_hasher(&self) -> MixHasher {
        MixHasher(0)
    }
}

impl Hasher for MixHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes
            .iter()
            .for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, number: u64) {
        let wide = u128::from(self.0 ^ number ^ 0x9e37_79b9_7f4a_7c15)
            * u128::from(0xd6e8_feb8_6659_fd93_u64);
        self.0 = (wide >> 64) as u64 ^ wide as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl BlockCache {
    pub(crate) fn new(bytes: u64, block_bytes: usize) -> Self {
        let options = OptionsBuilder::new()
            .estimated_items_capacity((bytes as usize / block_bytes.max(1)).max(16))
            .weight_capacity(bytes)
            .shards(8)
            .build();
        let blocks = match options {
            Ok(options) => Cache::with_options(options, ByBytes, Mix, DefaultLifecycle::default()),
            // Not reached: all that must be given is given.
            Err(_) => Cache::with(1024, bytes, ByBytes, Mix, DefaultLifecycle::default()),
        };
        BlockCache {
            blocks,
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        }
    }

    pub(crate) fn get(&self, table: u64, offset: u64) -> Option<Block> {
        let found = self.blocks.get(&block_id(table, offset));
        let counter = if found.is_some() {
            &self.hits
        } else {
            &self.misses
        };
        counter.fetch_add(1, Ordering::Relaxed);
        found
    }

    pub(crate) fn insert(&self, table: u64, offset: u64, block: Block) {
        self.blocks.insert(block_id(table, offset), block);
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.blocks.weight()
    }

    pub(crate) fn hits(&self) -> u64 {
        self.hits.load(Ordering::Relaxed)
    }

    pub(crate) fn misses(&self) -> u64 {
        self.misses.load(Ordering::Relaxed)
    }
}
