//! Background work, and the only way to wait for other work.
//!
//! Who has work for later calls [`Jobs::spawn`]; who must wait for what others do calls
//! [`Jobs::wait`]. With [`ThreadJobs`] jobs run on threads and a wait blocks. In the simulation
//! there is one thread: a wait runs queued jobs, one at a time in an order the seed decides, until
//! what it waits for is there. So code that waits in any other way would hang there, and shows it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// A piece of work.
pub type Job = Box<dyn FnOnce() + Send>;

/// What a job is for. Each class has threads of its own, so that none waits behind another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum JobClass {
    /// Writing and syncing a log.
    Log,
    /// Applying committed commands.
    Apply,
    /// Reads that may miss the cache.
    Read,
    /// Rare calls that block until work of the other classes is done; never called from there.
    Control,
    /// Writing memtables out.
    Flush,
    /// Merging tables; also everything that is long and can wait.
    Compaction,
}

impl JobClass {
    const ALL: [JobClass; 6] = [
        JobClass::Log,
        JobClass::Apply,
        JobClass::Read,
        JobClass::Control,
        JobClass::Flush,
        JobClass::Compaction,
    ];
}

/// Runs jobs. Two implementations: [`ThreadJobs`], [`SimJobs`](crate::sim::SimJobs).
pub trait Jobs: Send + Sync {
    /// Queues a job. Jobs of a class start in the order they came.
    fn spawn(&self, class: JobClass, job: Job);

    /// Waits until `ready` says so or `timeout` is over; returns what `ready` said last. Whoever
    /// changes what `ready` looks at calls [`Event::notify`] afterwards.
    fn wait(
        &self,
        event: &Event,
        ready: &mut dyn FnMut() -> bool,
        timeout: Option<Duration>,
    ) -> bool;
}

/// A bell: rung by whoever changed something, heard by those who wait for such a change.
#[derive(Debug, Default)]
pub struct Event {
    rung: Mutex<u64>,
    bell: Condvar,
}

impl Event {
    /// A bell that was never rung.
    pub fn new() -> Self {
        Event::default()
    }

    /// Wakes all who wait, to look again.
    pub fn notify(&self) {
        *self.rung.lock() += 1;
        self.bell.notify_all();
    }

    /// Blocks this thread until `ready`, looking again at each ring.
    fn block_until(&self, ready: &mut dyn FnMut() -> bool, timeout: Option<Duration>) -> bool {
        let end = timeout.map(|t| Instant::now() + t);
        loop {
            let seen = *self.rung.lock();
            // Outside the lock: `ready` may take locks that a ringer holds.
            if ready() {
                return true;
            }
            let mut rung = self.rung.lock();
            if *rung != seen {
                continue;
            }
            match end {
                None => self.bell.wait(&mut rung),
                Some(end) if self.bell.wait_until(&mut rung, end).timed_out() => {
                    drop(rung);
                    return ready();
                }
                Some(_) => {}
            }
        }
    }
}

/// Jobs on threads: for each class a queue and its threads, which end when this is dropped. Jobs
/// still queued then are dropped without being run.
pub struct ThreadJobs {
    queues: Vec<Arc<Queue>>,
    threads: Vec<thread::JoinHandle<()>>,
}

#[derive(Default)]
struct Queue {
    state: Mutex<QueueState>,
    filled: Condvar,
}

#[derive(Default)]
struct QueueState {
    jobs: VecDeque<Job>,
    idle: usize,
    closed: bool,
}

impl ThreadJobs {
    /// Threads for every class; `compaction_threads` for compaction, at least one.
    pub fn new(compaction_threads: usize) -> Self {
        let mut jobs = ThreadJobs {
            queues: Vec::new(),
            threads: Vec::new(),
        };
        for class in JobClass::ALL {
            let queue = Arc::new(Queue::default());
            let count = match class {
                JobClass::Log => 2,
                JobClass::Flush => 1,
                JobClass::Apply | JobClass::Read | JobClass::Control => 2,
                JobClass::Compaction => compaction_threads.max(1),
            };
            for n in 0..count {
                let queue = Arc::clone(&queue);
                let name = format!("{class:?}-{n}").to_lowercase();
                let run = move || queue.run();
                // Without its threads nothing works: to fail loudly at start is right.
                let thread = thread::Builder::new().name(name).spawn(run);
                jobs.threads
                    .push(thread.expect("the system refuses another thread"));
            }
            jobs.queues.push(queue);
        }
        jobs
    }
}

impl Queue {
    fn run(&self) {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return;
            }
            match state.jobs.pop_front() {
                Some(job) => {
                    drop(state);
                    job();
                    state = self.state.lock();
                }
                None => {
                    state.idle += 1;
                    self.filled.wait(&mut state);
                    state.idle -= 1;
                }
            }
        }
    }
}

impl Jobs for ThreadJobs {
    fn spawn(&self, class: JobClass, job: Job) {
        let queue = &self.queues[class as usize];
        let mut state = queue.state.lock();
        state.jobs.push_back(job);
        if state.idle > 0 {
            queue.filled.notify_one();
        }
    }

    fn wait(
        &self,
        event: &Event,
        ready: &mut dyn FnMut() -> bool,
        timeout: Option<Duration>,
    ) -> bool {
        event.block_until(ready, timeout)
    }
}

impl Drop for ThreadJobs {
    fn drop(&mut self) {
        for queue in &self.queues {
            queue.state.lock().closed = true;
            queue.filled.notify_all();
        }
        let me = thread::current().id();
        for thread in self.threads.drain(..) {
            // The last owner may be a job of ours: it can't wait for itself.
            if thread.thread().id() != me {
                let _ = thread.join();
            }
        }
    }
}

impl std::fmt::Debug for ThreadJobs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ThreadJobs")
            .field("threads", &self.threads.len())
            .finish_non_exhaustive()
    }
}
