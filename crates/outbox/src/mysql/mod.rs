//! The outbox in a MySQL (8.0 or newer) or MariaDB (10.6 or newer) database, by sqlx. Tested on MariaDB.
//!
//! # Why no row is lost
//!
//! InnoDB does not tell which transactions may still bring a row with a small id. So the ids of a part come from
//! a row of `quorate_outbox_counter`, which the enqueuing transaction raises and so holds locked until it has
//! ended: ids of a part have no gaps, and grow in the order of commits. A relay
//!
//! 1. reads the counter's committed value L;
//! 2. and only then, in a later snapshot, the rows up to L.
//!
//! Whoever was given an id up to L has ended before L could be read, so all those rows are visible. A row above L
//! is not taken even if the second snapshot has it: an earlier one of its key need not be in it. L is *settled*.
//!
//! # What that costs
//!
//! Transactions that enqueue into one part commit one after the other. Enqueue late in the transaction, and have
//! more parts than on PostgreSQL: 32 for a busy service. Two transactions that enqueue several messages by
//! several calls may wait for each other in a circle; InnoDB ends one of them, which is an error that
//! [is retryable](crate::Error::is_retryable) with the whole transaction.
//! [`MySqlOutbox::enqueue_all`] takes the parts in one order for everybody.
//!
//! # A database that goes back
//!
//! As on PostgreSQL, the row of a part counts its saves, and a save names the count that it builds on. A counter
//! below what a relay has published tells it too.
//!
//! # Bytes
//!
//! Keys, topics and names are stored as bytes: MySQL's collations take `a`, `A` and `a ` for the same. So is
//! everything else that is text, whatever the character set of a connection.

mod enqueue;
mod leases;
mod parked;
mod schema;
pub(crate) mod session;
mod store;
mod trim;

pub use enqueue::{MYSQL_INSERT, MYSQL_NEXT, MYSQL_SEQ};
pub use schema::MYSQL_SCHEMA_VERSION;
pub(crate) use schema::{ENGINE, locked as migration_lock};

use std::sync::Arc;

use parking_lot::Mutex;
use sqlx::MySqlPool;
use tokio::sync::Notify;

use crate::{Limits, Result};

/// The outbox in a MySQL or MariaDB database. Cheap to clone; may be used from many tasks.
#[derive(Clone)]
pub struct MySqlOutbox {
    pool: MySqlPool,
    limits: Limits,
    inner: Arc<Inner>,
}

struct Inner {
    parts: u16,
    source: String,
    hint: Arc<Notify>,
    /// The largest packet that the server takes, in bytes.
    packet: usize,
    saves: Vec<Mutex<Saves>>,
}

/// How often a part was saved, ever, as the epoch that was claimed here knows it.
#[derive(Debug, Clone, Copy, Default)]
struct Saves {
    epoch: i64,
    count: i64,
}

impl MySqlOutbox {
    /// Makes the tables, or brings them to this version, and opens the outbox. `parts` counts only when the
    /// tables are made: 32 is good for a busy service, at most 64. A migration that died half way is gone on with.
    ///
    /// # Errors
    /// `Schema` when the tables are newer than this program or damaged; `Invalid` for a number of parts or a
    /// pool that can't be; `Unavailable`.
    pub async fn migrate(pool: MySqlPool, parts: u16) -> Result<MySqlOutbox> {
        schema::migrate(&pool, parts).await?;
        MySqlOutbox::open(pool).await
    }

    /// Opens an outbox whose tables are there.
    ///
    /// # Errors
    /// `Missing`; `Schema` when they are of another version, or incomplete; `Invalid` when sessions of the pool do
    /// not commit by themselves, or read what is not committed.
    pub async fn open(pool: MySqlPool) -> Result<MySqlOutbox> {
        let packet = session::check(&pool).await?;
        let (parts, source) = schema::check(&pool).await?;
        Ok(MySqlOutbox {
            pool,
            limits: Limits::default(),
            inner: Arc::new(Inner {
                parts,
                source,
                hint: Arc::new(Notify::new()),
                packet,
                saves: (0..parts).map(|_| Mutex::default()).collect(),
            }),
        })
    }

    /// The same with other limits on messages. A key is never longer than 2048 bytes, and a message never larger
    /// than the server's `max_allowed_packet`.
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Wakes relays of this process at once; call it after the commit. A hint, never needed.
    pub fn wake(&self) {
        self.inner.hint.notify_waiters();
    }

    /// The pool that relays of this outbox use.
    pub fn pool(&self) -> &MySqlPool {
        &self.pool
    }
}
