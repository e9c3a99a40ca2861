//! The wire contract: code generated from `proto/quorate/v1`, and its conversions.
//!
//! [`v1`] is the generated code. The conversions go both ways between its messages and the types
//! of `quorate-kv` and `quorate-sharding`: `From` to the wire, `TryFrom` from it, which checks what
//! came in and answers [`quorate_kv::ErrorKind::InvalidArgument`] for what cannot be. Nothing that
//! a peer sends makes them panic.
//!
//! This crate opens no connection and knows no server.

mod convert;

#[rustfmt::skip]
#[path = "generated/v1.rs"]
pub mod v1;

pub use convert::error::{error_of_status, failure_of_wire, status_of_error};
pub use convert::map::{cluster_from_wire, cluster_to_wire};

/// The version of the protocol that this code speaks; a hello and a join say it.
pub const PROTOCOL_VERSION: u32 = 1;

/// The largest message that either side accepts, in bytes: a frame of the largest batch.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;

#[cfg(test)]
mod tests;
