//! The seam [`Journal`]: where sagas are kept.
//!
//! A saga is one record: its events as text to which is only ever added, how many they are, where it stands,
//! and when to look at it again. Who adds to it names the number of events that it knows; if there are more
//! by now, nothing is written. So two coordinators that act on one saga can't both win.
//!
//! A coordinator is a *member*, with a lease and an *epoch*. Every write of it names the epoch, and is refused when
//! the lease was lost and buried by another: a coordinator that was frozen and wakes up changes nothing.
//! Members share the sagas whose time has come by their rank; answers are taken by whoever gets them.
//!
//! The main call, [`Journal::append`], takes the events of many sagas and the messages that go out because of
//! them: one transaction, a few statements, however many they are.

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod kv;
mod memory;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "sqlite")]
mod sqlite;

use std::time::Duration;

use quorate_outbox::Message;
use quorate_outbox::store::BoxFuture;
use uuid::Uuid;

use crate::machine::{Entry, Status, read_log};
use crate::{Error, ErrorKind, Result};

pub use kv::KvJournal;
pub use memory::MemoryJournal;
#[cfg(feature = "postgres")]
pub use postgres::{PG_SAGA_VERSION, PgJournal};
#[cfg(feature = "sqlite")]
pub use sqlite::{SQLITE_SAGA_VERSION, SqliteJournal};

/// The right of a coordinator to write, as long as its lease is not lost.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Fence {
    /// The coordinator.
    pub owner: String,
    /// Grows with every lease that is taken.
    pub epoch: i64,
}

/// Which sagas a member looks after when their time has come: those whose part, modulo `of`, is `rank`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// This member's place among those that live, from 0.
    pub rank: u32,
    /// How many live.
    pub of: u32,
}

impl Share {
    /// Whether a saga is in it.
    pub fn has(&self, id: Uuid) -> bool {
        part(id) % self.of.max(1) == self.rank
    }
}

/// Sagas are spread over so many parts.
const PARTS: u128 = 1 << 14;

/// The part of a saga: what members share by.
pub fn part(id: Uuid) -> u32 {
    (id.as_u128() % PARTS) as u32
}

/// The id of a saga: of its definition's name, whatever its version, and its key.
pub fn saga_id(name: &str, key: &str) -> Uuid {
    let text = format!("{name}\0{key}");
    Uuid::from_u128(xxhash_rust::xxh3::xxh3_128(text.as_bytes()))
}

/// What is written of one saga.
#[derive(Debug, Clone)]
pub struct Append {
    /// The saga.
    pub id: Uuid,
    /// How many events it has before; 0 begins it.
    pub seq: i64,
    /// The definition's name.
    pub name: String,
    /// Its version.
    pub version: u32,
    /// The caller's key.
    pub key: String,
    /// When it began, in milliseconds since 1970.
    pub started_ms: i64,
    /// The events that are added; none to change `wake_ms` alone.
    pub events: Vec<Entry>,
    /// Where it stands then.
    pub status: Status,
    /// When to look at it again, in milliseconds since 1970. May be too early, never too late.
    pub wake_ms: Option<i64>,
    /// What goes out with it.
    pub messages: Vec<Message>,
}

impl Append {
    /// Adds events that change nothing of how a saga stands, and the time to look at it.
    pub(crate) fn beside(record: &Record, events: Vec<Entry>, wake_ms: i64) -> Append {
        Append {
            id: record.id,
            seq: record.seq,
            name: record.name.clone(),
            version: record.version,
            key: record.key.clone(),
            started_ms: record.started_ms,
            events,
            status: record.status,
            wake_ms: Some(wake_ms),
            messages: Vec::new(),
        }
    }
}

/// A saga as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The saga.
    pub id: Uuid,
    /// The definition's name.
    pub name: String,
    /// Its version.
    pub version: u32,
    /// The caller's key.
    pub key: String,
    /// How many events it has.
    pub seq: i64,
    /// Where it stands.
    pub status: Status,
    /// When it is looked at again.
    pub wake_ms: Option<i64>,
    /// When it began, in milliseconds since 1970.
    pub started_ms: i64,
    /// Its events, as text.
    pub log: String,
}

impl Record {
    /// Its events.
    ///
    /// # Errors
    /// `Corrupt` when they are damaged, or of a newer program.
    pub fn entries(&self) -> Result<Vec<Entry>> {
        let entries = read_log(&self.log)?;
        if entries.len() as i64 != self.seq {
            let text = format!(
                "the saga has {} events, and should have {}",
                entries.len(),
                self.seq
            );
            return Err(Error::new(ErrorKind::Corrupt, text));
        }
        Ok(entries)
    }
}

/// Sagas whose time has come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Due {
    /// Some of them, earliest first.
    pub ids: Vec<Uuid>,
    /// When the next one's time comes, as far as it is known.
    pub next_ms: Option<i64>,
}

/// Which sagas are meant by a list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Those that stand so.
    pub status: Option<Status>,
    /// Those of this definition.
    pub name: Option<String>,
}

/// How many there are of a kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Count {
    /// The definition's name.
    pub name: String,
    /// Its version.
    pub version: u32,
    /// Where they stand.
    pub status: Status,
    /// How many.
    pub sagas: i64,
    /// When the oldest of them began, in milliseconds since 1970.
    pub oldest_ms: i64,
}

/// Sagas that have not ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Open {
    /// They go on by themselves.
    pub running: i64,
    /// They wait for an operator.
    pub stuck: i64,
    /// When the oldest of both began, in milliseconds since 1970.
    pub oldest_ms: Option<i64>,
}

/// Where sagas are kept: memory, PostgreSQL, SQLite or a `Kv`. Every method may be called from many tasks.
pub trait Journal: Send + Sync + 'static {
    /// Takes a lease under a new epoch. A lease of the same owner that is left ends.
    fn join<'a>(&'a self, owner: &'a str, ttl: Duration) -> BoxFuture<'a, Result<Fence>>;

    /// Renews the lease, buries members whose leases have ended, and says what this member's share is.
    /// `Fenced` when it was buried itself.
    fn beat<'a>(&'a self, fence: &'a Fence, ttl: Duration) -> BoxFuture<'a, Result<Share>>;

    /// Ends the lease.
    fn leave<'a>(&'a self, fence: &'a Fence) -> BoxFuture<'a, Result<()>>;

    /// Writes events and messages of many sagas, each of another. Answers for each whether it was written: not
    /// if the saga has another number of events. With a fence, nothing is written and the answer is `Fenced` once it is
    /// lost; beginning a saga needs none.
    fn append<'a>(
        &'a self,
        fence: Option<&'a Fence>,
        appends: &'a [Append],
    ) -> BoxFuture<'a, Result<Vec<bool>>>;

    /// Reads sagas, those that are there, in any order.
    fn load<'a>(&'a self, ids: &'a [Uuid]) -> BoxFuture<'a, Result<Vec<Record>>>;

    /// Sagas of these definitions and this share whose time has come by `now_ms`.
    fn due<'a>(
        &'a self,
        share: Share,
        known: &'a [(String, u32)],
        now_ms: i64,
        limit: usize,
    ) -> BoxFuture<'a, Result<Due>>;

    /// Sagas, oldest first.
    fn list<'a>(&'a self, filter: &'a Filter, limit: usize) -> BoxFuture<'a, Result<Vec<Record>>>;

    /// How many there are, by definition and standing. Looks at all.
    fn count(&self) -> BoxFuture<'_, Result<Vec<Count>>>;

    /// How many have not ended. Cheap.
    fn open(&self) -> BoxFuture<'_, Result<Open>>;

    /// Forgets sagas that have ended and began before this moment. Their keys are free again. Answers how
    /// many went, at most `limit`.
    fn forget(&self, before_ms: i64, limit: usize) -> BoxFuture<'_, Result<u64>>;
}

fn fenced(fence: &Fence) -> Error {
    let text = format!(
        "the lease of `{}` in epoch {} is lost: other coordinators have its sagas",
        fence.owner, fence.epoch
    );
    Error::new(ErrorKind::Fenced, text)
}

#[cfg(any(feature = "postgres", feature = "sqlite"))]
fn status_of(number: i64) -> Result<Status> {
    Status::of(number).ok_or_else(|| {
        let text = format!("a saga stands at {number}, which this program does not know");
        Error::new(ErrorKind::Corrupt, text)
    })
}

#[cfg(any(feature = "postgres", feature = "sqlite"))]
fn wrong_version(found: Option<i64>, known: i64) -> Error {
    let text = match found {
        None => {
            "quorate_saga_schema is empty: restore it, or drop all quorate_saga tables".to_owned()
        }
        Some(found) => format!(
            "the saga tables are of version {found}, this program knows {known}: use the program that \
             fits, or migrate them"
        ),
    };
    Error::new(ErrorKind::Schema, text)
}
