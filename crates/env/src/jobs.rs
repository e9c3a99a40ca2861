//! Background work, and the only way to wait for other work.
//!
//! Who has work for later calls [`Jobs::spawn`]; who must wait for what others do calls
//! [`Jobs::wait`]. With [`ThreadJobs`] jobs run on threads and a wait blocks. In the simulation
//! there is one thread: a wait runs queued jobs, one at a time in an order the seed decides, until
//! what it waits for is there. So code that waits in any other way would hang there, and shows it.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
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

    /// Why no job is run any more, if that is so: one panicked.
    fn fault(&self) -> Option<&str> {
        None
    }
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

    /// Blocks this thread until `ready`, looking again at each ring; or until `in_vain`, which
    /// nobody rings for.
    fn block_until(
        &self,
        ready: &mut dyn FnMut() -> bool,
        timeout: Option<Duration>,
        in_vain: &dyn Fn() -> bool,
    ) -> bool {
        let end = timeout.map(|t| Instant::now() + t);
        loop {
            let slice = Instant::now() + LOOK_AGAIN;
            let seen = *self.rung.lock();
            // Outside the lock: `ready` may take locks that a ringer holds.
            if ready() {
                return true;
            }
            let mut rung = self.rung.lock();
            if *rung != seen {
                continue;
            }
            let until = end.map_or(slice, |end| end.min(slice));
            let silent = self.bell.wait_until(&mut rung, until).timed_out();
            drop(rung);
            if silent && (in_vain() || end.is_some_and(|end| Instant::now() >= end)) {
                return ready();
            }
        }
    }
}

/// So often a wait looks whether it is in vain.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Hears of the first job that panicked, on its thread.
pub type PanicHook = Box<dyn Fn(&str) + Send + Sync>;

/// Jobs on threads: for each class a queue and its threads, which end when this is dropped. Jobs
/// still queued then are dropped without being run.
///
/// # A job that panics
///
/// A panic is a bug found, and what the job left half done is not known: a flush that is counted as
/// running and never ends, a record that never completes. Going on as if nothing had happened would
/// limp, and waiting for what the job was to do would hang. So the first panic ends them all:
///
/// - the hook is called, once. A process of its own aborts there: the disk is then as after a crash,
///   which is what recovery is made for, and other nodes take over at once;
/// - without a hook, which is how a library must behave inside its host's process, no job is run any
///   more. Those queued and those that come are dropped unrun, which whoever sent them notices;
///   waits for what has not happened yet panic in their turn, instead of hanging;
///   [`Jobs::fault`] says why. The store has to be opened again.
pub struct ThreadJobs {
    queues: Vec<Arc<Queue>>,
    threads: Vec<thread::JoinHandle<()>>,
    fault: Arc<Fault>,
}

/// Set when a job has panicked.
#[derive(Default)]
struct Fault {
    why: OnceLock<String>,
    hook: Option<PanicHook>,
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
        ThreadJobs::start(compaction_threads, None)
    }

    /// The same; `hook` hears of a job that panicked, and may end the process.
    pub fn with_panic_hook(compaction_threads: usize, hook: PanicHook) -> Self {
        ThreadJobs::start(compaction_threads, Some(hook))
    }

    fn start(compaction_threads: usize, hook: Option<PanicHook>) -> Self {
        let fault = Fault {
            hook,
            ..Fault::default()
        };
        let mut jobs = ThreadJobs {
            queues: Vec::new(),
            threads: Vec::new(),
            fault: Arc::new(fault),
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
                let (queue, fault) = (Arc::clone(&queue), Arc::clone(&jobs.fault));
                let name = format!("{class:?}-{n}").to_lowercase();
                let run = move || queue.run(&fault);
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
    fn run(&self, fault: &Fault) {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return;
            }
            match state.jobs.pop_front() {
                // Dropped unrun, and outside of the lock: whoever waits for it is told.
                Some(job) if fault.why.get().is_some() => {
                    drop(state);
                    drop(job);
                    state = self.state.lock();
                }
                Some(job) => {
                    drop(state);
                    // What the job touched is not touched again: no further job is run.
                    if let Err(panic) = catch_unwind(AssertUnwindSafe(job)) {
                        fault.set(&*panic);
                    }
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

impl Fault {
    fn set(&self, panic: &(dyn Any + Send)) {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        let why = format!(
            "a job panicked on the thread {}: {}",
            thread::current().name().unwrap_or("without a name"),
            text.unwrap_or("it did not say why")
        );
        // Only the first is a bug of its own; others may follow from it.
        if self.why.set(why.clone()).is_ok()
            && let Some(hook) = &self.hook
        {
            hook(&why);
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
        let in_vain = || self.fault().is_some();
        let is_ready = event.block_until(ready, timeout, &in_vain);
        match self.fault() {
            // Where a panic unwinds already, a second one would abort the process.
            Some(why) if !is_ready && !thread::panicking() => {
                panic!("what is waited for will not happen: {why}")
            }
            _ => is_ready,
        }
    }

    fn fault(&self) -> Option<&str> {
        self.fault.why.get().map(String::as_str)
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
