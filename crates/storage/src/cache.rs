//! The cache of blocks, and of values that lie apart from their keys.
//!
//! The only file that knows which cache it is.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};

use crate::memory::{BLOCK_OVERHEAD, Memory};
use crate::options::Options;
use crate::planted::{self, Bug};
use crate::table::Block;

/// The number of a file, and where in it a block or a value lies. Tables and value files are numbered
/// together.
type PlaceId = (u64, u64);

fn place_id(file: u64, offset: u64) -> PlaceId {
    match planted::is_on(Bug::CacheWithoutTable) {
        true => (0, offset),
        false => (file, offset),
    }
}

#[derive(Clone)]
enum Cached {
    Block(Block),
    Value(Bytes),
}

/// Blocks and values in memory, up to a sum of bytes.
pub(crate) struct BlockCache {
    entries: Cache<PlaceId, Cached, ByBytes, Mix>,
    hits: AtomicU64,
    misses: AtomicU64,
    /// What it shares a budget with.
    memory: Arc<Memory>,
    /// Bytes that came in since the budget was looked at.
    came: AtomicU64,
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<PlaceId, Cached> for ByBytes {
    fn weight(&self, _: &PlaceId, cached: &Cached) -> u64 {
        let bytes = match cached {
            Cached::Block(block) => block.size_bytes(),
            Cached::Value(value) => value.len(),
        };
        // The cache's own part is about this.
        bytes as u64 + BLOCK_OVERHEAD
    }
}

/// A value that would take more than such a part of the cache stays out.
const VALUE_SHARE: u64 = 64;

/// The budget is looked at again when such a part of it came in.
const LOOK_AFTER: u64 = 64;

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
    /// A cache of so many bytes, with no budget over it.
    pub(crate) fn new(bytes: u64, block_bytes: usize) -> Self {
        BlockCache::with_memory(bytes, block_bytes, Memory::default())
    }

    /// The cache of an engine with these settings.
    pub(crate) fn of(options: &Options) -> Self {
        let memory = Memory::new(options.memory_bytes, options.open_tables as u64);
        let bytes = match options.memory_bytes {
            0 => options.cache_bytes,
            limit => limit,
        };
        let cache = BlockCache::with_memory(bytes, options.block_bytes, memory);
        cache.rebalance();
        cache
    }

    fn with_memory(bytes: u64, block_bytes: usize, memory: Memory) -> Self {
        let options = OptionsBuilder::new()
            .estimated_items_capacity((bytes as usize / block_bytes.max(1)).max(16))
            .weight_capacity(bytes)
            .shards(8)
            .build();
        let entries = match options {
            Ok(options) => Cache::with_options(options, ByBytes, Mix, DefaultLifecycle::default()),
            // Not reached: all that must be given is given.
            Err(_) => Cache::with(1024, bytes, ByBytes, Mix, DefaultLifecycle::default()),
        };
        BlockCache {
            entries,
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            memory: Arc::new(memory),
            came: AtomicU64::new(0),
        }
    }

    /// A block of a table.
    pub(crate) fn get(&self, table: u64, offset: u64) -> Option<Block> {
        match self.look(table, offset) {
            Some(Cached::Block(block)) => Some(block),
            _ => None,
        }
    }

    /// A value of a value file.
    pub(crate) fn get_value(&self, file: u64, offset: u64) -> Option<Bytes> {
        match self.look(file, offset) {
            Some(Cached::Value(value)) => Some(value),
            _ => None,
        }
    }

    fn look(&self, file: u64, offset: u64) -> Option<Cached> {
        let found = self.entries.get(&place_id(file, offset));
        let counter = if found.is_some() {
            &self.hits
        } else {
            &self.misses
        };
        counter.fetch_add(1, Ordering::Relaxed);
        found
    }

    pub(crate) fn insert(&self, table: u64, offset: u64, block: Block) {
        self.take_in(table, offset, Cached::Block(block));
    }

    /// Whether a value of this size may be put in.
    pub(crate) fn takes_value(&self, bytes: usize) -> bool {
        bytes as u64 <= self.capacity() / VALUE_SHARE
    }

    /// Puts a value in. REQUIRES: it is no part of something larger, which it would keep in memory.
    pub(crate) fn insert_value(&self, file: u64, offset: u64, value: Bytes) {
        self.take_in(file, offset, Cached::Value(value));
    }

    fn take_in(&self, file: u64, offset: u64, cached: Cached) {
        let limit = self.memory.limit();
        if limit > 0 {
            let weight = ByBytes.weight(&(0, 0), &cached);
            let came = self.came.fetch_add(weight, Ordering::Relaxed);
            if came > limit / LOOK_AFTER {
                self.came.store(0, Ordering::Relaxed);
                self.rebalance();
            }
        }
        self.entries.insert(place_id(file, offset), cached);
    }

    /// What it shares a budget with.
    pub(crate) fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// What is held of blocks and values that are no longer in the cache.
    pub(crate) fn pinned_bytes(&self) -> u64 {
        self.memory
            .block_bytes()
            .saturating_sub(self.entries.weight())
    }

    /// Takes what the others leave of the budget.
    pub(crate) fn rebalance(&self) {
        let limit = self.memory.limit();
        if limit == 0 || planted::is_on(Bug::CacheDoesNotShrink) {
            return;
        }
        let others = self.memory.memtable_bytes() + self.memory.table_bytes() + self.pinned_bytes();
        // Some of it is for what comes in before the next look.
        let room = (limit - limit / LOOK_AFTER * 2).saturating_sub(others);
        let room = room.max(limit / LOOK_AFTER);
        let now = self.entries.capacity();
        if room < now || room - now > limit / LOOK_AFTER {
            self.entries.set_capacity(room);
        }
    }

    /// The most that it may hold now.
    pub(crate) fn capacity(&self) -> u64 {
        self.entries.capacity()
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.entries.weight()
    }

    pub(crate) fn hits(&self) -> u64 {
        self.hits.load(Ordering::Relaxed)
    }

    pub(crate) fn misses(&self) -> u64 {
        self.misses.load(Ordering::Relaxed)
    }
}
