//! The inbox: consumers whose effect, record and position are one transaction.
//!
//! A [`Consumer`] takes deliveries from a broker and gives each to a [`Handler`] inside a transaction of
//! the consumer's database. The same transaction writes the position in the partition and, at
//! [`Level::EffectivelyOnce`], the sequence number of the key, or the id of a message without order. So the
//! effect is there if and only if the message counts as consumed.
//!
//! ```text
//! BEGIN ─► position, under this assignment's generation ─► sequence: below: drop; next: go on; above: gap
//!       ─► handler ─► sequence ─► COMMIT
//! ```
//!
//! *Position.* The database's position is the truth; what the broker remembers of the group is advisory.
//! When a partition is assigned, its generation is raised and its position read: a consumer that was
//! frozen, or that has not heard of the rebalance, fails at its next write.
//!
//! A position that is not where this consumer left it shows a database that has lost its last moments, in a
//! failover: the partition is claimed anew, and what is missing is fetched again.
//!
//! *Gap.* A number above the next one means that an earlier message is still to come, was parked, or was
//! lost. [`OnGap`] says what then.
//!
//! *Failure.* A handler that fails is tried again with back-off; at the end, or at once if the failure
//! is final, the message is *dead*: it is set aside with its reason, and by [`OnFailure::ParkKey`] what
//! follows of its key waits behind it. An operator replays it, in order, or skips it. A database that does
//! not answer is nobody's failure: it is waited for.

#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
#[macro_use]
pub(crate) mod sql;

mod apply;
mod consumer;
mod handler;
mod ledger;
#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "postgres")]
mod postgres;
mod rebalance;
mod replay;
#[cfg(feature = "sqlite")]
mod sqlite;
mod worker;

use std::time::Duration;

use crate::store::Threshold;
use crate::{Level, Partition};

pub use consumer::Consumer;
pub use handler::{Failure, Handler};
pub use ledger::{Ledger, LedgerTx, Position, State, Stream, Waiting};
#[cfg(feature = "mysql")]
pub use mysql::MySqlInbox;
#[cfg(feature = "postgres")]
pub use postgres::PgInbox;
#[cfg(feature = "sqlite")]
pub use sqlite::SqliteInbox;

/// What happens when a sequence number is above the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnGap {
    /// The message is set aside and applied once the missing ones were. Other keys go on.
    #[default]
    Park,
    /// The partition stops, visibly.
    Halt,
    /// It is applied; what was missing is dropped if it comes. Not with [`OnFailure::ParkKey`].
    Accept,
}

/// What happens when a handler has failed for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnFailure {
    /// The message is dead; what follows of its key waits behind it. Other keys go on.
    #[default]
    ParkKey,
    /// The message is dead; its key goes on.
    SkipMessage,
    /// The partition stops, visibly.
    Halt,
}

/// What number the first message of a key must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Baseline {
    /// 1: the consumer has to see everything from the beginning.
    #[default]
    One,
    /// Any: the consumer joined later, or the broker has forgotten the beginning.
    FirstSeen,
}

/// Settings of a consumer.
#[derive(Debug, Clone)]
pub struct ConsumerOptions {
    /// Names the consumer: its records in the database.
    pub name: String,
    /// Its group at the broker; `None`: its name.
    pub group: Option<String>,
    /// The topics.
    pub topics: Vec<String>,
    /// How often an effect may happen.
    pub level: Level,
    /// At most so many messages of a partition in one transaction.
    pub batch: usize,
    /// How often a message is tried before it is dead.
    pub attempts: u32,
    /// The first wait after a failure; doubles up to `retry_max`, with jitter.
    pub retry_min: Duration,
    /// The longest such wait.
    pub retry_max: Duration,
    /// A handler that takes longer has failed, and its transaction is rolled back.
    pub patience: Duration,
    /// How long a partition that another consumer has claimed is left to it before this one joins the
    /// group anew. In a group that works the partition is revoked long before.
    pub rejoin: Duration,
    /// On a gap in the sequence of a key.
    pub on_gap: OnGap,
    /// On a message that fails for good.
    pub on_failure: OnFailure,
    /// What a key's first message must be.
    pub baseline: Baseline,
    /// Between two looks at messages that wait, at wishes of operators, and at the lag.
    pub upkeep: Duration,
    /// How long ids of messages without order are remembered. Longer than anything is delivered again.
    pub remember: Duration,
    /// From when on a backlog is an alarm.
    pub threshold: Threshold,
}

impl ConsumerOptions {
    /// The defaults for a consumer of these topics.
    pub fn new(name: impl Into<String>, topics: &[&str]) -> ConsumerOptions {
        ConsumerOptions {
            name: name.into(),
            group: None,
            topics: topics.iter().map(|topic| (*topic).to_owned()).collect(),
            level: Level::EffectivelyOnce,
            batch: 100,
            attempts: 5,
            retry_min: Duration::from_millis(100),
            retry_max: Duration::from_secs(10),
            patience: Duration::from_secs(60),
            rejoin: Duration::from_secs(15),
            on_gap: OnGap::Park,
            on_failure: OnFailure::ParkKey,
            baseline: Baseline::One,
            upkeep: Duration::from_millis(500),
            remember: Duration::from_secs(7 * 24 * 3600),
            threshold: Threshold::default(),
        }
    }
}

/// What a consumer has done since it started, and how it stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConsumerStatus {
    /// The partitions it holds.
    pub partitions: Vec<Partition>,
    /// Messages whose effect was committed.
    pub applied: u64,
    /// Messages dropped since their effect was there.
    pub duplicates: u64,
    /// Messages set aside at a gap.
    pub gaps: u64,
    /// Messages given up.
    pub dead: u64,
    /// Tries that failed.
    pub retries: u64,
    /// How often a partition was found to be another's, or its position not where it was left.
    pub fenced: u64,
    /// Partitions that stopped, and why.
    pub halted: Vec<(Partition, String)>,
    /// Messages in this consumer's partitions that are not consumed, as of the last look; the age of the
    /// oldest that is being worked on; what is set aside.
    pub lag: crate::store::Lag,
    /// The alarm, if there is one.
    pub alarm: Option<String>,
    /// The last failure of database or broker, until something succeeds.
    pub failure: Option<String>,
}

pub(crate) fn now_ms() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| now.as_millis() as i64)
}
