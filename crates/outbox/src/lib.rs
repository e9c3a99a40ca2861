//! Transactional outbox, relay, and consumers whose effect happens once.
//!
//! A service that changes its database and sends a message about it has two systems to write to, and
//! may die between them. The outbox makes that one: the message is a row, written in the transaction
//! of the change ([`PgOutbox::enqueue`](postgres::PgOutbox::enqueue)). A [`Relay`] publishes committed
//! rows to a [`broker::Broker`]; a [`Consumer`] applies each of them once.
//!
//! # The protocol
//!
//! ```text
//! producer   BEGIN; change; raise (topic, key).n; insert row (part, id, seq = n); COMMIT
//! relay      hold part p under epoch e ─► read unpublished rows of p by id ─► publish
//!            ─► save (floor, done) WHERE epoch = e
//! consumer   BEGIN; position under its generation; seq = last + 1?; effect; last = seq; COMMIT
//! ```
//!
//! # A worked example
//!
//! Two transactions of one part. T1 enqueues for key `a` and is given id 7; T2 enqueues for `b`, id 8,
//! and commits first. A relay reads 8, publishes it, and saves `floor = 6, done = {8}`: the floor can't
//! pass 7, since T1 still runs. The relay freezes; after its lease another takes the part, epoch 2. T1
//! commits; the new relay reads what is above 6 and not in `done`: 7. It publishes 7 and saves `floor = 8`.
//! The first relay wakes up and publishes 8 once more; its save names epoch 1 and is refused. The
//! consumer has `b` at sequence 1 already and drops the repetition.
//!
//! A message of `a` that the broker never accepts, too large perhaps, is *parked*, and what follows of `a`
//! with it; other keys go on. An operator has them sent again, in order, or leaves one out: then a *skip
//! record* takes its place, so that the sequence has no gap.
//!
//! # What is promised
//!
//! - A committed message is published, or parked where an operator sees it; a rolled-back one is not.
//! - Messages of a topic and key are published in the order of their commits, numbered without gaps.
//! - Publishing may repeat; the effect of a consumer at [`Level::EffectivelyOnce`] does not.
//!
//! # What it does not do
//!
//! No order between keys. No effect-once for what a consumer does outside its database.
//! A sequence starts at 1 when the outbox's tables are made: making them anew makes a new source.
//!
//! Without features the crate has the in-process broker and the outbox over a
//! [`Kv`](quorate_kv::Kv). Features: `postgres`, `mysql`, `sqlite`, `kafka`.

mod backoff;
pub mod broker;
mod error;
pub mod inbox;
pub mod kv;
mod message;
#[cfg(feature = "mysql")]
pub mod mysql;
#[cfg(not(feature = "crash-points"))]
mod points;
#[cfg(feature = "crash-points")]
pub mod points;
#[cfg(feature = "postgres")]
pub mod postgres;
mod ranges;
pub mod relay;
#[cfg(feature = "sqlite")]
pub mod sqlite;
pub mod store;
#[cfg(all(
    test,
    feature = "postgres",
    feature = "mysql",
    feature = "sqlite",
    feature = "kafka"
))]
mod tests;

pub use error::{Error, ErrorKind, Result};
pub use inbox::{Consumer, ConsumerOptions, ConsumerStatus};
pub use message::{
    Delivery, HEADER_CREATED, HEADER_ID, HEADER_SEQ, HEADER_SKIP, HEADER_SOURCE, Level, Limits,
    Message, Partition,
};
pub use ranges::Ranges;
pub use relay::{Relay, RelayOptions, RelayStatus};

/// What enqueuing gave a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Enqueued {
    /// The part it is in.
    pub part: u16,
    /// Its place there. Ids may skip numbers.
    pub id: i64,
    /// Its number among those of its topic and key, from 1, without gaps; `None` without order.
    pub seq: Option<i64>,
}
