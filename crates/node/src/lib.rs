//! A node: the replicas of one member of a cluster, over one storage engine and one shared log.
//!
//! A request comes in as plain data and its answer goes out through [`Replies`]. A write waits in
//! its shard's queue, leaves with others as one command, is agreed upon by the shard's group, and is
//! applied to the engine, whose own write-ahead log is off: the Raft log is the only one. A read
//! waits for the barrier that its level asks for and then reads the engine, which needs no lock.
//!
//! ```text
//! execute ─► ShardReplica ─► queue ─► Group (replication) ─► ShardMachine ─► Lsm (storage)
//!                 └─ reads ─► barrier ────────────────────────────────────────►┘
//! ```
//!
//! The first group of a cluster is the *coordinator*: its state is the shard map. Each node follows
//! the map and opens the replicas that it is given.
//!
//! This crate opens no sockets: peers are a [`Transport`](quorate_replication::Transport), clients
//! come through [`Node::execute`]. It does not know the wire format, nor what a configuration file is.

mod admission;
mod apply;
mod codec;
mod command;
mod config;
mod context;
mod coordinator;
mod error;
mod flushed;
mod hash;
mod identity;
mod jobs;
mod keys;
mod latency;
mod machine;
mod members;
mod node;
mod outcome;
mod read;
mod reconcile;
mod remains;
mod reopen;
mod repair;
mod replies;
mod shard;
mod snapshot;
mod status;
mod taint;
mod upkeep;
mod value;

pub use admission::{Shed, ShedCounts};
pub use config::Config;
pub use coordinator::ClusterCommand;
pub use error::{Error, Result};
pub use hash::StateHash;
pub use identity::{DataDir, Identity};
pub use latency::{Latencies, Latency};
pub use node::Node;
pub use replies::{Replies, ReplyBatch, Unsent, answer_bytes};
pub use status::{Fault, FaultKind, NodeStatus, ReplicaStatus};

#[cfg(test)]
mod tests;
