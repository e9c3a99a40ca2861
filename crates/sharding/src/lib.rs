//! Where a key lives: encodings, shards, the shard map, first placement. Pure: no I/O, no clock.
//!
//! A namespace's keys are *encoded* (kept as they are, or put behind a hash of their routing
//! prefix), and ranges of encoded keys are its shards. Each shard is one Raft group. The
//! [`ShardMap`] says which nodes hold which shard; the coordinator owns it, everybody caches it.
//!
//! ```text
//! user key ──Encoding──▶ encoded key ──ShardMap──▶ shard (epoch, replicas) ──▶ nodes
//! ```
//!
//! A cache may be old. Every request states the [`ShardEpoch`] that it assumed, and a wrong one is
//! answered with the newer shards ([`Redirect`]), which [`ShardMap::apply_shards`] takes in.
//!
//! This crate does not know how shards are stored or replicated, nor how requests are sent: it has
//! the routed [`Request`] and its [`Answer`] as plain data, which client and node share.

mod bounds;
mod catalog;
mod codec;
mod encoding;
mod error;
mod map;
mod placement;
mod request;
mod status;
mod types;

pub use bounds::{bounds_from_splits, initial_bounds};
pub use catalog::NamespaceSpec;
pub use encoding::{Encoding, RoutingPrefix};
pub use error::{Error, Result};
pub use map::{NextIds, ShardMap};
pub use placement::{NodeLoad, place, place_with_loads};
pub use request::{Answer, Failure, Operation, Redirect, Request, Response, WriteId};
pub use status::{GroupStatus, Health, NodeStatus, ReplicaHash, Role};
pub use types::{
    COORDINATOR_GROUP, GroupId, Namespace, NamespaceId, NamespaceKind, NodeId, NodeInfo, Replica,
    ReplicaId, SYSTEM_NAMESPACE, Shard, ShardEpoch,
};

#[cfg(test)]
mod tests;
