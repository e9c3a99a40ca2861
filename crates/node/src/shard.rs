//! This node's replica of one shard, as requests meet it: what is refused at once, and the errors.
//! What is taken goes on to the queue of [writes] or to [reads].

mod reads;
mod writes;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use quorate_kv::{Domain, Error, ErrorKind, Version};
use quorate_replication::{Error as GroupError, Group};
use quorate_sharding::{Failure, Operation, Redirect, Request, SYSTEM_NAMESPACE, Shard};
use tokio::time::Instant;

use crate::admission::Shed;
use crate::command;
use crate::context::Context;
use crate::machine::ShardMachine;
use crate::read;
use crate::replies::Replies;
use reads::{ReadLoad, ReadQueue};
use writes::WriteQueue;

/// A replica of a shard. Shared by whoever serves requests.
pub(crate) struct ShardReplica {
    pub(crate) group: Group,
    pub(crate) machine: Arc<ShardMachine>,
    context: Arc<Context>,
    writes: Mutex<WriteQueue>,
    reads: Mutex<ReadQueue>,
    read_load: Arc<ReadLoad>,
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
            writes: Mutex::default(),
            reads: Mutex::default(),
            read_load: Arc::default(),
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
        if let Some(reason) = self.group.stop_reason() {
            let failure = self.stopped(&reason.message);
            let refuse = |r: Request| (r.request_id, Err(failure.clone()));
            return replies.send(requests.into_iter().map(refuse).collect());
        }
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
        check_namespace(request, self.shard())?;
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

    /// Turns requests away, and says when to come again.
    fn shed(&self, why: Shed, count: usize, message: &str, after: Duration) -> Failure {
        self.context.shed.add(why, count);
        let error = Error::new(ErrorKind::Overloaded, message);
        error.with_retry_after(after).into()
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

    /// This replica serves nothing; others may.
    fn stopped(&self, reason: &str) -> Failure {
        let shard = self.shard();
        let message = format!(
            "this node's replica of shard {} has stopped: {reason}",
            shard.id
        );
        let leader = self.group.leader();
        let redirect = Redirect {
            shards: vec![shard.clone()],
            leader: leader
                .filter(|leader| leader.replica != self.group.replica())
                .map(|leader| leader.node),
        };
        Failure::from(Error::new(ErrorKind::Unavailable, message)).with_redirect(redirect)
    }

    /// A group's error as a client sees it.
    pub(crate) fn failure(&self, error: GroupError) -> Failure {
        if let GroupError::Stopped(why) = &error {
            let reason = self.group.stop_reason();
            return self.stopped(&reason.map_or_else(|| why.clone(), |reason| reason.message));
        }
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

/// Refuses a request that names a shard of another namespace than its own: its keys would be read or
/// written in the encoding, and under the limits, of data that its sender does not mean.
pub(crate) fn check_namespace(request: &Request, shard: &Shard) -> Result<(), Failure> {
    let (asked, of) = (request.namespace, shard.namespace);
    let message = if of == SYSTEM_NAMESPACE {
        format!("shard {} is the coordinator's and holds no keys", shard.id)
    } else if asked != of {
        format!(
            "shard {} is of namespace {of}, not of namespace {asked}",
            shard.id
        )
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::InvalidArgument, message).into())
}

/// When a request's time is over; no request waits longer than a day.
fn deadline(since: Instant, request: &Request) -> Instant {
    const LONGEST: Duration = Duration::from_secs(86_400);
    since + request.timeout.min(LONGEST)
}

fn is_read(operation: &Operation) -> bool {
    matches!(operation, Operation::Get { .. } | Operation::Scan { .. })
}
