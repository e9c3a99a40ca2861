//! The client of a cluster: finds the shard of a key, asks the right node, repeats what is safe.
//!
//! ```text
//! NamespaceKv (kv::Kv) ──▶ call: route, send, judge, retry ──▶ Transport ──▶ node
//!                            ▲ shard map, leader hints
//! ```
//!
//! - It caches the shard map. A node that was asked on an old map answers with the newer part.
//! - Linearizable operations go to the leader, as far as it is known; other reads to any replica.
//! - Reads are repeated until their deadline. A write is repeated only when it surely was not
//!   applied; one whose outcome is not known fails with [`quorate_kv::Outcome::Unknown`].
//! - What is repeated because a node has too much to do is paid for from a budget; what is in flight to a node
//!   is bounded, and by less while the node refuses. What is more fails at once, with a hint when to come again.
//! - Operations that are in flight together share frames: there is no waiting for more to come.
//!
//! What it does not do: it keeps no values (see the crate `cache`), and it never weakens a read.

mod budget;
mod call;
mod client;
mod counters;
#[cfg(feature = "grpc")]
mod grpc;
mod namespace;
mod options;
mod routes;
mod scan;
mod transport;
mod window;

pub use client::Client;
pub use counters::ClientCounters;
#[cfg(feature = "grpc")]
pub use grpc::GrpcTransport;
pub use namespace::NamespaceKv;
pub use options::ClientOptions;
pub use transport::{MapUpdate, Reply, Transport};

#[cfg(test)]
mod tests;
