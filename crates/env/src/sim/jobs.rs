//! Jobs without threads: they run when somebody waits, one at a time, in the seed's order.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::SimClock;
use crate::{Clock, Event, Job, JobClass, Jobs, Random};

/// The classes that have jobs waiting, with them.
type Queues = Vec<(JobClass, VecDeque<Job>)>;

/// A queue of jobs that is pumped by hand or by a wait. Clones are one queue.
#[derive(Clone)]
pub struct SimJobs {
    queues: Arc<Mutex<Queues>>,
    random: Random,
    clock: SimClock,
}

impl SimJobs {
    /// An empty queue; `random` picks which class goes next.
    pub fn new(random: Random, clock: SimClock) -> Self {
        SimJobs {
            queues: Arc::default(),
            random,
            clock,
        }
    }

    /// Runs one job; false when there is none.
    pub fn pump(&self) -> bool {
        let job = {
            let mut queues = self.queues.lock();
            queues.retain(|(_, queue)| !queue.is_empty());
            if queues.is_empty() {
                return false;
            }
            let pick = self.random.below(queues.len() as u64) as usize;
            queues[pick].1.pop_front()
        };
        if let Some(job) = job {
            job();
        }
        true
    }

    /// Forgets the jobs that wait.
    pub(super) fn clear(&self) {
        // They own what may own this queue: they are dropped when its lock is free again.
        let forgotten = std::mem::take(&mut *self.queues.lock());
        drop(forgotten);
    }

    /// Runs jobs until none is left.
    pub fn pump_all(&self) {
        while self.pump() {}
    }
}

impl Jobs for SimJobs {
    fn spawn(&self, class: JobClass, job: Job) {
        let mut queues = self.queues.lock();
        match queues.iter_mut().find(|(of, _)| *of == class) {
            Some((_, queue)) => queue.push_back(job),
            None => queues.push((class, VecDeque::from([job]))),
        }
    }

    /// Pumps until `ready`. With nothing left to run and a time-out, the clock goes forward by it;
    /// without one the caller would wait for ever, which is a bug in it, so this panics.
    fn wait(
        &self,
        _event: &Event,
        ready: &mut dyn FnMut() -> bool,
        timeout: Option<Duration>,
    ) -> bool {
        let end = timeout.map(|t| self.clock.now() + t);
        loop {
            if ready() {
                return true;
            }
            if self.pump() {
                continue;
            }
            match end {
                Some(end) => {
                    self.clock.advance(end.saturating_sub(self.clock.now()));
                    return ready();
                }
                None => panic!("deadlock: waiting, with no job left that could end it"),
            }
        }
    }
}

impl std::fmt::Debug for SimJobs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimJobs").finish_non_exhaustive()
    }
}
