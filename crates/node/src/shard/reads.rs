//! Reads. Those that need a barrier share one: while it is under way others gather, and the next
//! one is for all of them. They read on job threads.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use quorate_env::{JobClass, switch};
use quorate_kv::{Error, ErrorKind, ReadLevel};
use quorate_sharding::{Answer, Failure, NamespaceKind, Operation, Request, Response};
use tokio::time::Instant;

use super::{ShardReplica, deadline};
use crate::read;
use crate::replies::Replies;

/// After so long the next reads no longer wait for a barrier that is under way.
const BARRIER_PATIENCE: Duration = Duration::from_millis(50);

/// How late a simulation may have reads done.
const LATE_MAX: Duration = Duration::from_millis(60);

/// Reads that wait for a barrier.
#[derive(Default)]
pub(super) struct ReadQueue {
    waiting: Vec<WaitingRead>,
    barrier_under_way: bool,
}

struct WaitingRead {
    request: Request,
    since: Instant,
    replies: Replies,
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
        let since = Instant::now();
        let (ready, behind): (Vec<_>, Vec<_>) = reads
            .into_iter()
            .partition(|request| self.can_read_now(request));
        if !ready.is_empty() {
            let each = ready.into_iter().map(|request| WaitingRead {
                request,
                since,
                replies: replies.clone(),
            });
            self.run_reads(each.collect());
        }
        if behind.is_empty() {
            return;
        }
        let idle = {
            let mut queue = self.reads.lock();
            let each = behind.into_iter().map(|request| WaitingRead {
                request,
                since,
                replies: replies.clone(),
            });
            queue.waiting.extend(each);
            !std::mem::replace(&mut queue.barrier_under_way, true)
        };
        if idle {
            let replica = Arc::clone(self);
            self.context
                .raft_runtime
                .spawn(async move { replica.run_barriers().await });
        }
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
                    let (late, rest) = reads.into_iter().partition(|read| read.deadline() <= next);
                    reads = rest;
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
            let answers = reads.into_iter().map(|read| {
                let answer = replica.read(&read.request.operation);
                replica.context.latencies.reads.add(read.since.elapsed(), 1);
                (read.replies, read.request.request_id, answer)
            });
            Replies::send_each(answers);
        };
        self.context.env.jobs.spawn(JobClass::Read, Box::new(job));
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
