//! [`Group`]: a handle to this node's replica of one group.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use crate::error::Result;
use crate::types::{GroupId, Leader, NodeId, ReplicaId, Status};

/// This node's replica of one group. Cheap to clone; all methods may be called from anywhere.
#[derive(Clone)]
pub struct Group {}

/// A proposal that was applied here.
#[derive(Debug, Clone)]
pub struct Proposed {
    /// The index of its entry.
    pub index: u64,
    /// What the state machine answered.
    pub result: Bytes,
}

impl Group {
    /// The group.
    pub fn id(&self) -> GroupId {
        unimplemented!()
    }

    /// This replica of it.
    pub fn replica(&self) -> ReplicaId {
        unimplemented!()
    }

    /// Gives a new group its first members, this replica among them. Every first replica is told the
    /// same, once or many times, in any order; a group that has members already is left alone.
    pub async fn bootstrap(&self, _members: BTreeMap<ReplicaId, NodeId>) -> Result<()> {
        unimplemented!()
    }

    /// Has the group agree on a command and apply it here. Several may be under way; they are applied
    /// in the order of the calls while this replica leads. Errors that say nothing happened:
    /// `NotLeader`, `TooLarge`, `Overloaded`, `Stopped`. Any later doubt is `OutcomeUnknown`.
    pub async fn propose(&self, _command: Bytes, _timeout: Duration) -> Result<Proposed> {
        unimplemented!()
    }

    /// An index such that a state machine that applied it holds every write acknowledged before this
    /// call began (ReadIndex): read there and the read is linearizable. Works on every replica; a
    /// round to a quorum answers all callers that wait. Does **not** wait for this replica to apply
    /// it: see [`Group::read_barrier`].
    pub async fn read_index(&self, _timeout: Duration) -> Result<u64> {
        unimplemented!()
    }

    /// [`Group::read_index`], then waits until this replica has applied it: a read of the state
    /// machine after this is linearizable. Returns the index.
    pub async fn read_barrier(&self, _timeout: Duration) -> Result<u64> {
        unimplemented!()
    }

    /// The last index applied here; `None` before the first.
    pub fn applied_index(&self) -> Option<u64> {
        unimplemented!()
    }

    /// Waits until this replica has applied an index.
    pub async fn wait_applied(&self, _index: u64, _timeout: Duration) -> Result<()> {
        unimplemented!()
    }

    /// Who leads, as far as this replica knows.
    pub fn leader(&self) -> Option<Leader> {
        unimplemented!()
    }

    /// Whether this replica believes that it leads.
    pub fn is_leader(&self) -> bool {
        unimplemented!()
    }

    /// How this replica sees itself and the group.
    pub fn status(&self) -> Status {
        unimplemented!()
    }

    /// On the leader: makes these the voters, bringing new ones up to date first and dropping all
    /// others. Goes by joint consensus; if it fails half way, calling it again goes on.
    pub async fn change_members(
        &self,
        _voters: BTreeMap<ReplicaId, NodeId>,
        _timeout: Duration,
    ) -> Result<()> {
        unimplemented!()
    }

    /// On the leader: adds a replica that receives the log and does not vote; returns when it is up to
    /// date.
    pub async fn add_learner(
        &self,
        _replica: ReplicaId,
        _node: NodeId,
        _timeout: Duration,
    ) -> Result<()> {
        unimplemented!()
    }

    /// On the leader: hands leadership to a voter that is up to date, and waits until it leads. One
    /// that lags is `Invalid`.
    pub async fn transfer_leader(&self, _to: ReplicaId, _timeout: Duration) -> Result<()> {
        unimplemented!()
    }

    /// Stands for election now, if a quorum would have it (pre-vote).
    pub async fn elect(&self) -> Result<()> {
        unimplemented!()
    }

    /// Removes entries up to `upto` from the log here, as far as they are flushed. On a leader,
    /// replicas that still need them will be sent a snapshot. Returns the index asked for after that
    /// bound; the purge itself follows soon.
    pub async fn purge(&self, _upto: u64) -> Result<Option<u64>> {
        unimplemented!()
    }
}
