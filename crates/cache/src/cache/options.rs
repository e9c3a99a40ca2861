//! How a cache behaves: plain data, with defaults.

use std::time::Duration;

use super::MeterOptions;

/// No value is kept longer than this, whatever is asked: 10 years.
pub(super) const TTL_MAX: Duration = Duration::from_secs(10 * 366 * 86_400);

/// The settings of a [`Cache`](crate::Cache). All times may be zero, which turns off what they are for.
#[derive(Debug, Clone, PartialEq)]
pub struct CacheOptions {
    /// How long after it was asked for a value is served without being loaded anew (5 min). Zero: nothing is
    /// kept. More than ten years are ten years.
    pub ttl: Duration,
    /// The same in the tier of this process, if that is less (1 min): other processes' writes are seen there
    /// only when it has passed, at levels that name no token or bound.
    pub local_ttl: Duration,
    /// The same for keys that the source does not have (5 s).
    pub negative_ttl: Duration,
    /// By which part a TTL is shortened at most, by chance, from 0 to 1 (0.1): so that what was loaded together
    /// does not expire together.
    pub jitter: f64,
    /// A value that expires in less than this is loaded anew in the background when it is read (zero: off).
    pub refresh_ahead: Duration,
    /// For so long after it has expired a value is served, and loaded anew in the background (zero: off).
    pub stale_while_revalidate: Duration,
    /// For so long after it has expired a value is served if the source fails, or does not answer within
    /// `soft_timeout` (zero: off). From the tier of this process, else from the remote one, as long as that keeps it.
    pub fail_safe: Duration,
    /// How long a read that could serve what has expired waits for the source (100 ms).
    pub soft_timeout: Duration,
    /// How long any other read waits (5 s). The load goes on.
    pub hard_timeout: Duration,
    /// How long a load may take (30 s).
    pub load_timeout: Duration,
    /// A process that loads a key keeps others from it for so long at most, if the remote tier can tell them (zero: off).
    /// They wait for what it puts there. Should be above what a load usually takes, and below `hard_timeout`.
    pub load_lease: Duration,
    /// How long the remote tier may take to answer (250 ms).
    pub remote_timeout: Duration,
    /// After so many failures in a row the remote tier is left alone (5)...
    pub breaker_failures: u32,
    /// ...for so long (2 s); then one call tries it.
    pub breaker_pause: Duration,
    /// The longest key, in bytes (4,096).
    pub key_bytes_max: usize,
    /// The largest value that is kept, in bytes (1 MiB). Larger ones are loaded each time.
    pub value_bytes_max: usize,
    /// Samples reads, and holds them against the source (none).
    pub meter: Option<MeterOptions>,
}

impl Default for CacheOptions {
    fn default() -> Self {
        CacheOptions {
            ttl: Duration::from_secs(300),
            local_ttl: Duration::from_secs(60),
            negative_ttl: Duration::from_secs(5),
            jitter: 0.1,
            refresh_ahead: Duration::ZERO,
            stale_while_revalidate: Duration::ZERO,
            fail_safe: Duration::ZERO,
            soft_timeout: Duration::from_millis(100),
            hard_timeout: Duration::from_secs(5),
            load_timeout: Duration::from_secs(30),
            load_lease: Duration::ZERO,
            remote_timeout: Duration::from_millis(250),
            breaker_failures: 5,
            breaker_pause: Duration::from_secs(2),
            key_bytes_max: 4096,
            value_bytes_max: 1 << 20,
            meter: None,
        }
    }
}

impl CacheOptions {
    /// How long something loaded is kept, shortened by `chance`, a number from 0 to 1.
    pub(super) fn ttl_us(&self, is_there: bool, is_local: bool, chance: f64) -> u64 {
        let mut ttl = match is_there {
            true => self.ttl,
            false => self.negative_ttl.min(self.ttl),
        };
        if is_local {
            ttl = ttl.min(self.local_ttl);
        }
        let ttl = micros(ttl.min(TTL_MAX));
        // What is no number is 0 as an integer.
        let shorter = (ttl as f64 * self.jitter.clamp(0.0, 1.0) * chance) as u64;
        ttl - shorter.min(ttl)
    }
}

pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
