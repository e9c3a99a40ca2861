//! The contract of Quorate: what every layer that stores or serves keys agrees on.
//!
//! A [`Kv`] is one namespace of some store: an in-memory map, the embedded store, a remote cluster.
//! It answers `get`, `put`, `delete`, `batch`, `compare` (compare, then, else) and `scan`.
//! Every key has a [`Version`] that never decreases; every write answers with a [`Token`] that a
//! later read may name to see at least that write ([`ReadLevel::AtLeast`]).
//!
//! This crate does not know how anything is stored, sent or agreed upon. It has no async runtime in
//! its signatures and next to no dependencies.

#[cfg(feature = "conformance")]
pub mod conformance;
mod error;
mod kv;
mod limits;
pub mod memory;
mod request;
mod token;

pub use error::{Error, ErrorKind, Outcome, Result};
pub use kv::{BoxFuture, Kv};
pub use limits::Limits;
pub use request::{
    Batch, BatchResult, Compare, CompareResult, Condition, Delete, Entry, Get, Mutation, Op,
    OpResult, Put, ReadLevel, Scan, ScanOrder, ScanPage, Written,
};
pub use token::{Domain, Token};

/// A version of a key: below 2^63, never decreasing for one key. 0 means "never written".
pub type Version = u64;

/// The largest version that may be written.
pub const VERSION_MAX: Version = (1 << 63) - 1;

#[cfg(all(test, feature = "conformance"))]
mod tests;
