//! Slowing writers down before memory or level 0 run over.
//!
//! From a first mark on each throttled write owes a time in proportion to its size and to how far
//! the mark is exceeded, and waits when it owes a millisecond; at a second mark it waits until
//! background work got somewhere. So latency grows smoothly long before anything stops.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Inner, State};
use crate::compaction::CompactionPolicy;
use crate::error::{Error, ErrorKind, Result};
use crate::stats::Debt;

/// What writers get together when they are slowed down the least, in bytes a second.
const SLOW_BYTES_PER_SECOND: f64 = 64e6;
/// What they get at least.
const LEAST_BYTES_PER_SECOND: f64 = 1e6;
const WAIT_NANOS: u64 = 1_000_000;

impl Inner {
    /// 0 below the first mark, 1 and above at the second.
    fn strain(&self, state: &State) -> f64 {
        let l0 = match self.options.auto_compact {
            true => state.levels.level(0).len() as f64,
            false => 0.0,
        };
        let (slow, stop) = (self.options.l0_slow as f64, self.options.l0_stop as f64);
        let l0 = (l0 - slow + 1.0) / (stop - slow + 1.0);
        // Memtables only stop; while one flushes another fills.
        let waiting = state.sealed.len() >= self.options.memtables_waiting;
        l0.max(f64::from(u8::from(waiting)))
    }

    /// Notes for writers whether they have to look here at all. Called when memtables or levels
    /// changed.
    pub(super) fn judge_speed(&self) {
        let slow = self.strain(&self.state()) > 0.0;
        self.slow.store(slow, Ordering::Relaxed);
    }

    /// Waits as long as a write of this size must.
    pub(super) fn throttle(self: &Arc<Self>, bytes: usize) -> Result<()> {
        let strain = self.strain(&self.state());
        if strain <= 0.0 {
            return Ok(());
        }
        if strain >= 1.0 {
            return self.stop_until_better();
        }
        let rate = (SLOW_BYTES_PER_SECOND * (1.0 - strain)).max(LEAST_BYTES_PER_SECOND);
        let nanos = (bytes as f64 / rate * 1e9) as u64;
        let owed = self.owed_nanos.fetch_add(nanos, Ordering::Relaxed) + nanos;
        if owed < WAIT_NANOS {
            return Ok(());
        }
        self.owed_nanos.fetch_sub(owed, Ordering::Relaxed);
        let before = self.env.clock.now();
        let mut better = || self.strain(&self.state()) <= 0.0 || self.check_stalled().is_err();
        let timeout = Some(Duration::from_nanos(owed));
        self.env.jobs.wait(&self.progress, &mut better, timeout);
        self.count_stall(before);
        self.check_alive(&self.work.lock())
    }

    fn stop_until_better(self: &Arc<Self>) -> Result<()> {
        let before = self.env.clock.now();
        // A disk that did not read before may do so now; damage stays.
        let mut work = self.work.lock();
        work.unreadable.take_if(|e| e.kind() == ErrorKind::Io);
        drop(work);
        self.spawn_flush();
        self.spawn_compactions();
        let mut better = || self.strain(&self.state()) < 1.0 || self.check_stalled().is_err();
        self.env.jobs.wait(&self.progress, &mut better, None);
        self.count_stall(before);
        self.check_stalled()
    }

    /// Fails if waiting is in vain: no background work will make it better.
    fn check_stalled(&self) -> Result<()> {
        let work = self.work.lock();
        self.check_alive(&work)?;
        let hopeless = [&work.full, &work.unreadable];
        match hopeless.into_iter().flatten().next() {
            Some(error) => Err(Error::clone(error)),
            None => Ok(()),
        }
    }

    fn count_stall(&self, before: Duration) {
        let micros = self.env.clock.now().saturating_sub(before).as_micros();
        self.counters.count_stall(micros as u64);
    }

    pub(super) fn debt(&self) -> Debt {
        let state = self.state();
        let memtable_bytes = state.memtable_bytes();
        let limit = self.options.memtable_bytes * (self.options.memtables_waiting + 1);
        let l0_files = state.levels.level(0).len() as u64;
        let memory = memtable_bytes as f64 / limit as f64;
        let l0 = l0_files as f64 / self.options.l0_stop as f64;
        Debt {
            memtable_bytes,
            compaction_bytes: self.policy.debt_bytes(&state.levels),
            l0_files,
            pressure: memory.max(l0),
        }
    }
}
