//! This node's replica of one shard, as requests meet it.
//!
//! Writes queue up while earlier ones are agreed upon, and leave together as one command; so the
//! number of Raft entries follows the speed of the group, not the number of clients. Reads that need
//! a barrier share one for each frame, and the group shares one round among those.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use quorate_env::JobClass;
use quorate_kv::{Domain, Error, ErrorKind, Outcome as Known, ReadLevel, Version};
use quorate_replication::{Error as GroupError, Group, Proposed};
use quorate_sharding::{
    Answer, Failure, NamespaceKind, Operation, Redirect, Request, Response, Shard,
};
use tokio::time::Instant;

use crate::command::{self, COMMAND_BYTES, WritesBuilder};
use crate::context::Context;
use crate::machine::ShardMachine;
use crate::outcome::{self, Outcome};
use crate::read;
use crate::replies::Replies;

/// After so long the next reads no longer wait for a barrier that is under way.
const BARRIER_PATIENCE: Duration = Duration::from_millis(50);
/// So many bytes of writes wait in one shard before it refuses more.
const QUEUE_BYTES: usize = 32 << 20;

/// A replica of a shard. Shared by whoever serves requests.
pub(crate) struct ShardReplica {
    pub(crate) group: Group,
    pub(crate) machine: Arc<ShardMachine>,
    context: Arc<Context>,
    queue: Mutex<Queue>,
    reads: Mutex<ReadQueue>,
}

/// Reads that wait for a barrier.
#[derive(Default)]
struct ReadQueue {
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

#[derive(Default)]
struct Queue {
    waiting: Vec<Waiting>,
    bytes: usize,
    /// Whether a command is under way; when it is done, the next one takes what waits by then.
    under_way: bool,
}

struct Waiting {
    request: Request,
    since: Instant,
    deadline: Instant,
    replies: Replies,
    /// Its time was over before the group answered.
    answered: bool,
}

impl Waiting {
    fn expire(&mut self) {
        let message = "the write was proposed and the deadline passed";
        let error = Error::new(ErrorKind::DeadlineExceeded, message).with_outcome(Known::Unknown);
        self.replies
            .send(vec![(self.request.request_id, Err(error.into()))]);
        self.answered = true;
    }
}

impl ShardReplica {
    pub(crate) fn new(
        group: Group,
        machine: Arc<ShardMachine>,
        context: Arc<Context>,
    ) -> Arc<ShardReplica> {
        Arc::new(ShardReplica {
            group,
            machine,
            context,
            queue: Mutex::default(),
            reads: Mutex::default(),
        })
    }

    fn shard(&self) -> &Shard {
        self.machine.shard()
    }

    /// Serves requests of this shard that came together.
    pub(crate) fn submit(self: &Arc<Self>, requests: Vec<Request>, replies: &Replies) {
        let mut reads = Vec::new();
        let mut failed = Vec::new();
        let mut start_writer = false;
        for request in requests {
            let id = request.request_id;
            match self.check(&request) {
                Err(failure) => failed.push((id, Err(failure))),
                Ok(()) if is_read(&request.operation) => reads.push(request),
                Ok(()) => match self.enqueue(request, replies) {
                    Ok(idle) => start_writer |= idle,
                    Err(failure) => failed.push((id, Err(failure))),
                },
            }
        }
        if start_writer {
            let replica = Arc::clone(self);
            self.context
                .raft_runtime
                .spawn(async move { replica.run_writes().await });
        }
        replies.send(failed);
        self.submit_reads(reads, replies);
    }

    fn check(&self, request: &Request) -> Result<(), Failure> {
        let limits = &self.context.limits;
        if request.epoch.range != self.shard().epoch.range {
            return Err(self.wrong_epoch());
        }
        let check = match &request.operation {
            Operation::Get { key, .. } | Operation::Delete { key, .. } => limits.check_key(key),
            Operation::Put { key, value, .. } => limits
                .check_key(key)
                .and_then(|()| limits.check_value(value)),
            Operation::Batch { mutations } if mutations.is_empty() => {
                Err(Error::new(ErrorKind::InvalidArgument, "the batch is empty"))
            }
            Operation::Batch { mutations } => read::check_mutations(limits, mutations.iter()),
            Operation::Compare {
                conditions,
                then_ops,
                else_ops,
            } => read::check_compare(limits, conditions, then_ops, else_ops),
            Operation::Scan { limit: 0, .. } => Err(Error::new(
                ErrorKind::InvalidArgument,
                "a scan's limit is at least 1",
            )),
            _ => Ok(()),
        };
        check?;
        // One that does not fit must not share a command with others: all would be refused.
        let (bytes, most) = (
            command::size_bytes(&request.operation),
            command::write_bytes_max(limits),
        );
        if bytes > most {
            let message = format!("the write takes {bytes} bytes, more than the limit of {most}");
            return Err(Error::new(ErrorKind::TooLarge, message).into());
        }
        Ok(())
    }

    /// Queues a write; true if nobody works on the queue yet.
    fn enqueue(&self, request: Request, replies: &Replies) -> Result<bool, Failure> {
        if !self.group.is_leader() {
            return Err(self.not_leader());
        }
        if self.context.disk_full.load(Ordering::Relaxed) {
            let message = "the disk is nearly full: free space; reads go on";
            return Err(Error::new(ErrorKind::DiskFull, message).into());
        }
        if self.context.engine_behind.load(Ordering::Relaxed) {
            let message = "this node's storage engine is behind with its flushes";
            let error = Error::new(ErrorKind::Overloaded, message);
            return Err(error.with_retry_after(Duration::from_millis(200)).into());
        }
        let bytes = command::size_bytes(&request.operation);
        let mut queue = self.queue.lock();
        if queue.bytes + bytes > QUEUE_BYTES {
            let error = Error::new(ErrorKind::Overloaded, "the shard's queue of writes is full");
            return Err(error.with_retry_after(Duration::from_millis(50)).into());
        }
        queue.bytes += bytes;
        let since = Instant::now();
        let deadline = deadline(since, &request);
        queue.waiting.push(Waiting {
            since,
            request,
            deadline,
            replies: replies.clone(),
            answered: false,
        });
        let idle = !std::mem::replace(&mut queue.under_way, true);
        Ok(idle)
    }

    /// Proposes what waits, command after command, until nothing does.
    async fn run_writes(&self) {
        loop {
            let (mut batch, command) = {
                let mut queue = self.queue.lock();
                match self.take_command(&mut queue) {
                    Some(taken) => taken,
                    None => {
                        queue.under_way = false;
                        return;
                    }
                }
            };
            if batch.is_empty() {
                continue;
            }
            let proposed = self.propose(command, &mut batch).await;
            match proposed.map(|proposed| outcome::decode(proposed.result)) {
                Ok(Ok(outcomes)) if outcomes.len() == batch.len() => {
                    self.answer(batch, outcomes);
                }
                Ok(_) => {
                    let error =
                        Error::new(ErrorKind::Internal, "the outcomes do not fit the writes");
                    self.fail(batch, &error.with_outcome(Known::Unknown).into());
                }
                Err(error) => self.fail(batch, &self.failure(error)),
            }
        }
    }

    /// Proposes a command; a write whose time is over before the others' is answered so.
    async fn propose(&self, command: Bytes, batch: &mut [Waiting]) -> Result<Proposed, GroupError> {
        let now = Instant::now();
        let deadlines = batch.iter().map(|waiting| waiting.deadline);
        let last = deadlines.max().unwrap_or(now);
        let mut proposed = pin!(self.group.propose(command, last - now));
        loop {
            let open = batch.iter().filter(|waiting| !waiting.answered);
            let next = open.map(|waiting| waiting.deadline).min();
            let Some(next) = next.filter(|next| *next < last) else {
                return proposed.await;
            };
            tokio::select! {
                biased;
                done = &mut proposed => return done,
                () = tokio::time::sleep_until(next) => {
                    let late = batch.iter_mut().filter(|w| !w.answered && w.deadline <= next);
                    late.for_each(Waiting::expire);
                }
            }
        }
    }

    /// Takes writes off the queue into one command; `None` when none waits. Those whose time is
    /// over are answered so, and not proposed.
    fn take_command(&self, queue: &mut Queue) -> Option<(Vec<Waiting>, Bytes)> {
        if queue.waiting.is_empty() {
            return None;
        }
        let now = Instant::now();
        let mut builder = WritesBuilder::new(self.context.stamp());
        let mut batch = Vec::with_capacity(queue.waiting.len());
        let mut taken = 0;
        for waiting in &queue.waiting {
            if builder.size_bytes() > COMMAND_BYTES {
                break;
            }
            taken += 1;
            if waiting.deadline > now {
                let request = &waiting.request;
                builder.push(request.write_id, request.epoch.range, &request.operation);
            }
        }
        for waiting in queue.waiting.drain(..taken) {
            queue.bytes -= command::size_bytes(&waiting.request.operation);
            if waiting.deadline > now {
                batch.push(waiting);
            } else {
                let error = Error::new(
                    ErrorKind::DeadlineExceeded,
                    "no time was left to propose it",
                );
                waiting
                    .replies
                    .send(vec![(waiting.request.request_id, Err(error.into()))]);
            }
        }
        Some((batch, builder.finish()))
    }

    fn answer(&self, batch: Vec<Waiting>, outcomes: Vec<Outcome>) {
        let now = Instant::now();
        let writes = &self.context.latencies.writes;
        let pairs = batch.into_iter().zip(outcomes);
        let open = pairs.filter(|(waiting, _)| !waiting.answered);
        let answers = open.map(|(waiting, outcome)| {
            writes.add(now - waiting.since, 1);
            let response = match outcome {
                Outcome::Done(answer) => Ok(answer),
                Outcome::WrongEpoch => Err(self.wrong_epoch()),
                Outcome::OutOfRange => Err(self.out_of_range()),
            };
            (waiting.replies, waiting.request.request_id, response)
        });
        Replies::send_each(answers);
    }

    fn fail(&self, batch: Vec<Waiting>, failure: &Failure) {
        let open = batch.into_iter().filter(|waiting| !waiting.answered);
        let answers = open.map(|waiting| {
            (
                waiting.replies,
                waiting.request.request_id,
                Err(failure.clone()),
            )
        });
        Replies::send_each(answers);
    }

    fn submit_reads(self: &Arc<Self>, reads: Vec<Request>, replies: &Replies) {
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

    fn domain(&self) -> Domain {
        let map = self.context.map();
        let namespace = self.shard().namespace;
        Domain {
            cluster: map.cluster,
            namespace,
            incarnation: map.namespace(namespace).map_or(0, |n| n.incarnation),
        }
    }

    pub(crate) fn version(&self) -> Version {
        self.machine.version()
    }

    fn wrong_epoch(&self) -> Failure {
        let shard = self.shard();
        let message = format!(
            "the range of shard {} is at version {}",
            shard.id, shard.epoch.range
        );
        let redirect = Redirect {
            shards: vec![shard.clone()],
            leader: None,
        };
        Failure::from(Error::new(ErrorKind::WrongEpoch, message)).with_redirect(redirect)
    }

    fn out_of_range(&self) -> Failure {
        let message = format!("the key is not in shard {}", self.shard().id);
        let redirect = Redirect {
            shards: vec![self.shard().clone()],
            leader: None,
        };
        Failure::from(Error::new(ErrorKind::WrongEpoch, message)).with_redirect(redirect)
    }

    fn not_leader(&self) -> Failure {
        self.failure(GroupError::NotLeader {
            leader: self.group.leader(),
        })
    }

    /// A group's error as a client sees it.
    pub(crate) fn failure(&self, error: GroupError) -> Failure {
        let leader = match &error {
            GroupError::NotLeader { leader } => leader.map(|leader| leader.node),
            _ => None,
        };
        let failure = Failure::from(Error::from(error));
        match leader {
            Some(_) => failure.with_redirect(Redirect {
                shards: Vec::new(),
                leader,
            }),
            None => failure,
        }
    }
}

/// When a request's time is over; no request waits longer than a day.
fn deadline(since: Instant, request: &Request) -> Instant {
    const LONGEST: Duration = Duration::from_secs(86_400);
    since + request.timeout.min(LONGEST)
}

fn is_read(operation: &Operation) -> bool {
    matches!(operation, Operation::Get { .. } | Operation::Scan { .. })
}
