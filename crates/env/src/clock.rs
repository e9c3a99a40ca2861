//! The clock seam.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// Time, monotonic and of the calendar.
pub trait Clock: Send + Sync {
    /// Time since some fixed origin; never goes back.
    fn now(&self) -> Duration;

    /// Milliseconds since 1970 UTC; may jump either way.
    fn unix_ms(&self) -> u64;

    /// How long the machine has slept in all, so that the monotonic clock stood still; none if it can't be told
    /// just now.
    fn slept(&self) -> Option<Duration> {
        Some(Duration::ZERO)
    }
}

/// The machine's clocks.
#[derive(Debug, Clone, Copy)]
pub struct RealClock {
    origin: Instant,
}

impl RealClock {
    /// A clock whose origin is now.
    pub fn new() -> Self {
        RealClock {
            origin: Instant::now(),
        }
    }
}

impl Default for RealClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for RealClock {
    fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    fn unix_ms(&self) -> u64 {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    /// The clock that goes on in sleep, less the one that does not.
    fn slept(&self) -> Option<Duration> {
        for _ in 0..SLEPT_TRIES {
            let before = clock_time(ClockId::Monotonic);
            let asleep_too = clock_time(ClockId::Boottime);
            let after = clock_time(ClockId::Monotonic);
            if after.saturating_sub(before) < SLEPT_ERROR {
                return Some(asleep_too.saturating_sub(after));
            }
        }
        None
    }
}

/// Two clocks can't be read in one moment: how far apart the readings may be...
const SLEPT_ERROR: Duration = Duration::from_micros(500);
/// ... and how often that is tried.
const SLEPT_TRIES: u32 = 8;

fn clock_time(id: ClockId) -> Duration {
    let time = clock_gettime(id);
    Duration::new(time.tv_sec.max(0) as u64, time.tv_nsec.max(0) as u32)
}
