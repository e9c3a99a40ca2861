//! [`Memory`]: the tier in this process.

use std::future::ready;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use quorate_kv::BoxFuture;
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

use super::Tier;
use crate::core::{Cached, Invalidation, Looked, Mark, Put, Shard};
use crate::{Need, Result, Version};

/// Below this a shard would hold too few values of usual size.
const SHARD_BYTES_MIN: u64 = 1 << 20;
const SHARDS_MAX: u64 = 64;

/// Records in memory, evicted by use within a bound of bytes. Thread-safe; waits for nothing but short locks.
///
/// What is larger than a shard, a 64th of the whole from 64 MiB on, is not kept.
pub struct Memory {
    shards: Vec<Mutex<Shard<Bytes>>>,
    began: Instant,
}

impl Memory {
    /// An empty tier of at most `size_bytes`: keys, values, and 160 bytes for each record.
    pub fn new(size_bytes: u64) -> Self {
        Self::with_absent(size_bytes, Need::NOTHING)
    }

    /// The same, where a key that has no record needs this.
    pub(crate) fn with_absent(size_bytes: u64, absent: Need) -> Self {
        let shards = (size_bytes / SHARD_BYTES_MIN).clamp(1, SHARDS_MAX);
        let shard = |_| Mutex::new(Shard::new(size_bytes / shards, absent));
        Memory {
            shards: (0..shards).map(shard).collect(),
            began: Instant::now(),
        }
    }

    /// The bytes that records take.
    pub fn size_bytes(&self) -> u64 {
        self.shards
            .iter()
            .map(|shard| shard.lock().size_bytes())
            .sum()
    }

    /// The time by this tier's clock, in microseconds.
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn shard(&self, key: &[u8]) -> MutexGuard<'_, Shard<Bytes>> {
        let at = xxh3_64(key) % self.shards.len() as u64;
        self.shards[at as usize].lock()
    }

    /// What is there, expired or not. Registers nothing.
    pub(crate) fn peek(&self, key: &[u8]) -> Option<Cached<Bytes>> {
        self.shard(key).peek(key).cloned()
    }

    pub(crate) fn look_now(&self, key: &Bytes) -> Looked<Bytes> {
        let now = self.now();
        self.shard(key).look(key, now)
    }

    pub(crate) fn put_now(&self, key: &Bytes, mark: Mark, cached: Cached<Bytes>) -> Put {
        self.shard(key).put(key, mark, cached)
    }

    pub(crate) fn invalidate_now(&self, key: &Bytes, invalidation: Invalidation) {
        self.shard(key).invalidate(key, invalidation);
    }

    pub(crate) fn clear_now(&self) {
        self.shards.iter().for_each(|shard| shard.lock().clear());
    }

    /// Notes that nothing below a version counts, of any key.
    pub(crate) fn raise(&self, version: Version) {
        self.shards
            .iter()
            .for_each(|shard| shard.lock().raise(version));
    }
}

impl Tier for Memory {
    fn look<'a>(&'a self, key: &'a Bytes) -> BoxFuture<'a, Result<Looked<Bytes>>> {
        Box::pin(ready(Ok(self.look_now(key))))
    }

    fn put<'a>(
        &'a self,
        key: &'a Bytes,
        mark: Mark,
        cached: Cached<Bytes>,
    ) -> BoxFuture<'a, Result<Put>> {
        Box::pin(ready(Ok(self.put_now(key, mark, cached))))
    }

    fn invalidate<'a>(
        &'a self,
        key: &'a Bytes,
        invalidation: Invalidation,
    ) -> BoxFuture<'a, Result<()>> {
        self.invalidate_now(key, invalidation);
        Box::pin(ready(Ok(())))
    }

    fn clear(&self) -> BoxFuture<'_, Result<()>> {
        self.clear_now();
        Box::pin(ready(Ok(())))
    }
}
