//! A clock that stands still until it is set forward.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::Clock;

/// A clock that moves only by [`SimClock::advance`]. Clones are one clock.
#[derive(Debug, Clone, Default)]
pub struct SimClock {
    nanos: Arc<AtomicU64>,
}

/// The calendar time at the clock's origin: 2026-01-01.
const ORIGIN_UNIX_MS: u64 = 1_767_225_600_000;

impl SimClock {
    /// A clock at its origin.
    pub fn new() -> Self {
        SimClock::default()
    }

    /// Sets the clock forward.
    pub fn advance(&self, by: Duration) {
        let nanos = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        self.nanos.fetch_add(nanos, Ordering::SeqCst);
    }
}

impl Clock for SimClock {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.nanos.load(Ordering::SeqCst))
    }

    fn unix_ms(&self) -> u64 {
        ORIGIN_UNIX_MS + self.nanos.load(Ordering::SeqCst) / 1_000_000
    }
}
