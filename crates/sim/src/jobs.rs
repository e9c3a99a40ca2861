//! The background jobs of one node, in simulated time.
//!
//! Each class has workers, as threads would be: tasks that take a job, wait as long as the seed says it takes,
//! and run it. A job that waits for others starts them itself, one at a time, in the seed's order.
//!
//! That is not enough where a job waits for time to pass, as the log's writer does on a full disk: while it
//! waits, others must go on, and they may wait for it. So while the disk of a node is bounded its jobs run on
//! threads, of which exactly one goes at any time, and a job that waits gives the baton back.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use quorate_env::{Clock, Event, Job, JobClass, Jobs, Random};
use tokio::runtime::Handle;
use tokio::sync::Notify;

use crate::clock::NodeClock;

/// All classes, with their workers and how long a job takes at most, in milliseconds.
const CLASSES: [(JobClass, usize, u64); 7] = [
    (JobClass::Log, 2, 2),
    (JobClass::Prepare, 1, 8),
    (JobClass::Apply, 2, 2),
    (JobClass::Read, 2, 2),
    (JobClass::Control, 2, 3),
    (JobClass::Flush, 1, 8),
    (JobClass::Compaction, 1, 12),
];

/// The jobs of one life of a node. Clones are the same jobs.
#[derive(Clone)]
pub struct StepJobs {
    inner: Arc<Inner>,
}

struct Inner {
    queues: Mutex<BTreeMap<JobClass, VecDeque<Job>>>,
    filled: BTreeMap<JobClass, Notify>,
    parked: Mutex<Vec<Arc<Baton>>>,
    random: Random,
    clock: NodeClock,
    /// Added to each job of the log, in milliseconds: the disk is slow.
    slow_ms: AtomicU64,
    on_threads: AtomicBool,
    over: AtomicBool,
}

impl StepJobs {
    /// No jobs yet.
    pub fn new(random: Random, clock: NodeClock) -> StepJobs {
        let filled = CLASSES.iter().map(|(class, ..)| (*class, Notify::new()));
        StepJobs {
            inner: Arc::new(Inner {
                queues: Mutex::default(),
                filled: filled.collect(),
                parked: Mutex::default(),
                random,
                clock,
                slow_ms: AtomicU64::new(0),
                on_threads: AtomicBool::new(false),
                over: AtomicBool::new(false),
            }),
        }
    }

    /// Starts the workers. Called inside the node's runtime.
    pub fn start(&self) {
        for (class, workers, most_ms) in CLASSES {
            for _ in 0..workers {
                tokio::spawn(self.clone().work(class, most_ms));
            }
        }
    }

    /// Makes syncs take this much longer.
    pub fn set_slow(&self, slow_ms: u64) {
        self.inner.slow_ms.store(slow_ms, Ordering::Relaxed);
    }

    /// Jobs may have to wait for time to pass from now on.
    pub fn set_on_threads(&self, on: bool) {
        self.inner.on_threads.store(on, Ordering::Relaxed);
    }

    /// The node died: no job is run any more.
    pub fn end(&self) {
        self.inner.over.store(true, Ordering::Relaxed);
        let forgotten = std::mem::take(&mut *self.inner.queues.lock());
        drop(forgotten);
        // Their threads sleep for ever: the memory of a process that was killed.
        self.inner.parked.lock().clear();
    }

    async fn work(self, class: JobClass, most_ms: u64) {
        let Some(filled) = self.inner.filled.get(&class) else {
            return;
        };
        loop {
            if !self.has(class) {
                filled.notified().await;
                continue;
            }
            let mut pause = match self.inner.random.one_in(2) {
                true => 0,
                false => self.inner.random.below(most_ms + 1),
            };
            if matches!(class, JobClass::Log | JobClass::Flush | JobClass::Prepare) {
                pause += self.inner.slow_ms.load(Ordering::Relaxed);
            }
            match pause {
                0 => tokio::task::yield_now().await,
                ms => tokio::time::sleep(Duration::from_millis(ms)).await,
            }
            if let Some(job) = self.take(class) {
                self.run(job);
            }
        }
    }

    fn has(&self, class: JobClass) -> bool {
        let queues = self.inner.queues.lock();
        queues.get(&class).is_some_and(|queue| !queue.is_empty())
    }

    fn take(&self, class: JobClass) -> Option<Job> {
        self.inner.queues.lock().get_mut(&class)?.pop_front()
    }

    /// Any job, of a class that the seed picks.
    fn take_any(&self) -> Option<Job> {
        let mut queues = self.inner.queues.lock();
        let full = queues.values_mut().filter(|queue| !queue.is_empty());
        let mut full: Vec<_> = full.collect();
        match full.len() {
            0 => None,
            count => full[self.inner.random.below(count as u64) as usize].pop_front(),
        }
    }

    fn run(&self, job: Job) {
        let threads = self.inner.on_threads.load(Ordering::Relaxed);
        if threads || !self.inner.parked.lock().is_empty() {
            let baton = Baton::start(job);
            self.step(baton);
        } else {
            job();
        }
    }

    fn step(&self, baton: Arc<Baton>) {
        if baton.go() {
            self.inner.parked.lock().push(baton);
        }
    }

    /// Lets jobs that wait look again.
    pub fn look_again(&self) {
        if self.inner.parked.lock().is_empty() {
            return;
        }
        let parked = std::mem::take(&mut *self.inner.parked.lock());
        for baton in parked {
            self.step(baton);
        }
    }

    /// Lets jobs that wait look again; whether one of them has ended, or more is to be done.
    fn others_go_on(&self) -> bool {
        let before = self.inner.parked.lock().len();
        self.look_again();
        let after = self.inner.parked.lock().len();
        after < before
            || self
                .inner
                .queues
                .lock()
                .values()
                .any(|queue| !queue.is_empty())
    }

    fn is_past(&self, end: Option<Duration>) -> bool {
        end.is_some_and(|end| self.inner.clock.now() >= end)
    }
}

impl Jobs for StepJobs {
    fn spawn(&self, class: JobClass, job: Job) {
        if self.inner.over.load(Ordering::Relaxed) {
            return;
        }
        let mut queues = self.inner.queues.lock();
        queues.entry(class).or_default().push_back(job);
        drop(queues);
        if let Some(filled) = self.inner.filled.get(&class) {
            filled.notify_one();
        }
    }

    fn wait(
        &self,
        _event: &Event,
        ready: &mut dyn FnMut() -> bool,
        timeout: Option<Duration>,
    ) -> bool {
        let end = timeout.map(|timeout| self.inner.clock.now() + timeout);
        let mine = MINE.with(|mine| mine.borrow().clone());
        loop {
            if ready() {
                return true;
            }
            if let Some(baton) = &mine {
                if self.is_past(end) {
                    return false;
                }
                baton.give_back();
                continue;
            }
            match (self.take_any(), end) {
                // It may wait for the one that waits here: so it gets a thread of its own.
                (Some(job), _) => {
                    self.step(Baton::start(job));
                    self.look_again();
                }
                (None, Some(end)) => {
                    let now = self.inner.clock.now();
                    self.inner.clock.advance(end.saturating_sub(now));
                    return ready();
                }
                (None, None) if self.others_go_on() => {}
                // The node has died, or waits for itself.
                (None, None) => panic!("{DEADLOCK}"),
            }
        }
    }
}

/// What a job says that waits in vain.
pub const DEADLOCK: &str = "a job waits, and no job is left that could end it";

thread_local! {
    static MINE: RefCell<Option<Arc<Baton>>> = const { RefCell::new(None) };
}

#[derive(Clone, Copy, PartialEq)]
enum Turn {
    Scheduler,
    Job,
    Over,
}

/// Passed between the scheduler and one job on a thread: who has it, goes.
struct Baton {
    turn: Mutex<Turn>,
    passed: Condvar,
}

impl Baton {
    fn start(job: Job) -> Arc<Baton> {
        let baton = Arc::new(Baton {
            turn: Mutex::new(Turn::Scheduler),
            passed: Condvar::new(),
        });
        let mine = Arc::clone(&baton);
        let runtime = Handle::try_current();
        std::thread::spawn(move || {
            let _inside = runtime.as_ref().map(Handle::enter);
            MINE.with(|place| *place.borrow_mut() = Some(Arc::clone(&mine)));
            mine.await_turn(Turn::Job);
            // A panic is noted by the hook of the process.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
            mine.pass(Turn::Over);
        });
        baton
    }

    /// Lets the job go; true if it waits, false if it has ended.
    fn go(&self) -> bool {
        self.pass(Turn::Job);
        let mut turn = self.turn.lock();
        while *turn == Turn::Job {
            self.passed.wait(&mut turn);
        }
        *turn == Turn::Scheduler
    }

    fn give_back(&self) {
        self.pass(Turn::Scheduler);
        self.await_turn(Turn::Job);
    }

    fn pass(&self, to: Turn) {
        *self.turn.lock() = to;
        self.passed.notify_all();
    }

    fn await_turn(&self, mine: Turn) {
        let mut turn = self.turn.lock();
        while *turn != mine {
            self.passed.wait(&mut turn);
        }
    }
}
