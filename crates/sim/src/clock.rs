//! The clocks of one node: they go at the pace that its host gives them, and may be set wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use quorate_env::Clock;

/// The calendar time when a simulation begins: 2026-01-01.
const ORIGIN_UNIX_MS: i64 = 1_767_225_600_000;

/// A node's clocks. Clones are the same clocks.
#[derive(Debug, Clone, Default)]
pub struct NodeClock {
    micros: Arc<AtomicU64>,
    /// What the calendar is wrong by.
    off_ms: Arc<AtomicI64>,
    slept_micros: Arc<AtomicU64>,
}

impl NodeClock {
    /// Time goes on.
    pub fn advance(&self, by: Duration) {
        let micros = u64::try_from(by.as_micros()).unwrap_or(u64::MAX);
        self.micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// The machine slept.
    pub fn sleep(&self, by: Duration) {
        let micros = u64::try_from(by.as_micros()).unwrap_or(u64::MAX);
        self.slept_micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// The calendar jumps.
    pub fn jump(&self, by_ms: i64) {
        self.off_ms.fetch_add(by_ms, Ordering::Relaxed);
    }

    /// The calendar is set right.
    pub fn set_right(&self) {
        self.off_ms.store(0, Ordering::Relaxed);
    }
}

impl Clock for NodeClock {
    fn now(&self) -> Duration {
        Duration::from_micros(self.micros.load(Ordering::Relaxed))
    }

    fn unix_ms(&self) -> u64 {
        let since = (self.micros.load(Ordering::Relaxed) / 1000) as i64;
        let since = since + (self.slept_micros.load(Ordering::Relaxed) / 1000) as i64;
        (ORIGIN_UNIX_MS + since + self.off_ms.load(Ordering::Relaxed)).max(0) as u64
    }

    fn slept(&self) -> Option<Duration> {
        Some(Duration::from_micros(
            self.slept_micros.load(Ordering::Relaxed),
        ))
    }
}
