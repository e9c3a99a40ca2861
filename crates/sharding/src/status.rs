//! What nodes tell about themselves, as plain data: for `quorate status` and for comparing replicas.

use crate::{GroupId, NamespaceId, NodeId, ReplicaId, ShardEpoch};
use quorate_kv::Version;

/// What a replica is in its group at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Role {
    /// Its group is not running, or not known yet.
    #[default]
    Unknown,
    /// It takes entries from a leader and votes.
    Follower,
    /// It asks for votes.
    Candidate,
    /// It orders the group's entries.
    Leader,
    /// It takes entries and does not vote.
    Learner,
}

/// Whether a group serves, as one of its replicas sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Health {
    /// The node did not say.
    #[default]
    Unknown,
    /// It has a leader that a quorum follows, as far as the replica hears.
    Works,
    /// The replica knows no leader, or has not heard it for too long.
    NoLeader,
    /// The replica leads and has not heard a quorum for too long.
    NoQuorum,
    /// The replica has stopped or could not be opened; `fault` says why.
    Stopped,
}

/// One replica as its node sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GroupStatus {
    /// The group, which is the shard.
    pub group: GroupId,
    /// The namespace it belongs to.
    pub namespace: NamespaceId,
    /// The replica here.
    pub replica: ReplicaId,
    /// What it is.
    pub role: Role,
    /// Whether its group serves.
    pub health: Health,
    /// The node of the leader, if it knows one that works.
    pub leader: Option<NodeId>,
    /// Its Raft term.
    pub term: u64,
    /// The index of its last log entry.
    pub last_index: u64,
    /// The index up to which its group agreed.
    pub committed_index: u64,
    /// The index up to which it has applied.
    pub applied_index: u64,
    /// The newest version it has applied.
    pub version: Version,
    /// The epoch it knows.
    pub epoch: ShardEpoch,
    /// About how many bytes of keys and values it holds.
    pub size_bytes: u64,
    /// Why it has stopped or could not be opened, if that is so.
    pub fault: Option<String>,
}

/// One node as it sees itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeStatus {
    /// Its cluster.
    pub cluster: u128,
    /// Its id.
    pub node: NodeId,
    /// Where it listens.
    pub address: String,
    /// The version of its binary.
    pub binary_version: String,
    /// How long it has been up, in milliseconds.
    pub uptime_ms: u64,
    /// The version of the shard map it has.
    pub map_version: u64,
    /// Bytes of the engine's files.
    pub engine_bytes: u64,
    /// Bytes of the log's files.
    pub log_bytes: u64,
    /// Bytes that are free on the disk.
    pub free_bytes: u64,
    /// Its replicas.
    pub groups: Vec<GroupStatus>,
}

/// The hash of what one replica held at one index: equal on every replica of the group, or one of
/// them is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReplicaHash {
    /// The shard.
    pub shard: GroupId,
    /// The replica.
    pub replica: ReplicaId,
    /// Its node.
    pub node: NodeId,
    /// The index of the entry at which it was taken.
    pub index: u64,
    /// The hash over the newest (key, version, value) of each key, in order.
    pub hash: u64,
    /// How many keys it covers.
    pub keys: u64,
}
