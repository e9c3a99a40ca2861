//! The clock seam.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Time, monotonic and of the calendar.
pub trait Clock: Send + Sync {
    /// Time since some fixed origin; never goes back.
    fn now(&self) -> Duration;

    /// Milliseconds since 1970 UTC; may jump either way.
    fn unix_ms(&self) -> u64;
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
}
