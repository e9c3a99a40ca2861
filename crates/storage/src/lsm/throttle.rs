//! Slowing writers down before memory or level 0 run over.
//!
//! From a first mark on throttled writes share a rate that falls the further background work is behind, see
//! [`pace`](super::pace): so latency grows smoothly long before anything stops, and no write waits long for
//! its turn. Only where there is no memory left it waits until a flush made room.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::pace::Load;
use super::{Inner, State};
use crate::error::{Error, ErrorKind, Result};
use crate::options::WriteOptions;
use crate::planted::{self, Bug};
use crate::stats::Debt;

impl Inner {
    fn load(&self, state: &State) -> Load {
        let runs = match self.options.auto_compact {
            true => self.policy.runs_waiting(&state.levels),
            false => 0,
        };
        let active = &state.active;
        Load {
            runs,
            slow: self.options.l0_slow,
            stop: self.options.l0_stop,
            sealed: state.sealed.len(),
            waiting: self.options.memtables_waiting,
            fill: (active.size_bytes() as f64 / active.capacity().max(1) as f64).min(1.0),
            flush_bytes_per_second: self.flush_rate.load(Ordering::Relaxed) as f64,
        }
    }

    /// Notes for writers whether they have to look here at all. Called when memtables or levels
    /// changed: then the cache takes what they leave, too.
    pub(super) fn judge_speed(&self) {
        let slow = self.load(&self.state()).slows();
        self.slow.store(slow, Ordering::Relaxed);
        self.shelf.cache.rebalance();
    }

    /// Notes how fast a flush was.
    pub(super) fn note_flush(&self, bytes: u64, took: Duration) {
        // In the simulation it takes no time: then nothing is known.
        if took > Duration::ZERO {
            let rate = (bytes as f64 / took.as_secs_f64()) as u64;
            let before = self.flush_rate.load(Ordering::Relaxed);
            let mean = (before / 4).saturating_mul(3).saturating_add(rate / 4);
            self.flush_rate.store(mean.max(1), Ordering::Relaxed);
        }
    }

    /// Fails if the deadline of a write is over.
    pub(super) fn check_deadline(&self, options: WriteOptions) -> Result<()> {
        match options.deadline {
            Some(deadline) if deadline <= self.env.clock.now() => Err(Error::new(
                ErrorKind::DeadlineExceeded,
                "the deadline was over before the write was under way: it was not applied",
            )),
            _ => Ok(()),
        }
    }

    /// Waits as long as a write of this size must, or refuses it.
    pub(super) fn throttle(self: &Arc<Self>, bytes: usize, options: WriteOptions) -> Result<()> {
        let load = self.load(&self.state());
        if load.is_at_stop() || load.is_out_of_memory() {
            // A disk that did not read before may do so now; damage stays.
            let mut work = self.work.lock();
            work.unreadable.take_if(|e| e.kind() == ErrorKind::Io);
            drop(work);
            self.spawn_flush();
            self.spawn_compactions();
            // Nothing will get better where nothing works.
            self.check_stalled()?;
        }
        if load.is_out_of_memory() {
            self.wait_or_refuse(options, None, &|load| !load.is_out_of_memory())?;
        }
        let Some(rate) = load.rate() else {
            return Ok(());
        };
        let now = self.env.clock.now();
        // What is refused must not take a turn.
        if refuses(options) && self.bucket.is_behind(now) {
            return Err(busy());
        }
        let wait = self.bucket.charge(now, bytes, rate);
        if wait.is_zero() || refuses(options) {
            return Ok(());
        }
        self.wait_or_refuse(options, Some(wait), &|load| load.rate().is_none())?;
        self.check_alive(&self.work.lock())
    }

    /// Waits until the load is as wanted, or so long; not past the deadline, and not at all if the writer
    /// does not want to.
    fn wait_or_refuse(
        self: &Arc<Self>,
        options: WriteOptions,
        wait: Option<Duration>,
        wanted: &dyn Fn(Load) -> bool,
    ) -> Result<()> {
        if refuses(options) {
            return Err(busy());
        }
        let before = self.env.clock.now();
        let left = options.deadline.map(|at| at.saturating_sub(before));
        let timeout = match (wait, left) {
            (Some(wait), Some(left)) => Some(wait.min(left)),
            (one, other) => one.or(other),
        };
        let mut ready = || wanted(self.load(&self.state())) || self.check_stalled().is_err();
        self.env.jobs.wait(&self.progress, &mut ready, timeout);
        let micros = self.env.clock.now().saturating_sub(before).as_micros();
        self.counters.count_stall(micros as u64);
        self.check_deadline(options)?;
        match wait {
            // Its turn has come, whatever the others do.
            Some(_) => Ok(()),
            None => self.check_stalled(),
        }
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

    pub(super) fn debt(&self) -> Debt {
        let state = self.state();
        let memtable_bytes = state.memtable_bytes();
        let limit = self.options.memtable_size() * (self.options.memtables_waiting + 1);
        let runs = self.policy.runs_waiting(&state.levels);
        let memory = memtable_bytes as f64 / limit as f64;
        let l0 = runs as f64 / self.options.l0_stop as f64;
        Debt {
            memtable_bytes,
            compaction_bytes: self.policy.debt_bytes(&state.levels),
            l0_files: state.levels.level(0).len() as u64,
            pressure: memory.max(l0),
        }
    }
}

/// Whether a write does not want to wait.
fn refuses(options: WriteOptions) -> bool {
    options.refuse_if_busy && !planted::is_on(Bug::BusyIsWaitedFor)
}

fn busy() -> Error {
    let text = "flushes and compaction are behind: the write was not applied";
    Error::new(ErrorKind::Busy, text)
}
