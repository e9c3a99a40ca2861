//! [`Cache`]: reads and writes through tiers, over a source.

mod breaker;
mod fill;
mod flights;
mod follow;
mod meter;
mod options;
mod read;
mod remote;
mod stats;
mod tags;
mod untold;
mod write;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use parking_lot::Mutex;
use quorate_kv::Token;
use tokio::time::Instant;

use self::flights::Flights;
use self::meter::Meter;
use self::options::micros;
use self::remote::Remote;
use self::stats::Counters;
use crate::core::{Invalidation, Place, Want, invalidation_order};
use crate::source::Source;
use crate::tier::{Memory, Tier};
use crate::{Error, ErrorKind, Level, Result, Version};

pub use follow::FollowOptions;
pub use meter::{Estimate, Measured, MeterOptions, TierMeasured};
pub use options::CacheOptions;
pub use stats::Stats;
pub(crate) use tags::is_tag;
pub use write::{Strategy, Written};

/// Where a cache keeps values: in this process, in a tier that processes share, in both, or in neither.
#[derive(Default)]
pub struct Tiers {
    /// The tier in this process.
    pub local: Option<Memory>,
    /// The tier that processes share.
    pub remote: Option<Arc<dyn Tier>>,
}

/// A cache over a source. Clones are the same cache; all methods may be called from many tasks at once, within
/// a tokio runtime.
#[derive(Clone)]
pub struct Cache {
    inner: Arc<Inner>,
}

struct Inner {
    source: Arc<dyn Source>,
    local: Option<Memory>,
    remote: Option<Remote>,
    options: CacheOptions,
    flights: Flights,
    /// The floor of all keys.
    base: Mutex<Version>,
    counters: Arc<Counters>,
    meter: Option<Arc<Meter>>,
    chance: AtomicU64,
    began: Instant,
    /// Until when the local tier is read, by its clock: the earliest of what is followed.
    believed_until: AtomicU64,
    /// For each that is followed, until when all of it was heard.
    followed: Mutex<Vec<u64>>,
}

impl Cache {
    /// A cache with nothing in it but what the remote tier has.
    pub fn new(source: Arc<dyn Source>, tiers: Tiers, options: CacheOptions) -> Self {
        let counters = Arc::new(Counters::default());
        let remote = |tier| Remote::new(tier, &options, counters.clone());
        let inner = Inner {
            remote: tiers.remote.map(remote),
            local: tiers.local,
            source,
            meter: options
                .meter
                .clone()
                .map(|meter| Arc::new(Meter::new(meter))),
            options,
            flights: Flights::default(),
            base: Mutex::default(),
            counters,
            chance: AtomicU64::new(0),
            began: Instant::now(),
            believed_until: AtomicU64::new(u64::MAX),
            followed: Mutex::default(),
        };
        Cache {
            inner: Arc::new(inner),
        }
    }

    /// Notes that a key was written. When it returns, no read of this cache that begins later is answered by
    /// anything older, nor is one of another process that has no tier of its own. One that has sees it when it hears
    /// of it ([`follow`](Cache::follow)), at the latest when its `local_ttl` has passed.
    ///
    /// # Errors
    /// When the remote tier does not answer: this process keeps the promise, others may be served what is there,
    /// at most until its TTL. It is repeated in the background, for as long as this process lives.
    pub async fn invalidate(
        &self,
        key: impl AsRef<[u8]>,
        invalidation: Invalidation,
    ) -> Result<()> {
        let key = self.inner.check_key(key.as_ref())?;
        self.inner.invalidate(&key, invalidation).await
    }

    /// Notes that any key with this [tag](Source::tags) was written: as [`invalidate`](Cache::invalidate) does for each of
    /// them, at the cost of one. An invalidation by version refuses what was seen below it. Without one, fills of these
    /// keys read the source's newest state from then on.
    ///
    /// # Errors
    /// Those of `invalidate`.
    pub async fn invalidate_tag(
        &self,
        tag: impl AsRef<[u8]>,
        invalidation: Invalidation,
    ) -> Result<()> {
        let tag = self.inner.check_key(tag.as_ref())?;
        self.inner
            .invalidate(&tags::record(&tag), invalidation)
            .await
    }

    /// Notes that invalidations may have been missed, of any key: drops all that is here, in both tiers. Fills
    /// that begin later read the source's newest state.
    ///
    /// # Errors
    /// When the remote tier does not answer: what it has is served. Repeat it.
    pub async fn clear(&self) -> Result<()> {
        let mut done = Ok(());
        for place in invalidation_order() {
            match place {
                Place::Local => {
                    self.inner.local.iter().for_each(Memory::clear_now);
                    self.inner.flights.detach_all();
                }
                Place::Remote => {
                    if let Some(remote) = &self.inner.remote {
                        done = remote.clear().await;
                    }
                }
            }
        }
        done
    }

    /// Notes that nothing below a version counts, of any key: after a failover the first version of the new
    /// epoch ([`Version::epoch`]); after missed invalidations one that is above all of them. What was seen below
    /// is served no longer by this process, from any tier. A load that gives a version of a new epoch does the
    /// same by itself.
    pub fn raise(&self, version: Version) {
        self.inner.raise(version);
    }

    /// The token of a version that a read or write gave, for [`Level::AtLeast`] here or elsewhere.
    pub fn token(&self, version: Version) -> Token {
        version.token(self.inner.source.domain())
    }

    /// What was done so far.
    pub fn stats(&self) -> Stats {
        self.inner.counters.read()
    }

    /// The bytes that a tenant takes in the tier in this process, if it has [tenants](Memory::with_tenants).
    pub fn tenant_bytes(&self, tenant: impl AsRef<[u8]>) -> u64 {
        let local = self.inner.local.as_ref();
        local.map_or(0, |local| local.tenant_bytes(tenant.as_ref()))
    }

    /// The bytes that the tier in this process takes.
    pub fn local_bytes(&self) -> u64 {
        self.inner.local.as_ref().map_or(0, Memory::size_bytes)
    }
}

#[cfg(test)]
impl Cache {
    /// How many keys have flights.
    pub(crate) fn flights(&self) -> usize {
        self.inner.flights.len()
    }

    pub(crate) fn local(&self) -> Option<&Memory> {
        self.inner.local.as_ref()
    }
}

impl Inner {
    /// The key, if it can be one.
    fn check_key(&self, key: &[u8]) -> Result<Bytes> {
        self.check_key_length(key)?;
        Ok(Bytes::copy_from_slice(key))
    }

    fn check_key_length(&self, key: &[u8]) -> Result<()> {
        let max = self.options.key_bytes_max;
        if key.is_empty() {
            return Err(Error::new(
                ErrorKind::Invalid,
                "a key has at least one byte",
            ));
        }
        if key.len() > max {
            let length = key.len();
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!("the key has {length} bytes, at most {max} are allowed"),
            ));
        }
        Ok(())
    }

    /// A level as the core sees it.
    fn want(&self, level: Level) -> Result<Want> {
        let mut want = Want::default();
        match level {
            Level::Any => {}
            Level::BoundedStale(age) => want.age_max = Some(micros(age)),
            Level::AtLeast(token) => want.at_least = self.version_of(&token)?,
            Level::Linearizable => want.latest = true,
        }
        Ok(want)
    }

    fn version_of(&self, token: &Token) -> Result<Version> {
        let domain = self.source.domain();
        let is_ours = token.domain.cluster == domain.cluster
            && token.domain.namespace == domain.namespace
            && token.domain.incarnation >= self.base.lock().epoch;
        if !is_ours {
            return Err(Error::new(
                ErrorKind::WrongDomain,
                "the token is of another source, or of before a failover: drop it and read again",
            ));
        }
        Ok(Version::of(token))
    }

    async fn invalidate(&self, key: &Bytes, invalidation: Invalidation) -> Result<()> {
        if let Invalidation::At(version) = invalidation {
            self.learn_epoch(version);
        }
        let mut done = Ok(());
        for place in invalidation_order() {
            match place {
                Place::Local => {
                    if let Some(local) = &self.local {
                        local.invalidate_now(key, invalidation);
                    }
                    // Who comes from now on does not wait for a load that began before.
                    self.detach(key);
                }
                Place::Remote => {
                    if let Some(remote) = &self.remote {
                        done = remote.invalidate(key, invalidation).await;
                    }
                }
            }
        }
        done
    }

    fn raise(&self, version: Version) {
        {
            let mut base = self.base.lock();
            *base = (*base).max(version);
        }
        if let Some(local) = &self.local {
            local.raise(version);
        }
        self.flights.detach_all();
    }

    /// The time by the local clock, in microseconds: that of the local tier, if there is one.
    fn now(&self) -> u64 {
        match &self.local {
            Some(local) => local.now(),
            None => micros(self.began.elapsed()),
        }
    }

    /// From 0 to 1, anew each time.
    fn chance(&self) -> f64 {
        let n = self.chance.fetch_add(1, Relaxed);
        let mixed = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 11) as f64 / (1u64 << 53) as f64
    }
}
