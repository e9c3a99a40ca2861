//! Reads. Those that need a barrier share one: while it is under way others gather, and the next
//! one is for all of them. They read on job threads.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use quorate_env::{JobClass, switch};
use quorate_kv::{Error, ErrorKind, ReadLevel};
use quorate_sharding::{Answer, Failure, NamespaceKind, Operation, Request, Response};
use tokio::time::Instant;

use super::{ShardReplica, deadline};
use crate::admission::{Admission, DrainRate, Shed};
use crate::read;
use crate::replies::{Replies, answer_bytes};

/// After so long the next reads no longer wait for a barrier that is under way.
const BARRIER_PATIENCE: Duration = Duration::from_millis(50);

/// When to come again if one's own answers are in the way.
const SLOW_READER_HINT: Duration = Duration::from_millis(100);

/// Answers of one job are handed on when they have so many bytes: only then do they count as their reader's.
const ANSWERS_BYTES: usize = 1 << 20;

/// How late a simulation may have reads done.
const LATE_MAX: Duration = Duration::from_millis(60);

/// Reads that wait for a barrier.
#[derive(Default)]
pub(super) struct ReadQueue {
    waiting: Vec<WaitingRead>,
    barrier_under_way: bool,
}

/// So many gets wait whatever the rate: what one round of a barrier takes along.
const READS_ALWAYS: usize = 4096;
/// So many entries that a scan may give count as one get.
const ENTRIES_OF_A_GET: u32 = 16;

/// The reads that a shard has taken in and not answered, in gets, and how many it answers a second.
#[derive(Default)]
pub(super) struct ReadLoad {
    queued: AtomicUsize,
    drained: Mutex<Drained>,
}

#[derive(Default)]
struct Drained {
    rate: DrainRate,
    last: Option<Instant>,
}

impl ReadLoad {
    /// Notes that reads were answered, of which the first came at `since`: from then on, or from the answers
    /// before, the shard was busy.
    fn add(&self, count: usize, since: Instant, now: Instant) {
        let mut drained = self.drained.lock();
        let busy_since = drained.last.map_or(since, |last| last.max(since));
        drained.rate.add(count, now - busy_since);
        drained.last = Some(now);
    }
}

/// A read's part in its shard's load, while it waits.
struct Counted {
    load: Arc<ReadLoad>,
    gets: usize,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.load.queued.fetch_sub(self.gets, Ordering::Relaxed);
    }
}

struct WaitingRead {
    request: Request,
    since: Instant,
    replies: Replies,
    counted: Counted,
}

/// What a read counts for, in gets.
fn gets(request: &Request) -> usize {
    match request.operation {
        Operation::Scan { limit, .. } => 1 + (limit / ENTRIES_OF_A_GET).min(256) as usize,
        _ => 1,
    }
}

impl WaitingRead {
    fn deadline(&self) -> Instant {
        deadline(self.since, &self.request)
    }
}

impl ShardReplica {
    pub(super) fn submit_reads(self: &Arc<Self>, reads: Vec<Request>, replies: &Replies) {
        if reads.is_empty() {
            return;
        }
        if let Err(failure) = self.admit_reads(&reads, replies) {
            let refuse = |r: Request| (r.request_id, Err(failure.clone()));
            return replies.send(reads.into_iter().map(refuse).collect());
        }
        let since = Instant::now();
        let waiting = |request: Request| {
            let load = Arc::clone(&self.read_load);
            let gets = gets(&request);
            load.queued.fetch_add(gets, Ordering::Relaxed);
            WaitingRead {
                request,
                since,
                replies: replies.clone(),
                counted: Counted { load, gets },
            }
        };
        let (ready, behind): (Vec<_>, Vec<_>) = reads
            .into_iter()
            .partition(|request| self.can_read_now(request));
        if !ready.is_empty() {
            self.run_reads(ready.into_iter().map(waiting).collect());
        }
        if behind.is_empty() {
            return;
        }
        let idle = {
            let mut queue = self.reads.lock();
            queue.waiting.extend(behind.into_iter().map(waiting));
            !std::mem::replace(&mut queue.barrier_under_way, true)
        };
        if idle {
            let replica = Arc::clone(self);
            self.context
                .raft_runtime
                .spawn(async move { replica.run_barriers().await });
        }
    }

    /// Whether these reads, which came together, are taken in.
    fn admit_reads(&self, reads: &[Request], replies: &Replies) -> Result<(), Failure> {
        if replies.is_full() {
            let message = "this connection has many answers that it does not take: read them first";
            return Err(self.shed(Shed::SlowReader, reads.len(), message, SLOW_READER_HINT));
        }
        let queued = self.read_load.queued.load(Ordering::Relaxed);
        if queued <= READS_ALWAYS {
            return Ok(());
        }
        let admission = Admission {
            delay_max: self.context.queue_delay_max,
            always: READS_ALWAYS,
        };
        let longest = reads.iter().map(|request| request.timeout).max();
        let drained = self.read_load.drained.lock();
        let judged = admission.judge(&drained.rate, queued, longest.unwrap_or_default());
        judged.map_err(|after| {
            let message = "the read would wait too long: the shard gets more reads than it can do";
            self.shed(Shed::ReadDelay, reads.len(), message, after)
        })
    }

    /// One barrier after the other, each for all reads that wait when it begins. One that takes
    /// long goes on by itself, so that it holds up nobody who came later.
    async fn run_barriers(self: &Arc<Self>) {
        loop {
            let reads = {
                let mut queue = self.reads.lock();
                if queue.waiting.is_empty() {
                    queue.barrier_under_way = false;
                    return;
                }
                std::mem::take(&mut queue.waiting)
            };
            let replica = Arc::clone(self);
            let mut barrier = Box::pin(async move { replica.run_barrier(reads).await });
            if tokio::time::timeout(BARRIER_PATIENCE, &mut barrier)
                .await
                .is_err()
            {
                self.context.raft_runtime.spawn(barrier);
            }
        }
    }

    /// Reads behind one barrier; a read whose time is over before the others' is answered so.
    async fn run_barrier(self: &Arc<Self>, mut reads: Vec<WaitingRead>) {
        let fail = |reads: Vec<WaitingRead>, failure: &Failure| {
            let fail = |r: WaitingRead| (r.replies, r.request.request_id, Err(failure.clone()));
            Replies::send_each(reads.into_iter().map(fail));
        };
        let now = Instant::now();
        let last = reads.iter().map(WaitingRead::deadline).max();
        let longest = last.unwrap_or(now).saturating_duration_since(now);
        let mut barrier = pin!(self.group.read_barrier(longest));
        while let Some(next) = reads.iter().map(WaitingRead::deadline).min() {
            tokio::select! {
                biased;
                passed = &mut barrier => {
                    let late = switch::delay("node.read_late_after_barrier", LATE_MAX);
                    if let Some(late) = late {
                        tokio::time::sleep(late).await;
                    }
                    return match passed {
                        Ok(_) => self.run_reads(reads),
                        Err(error) => fail(reads, &self.failure(error)),
                    };
                }
                () = tokio::time::sleep_until(next) => {
                    let (late, rest): (Vec<_>, Vec<_>) = reads.into_iter().partition(|read| read.deadline() <= next);
                    reads = rest;
                    self.context.shed.add(Shed::ReadExpired, late.len());
                    let message = "the deadline passed before the read could be linearized";
                    fail(late, &Error::new(ErrorKind::DeadlineExceeded, message).into());
                }
            }
        }
    }

    /// Whether a read's level is met by what is applied here; one that can't be met at all is
    /// sorted out when it is read.
    fn can_read_now(&self, request: &Request) -> bool {
        match request.operation.level() {
            Some(ReadLevel::Stale) => true,
            Some(ReadLevel::AtLeast(_)) if switch::bug("token_not_looked_at") => true,
            Some(ReadLevel::AtLeast(token)) => {
                !self.machine.is_installing() && self.machine.version() >= token.version
            }
            _ => false,
        }
    }

    fn run_reads(self: &Arc<Self>, reads: Vec<WaitingRead>) {
        let replica = Arc::clone(self);
        let job = move || {
            let (count, first) = reads.iter().fold(
                (0, None),
                |(count, first): (usize, Option<Instant>), read| {
                    let first = first.map_or(read.since, |first| first.min(read.since));
                    (count + read.counted.gets, Some(first))
                },
            );
            let mut now = Instant::now();
            let (mut answers, mut bytes) = (Vec::with_capacity(reads.len()), 0);
            for read in reads {
                let answer = replica.answer_in_time(&read, now);
                now = Instant::now();
                let took = now.saturating_duration_since(read.since);
                replica.context.latencies.reads.add(took, 1);
                bytes += answer_bytes(&answer);
                answers.push((read.replies, read.request.request_id, answer));
                if bytes >= ANSWERS_BYTES {
                    Replies::send_each(answers.drain(..));
                    bytes = 0;
                }
            }
            // Noted before the last are answered: who reads again at once is judged by it.
            replica
                .read_load
                .add(count, first.unwrap_or(now), Instant::now());
            Replies::send_each(answers.into_iter());
        };
        self.context.env.jobs.spawn(JobClass::Read, Box::new(job));
    }

    /// Reads, unless nobody waits for it any more or its answer could not be kept.
    fn answer_in_time(&self, read: &WaitingRead, now: Instant) -> Response {
        if read.deadline() <= now {
            self.context.shed.add(Shed::ReadExpired, 1);
            let message = "no time was left to read it";
            return Err(Error::new(ErrorKind::DeadlineExceeded, message).into());
        }
        if read.replies.is_full() {
            let message = "this connection has many answers that it does not take: read them first";
            return Err(self.shed(Shed::SlowReader, 1, message, SLOW_READER_HINT));
        }
        self.read(&read.request.operation)
    }

    fn read(&self, operation: &Operation) -> Response {
        let installs = self.machine.installs();
        let answer = self.read_applied(operation)?;
        // Half of a snapshot is no state of the shard, whatever the level.
        if installs % 2 == 1 || installs != self.machine.installs() {
            let message = "this replica is receiving a snapshot: read from another";
            let error = Error::new(ErrorKind::Unavailable, message);
            return Err(error.with_retry_after(Duration::from_millis(100)).into());
        }
        Ok(answer)
    }

    fn read_applied(&self, operation: &Operation) -> Response {
        if let Some(ReadLevel::AtLeast(token)) = operation.level() {
            token.check(&self.domain())?;
            // In a wide namespace a token ahead of this shard is another shard's, and the barrier
            // before this read was more than it asks for.
            let compact = self.machine.kind() == NamespaceKind::Compact;
            if compact && self.machine.version() < token.version {
                let message = "the token is ahead of everything that this namespace has committed";
                return Err(Error::new(ErrorKind::Unavailable, message).into());
            }
        }
        match operation {
            Operation::Get { key, .. } => {
                let encoded = self.machine.kind().encoding().encode(key);
                if !self.shard().contains(&encoded) {
                    return Err(self.out_of_range());
                }
                Ok(Answer::Entry(read::get(&self.machine, key, &encoded)?))
            }
            Operation::Scan {
                start,
                end,
                limit,
                limit_bytes,
                reverse,
                ..
            } => {
                let bounds = read::ScanBounds {
                    start,
                    end,
                    limit: *limit as usize,
                    limit_bytes: *limit_bytes as usize,
                    reverse: *reverse,
                };
                Ok(read::scan(&self.machine, &bounds)?)
            }
            _ => {
                Err(Error::new(ErrorKind::Unsupported, "this server has no such operation").into())
            }
        }
    }
}
