//! The routed request: what a client sends to one replica of one shard, and what comes back.
//!
//! Keys of single-key operations are the user's own; the bounds of a scan are *encoded* keys, so
//! that an unordered scan of a hashed namespace can walk a shard. Answers carry no tokens: the
//! client makes them from the group's version and the namespace's domain.

use std::time::Duration;

use bytes::Bytes;
use quorate_kv::{Condition, Entry, Error, Mutation, Op, OpResult, ReadLevel, Version};

use crate::{GroupId, NamespaceId, NodeId, Shard, ShardEpoch};

/// Names one write of one client, for finding repetitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct WriteId {
    /// A random number that the client drew when it started.
    pub client: u64,
    /// The client's count of writes, from 1; 0: this is no write.
    pub sequence: u64,
}

/// One operation, routed to one shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Matches the answer with the request on one connection, and names it in logs.
    pub request_id: u64,
    /// The namespace.
    pub namespace: NamespaceId,
    /// The shard that the client thinks holds the keys.
    pub shard: GroupId,
    /// The state of the shard that it assumed.
    pub epoch: ShardEpoch,
    /// Names the write; of a read it is all zero.
    pub write_id: WriteId,
    /// The time that is left for it.
    pub timeout: Duration,
    /// W3C trace context (`traceparent`), if the caller traces.
    pub trace: Option<Box<str>>,
    /// What to do.
    pub operation: Operation,
}

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Read one key.
    Get {
        /// The user's key.
        key: Bytes,
        /// How fresh.
        level: ReadLevel,
    },
    /// Write one key.
    Put {
        /// The user's key.
        key: Bytes,
        /// Its new value.
        value: Bytes,
        /// What the key's state must be.
        condition: Condition,
    },
    /// Delete one key.
    Delete {
        /// The user's key.
        key: Bytes,
        /// What the key's state must be.
        condition: Condition,
    },
    /// All of these or none, at one version.
    Batch {
        /// The changes; of one key the last counts.
        mutations: Vec<Mutation>,
    },
    /// One list of operations if all conditions hold, else the other.
    Compare {
        /// The conditions.
        conditions: Vec<(Bytes, Condition)>,
        /// Done when all hold.
        then_ops: Vec<Op>,
        /// Done when one does not.
        else_ops: Vec<Op>,
    },
    /// Read a range inside the shard.
    Scan {
        /// The first encoded key, inclusive; empty: from the beginning.
        start: Bytes,
        /// The end, an encoded key, exclusive; empty: to the end.
        end: Bytes,
        /// At most so many entries; at least 1.
        limit: u32,
        /// Stop after the entry with which keys and values pass so many bytes.
        limit_bytes: u32,
        /// From the end downwards.
        reverse: bool,
        /// How fresh.
        level: ReadLevel,
    },
}

impl Operation {
    /// Whether it may change something.
    pub fn is_write(&self) -> bool {
        match self {
            Operation::Get { .. } | Operation::Scan { .. } => false,
            Operation::Put { .. } | Operation::Delete { .. } | Operation::Batch { .. } => true,
            Operation::Compare {
                then_ops, else_ops, ..
            } => then_ops
                .iter()
                .chain(else_ops)
                .any(|op| matches!(op, Op::Mutate(_))),
        }
    }

    /// Whether it is a write that can put nothing: it leaves less than there was, whatever becomes of it.
    pub fn only_deletes(&self) -> bool {
        let deletes = |mutation: &Mutation| matches!(mutation, Mutation::Delete { .. });
        match self {
            Operation::Get { .. } | Operation::Scan { .. } | Operation::Put { .. } => false,
            Operation::Delete { .. } => true,
            Operation::Batch { mutations } => mutations.iter().all(deletes),
            Operation::Compare {
                then_ops, else_ops, ..
            } => then_ops.iter().chain(else_ops).all(|op| match op {
                Op::Mutate(mutation) => deletes(mutation),
                _ => true,
            }),
        }
    }

    /// The bytes of keys and values in it.
    pub fn size_bytes(&self) -> usize {
        let ops = |ops: &[Op]| -> usize {
            ops.iter()
                .map(|op| match op {
                    Op::Mutate(mutation) => mutation.size_bytes(),
                    other => other.key().len(),
                })
                .sum()
        };
        match self {
            Operation::Get { key, .. } | Operation::Delete { key, .. } => key.len(),
            Operation::Put { key, value, .. } => key.len() + value.len(),
            Operation::Batch { mutations } => mutations.iter().map(Mutation::size_bytes).sum(),
            Operation::Compare {
                conditions,
                then_ops,
                else_ops,
            } => {
                let keys: usize = conditions.iter().map(|(key, _)| key.len()).sum();
                keys + ops(then_ops) + ops(else_ops)
            }
            Operation::Scan { start, end, .. } => start.len() + end.len(),
        }
    }

    /// How fresh it has to be, if it only reads.
    pub fn level(&self) -> Option<ReadLevel> {
        match self {
            Operation::Get { level, .. } | Operation::Scan { level, .. } => Some(*level),
            _ => None,
        }
    }
}

/// What a request that succeeded answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Of a get.
    Entry(Option<Entry>),
    /// Of a put or delete.
    Written {
        /// Whether the condition held and the write was done.
        applied: bool,
        /// The key's version now; 0: absent.
        version: Version,
        /// The group's newest version, at least `version`: what the token is made of.
        group_version: Version,
    },
    /// Of a batch.
    Batch {
        /// The version of all its writes.
        version: Version,
    },
    /// Of a compare.
    Compare {
        /// Whether all conditions held.
        succeeded: bool,
        /// One result for each operation of the branch that ran.
        results: Vec<OpResult>,
        /// The version of the branch's writes, or the group's newest.
        version: Version,
    },
    /// Of a scan.
    Scan {
        /// The entries, with the user's keys, in the order of encoded keys (or reversed).
        entries: Vec<Entry>,
        /// Whether the range holds more entries behind these.
        more: bool,
        /// The encoded key of the last entry, if there is one.
        last: Option<Bytes>,
    },
}

/// Where to go instead.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Redirect {
    /// Shards as they are now, where the client's were old.
    pub shards: Vec<Shard>,
    /// The node that leads the shard, as far as the answering one knows.
    pub leader: Option<NodeId>,
}

/// What a request that failed answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What went wrong and what is known of the outcome.
    pub error: Error,
    /// Where to go instead.
    pub redirect: Option<Box<Redirect>>,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure {
            error,
            redirect: None,
        }
    }
}

impl Failure {
    /// The same with a redirect.
    pub fn with_redirect(mut self, redirect: Redirect) -> Self {
        self.redirect = Some(Box::new(redirect));
        self
    }
}

/// What comes back for one request.
pub type Response = std::result::Result<Answer, Failure>;
