//! Many Raft groups over one shared log. The only crate that names openraft.
//!
//! [`Groups`] hosts all replicas of a node. A [`Group`] takes proposals, has its members agree on
//! them, and applies them to a [`StateMachine`]; it answers ReadIndex on any replica. What a group
//! agrees upon it does not know: commands are bytes. How messages travel it does not know either:
//! they are bytes handed to a [`Transport`]. It opens no socket and names no storage engine.
//!
//! ```text
//!   propose, read_index            handle(message)
//!          |                             |
//!      +---v-----------------------------v---+      +--------------+
//!      |  Group (openraft core, our adapters) |----->|  Transport   |--> peers
//!      +---+--------------------------+------+      +--------------+
//!          | entries, votes           | committed commands
//!      +---v---------+          +-----v--------+
//!      |  SharedLog  |          | StateMachine |   one for each group
//!      +-------------+          +--------------+
//!       one for the node: each byte is synced once, for all groups at a time
//! ```

mod codec;
mod detector;
mod error;
mod group;
mod groups;
mod inbox;
mod lease;
mod log;
mod machine;
mod network;
mod quiet;
mod raft;
mod reads;
mod state_machine;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod transport;
mod types;
mod watch;
mod wire;

pub use error::{Error, Result};
pub use group::{Group, Proposed};
pub use groups::Groups;
pub use lease::LEASE_MAX;
pub use log::{LogDamage, OnDamage};
pub use state_machine::{
    Applied, Command, CommandBody, SnapshotSink, SnapshotSource, StateMachine,
};
pub use transport::{Class, Reply, Transport, TransportError};
pub use types::{
    Config, EntryId, GroupId, Health, Leader, Members, NodeId, ReplicaId, Role, Status, StopReason,
    Timing,
};
