//! The queue of writes. They wait while earlier ones are agreed upon, and leave together as one
//! command; so the number of Raft entries follows the speed of the group, not the number of clients.

use std::pin::pin;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use quorate_env::switch;
use quorate_kv::{Error, ErrorKind, Outcome as Known};
use quorate_replication::{Error as GroupError, Proposed};
use quorate_sharding::{Failure, Request};
use tokio::time::Instant;

use super::{ShardReplica, deadline};
use crate::admission::{Admission, DrainRate, Shed, hint};
use crate::command::{self, ANSWER_BYTES, COMMAND_BYTES, WritesBuilder};
use crate::outcome::{self, Outcome};
use crate::replies::Replies;

/// So many bytes of writes wait in one shard before it refuses more, however fast it is.
const QUEUE_BYTES: usize = 32 << 20;
/// The memory of a waiting write beside its keys and values: the request, its place, its share of a frame.
const REQUEST_BYTES: usize = 384;
/// A smaller command says little about how fast a full one would be.
const MEASURED_BYTES: usize = COMMAND_BYTES / 16;

/// When to come again while the engine is behind: it is looked at every 50 ms, and a flush takes longer.
const ENGINE_HINT: Duration = Duration::from_millis(200);
/// When to come again while the rate of a full queue is not known.
const FULL_HINT: Duration = Duration::from_millis(50);

#[derive(Default)]
pub(super) struct WriteQueue {
    waiting: Vec<Waiting>,
    /// Of the commands that they will be part of.
    bytes: usize,
    rate: DrainRate,
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
    /// Queues a write; true if nobody works on the queue yet.
    pub(super) fn enqueue(&self, request: Request, replies: &Replies) -> Result<bool, Failure> {
        if !self.group.is_leader() {
            return Err(self.not_leader());
        }
        self.has_space(&request)?;
        if self.context.engine_behind.load(Ordering::Relaxed) {
            let message = "this node's storage engine is behind with its flushes";
            return Err(self.shed(Shed::EngineBehind, 1, message, ENGINE_HINT));
        }
        let bytes = command::size_bytes(&request.operation);
        let mut queue = self.writes.lock();
        self.admit(&queue, bytes, request.timeout)?;
        self.context
            .queued_bytes
            .fetch_add(bytes + REQUEST_BYTES, Ordering::Relaxed);
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

    /// Whether the disk has space for a write. Out of the reserve only deletes are paid, and compaction.
    fn has_space(&self, request: &Request) -> Result<(), Failure> {
        let frees = request.operation.only_deletes();
        let message = match (self.context.is_disk_full(), frees) {
            (false, _) => return Ok(()),
            (true, true) if !self.context.is_disk_exhausted() => return Ok(()),
            // Clients come again, here or to who leads then.
            _ if self.context.handing_over.load(Ordering::Relaxed) => {
                let message = "this node's disk is full: it asks one that has space to lead";
                return Err(Error::new(ErrorKind::Unavailable, message).into());
            }
            (true, true) => {
                "the disk is full, and has no space to delete in: free some; reads go on"
            }
            (true, false) => {
                "the disk is nearly full: delete something, or free space; reads go on"
            }
        };
        Err(Error::new(ErrorKind::DiskFull, message).into())
    }

    /// Whether a write of so many bytes may join the queue, which has so much time.
    fn admit(&self, queue: &WriteQueue, bytes: usize, timeout: Duration) -> Result<(), Failure> {
        let admission = Admission {
            delay_max: self.context.queue_delay_max,
            always: COMMAND_BYTES,
        };
        if let Err(after) = admission.judge(&queue.rate, queue.bytes, timeout) {
            let message =
                "the write would wait too long: the shard gets more writes than it can do";
            return Err(self.shed(Shed::WriteDelay, 1, message, after));
        }
        let memory = queue.bytes + (queue.waiting.len() + 1) * REQUEST_BYTES + bytes;
        let all = self.context.queued_bytes.load(Ordering::Relaxed) + bytes + REQUEST_BYTES;
        let full = memory > QUEUE_BYTES || all > self.context.queued_bytes_max;
        // Whoever is alone is taken whatever its size.
        if full && !queue.waiting.is_empty() || switch::rarely("node.queue_full", 5) {
            let after = queue.rate.time_for(queue.bytes).map_or(FULL_HINT, hint);
            let message = "the queue of writes is full";
            return Err(self.shed(Shed::WriteBytes, 1, message, after));
        }
        Ok(())
    }

    /// Proposes what waits, command after command, until nothing does.
    pub(super) async fn run_writes(&self) {
        loop {
            let (mut batch, command) = {
                let mut queue = self.writes.lock();
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
            let (bytes, begun) = (command.len(), Instant::now());
            let proposed = self.propose(command, &mut batch).await;
            if bytes >= MEASURED_BYTES {
                self.writes.lock().rate.add(bytes, begun.elapsed());
            }
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
    fn take_command(&self, queue: &mut WriteQueue) -> Option<(Vec<Waiting>, Bytes)> {
        if queue.waiting.is_empty() {
            return None;
        }
        let now = Instant::now();
        let limits = &self.context.limits;
        let answer_bytes_max = u32::try_from(limits.batch_bytes).unwrap_or(u32::MAX);
        let mut builder = WritesBuilder::new(self.context.stamp(), answer_bytes_max);
        let mut batch = Vec::with_capacity(queue.waiting.len());
        let (mut taken, mut answer_bytes) = (0, 0);
        for waiting in &queue.waiting {
            let alone = taken > 0 && switch::fires("node.command_of_one_write");
            if builder.size_bytes() > COMMAND_BYTES || answer_bytes > ANSWER_BYTES || alone {
                break;
            }
            taken += 1;
            if waiting.deadline > now {
                let request = &waiting.request;
                answer_bytes += command::answer_bytes_max(limits, &request.operation);
                builder.push(request.write_id, request.epoch.range, &request.operation);
            }
        }
        let bytes = |waiting: &Waiting| command::size_bytes(&waiting.request.operation);
        let taken_bytes: usize = queue.waiting[..taken].iter().map(bytes).sum();
        queue.bytes -= taken_bytes;
        // Before anyone is answered: who has its answer finds its bytes free.
        self.context
            .queued_bytes
            .fetch_sub(taken_bytes + taken * REQUEST_BYTES, Ordering::Relaxed);
        for waiting in queue.waiting.drain(..taken) {
            if waiting.deadline > now {
                batch.push(waiting);
            } else {
                self.context.shed.add(Shed::WriteExpired, 1);
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
                Outcome::AnswerTooLarge { bytes } => {
                    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
                    Err(self.context.limits.answer_too_large(bytes).into())
                }
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
}
