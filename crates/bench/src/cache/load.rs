//! One cell: readers and writers on a cache, in one kind of weather, for a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use quorate_kv::BoxFuture;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::PROCESSES;
use super::dice::{Dice, Zipf};
use super::rows::Subject;
use super::truth::{Promise, Reach, Truth, Verdict};
use super::weather::Fault;

/// What strikes once, in the middle: such as a failover.
pub type Strike = Box<dyn FnOnce() -> BoxFuture<'static, ()> + Send>;

/// How much is done.
#[derive(Debug, Clone)]
pub struct Cell {
    /// Tasks that read.
    pub readers: usize,
    /// Tasks that write, about 300 times a second each.
    pub writers: usize,
    /// It ends after this time...
    pub duration: Duration,
    /// ...or after so many reads.
    pub reads_max: u64,
    /// Where chance begins.
    pub seed: u64,
    /// How long what is left behind has to become right.
    pub rest: Duration,
}

/// What was found.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Answers.
    pub reads: u64,
    /// Those whose read began within 10 ms of an acknowledged write to its key.
    pub near: u64,
    /// Stale ones.
    pub stale: u64,
    /// Those that were staler than promised.
    pub broken: u64,
    /// Stale ones that had been deleted.
    pub resurrected: u64,
    /// Those that missed a write of the process that read.
    pub own_missed: u64,
    /// Answers that are no value of their key.
    pub foreign: u64,
    /// Answers that the source gave.
    pub misses: u64,
    /// Reads without an answer.
    pub errors: u64,
    /// Writes that were acknowledged.
    pub writes: u64,
    /// Writes that failed.
    pub write_errors: u64,
    /// Keys that stayed wrong when nobody wrote any more.
    pub stuck: u64,
    /// Loads of the source, of one key each.
    pub loads: u64,
    /// How long stale answers had been so, in microseconds.
    pub staleness: Histogram<u64>,
    /// How long answers took, in nanoseconds; of one in eight.
    pub latency: Histogram<u64>,
    /// How long it ran.
    pub elapsed: Duration,
}

impl Default for Outcome {
    fn default() -> Self {
        Outcome::new()
    }
}

impl Outcome {
    /// Nothing yet.
    pub fn new() -> Self {
        // Three digits are always possible.
        let histogram = || Histogram::new(3).expect("three digits");
        Outcome {
            reads: 0,
            near: 0,
            stale: 0,
            broken: 0,
            resurrected: 0,
            own_missed: 0,
            foreign: 0,
            misses: 0,
            errors: 0,
            writes: 0,
            write_errors: 0,
            stuck: 0,
            loads: 0,
            staleness: histogram(),
            latency: histogram(),
            elapsed: Duration::ZERO,
        }
    }

    /// Takes in another one's counts; `elapsed` is the sum.
    pub fn merge(&mut self, other: &Outcome) {
        self.reads += other.reads;
        self.near += other.near;
        self.stale += other.stale;
        self.broken += other.broken;
        self.resurrected += other.resurrected;
        self.own_missed += other.own_missed;
        self.foreign += other.foreign;
        self.misses += other.misses;
        self.errors += other.errors;
        self.writes += other.writes;
        self.write_errors += other.write_errors;
        self.stuck += other.stuck;
        self.loads += other.loads;
        self.elapsed += other.elapsed;
        for (of, other) in [
            (&mut self.staleness, &other.staleness),
            (&mut self.latency, &other.latency),
        ] {
            // Both grow by themselves.
            let _ = of.add(other);
        }
    }

    fn take(&mut self, verdict: Verdict) {
        self.reads += 1;
        match verdict {
            Verdict::Fresh => {}
            Verdict::Foreign => self.foreign += 1,
            Verdict::Stale(stale) => {
                self.stale += 1;
                self.broken += u64::from(stale.is_broken);
                self.resurrected += u64::from(stale.is_resurrected);
                self.own_missed += u64::from(stale.misses_own);
                note(&mut self.staleness, stale.nanos / 1_000);
            }
        }
    }
}

/// It grows as it has to, which `saturating_record` does not do.
fn note(histogram: &mut Histogram<u64>, value: u64) {
    // It refuses nothing while there is memory.
    let _ = histogram.record(value);
}

/// One cell under way.
struct Running {
    subject: Arc<dyn Subject>,
    truth: Arc<Truth>,
    promise: Option<Promise>,
    zipf: Zipf,
    reads: AtomicU64,
    is_over: AtomicBool,
}

/// Runs a cell on a multi-threaded runtime. Of a subject without a promise no answer is broken.
pub async fn run(
    cell: &Cell,
    subject: Arc<dyn Subject>,
    truth: Arc<Truth>,
    promise: Option<Promise>,
    strike: Option<Strike>,
) -> Outcome {
    let running = Arc::new(Running {
        zipf: Zipf::new(truth.len()),
        subject,
        truth,
        promise,
        reads: AtomicU64::new(0),
        is_over: AtomicBool::new(false),
    });
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for task in 0..cell.readers + cell.writers {
        let running = running.clone();
        let dice = Dice::new(cell.seed.wrapping_mul(1_000).wrapping_add(task as u64));
        match task < cell.readers {
            true => tasks.spawn(running.read(task, dice)),
            false => tasks.spawn(running.write(task, dice)),
        };
    }
    running.conduct(cell, began, strike).await;
    let mut outcome = Outcome::new();
    while let Some(done) = tasks.join_next().await {
        match done {
            Ok(done) => outcome.merge(&done),
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }
    outcome.elapsed = began.elapsed();
    outcome.loads = running.truth.loads();
    running.truth.weather().calm();
    outcome.stuck = running.stuck(cell.rest).await;
    outcome
}

impl Running {
    /// Ends the cell in time; lets faults come and go until then.
    async fn conduct(&self, cell: &Cell, began: Instant, mut strike: Option<Strike>) {
        const STEP: Duration = Duration::from_millis(5);
        let weather = self.truth.weather();
        while began.elapsed() < cell.duration && self.reads.load(Relaxed) < cell.reads_max {
            weather.turn(began.elapsed());
            if began.elapsed() > cell.duration / 2
                && let Some(strike) = strike.take()
            {
                strike().await;
            }
            sleep(STEP).await;
        }
        self.is_over.store(true, Relaxed);
    }

    async fn read(self: Arc<Self>, task: usize, mut dice: Dice) -> Outcome {
        /// Hits never wait: others want to run too.
        const TURN: u64 = 16;
        let mut outcome = Outcome::new();
        let process = task % PROCESSES;
        while !self.is_over.load(Relaxed) {
            for turn in 0..TURN {
                let key = self.zipf.key(&mut dice);
                let sight = self.truth.before(key);
                let began = (turn % 8 == 0).then(Instant::now);
                let answer = self.subject.get(process, key).await;
                if let Some(began) = began {
                    note(&mut outcome.latency, began.elapsed().as_nanos() as u64);
                }
                let Ok(answer) = answer else {
                    outcome.errors += 1;
                    continue;
                };
                let value = answer.value.as_ref();
                let promise = self.promise.as_ref();
                outcome.take(self.truth.judge(key, process, &sight, value, promise));
                outcome.near += u64::from(sight.is_near);
                outcome.misses += u64::from(answer.is_miss);
            }
            self.reads.fetch_add(TURN, Relaxed);
            tokio::task::yield_now().await;
        }
        outcome
    }

    async fn write(self: Arc<Self>, task: usize, mut dice: Dice) -> Outcome {
        let mut outcome = Outcome::new();
        while !self.is_over.load(Relaxed) {
            sleep(Duration::from_micros(dice.below(3_000))).await;
            let key = self.zipf.key(&mut dice);
            let process = (task + dice.below(PROCESSES as u64) as usize) % PROCESSES;
            let Some(write) = self.truth.begin(key, process, dice.below(10) == 0) else {
                return outcome;
            };
            let is_killed = self.truth.weather().fault() == Fault::WriterKilled;
            let reach = if is_killed && dice.below(10) == 0 {
                self.truth.commit(&write).await;
                Ok(Reach::Nobody)
            } else {
                self.subject.put(&write).await
            };
            match reach {
                Ok(reach) => {
                    self.truth.acknowledge(&write, reach);
                    outcome.writes += 1;
                }
                Err(_) => outcome.write_errors += 1,
            }
        }
        outcome
    }

    /// The keys that are wrong in some process though nobody writes, once they have had time to become right.
    async fn stuck(self: &Arc<Self>, rest: Duration) -> u64 {
        let deadline = Instant::now() + rest;
        loop {
            let looked_at = Instant::now();
            let mut looks = JoinSet::new();
            for key in 0..self.truth.len() {
                let running = self.clone();
                looks.spawn(async move { running.is_wrong(key).await });
            }
            let looked = looks.join_all().await;
            let wrong = looked.into_iter().filter(|is_wrong| *is_wrong).count() as u64;
            if wrong == 0 || looked_at >= deadline {
                return wrong;
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    async fn is_wrong(&self, key: usize) -> bool {
        let sight = self.truth.at_rest(key);
        for process in 0..PROCESSES {
            let answer = self.subject.get(process, key).await;
            let value = answer.as_ref().map(|answer| answer.value.as_ref());
            let verdict = value.map(|value| self.truth.judge(key, process, &sight, value, None));
            if verdict != Ok(Verdict::Fresh) {
                return true;
            }
        }
        false
    }
}
