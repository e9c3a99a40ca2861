//! [`Memory`]: the tier in this process.

use std::future::ready;

use bytes::Bytes;
use parking_lot::Mutex;
use quorate_kv::BoxFuture;
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

use super::Tier;
use super::tenants::{TenantOf, Tenants};
use crate::cache::is_tag;
use crate::core::{Cached, Invalidation, Left, Looked, Mark, Put, Records};
use crate::{Error, ErrorKind, Need, Result, Version};

/// Below this a part would hold too few values of usual size.
const PART_BYTES_MIN: u64 = 1 << 20;
const PARTS_MAX: u64 = 64;

/// Records in memory, evicted by use within a bound of bytes. Thread-safe; waits for nothing but short locks.
///
/// What is larger than a part, a 64th of the whole from 64 MiB on, is not kept.
pub struct Memory {
    /// Of keys that are no tenant's.
    parts: Vec<Mutex<Records<Bytes>>>,
    tenants: Option<Tenants>,
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
            tenants: None,
            began: Instant::now(),
        }
    }

    /// A tier whose keys are tenants': each tenant has `budget_bytes`, and evicts its own records when they are used up,
    /// never those of others. Keys that are nobody's, and tags, have as much together.
    ///
    /// There are as many tenants at a time as `size_bytes` has room for; one more takes the place of the one that was
    /// not used for the longest, whose records are dropped. `tenant_of` is asked at each read.
    ///
    /// # Errors
    /// `Invalid`: there is no room for a single tenant.
    pub fn with_tenants(size_bytes: u64, budget_bytes: u64, tenant_of: TenantOf) -> Result<Self> {
        let most = size_bytes.checked_div(budget_bytes).unwrap_or(0);
        if most < 2 {
            let message = format!(
                "{size_bytes} bytes have no room for a tenant with a budget of {budget_bytes} beside \
                 what is nobody's: give at least twice the budget, which is not 0"
            );
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        let most = usize::try_from(most - 1).unwrap_or(usize::MAX);
        Ok(Memory {
            tenants: Some(Tenants::new(tenant_of, budget_bytes, most)),
            ..Memory::new(budget_bytes)
        })
    }

    /// The bytes that records take.
    pub fn size_bytes(&self) -> u64 {
        let parts = self.parts.iter().map(|part| part.lock().size_bytes());
        parts.sum::<u64>() + self.tenants.as_ref().map_or(0, Tenants::size_bytes)
    }

    /// The bytes that records of a tenant take.
    pub fn tenant_bytes(&self, tenant: &[u8]) -> u64 {
        let tenants = self.tenants.as_ref();
        tenants.map_or(0, |tenants| tenants.bytes_of(tenant))
    }

    /// The time by this tier's clock, in microseconds.
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn part(&self, key: &[u8]) -> &Mutex<Records<Bytes>> {
        let at = xxh3_64(key) % self.parts.len() as u64;
        &self.parts[at as usize]
    }

    /// The tenants, and whose a key is, if it is one's.
    fn tenant<'a>(&self, key: &'a [u8]) -> Option<(&Tenants, &'a [u8])> {
        let tenants = self.tenants.as_ref()?;
        let tenant = tenants.of(key).filter(|_| !is_tag(key))?;
        Some((tenants, tenant))
    }

    /// Does something to the records of which a key's is one.
    fn with<T>(&self, key: &[u8], act: impl FnOnce(&mut Records<Bytes>) -> T) -> T {
        match self.tenant(key) {
            Some((tenants, tenant)) => tenants.with(tenant, act),
            None => act(&mut self.part(key).lock()),
        }
    }

    /// Looks at the same, if there are any.
    fn peek_at<T>(&self, key: &[u8], act: impl FnOnce(&Records<Bytes>) -> Option<T>) -> Option<T> {
        match self.tenant(key) {
            Some((tenants, tenant)) => tenants.peek(tenant, act).flatten(),
            None => act(&self.part(key).lock()),
        }
    }

    /// Does something to all records, and to those to come.
    fn with_all(&self, act: impl Fn(&mut Records<Bytes>), act_left: impl FnOnce(&mut Left)) {
        self.parts.iter().for_each(|part| act(&mut part.lock()));
        if let Some(tenants) = &self.tenants {
            tenants.with_all(act, act_left);
        }
    }

    /// What is there, expired or not. Registers nothing.
    pub(crate) fn peek(&self, key: &[u8]) -> Option<Cached<Bytes>> {
        self.peek_at(key, |records| records.peek(key).cloned())
    }

    /// The same, if it counts under these tags.
    pub(crate) fn peek_under(&self, key: &[u8], tags: &[Bytes]) -> Option<Cached<Bytes>> {
        let cached = self.peek(key)?;
        if tags.is_empty() {
            return Some(cached);
        }
        let record = |tag: &Bytes| self.peek_at(tag, |records| records.peek_record(tag));
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
        self.with(key, |records| records.evict(&Bytes::from_static(key)));
    }

    pub(crate) fn look_now(&self, key: &Bytes) -> Looked<Bytes> {
        let now = self.now();
        self.with(key, |records| records.look(key, now))
    }

    pub(crate) fn put_now(&self, key: &Bytes, mark: Mark, cached: Cached<Bytes>) -> Put {
        self.with(key, |records| records.put(key, mark, cached))
    }

    pub(crate) fn invalidate_now(&self, key: &Bytes, invalidation: Invalidation) {
        self.with(key, |records| records.invalidate(key, invalidation));
    }

    pub(crate) fn clear_now(&self) {
        self.with_all(Records::clear, Left::clear);
    }

    /// Notes that nothing below a version counts, of any key.
    pub(crate) fn raise(&self, version: Version) {
        self.with_all(|records| records.raise(version), |left| left.raise(version));
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
