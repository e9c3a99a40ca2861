//! How long requests took, in buckets that double.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The upper bound of the first bucket, in microseconds; each further one doubles it.
const FIRST_MICROS: u64 = 64;
/// So many bounded buckets: the last ends at 16.8 s.
const BUCKETS: usize = 19;

/// A histogram of durations, without a lock.
#[derive(Debug, Default)]
pub struct Latency {
    buckets: [AtomicU64; BUCKETS],
    count: AtomicU64,
    sum_micros: AtomicU64,
}

impl Latency {
    /// Adds `times` durations of this length.
    pub(crate) fn add(&self, duration: Duration, times: u64) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let steps = micros
            .div_ceil(FIRST_MICROS)
            .max(1)
            .next_power_of_two()
            .trailing_zeros();
        if let Some(bucket) = self.buckets.get(steps as usize) {
            bucket.fetch_add(times, Ordering::Relaxed);
        }
        self.count.fetch_add(times, Ordering::Relaxed);
        self.sum_micros
            .fetch_add(micros.saturating_mul(times), Ordering::Relaxed);
    }

    /// Each bucket's upper bound in seconds with how many were at most so long, ascending.
    pub fn cumulative(&self) -> Vec<(f64, u64)> {
        let mut below = 0;
        let bounds = (0..BUCKETS).map(|step| (FIRST_MICROS << step) as f64 / 1e6);
        let counts = self
            .buckets
            .iter()
            .map(|bucket| bucket.load(Ordering::Relaxed));
        bounds
            .zip(counts)
            .map(|(bound, count)| {
                below += count;
                (bound, below)
            })
            .collect()
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// All of them added up, in seconds.
    pub fn sum_seconds(&self) -> f64 {
        self.sum_micros.load(Ordering::Relaxed) as f64 / 1e6
    }
}

/// The latencies of a node, from a request's arrival to its answer.
#[derive(Debug, Default)]
pub struct Latencies {
    /// Of gets and scans.
    pub reads: Latency,
    /// Of puts, deletes, batches and compares.
    pub writes: Latency,
}
