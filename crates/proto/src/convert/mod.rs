//! Conversions between wire messages and domain types.

use quorate_kv::{Error, ErrorKind};

mod answer;
mod cluster;
pub mod error;
pub mod map;
mod request;

/// What to answer to a message that cannot be.
fn invalid(what: &str) -> Error {
    Error::new(ErrorKind::InvalidArgument, format!("bad message: {what}"))
}
