//! How fast throttled writes may be: pure, so that it can be tried against a disk of one's own making.
//!
//! A [`Load`] says how far flushes and compaction are behind, and has a rate for all writers together,
//! which falls smoothly. A [`Bucket`] turns rates into waits: each write moves the moment forward at which
//! the next one is due, and waits for its own.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::planted::{self, Bug};

/// What writers get together when level 0 slows them down the least, in bytes a second.
const MOST_BYTES_PER_SECOND: f64 = 64e6;
/// What they get at the second mark; from there on half for each further table.
const LEAST_BYTES_PER_SECOND: f64 = 1e6;
/// Shorter waits are put off until they add up.
const LEAST_WAIT_NANOS: u64 = 1_000_000;
/// No write waits longer for its turn. What it was spared, those after it wait.
pub(super) const LONGEST_WAIT: Duration = Duration::from_millis(100);

/// How far background work is behind.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Load {
    /// Sorted runs that wait to be compacted, and the two marks that they are held against.
    pub(super) runs: usize,
    pub(super) slow: usize,
    pub(super) stop: usize,
    /// Memtables that wait to be flushed, and how many may.
    pub(super) sealed: usize,
    pub(super) waiting: usize,
    /// How full the active one is, from 0 to 1.
    pub(super) fill: f64,
    /// What flushes write in a second, as far as it is known.
    pub(super) flush_bytes_per_second: f64,
}

impl Load {
    /// Whether there is no room for what is written: writes wait for a flush.
    pub(super) fn is_out_of_memory(&self) -> bool {
        self.sealed >= self.waiting
    }

    /// Whether the runs have reached their second mark.
    pub(super) fn is_at_stop(&self) -> bool {
        self.runs >= self.stop
    }

    /// Whether the last memtable that there may be is being filled while all others wait.
    fn is_last_memtable(&self) -> bool {
        self.sealed > 0
            && self.sealed + 1 >= self.waiting
            && !planted::is_on(Bug::ThrottleIsAllOrNothing)
    }

    /// Whether throttled writes have to look at all.
    pub(super) fn slows(&self) -> bool {
        self.is_out_of_memory() || self.is_last_memtable() || self.runs >= self.slow
    }

    /// What writers get together, in bytes a second; `None` is all they want.
    pub(super) fn rate(&self) -> Option<f64> {
        // Filling it half as fast as it could be flushed: then it fills as fast as the others go.
        let memory = self.is_last_memtable().then(|| {
            let rate = self.flush_bytes_per_second * 2.0 * (1.0 - self.fill);
            rate.max(LEAST_BYTES_PER_SECOND)
        });
        let over = self.runs.checked_sub(self.slow);
        let runs = over.map(|over| {
            let steps = (self.stop - self.slow + 1) as f64;
            let rate = MOST_BYTES_PER_SECOND * (1.0 - (over + 1) as f64 / steps);
            let beyond = self.runs.saturating_sub(self.stop).min(60);
            rate.max(LEAST_BYTES_PER_SECOND / (1_u64 << beyond) as f64)
        });
        match (memory, runs) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (one, other) => one.or(other),
        }
    }
}

/// When the next write is due, in nanoseconds of the monotonic clock.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    due: AtomicU64,
}

impl Bucket {
    /// Whether a write would have to wait, whatever its size.
    pub(super) fn is_behind(&self, now: Duration) -> bool {
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let due = self.due.load(Ordering::Relaxed);
        due.saturating_sub(now) >= LEAST_WAIT_NANOS
    }

    /// Takes a write of this size in; returns how long it has to wait.
    pub(super) fn charge(&self, now: Duration, bytes: usize, rate: f64) -> Duration {
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let cost = (bytes as f64 / rate * 1e9) as u64;
        // What is due later than a second from now is forgiven: rates rise again.
        let latest = now.saturating_add(1_000_000_000);
        let next = |due: u64| Some(due.max(now).saturating_add(cost).min(latest));
        let before = self
            .due
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        let due = next(before.unwrap_or(now)).unwrap_or(now);
        match due - now {
            wait if wait < LEAST_WAIT_NANOS => Duration::ZERO,
            wait => Duration::from_nanos(wait).min(LONGEST_WAIT),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planted::is_noticed;

    /// A disk, and an engine of sizes alone, that one writer writes to as fast as it may.
    struct Plant {
        now: f64,
        flush_rate: f64,
        compact_rate: f64,
        memtable: f64,
        active: f64,
        sealed: usize,
        flushing: f64,
        runs: usize,
        compacting: Option<(usize, f64)>,
        base: f64,
    }

    impl Plant {
        fn new(flush_rate: f64, compact_rate: f64) -> Self {
            Plant {
                now: 0.0,
                flush_rate,
                compact_rate,
                memtable: 64e6,
                active: 0.0,
                sealed: 0,
                flushing: 0.0,
                runs: 0,
                compacting: None,
                base: 256e6,
            }
        }

        fn load(&self) -> Load {
            Load {
                runs: self.runs,
                slow: 12,
                stop: 24,
                sealed: self.sealed,
                waiting: 3,
                fill: (self.active / self.memtable).min(1.0),
                flush_bytes_per_second: self.flush_rate,
            }
        }

        /// Time goes by: the disk works, one compaction and one flush at a time.
        fn pass(&mut self, seconds: f64) {
            self.now += seconds;
            if self.sealed > 0 {
                self.flushing += seconds * self.flush_rate;
                if self.flushing >= self.memtable {
                    self.flushing = 0.0;
                    self.sealed -= 1;
                    self.runs += 1;
                }
            }
            if self.compacting.is_none() && self.runs >= 4 {
                // All of level 0, and level 1 with it.
                let bytes = self.runs as f64 * self.memtable + self.base;
                self.compacting = Some((self.runs, bytes));
            }
            if let Some((runs, left)) = &mut self.compacting {
                *left -= seconds * self.compact_rate;
                if *left <= 0.0 {
                    self.runs -= *runs;
                    self.compacting = None;
                }
            }
        }
    }

    /// Writes for minutes; returns the longest stall in seconds, and what was written in a second.
    fn longest_stall(mut plant: Plant) -> (f64, f64) {
        const WRITE: usize = 16 << 10;
        let bucket = Bucket::default();
        let (mut longest, mut written) = (0.0_f64, 0.0);
        while plant.now < 300.0 {
            let began = plant.now;
            while plant.load().is_out_of_memory() {
                plant.pass(1e-3);
            }
            if let Some(rate) = plant.load().rate() {
                let now = Duration::from_secs_f64(plant.now);
                plant.pass(bucket.charge(now, WRITE, rate).as_secs_f64());
            }
            longest = longest.max(plant.now - began);
            written += WRITE as f64;
            plant.active += WRITE as f64;
            if plant.active >= plant.memtable {
                plant.active = 0.0;
                plant.sealed += 1;
            }
            // The writer could do 400 MB/s.
            plant.pass(WRITE as f64 / 400e6);
        }
        (longest, written / plant.now)
    }

    fn check_stalls() -> Result<(), String> {
        for (flush_rate, compact_rate) in
            [(300e6, 200e6), (100e6, 100e6), (50e6, 30e6), (200e6, 10e6)]
        {
            let (longest, rate) = longest_stall(Plant::new(flush_rate, compact_rate));
            println!("flush {flush_rate}, compact {compact_rate}: {longest} s, {rate} B/s");
            if longest > 0.15 {
                return Err(format!(
                    "a write waited {longest} s at {flush_rate}, {compact_rate}"
                ));
            }
            if rate < 2e6 {
                return Err(format!("only {rate} bytes a second got through"));
            }
        }
        Ok(())
    }

    #[test]
    fn pace_on_slow_disks_never_stalls_long() {
        check_stalls().unwrap();
    }

    #[test]
    fn pace_check_notices_all_or_nothing() {
        assert!(is_noticed(Bug::ThrottleIsAllOrNothing, check_stalls));
    }

    #[test]
    fn pace_falls_without_leaps_as_work_falls_behind() {
        let mut load = Plant::new(100e6, 100e6).load();
        assert_eq!(load.rate(), None);
        let mut before = MOST_BYTES_PER_SECOND;
        for runs in 12..40 {
            load.runs = runs;
            let rate = load.rate().unwrap();
            assert!(
                rate < before && rate >= before / 6.0,
                "{runs}: {rate} after {before}"
            );
            before = rate;
        }
        load.runs = 0;
        load.sealed = 2;
        load.fill = 0.5;
        assert_eq!(load.rate(), Some(100e6), "half full is in balance");
        load.sealed = 3;
        assert!(load.is_out_of_memory());
    }

    #[test]
    fn pace_of_many_writers_is_one_rate() {
        let bucket = Bucket::default();
        let now = Duration::from_secs(1);
        // 1000 bytes at a million a second are a millisecond each.
        let waits: Vec<u128> = (0..3)
            .map(|_| bucket.charge(now, 1000, 1e6).as_millis())
            .collect();
        assert_eq!(waits, [1, 2, 3]);
        assert!(bucket.is_behind(now) && !bucket.is_behind(now + Duration::from_millis(3)));
        let later = now + Duration::from_millis(10);
        assert_eq!(bucket.charge(later, 100, 1e6), Duration::ZERO);
        assert_eq!(bucket.charge(later, 1 << 30, 1e6), LONGEST_WAIT);
    }
}
