//! Waits that double, with jitter where many might wait together.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// A wait that doubles up to a limit.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
    jitter: bool,
}

impl Backoff {
    /// With jitter: each wait is between half and the whole of its nominal length.
    pub(crate) fn new(min: Duration, max: Duration) -> Backoff {
        Backoff {
            min,
            max,
            next: min,
            jitter: true,
        }
    }

    /// Without jitter.
    pub(crate) fn exact(min: Duration, max: Duration) -> Backoff {
        Backoff {
            jitter: false,
            ..Backoff::new(min, max)
        }
    }

    /// The next wait.
    pub(crate) fn next(&mut self) -> Duration {
        let nominal = self.next;
        self.next = (self.next * 2).min(self.max);
        if !self.jitter {
            return nominal;
        }
        let drawn = RandomState::new().hash_one(0u8) % 1000;
        nominal.mul_f64(0.5 + drawn as f64 / 2000.0)
    }

    /// Begins anew.
    pub(crate) fn reset(&mut self) {
        self.next = self.min;
    }
}
