//! The nouns of the map: nodes, namespaces, shards, replicas and their epochs.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;

use crate::Encoding;

/// A node's id, given by the coordinator, from 1. Never used again.
pub type NodeId = u64;

/// The id of a Raft group. A shard is one group and has its id.
pub type GroupId = u64;

/// The id of one replica of one group, unique in the cluster, never used again: a replica that
/// lost its data comes back under a new one.
pub type ReplicaId = u64;

/// A namespace's id, from 1; 0 is the system's own.
pub type NamespaceId = u32;

/// The coordinator's group.
pub const COORDINATOR_GROUP: GroupId = 1;

/// The namespace that the coordinator's group belongs to. Clients cannot name it.
pub const SYSTEM_NAMESPACE: NamespaceId = 0;

/// A node and where it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeInfo {
    /// Its id.
    pub id: NodeId,
    /// `host:port` of its gRPC listener, for clients and peers.
    pub address: String,
    /// Free labels, such as `zone`.
    pub labels: BTreeMap<String, String>,
}

/// How a namespace is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NamespaceKind {
    /// Many shards; versions are stamps.
    Wide {
        /// How keys become encoded keys.
        encoding: Encoding,
    },
    /// One group with dense versions; keys are in order.
    Compact,
}

impl NamespaceKind {
    /// How its keys are encoded.
    pub fn encoding(&self) -> Encoding {
        match self {
            NamespaceKind::Wide { encoding } => *encoding,
            NamespaceKind::Compact => Encoding::Ordered,
        }
    }
}

/// A namespace: a set of keys under one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// Its id, the first part of every data key of it.
    pub id: NamespaceId,
    /// Its name, unique in the cluster.
    pub name: String,
    /// Its layout.
    pub kind: NamespaceKind,
    /// How many replicas each of its shards has.
    pub replicas: u32,
    /// Raised by every restore from a backup; part of its tokens' domain.
    pub incarnation: u32,
}

/// Which state of a shard somebody assumes. Both parts only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ShardEpoch {
    /// Raised when the shard's range changes. A request with another one is refused.
    pub range: u64,
    /// Raised when its replicas change.
    pub members: u64,
}

impl ShardEpoch {
    /// The epoch of a new shard.
    pub const FIRST: ShardEpoch = ShardEpoch {
        range: 1,
        members: 1,
    };
}

impl fmt::Display for ShardEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.range, self.members)
    }
}

/// One replica of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Replica {
    /// Its id, which is its Raft id.
    pub id: ReplicaId,
    /// The node that holds it.
    pub node: NodeId,
}

/// A range of encoded keys of one namespace, held by one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    /// Its id and its group's.
    pub id: GroupId,
    /// The namespace whose keys it holds.
    pub namespace: NamespaceId,
    /// The first encoded key, inclusive; empty: from the beginning.
    pub start: Bytes,
    /// The end, exclusive; empty: to the end.
    pub end: Bytes,
    /// Which state of it this is.
    pub epoch: ShardEpoch,
    /// Its replicas; the first is the preferred leader.
    pub replicas: Vec<Replica>,
    /// Replicas that are on their way out: the group may still count on them.
    pub leaving: Vec<Replica>,
    /// The members version that the group is known to have taken on.
    pub settled: u64,
}

impl Shard {
    /// Whether an encoded key is in its range.
    pub fn contains(&self, encoded: &[u8]) -> bool {
        encoded >= &self.start[..] && (self.end.is_empty() || encoded < &self.end[..])
    }

    /// Whether it shares keys with the encoded range `start..end` (an empty end: no end).
    pub fn overlaps(&self, start: &[u8], end: &[u8]) -> bool {
        (end.is_empty() || &self.start[..] < end) && (self.end.is_empty() || start < &self.end[..])
    }

    /// Whether the group has exactly these replicas, as far as is known: nothing is on its way.
    pub fn is_settled(&self) -> bool {
        self.settled == self.epoch.members && self.leaving.is_empty()
    }

    /// The replica on a node, if it has one.
    pub fn replica_on(&self, node: NodeId) -> Option<Replica> {
        self.replicas.iter().find(|r| r.node == node).copied()
    }
}
