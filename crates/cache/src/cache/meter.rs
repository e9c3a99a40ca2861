//! The consistency meter: of some reads also the source is asked, and what was served is held against that.
//!
//! # What is stale?
//!
//! What was served though something newer had been committed *before the read began*. So of a sampled read the
//! source is asked first, for its newest state, and the tiers afterwards:
//!
//! ```text
//! shadow: load(latest) ─► 7        read begins ─► 6 from the tier of this process: stale, whoever wrote 7
//!                                  read begins ─► 8: written in between, fresh
//! ```
//!
//! The other way round a write between the two would make a right answer look stale. A sampled read takes as long
//! as a miss, no longer than [`MeterOptions::timeout`] more than others; what it answers is what the tiers answer,
//! and the shadow is put nowhere. A shadow that fails is counted, and the read goes on without it.
//!
//! A commit counts as soon as the source shows it, though its writer may not have invalidated yet: the way from
//! commit to invalidation is part of what is measured.
//!
//! # Values that are not there
//!
//! Not every source knows at which version a key lost its value. Where versions do not settle it, the source is
//! asked once more in the background, after the read:
//!
//! ```text
//! shadow 7, read: nothing          then 7 again: it was there all the time, stale
//! shadow: nothing, read 6          then nothing again, and the cache still has 6: stale
//! ```
//!
//! What that does not settle either is counted as undecided. After Facebook's measurement of its caches, "Existential
//! Consistency" (SOSP 2015), which samples too.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::Cache;
use super::options::micros;
use crate::core::planted::{self, Bug};
use crate::source::Stamped;
use crate::{Level, Need, Origin, Read, Result};

/// How much is measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeterOptions {
    /// One read in so many is sampled, chosen by chance (1,000). Zero: none.
    pub one_in: u64,
    /// So many are sampled at once, at most (8). Others are not, whatever chance says.
    pub at_once_max: usize,
    /// How long a shadow read may take (100 ms). A read waits no longer for it.
    pub timeout: Duration,
}

impl Default for MeterOptions {
    fn default() -> Self {
        MeterOptions {
            one_in: 1_000,
            at_once_max: 8,
            timeout: Duration::from_millis(100),
        }
    }
}

/// What was measured since the cache was made.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct Measured {
    /// Of answers of the tier in this process.
    pub local: TierMeasured,
    /// Of answers of the tier that processes share.
    pub remote: TierMeasured,
    /// Of answers of the source.
    pub source: TierMeasured,
    /// Shadow reads that failed or were too late.
    pub shadow_failures: u64,
    /// Reads that would have been sampled, had there not been so many at once.
    pub skipped: u64,
}

impl Measured {
    /// That of a tier.
    pub fn tier(&self, tier: Origin) -> &TierMeasured {
        match tier {
            Origin::Local => &self.local,
            Origin::Remote => &self.remote,
            Origin::Source => &self.source,
        }
    }

    fn tier_mut(&mut self, tier: Origin) -> &mut TierMeasured {
        match tier {
            Origin::Local => &mut self.local,
            Origin::Remote => &mut self.remote,
            Origin::Source => &mut self.source,
        }
    }
}

/// What was measured of one tier's answers.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct TierMeasured {
    /// Answers that were held against the source.
    pub reads: u64,
    /// Those that were stale.
    pub stale: u64,
    /// Those of which nobody knows; they are not among `stale`.
    pub undecided: u64,
    ages: Ages,
}

impl TierMeasured {
    /// How many of a million reads are stale.
    pub fn stale_per_million(&self) -> Estimate {
        Estimate::per_million(self.stale, self.reads)
    }

    /// For how long stale answers had been so, at most: their age, of which the given share, from 0 to 1, is no
    /// older. To a quarter of its size; `None` when nothing was stale, or of unknown age alone.
    pub fn staleness(&self, share: f64) -> Option<Duration> {
        self.ages.quantile(share).map(Duration::from_micros)
    }
}

/// A rate, and where it lies with 95 % certainty: Wilson's interval, as if reads were independent of each other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// What was counted.
    pub rate: f64,
    /// Not below this.
    pub low: f64,
    /// Not above this.
    pub high: f64,
}

impl Estimate {
    /// The rate of `hits` among `of`, times a million. Of none nothing is known: from 0 to a million.
    pub fn per_million(hits: u64, of: u64) -> Self {
        const MILLION: f64 = 1e6;
        /// The square of 1.96 standard deviations.
        const Z2: f64 = 3.8416;
        if of == 0 {
            return Estimate {
                rate: 0.0,
                low: 0.0,
                high: MILLION,
            };
        }
        let n = of as f64;
        let p = hits.min(of) as f64 / n;
        let middle = p + Z2 / (2.0 * n);
        let half = (Z2 * (p * (1.0 - p) / n + Z2 / (4.0 * n * n))).sqrt();
        let scale = MILLION / (1.0 + Z2 / n);
        Estimate {
            rate: p * MILLION,
            low: if hits == 0 {
                0.0
            } else {
                (middle - half) * scale
            },
            high: if hits >= of {
                MILLION
            } else {
                (middle + half) * scale
            },
        }
    }
}

/// Durations in microseconds, counted by powers of two in four parts each.
#[derive(Debug, Clone, PartialEq)]
struct Ages {
    counts: Box<[u64; 256]>,
}

impl Default for Ages {
    fn default() -> Self {
        Ages {
            counts: Box::new([0; 256]),
        }
    }
}

impl Ages {
    fn add(&mut self, micros: u64) {
        let micros = micros.max(4);
        let power = micros.ilog2();
        let part = (micros >> (power - 2)) & 3;
        self.counts[(power * 4) as usize + part as usize] += 1;
    }

    /// The upper end of the part where that share is reached.
    fn quantile(&self, share: f64) -> Option<u64> {
        let all: u64 = self.counts.iter().sum();
        let rank = ((all as f64 * share.clamp(0.0, 1.0)).ceil() as u64).max(1);
        let mut sum = 0;
        let at = self.counts.iter().position(|count| {
            sum += count;
            sum >= rank
        })?;
        let (power, part) = (at as u32 / 4, at as u128 % 4);
        let end = ((5 + part) << power) / 4 - 1;
        Some(u64::try_from(end).unwrap_or(u64::MAX))
    }
}

/// The meter of one cache.
pub(super) struct Meter {
    options: MeterOptions,
    reads: AtomicU64,
    permits: Arc<Semaphore>,
    measured: Mutex<Measured>,
}

/// A sampled read, whose shadow is there.
struct Sample {
    shadow: Stamped,
    permit: OwnedSemaphorePermit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Fresh,
    Stale,
    /// Versions do not tell.
    Open,
}

impl Meter {
    pub fn new(options: MeterOptions) -> Self {
        Meter {
            permits: Arc::new(Semaphore::new(
                options.at_once_max.min(Semaphore::MAX_PERMITS),
            )),
            options,
            reads: AtomicU64::new(0),
            measured: Mutex::default(),
        }
    }

    /// Whether this read is one of those that chance chose.
    pub fn is_due(&self) -> bool {
        let n = self.reads.fetch_add(1, Relaxed);
        self.options.one_in > 0 && mixed(n).is_multiple_of(self.options.one_in)
    }

    /// Asks the source, before a read begins. `None`: the read is not measured.
    async fn begin(&self, cache: &Cache, key: &Bytes) -> Option<Sample> {
        let Ok(permit) = self.permits.clone().try_acquire_owned() else {
            self.measured.lock().skipped += 1;
            return None;
        };
        self.shadow(cache, key, permit).await
    }

    /// In a task of its own, as loads are: a source may panic. The permit is given back when that is over, also
    /// when nobody waits any more.
    async fn shadow(
        &self,
        cache: &Cache,
        key: &Bytes,
        permit: OwnedSemaphorePermit,
    ) -> Option<Sample> {
        let (source, key) = (cache.inner.source.clone(), key.clone());
        let patience = self.options.timeout;
        let loading = tokio::spawn(async move {
            let shadow = timeout(patience, source.load(&key, Need::LATEST)).await;
            let shadow = shadow.ok()?.ok()?;
            Some(Sample { shadow, permit })
        });
        let sample = loading.await.ok().flatten();
        if sample.is_none() {
            self.measured.lock().shadow_failures += 1;
        }
        sample
    }

    /// Asks once more, after the read. Answers what is counted.
    async fn settle(
        &self,
        cache: &Cache,
        key: &Bytes,
        level: Level,
        sample: Sample,
        read: Read,
    ) -> (Verdict, Read) {
        let Some(later) = self.shadow(cache, key, sample.permit).await else {
            return (Verdict::Open, read);
        };
        let (before, after) = (&sample.shadow, &later.shadow);
        match (&before.value, &after.value) {
            // Nobody wrote it from before the read until after it.
            (Some(_), Some(_)) if before.version == after.version => (Verdict::Stale, read),
            // What is served now had been there before it was gone.
            (None, None) => match cache.get_unmeasured(key, level).await {
                Ok(now) if now.value.is_some() && now.version == read.version => {
                    (Verdict::Stale, now)
                }
                _ => (Verdict::Open, read),
            },
            _ => (Verdict::Open, read),
        }
    }

    fn count(&self, verdict: Verdict, read: &Read) {
        let mut measured = self.measured.lock();
        let tier = measured.tier_mut(read.tier);
        tier.reads += 1;
        match verdict {
            Verdict::Fresh => {}
            Verdict::Open => tier.undecided += 1,
            Verdict::Stale => {
                tier.stale += 1;
                if let Some(age) = read.age {
                    tier.ages.add(micros(age));
                }
            }
        }
    }
}

impl Cache {
    /// What the meter found; `None` without one ([`CacheOptions::meter`](crate::CacheOptions::meter)).
    pub fn measured(&self) -> Option<Measured> {
        let meter = self.inner.meter.as_ref()?;
        Some(meter.measured.lock().clone())
    }

    /// A read that is sampled.
    pub(super) async fn get_measured(
        &self,
        meter: &Arc<Meter>,
        key: &[u8],
        level: Level,
    ) -> Result<Read> {
        let key = self.inner.check_key(key)?;
        let mut sample = None;
        if !planted::is_on(Bug::ShadowAfterRead) {
            sample = meter.begin(self, &key).await;
        }
        let read = self.get_unmeasured(&key, level).await?;
        if planted::is_on(Bug::ShadowAfterRead) {
            sample = meter.begin(self, &key).await;
        }
        let Some(sample) = sample else {
            return Ok(read);
        };
        match judge(&sample.shadow, &read) {
            Verdict::Open => {
                let (meter, cache, read) = (meter.clone(), self.clone(), read.clone());
                tokio::spawn(async move {
                    let settled = meter.settle(&cache, &key, level, sample, read).await;
                    meter.count(settled.0, &settled.1);
                });
            }
            verdict => meter.count(verdict, &read),
        }
        Ok(read)
    }
}

/// Holds a read against what the source had before it began.
fn judge(shadow: &Stamped, read: &Read) -> Verdict {
    match (&shadow.value, &read.value) {
        (None, None) => Verdict::Fresh,
        (Some(_), Some(_)) if read.version < shadow.version => Verdict::Stale,
        (Some(_), Some(_)) => Verdict::Fresh,
        // A write cannot be at a version at which there was nothing afterwards, unless the source does not know it.
        (None, Some(_)) if read.version < shadow.version => Verdict::Stale,
        (None, Some(_)) => Verdict::Open,
        // It was gone at a version above: deleted in between.
        (Some(_), None) if read.version > shadow.version => Verdict::Fresh,
        (Some(_), None) => Verdict::Open,
    }
}

/// SplitMix64: numbers in a row, spread by chance.
fn mixed(n: u64) -> u64 {
    let mut z = n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
