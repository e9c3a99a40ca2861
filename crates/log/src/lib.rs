//! A log of records in segments: appended in order, checksummed, synced for many at once.
//!
//! Whoever has a record to keep *submits* it: the record is copied to a queue under a short lock and
//! has its [`Position`] at once. One writer at a time takes all that is queued, writes it, syncs it
//! if anybody asked for that, and completes the records in the order they came. So while one sync
//! runs, the records of all others gather, and the next sync serves them all. The writer is whoever
//! finds the log idle: an appending thread that waits anyway, or a job of `env::Jobs`.
//!
//! ```text
//! submit ──► queue (position known, readable) ──► write ──► sync ──► done(Ok) in order
//! ```
//!
//! Segments have a fixed size, but for those of one larger record, and are written over: a file whose blocks
//! exist already syncs about a third faster than one that grows. Where records are synced, a released segment
//! becomes the next one's file.
//!
//! What a crash leaves is a prefix. A record that fails its checksum ends the log when nothing after
//! it was promised; when a later record proves that the log was synced beyond it, the damage is
//! reported and the log does not open: see [`ErrorKind::Corruption`]. An owner who can do without the
//! damaged records opens it all the same: [`Log::open_with_damage`].
//!
//! This crate does not know what a record means, nor when it may be forgotten.

mod error;
mod format;
mod log;
mod recovery;
mod scan;
mod segment;
#[cfg(test)]
mod tests;
mod waits;
mod writer;

pub use error::{Error, ErrorKind, Result};
pub use log::{Completion, Durability, Log, LogOptions, Position, Replay, Then, Ticket, WhenFull};
pub use recovery::{Hear, Heard, Lost};
pub use scan::scan;
