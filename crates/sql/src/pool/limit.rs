//! How many may use a database at once: an adaptive limit as a pure core.
//!
//! Additive increase, multiplicative decrease, steered by how long leases are held: past the point where a
//! database is saturated, one more at a time makes all of them slower and none more done. The mean of a
//! window of holds is compared with the best that was seen. At the floor, what is measured becomes the best: so a
//! database or a use that has become slower for good is learned anew from there. The shape is that of TCP Vegas and of
//! Netflix's concurrency-limits (gradient); no clock and no lock, so it is tested against simulated servers.

use std::time::Duration;

/// Settings of the adaptive limit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LimitOptions {
    /// Never fewer at once. At least 1.
    pub floor: usize,
    /// Never more at once: the pool's size.
    pub ceiling: usize,
    /// Where to begin.
    pub start: usize,
    /// A window whose mean is so many times the best is congested. More than 1.
    pub tolerance: f64,
}

impl LimitOptions {
    /// From an eighth of `ceiling` to all of it, beginning at half.
    pub fn up_to(ceiling: usize) -> LimitOptions {
        LimitOptions {
            floor: ceiling.div_ceil(8),
            ceiling,
            start: ceiling.div_ceil(2),
            tolerance: 2.0,
        }
    }
}

/// How many holds make a window, at least.
const WINDOW_MIN: usize = 16;
/// What is left of the limit after a congested window.
const DECREASE: f64 = 0.9;

/// The limit. Invariant: `floor <= get() <= ceiling`.
#[derive(Debug)]
pub(crate) struct Limit {
    options: LimitOptions,
    limit: f64,
    best: Option<f64>,
    count: usize,
    total: f64,
    peak: usize,
}

impl Limit {
    pub fn new(options: LimitOptions) -> Limit {
        let floor = options.floor.max(1);
        let options = LimitOptions {
            floor,
            ceiling: options.ceiling.max(floor),
            tolerance: options.tolerance.max(1.0),
            ..options
        };
        Limit {
            options,
            limit: options.start.clamp(floor, options.ceiling) as f64,
            best: None,
            count: 0,
            total: 0.0,
            peak: 0,
        }
    }

    /// How many may be at it now.
    pub fn get(&self) -> usize {
        self.limit as usize
    }

    /// A lease was held for so long, while so many were, itself included.
    pub fn released(&mut self, held: Duration, in_use: usize) {
        self.count += 1;
        self.total += held.as_secs_f64();
        self.peak = self.peak.max(in_use);
        if self.count < WINDOW_MIN.max(self.get()) {
            return;
        }
        let mean = self.total / self.count as f64;
        let used = self.peak >= self.get();
        (self.count, self.total, self.peak) = (0, 0.0, 0);
        let best = self.best.map_or(mean, |best| best.min(mean));
        self.best = Some(best);
        if mean > best * self.options.tolerance {
            self.set(self.limit * DECREASE);
            if self.get() == self.options.floor {
                self.best = Some(mean);
            }
        } else if used {
            // What is not used up is not raised: it would say nothing about the database.
            self.set(self.limit + 1.0);
        }
    }

    /// The database did not answer, or refused a connection.
    pub fn failed(&mut self) {
        self.set(self.limit * DECREASE);
        (self.count, self.total, self.peak) = (0, 0.0, 0);
    }

    fn set(&mut self, limit: f64) {
        self.limit = limit.clamp(self.options.floor as f64, self.options.ceiling as f64);
    }
}
