//! The outbox in a PostgreSQL database (13 or newer), by sqlx.
//!
//! # Why no row is lost
//!
//! Ids come from a sequence of the part, so an id can become visible after a larger one: its
//! transaction commits later. A cursor that only moves forward loses such rows. Here the *floor* moves
//! forward, and only to where nothing can appear any more:
//!
//! 1. read the sequence's last value L, and only then take a transaction id X of one's own;
//! 2. whoever was given an id up to L had a transaction id before that (enqueuing sees to it), so it is
//!    smaller than X;
//! 3. as soon as every transaction below X has ended (`pg_snapshot_xmin >= X`), all rows up to L are
//!    visible, or never will be. L is *settled*.
//!
//! Above the floor the relay knows which ids it has published ([`Ranges`](crate::Ranges)) and reads the
//! rest: a row that commits late is in a gap and is found there. A transaction that stays open for long
//! holds up the floor, not delivery.
//!
//! # Why order holds
//!
//! A keyed message first raises `quorate_outbox_key.n` of its topic and key, whose row lock is held to
//! the end of the transaction, and takes its id after that. So for one key ids grow in the order of
//! commits, and `n` has no gaps, since a rolled-back transaction takes its number back.
//!
//! # A database that goes back
//!
//! A server that crashes, or fails over to a replica, may have lost its last moments: commits that were
//! not waited for, and ids that only rolled-back transactions had drawn. Such ids are given out again, below
//! what a relay that lived on takes for settled. So the row of a part counts its saves, and a save names the
//! count that it builds on: if that is not the row's, the relay is fenced, and begins anew from what the
//! database has.
//!
//! # Why nothing bloats
//!
//! Publishing writes no row of the outbox. A part's rows lie in four tables that take turns by id; one
//! whose rows are all below the floor is truncated.

mod enqueue;
mod hint;
mod leases;
mod parked;
mod schema;
mod store;
mod trim;

pub use enqueue::{PgStatement, PgValue};
pub use schema::{PG_SCHEMA_VERSION, PgSchema};

use std::sync::Arc;

use parking_lot::Mutex;
use sqlx::PgPool;
use tokio::sync::Notify;

use crate::{Limits, Result};

/// A part's rows take turns in so many tables.
const RING: i64 = 4;
/// So many ids, as a power of two, before the next table's turn.
const RING_SHIFT: i64 = 17;

/// How the transactions of a relay begin. One that is frozen in the middle must not keep its locks: others
/// could not take its parts, or, where it frees space, not even enqueue. The server ends it.
pub(crate) const BEGIN: &str = "BEGIN; SET LOCAL idle_in_transaction_session_timeout = '5s'";

/// The outbox in a PostgreSQL database. Cheap to clone; may be used from many tasks.
#[derive(Clone)]
pub struct PgOutbox {
    pool: PgPool,
    limits: Limits,
    inner: Arc<Inner>,
}

struct Inner {
    parts: u16,
    source: String,
    hint: Arc<Notify>,
    barriers: Vec<Mutex<Barrier>>,
}

/// What is known of a part, for the epoch in which it was claimed here.
#[derive(Debug, Clone, Copy, Default)]
struct Barrier {
    epoch: i64,
    settled: i64,
    /// Last value and transaction id of the barrier that is waited for.
    pending: Option<(i64, i64)>,
    /// How often the part was saved, ever. A save names it: a database that went back is noticed.
    saves: i64,
}

impl PgOutbox {
    /// Makes the tables, or brings them to this version, and opens the outbox. `parts` counts only when
    /// the tables are made: 8 is good for a few relays, at most 64.
    ///
    /// # Errors
    /// `Schema` when the tables are newer than this program or damaged; `Unavailable`.
    pub async fn migrate(pool: PgPool, parts: u16) -> Result<PgOutbox> {
        schema::migrate(&pool, parts).await?;
        PgOutbox::open(pool).await
    }

    /// Opens an outbox whose tables are there.
    ///
    /// # Errors
    /// `Missing`; `Schema` when they are of another version, or incomplete.
    pub async fn open(pool: PgPool) -> Result<PgOutbox> {
        let found = schema::check(&pool).await?;
        let barriers = (0..found.parts).map(|_| Mutex::default()).collect();
        Ok(PgOutbox {
            pool,
            limits: Limits::default(),
            inner: Arc::new(Inner {
                parts: found.parts,
                source: found.source,
                hint: Arc::new(Notify::new()),
                barriers,
            }),
        })
    }

    /// The pool that relays of this outbox use.
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }
}

/// The numbers of the tables of a part, for SQL: `12, 13, 14, 15`.
fn slots(part: u16) -> String {
    let first = i64::from(part) * RING;
    let all: Vec<String> = (first..first + RING).map(|slot| slot.to_string()).collect();
    all.join(", ")
}
