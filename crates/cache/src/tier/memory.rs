//! [`Memory`]: the tier in this process.

use std::future::ready;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use quorate_kv::BoxFuture;
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

use super::Tier;
use crate::core::{Cached, Invalidation, Looked, Mark, Put, Records};
use crate::{Need, Result, Version};

/// Below this a part would hold too few values of usual size.
const PART_BYTES_MIN: u64 = 1 << 20;
const PARTS_MAX: u64 = 64;

/// Records in memory, evicted by use within a bound of bytes. Thread-safe; waits for nothing but short locks.
///
/// What is larger than a part, a 64th of the whole from 64 MiB on, is not kept.
pub struct Memory {
    parts: Vec<Mutex<Records<Bytes>>>,
    began: Instant,
}

impl Memory {
    /// An empty tier of at most `size_bytes`: keys, values, and 160 bytes for each record.
    pub fn new(size_bytes: u64) -> Self {
        Self::with_absent(size_bytes, Need::NOTHING)
    }

    /// The same, where a key that has no record needs this.
    pub(crate) fn with_absent(size_bytes: u64, absent: Need) -> Self {
        let parts = (size_bytes / PART_BYTES_MIN).clamp(1, PARTS_MAX);
        let part = |_| Mutex::new(Records::new(size_bytes / parts, absent));
        Memory {
            parts: (0..parts).map(part).collect(),
            began: Instant::now(),
        }
    }

    /// The bytes that records take.
    pub fn size_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.lock().size_bytes()).sum()
    }

    /// The time by this tier's clock, in microseconds.
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn part(&self, key: &[u8]) -> MutexGuard<'_, Records<Bytes>> {
        let at = xxh3_64(key) % self.parts.len() as u64;
        self.parts[at as usize].lock()
    }

    /// What is there, expired or not. Registers nothing.
    pub(crate) fn peek(&self, key: &[u8]) -> Option<Cached<Bytes>> {
        self.part(key).peek(key).cloned()
    }

    /// The same, if it counts under these tags.
    pub(crate) fn peek_under(&self, key: &[u8], tags: &[Bytes]) -> Option<Cached<Bytes>> {
        let cached = self.peek(key)?;
        if tags.is_empty() {
            return Some(cached);
        }
        let record = |tag: &Bytes| self.part(tag).peek_record(tag);
        let tags: Option<Vec<_>> = tags.iter().map(record).collect();
        let looked = Looked {
            mark: Mark(0),
            need: Need::NOTHING,
            at: 0,
            cached: Some(cached),
            tags: None,
        };
        looked.under(&tags?).cached
    }

    /// Evicts one record, as a lack of room does.
    #[cfg(test)]
    pub(crate) fn evict(&self, key: &'static [u8]) {
        self.part(key).evict(&Bytes::from_static(key));
    }

    pub(crate) fn look_now(&self, key: &Bytes) -> Looked<Bytes> {
        let now = self.now();
        self.part(key).look(key, now)
    }

    pub(crate) fn put_now(&self, key: &Bytes, mark: Mark, cached: Cached<Bytes>) -> Put {
        self.part(key).put(key, mark, cached)
    }

    pub(crate) fn invalidate_now(&self, key: &Bytes, invalidation: Invalidation) {
        self.part(key).invalidate(key, invalidation);
    }

    pub(crate) fn clear_now(&self) {
        self.parts.iter().for_each(|part| part.lock().clear());
    }

    /// Notes that nothing below a version counts, of any key.
    pub(crate) fn raise(&self, version: Version) {
        self.parts
            .iter()
            .for_each(|part| part.lock().raise(version));
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
