//! The seam to the network: [`Transport`].
//!
//! To this crate a peer is a node id, a message is bytes, and every message has one reply, which is
//! bytes. How streams are opened, secured, and multiplexed is the transport's. What a message says is
//! this crate's ([`Groups::handle`](crate::Groups::handle) reads it at the other end).
//!
//! The shape is made for one long bidirectional stream for each peer and [`Class`]: `send` queues the
//! message and returns at once; the reply resolves when the peer's frame with the same number comes
//! back. Many messages are on their way at a time. Replies may overtake each other.

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::types::{GroupId, NodeId};

/// What a message is about, so that a long one never holds up an urgent one: each class has a
/// stream of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Log entries.
    Append,
    /// Heartbeats, votes, leadership transfer, ReadIndex: small, and must not wait.
    Vote,
    /// Chunks of snapshots: large, and may.
    Snapshot,
}

impl Class {
    /// All classes.
    pub const ALL: [Class; 3] = [Class::Append, Class::Vote, Class::Snapshot];
}

/// The reply to a message, or why there is none.
pub type Reply = BoxFuture<'static, Result<Bytes, TransportError>>;

/// Carries messages to peers.
///
/// REQUIRES of an implementation:
/// - Messages of one class to one peer reach its [`Groups::handle`](crate::Groups::handle) in the
///   order of the `send` calls, though any may be lost. A message takes its place when `send` is
///   called, not when the reply is first polled.
/// - Dropping a reply gives it up; the message may still arrive. The caller sets deadlines so.
/// - `send` never blocks. A queue that is full answers `Unreachable` at once.
pub trait Transport: Send + Sync + 'static {
    /// Sends one message for a group to a peer.
    fn send(&self, to: NodeId, class: Class, group: GroupId, payload: Bytes) -> Reply;
}

/// Why there is no reply.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The peer can't be reached, its address is not known, or the queue to it is full. The caller
    /// backs off.
    #[error("peer unreachable: {0}")]
    Unreachable(String),
    /// The stream broke with the message under way; it may have arrived. The caller retries soon.
    #[error("stream to peer broke: {0}")]
    Broken(String),
}
