//! [`Groups`]: all replicas of a node, over one shared log and one transport.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use quorate_env::Env;

use crate::error::Result;
use crate::group::Group;
use crate::state_machine::StateMachine;
use crate::transport::{Class, Transport};
use crate::types::{Config, GroupId, NodeId, ReplicaId};

/// The host of all replicas of a node. Cheap to clone; all methods may be called from anywhere.
#[derive(Clone)]
pub struct Groups {}

impl Groups {
    /// Opens the shared log, replaying it; blocks while it does. No group runs until it is
    /// [opened](Groups::open_group). Must be called within the tokio runtime that shall carry Raft
    /// traffic.
    pub fn open(_config: Config, _env: Env, _transport: Arc<dyn Transport>) -> Result<Groups> {
        unimplemented!()
    }

    /// The groups that have something in the log: those to open after a restart.
    pub fn stored_groups(&self) -> Vec<(GroupId, ReplicaId)> {
        unimplemented!()
    }

    /// Starts this node's replica of a group, new or stored. A stored group keeps its replica id:
    /// another one is `Invalid`.
    pub async fn open_group(
        &self,
        _group: GroupId,
        _replica: ReplicaId,
        _machine: Arc<dyn StateMachine>,
    ) -> Result<Group> {
        unimplemented!()
    }

    /// Stops this node's replica and forgets its log for good. The caller has removed it from the
    /// members first and deals with the state machine's data.
    pub async fn remove_group(&self, _group: GroupId) -> Result<()> {
        unimplemented!()
    }

    /// The running replica of a group.
    pub fn group(&self, _group: GroupId) -> Result<Group> {
        unimplemented!()
    }

    /// All running replicas.
    pub fn all(&self) -> Vec<Group> {
        unimplemented!()
    }

    /// Takes a message of a peer; the future is the reply, and always resolves. REQUIRES: called in
    /// the order the messages of a class came from that peer; the message takes its place when this is
    /// called, so the futures may then be awaited in any order and on any task.
    pub fn handle(
        &self,
        _from: NodeId,
        _class: Class,
        _group: GroupId,
        _payload: Bytes,
    ) -> BoxFuture<'static, Bytes> {
        unimplemented!()
    }

    /// The size of the shared log on disk, in bytes.
    pub fn log_bytes(&self) -> u64 {
        unimplemented!()
    }

    /// The groups that keep the oldest log segments from being released, oldest first, each with the
    /// index up to which its log must be purged to free the `segments` oldest ones.
    pub fn pinning(&self, _segments: usize) -> BTreeMap<GroupId, u64> {
        unimplemented!()
    }

    /// Gives back the log segments that no group needs any more; returns the bytes freed.
    pub async fn release_segments(&self) -> Result<u64> {
        unimplemented!()
    }

    /// Stops all groups and closes the log.
    pub async fn shutdown(&self) -> Result<()> {
        unimplemented!()
    }
}
