//! How openraft is set up for us: its type parameters, and names for the types that follow.

use std::fmt;

use bytes::Bytes;
use openraft::impls::leader_id_adv;

use crate::types::EntryId;

/// A proposed command: bytes that only the state machine reads.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Payload(pub Bytes);

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

openraft::declare_raft_types!(
    /// Replica ids are openraft's node ids; openraft's node data is our node id.
    pub(crate) TypeConfig:
        D = Payload,
        R = Bytes,
        NodeId = u64,
        Node = u64,
        LeaderId = leader_id_adv::LeaderId<u64, u64>,
        AsyncRuntime = openraft_rt_tokio::TokioRuntime,
);

pub(crate) type LeaderId = leader_id_adv::LeaderId<u64, u64>;
pub(crate) type LogId = openraft::LogId<LeaderId>;
pub(crate) type Vote = openraft::Vote<LeaderId>;
pub(crate) type EntryPayload = openraft::EntryPayload<Payload, u64, u64>;
pub(crate) type Entry = openraft::Entry<LeaderId, EntryPayload>;
pub(crate) type Membership = openraft::Membership<u64, u64>;
pub(crate) type StoredMembership = openraft::StoredMembership<LeaderId, u64, u64>;

pub(crate) fn log_id(id: EntryId) -> LogId {
    LogId::new(
        LeaderId {
            term: id.term,
            node_id: id.leader,
        },
        id.index,
    )
}

pub(crate) fn entry_id(id: &LogId) -> EntryId {
    EntryId {
        term: id.leader_id.term,
        leader: id.leader_id.node_id,
        index: id.index,
    }
}
