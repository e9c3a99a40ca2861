//! Quorate in a process: the embedded store, and the crates of Quorate behind features.
//!
//! [`Store`] is one node with its engine, its log and its shards, without a socket. What it opens
//! are namespaces that implement [`Kv`](kv::Kv), the same contract that a client of a cluster
//! implements: code written against it moves from one to the other by a changed constructor.
//!
//! ```ignore
//! let store = quorate::Store::open("data", quorate::StoreOptions::default())?;
//! let config = store.namespace("config")?;
//! config.put(Put::new("mode", "fast")).await?;
//! ```
//!
//! Features: `embedded` (default) this store; `remote` the client of a cluster; `storage` the engine.

#[cfg(feature = "embedded")]
mod store;
#[cfg(all(test, feature = "embedded"))]
mod tests;
#[cfg(feature = "embedded")]
mod transport;

pub use quorate_kv as kv;
pub use quorate_sharding as sharding;

#[cfg(feature = "remote")]
pub use quorate_client as client;
#[cfg(feature = "storage")]
pub use quorate_storage as storage;

#[cfg(feature = "embedded")]
pub use store::{Store, StoreNamespace, StoreOptions};
