//! Whether a queue takes more work: not how much waits counts, but for how long.
//!
//! A queue knows what it gave away lately while it was busy ([`DrainRate`]), so it can tell what waits how long
//! before a newcomer is served ([`Admission::judge`]). Who would wait too long is refused at the door: that costs
//! least, no work is lost that was begun, and what was taken in ends in its time. The refusal says when to come
//! again, from the same measurement.
//!
//! ```text
//! wait = what waits ÷ drain rate        refused if  wait > delay_max, or half of the request's time
//!                                       never if what waits fits the next command anyway
//! ```
//!
//! The delay is bounded where it arises, as CoDel does (Nichols and Jacobson, 2012), but told in advance, which a
//! router with its varying links can't: a shard drains its queue command by command, at a rate that it measures.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// In so much busy time what was measured counts half.
const HALF_LIFE: Duration = Duration::from_millis(250);
/// The bounds of what is said about when to come again.
const HINT_MIN: Duration = Duration::from_millis(10);
const HINT_MAX: Duration = Duration::from_secs(1);

/// How much a queue gives away a second, as measured while it was busy.
#[derive(Debug, Default)]
pub(crate) struct DrainRate {
    units: f64,
    seconds: f64,
}

impl DrainRate {
    /// Notes that so much was given away, in so much busy time.
    pub(crate) fn add(&mut self, units: usize, took: Duration) {
        let seconds = took.as_secs_f64();
        let kept = 0.5_f64.powf(seconds / HALF_LIFE.as_secs_f64());
        self.units = self.units * kept + units as f64;
        self.seconds = self.seconds * kept + seconds;
    }

    /// How long it takes to give so much away; `None` as long as that is not known.
    pub(crate) fn time_for(&self, units: usize) -> Option<Duration> {
        let seconds = self.seconds * units as f64 / self.units;
        (self.units > 0.0).then(|| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
    }
}

/// What a queue takes in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Admission {
    /// Nobody is taken who would wait longer.
    pub delay_max: Duration,
    /// So much may wait whatever the rate.
    pub always: usize,
}

impl Admission {
    /// Judges a newcomer who has so much time, behind so much that waits.
    ///
    /// # Errors
    /// When to come again.
    pub(crate) fn judge(
        &self,
        rate: &DrainRate,
        waiting: usize,
        timeout: Duration,
    ) -> Result<(), Duration> {
        if waiting <= self.always {
            return Ok(());
        }
        match rate.time_for(waiting) {
            Some(wait) if wait > self.delay_max.min(timeout / 2) => Err(hint(wait)),
            _ => Ok(()),
        }
    }
}

/// When to come again after a refusal, if what waits takes so long.
pub(crate) fn hint(wait: Duration) -> Duration {
    wait.clamp(HINT_MIN, HINT_MAX)
}

/// Why work was turned away, or thrown away unserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shed {
    /// A write that would have waited too long in its shard's queue.
    WriteDelay,
    /// A write for which the queues had no room.
    WriteBytes,
    /// A write while the engine was behind.
    EngineBehind,
    /// A read that would have waited too long.
    ReadDelay,
    /// A read whose connection does not take the answers that it has.
    SlowReader,
    /// A write whose time was over before it was proposed.
    WriteExpired,
    /// A read whose time was over before it was done.
    ReadExpired,
}

impl Shed {
    /// All of them.
    pub const ALL: [Shed; 7] = [
        Shed::WriteDelay,
        Shed::WriteBytes,
        Shed::EngineBehind,
        Shed::ReadDelay,
        Shed::SlowReader,
        Shed::WriteExpired,
        Shed::ReadExpired,
    ];

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Shed::WriteDelay => "write_delay",
            Shed::WriteBytes => "write_bytes",
            Shed::EngineBehind => "engine_behind",
            Shed::ReadDelay => "read_delay",
            Shed::SlowReader => "slow_reader",
            Shed::WriteExpired => "write_expired",
            Shed::ReadExpired => "read_expired",
        }
    }
}

/// How much a node shed since it was opened, by reason.
#[derive(Debug, Default)]
pub struct ShedCounts([AtomicU64; Shed::ALL.len()]);

impl ShedCounts {
    pub(crate) fn add(&self, why: Shed, count: usize) {
        self.0[why as usize].fetch_add(count as u64, Ordering::Relaxed);
    }

    /// How often, for this reason.
    pub fn get(&self, why: Shed) -> u64 {
        self.0[why as usize].load(Ordering::Relaxed)
    }
}
