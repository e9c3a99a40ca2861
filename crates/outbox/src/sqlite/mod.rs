//! The outbox in an SQLite database, by sqlx.
//!
//! SQLite has one writer at a time, so ids grow in the order of commits and every read sees all rows up
//! to the newest: a plain cursor loses nothing here. What is published is deleted; its pages are used
//! again.
//!
//! Open your pool with WAL and a busy time-out, and begin transactions that write by `BEGIN IMMEDIATE`
//! (`pool.begin_with`): a transaction that reads first and writes later may be refused as busy.

mod schema;
mod store;

pub use schema::SQLITE_SCHEMA_VERSION;

use std::sync::Arc;

use sqlx::{Row, SqliteConnection, SqlitePool};
use tokio::sync::Notify;

use crate::message::headers_to_text;
use crate::{Enqueued, Limits, Message, Result};

/// The outbox in an SQLite database. Cheap to clone; may be used from many tasks.
#[derive(Clone)]
pub struct SqliteOutbox {
    pool: SqlitePool,
    limits: Limits,
    inner: Arc<Inner>,
}

struct Inner {
    parts: u16,
    source: String,
    hint: Arc<Notify>,
}

/// For database layers other than sqlx, such as SeaORM: run both in your transaction, in this order, with
/// the values that each names. `SEQ` only for messages with an order; it gives the number for `INSERT`.
pub const SQLITE_SEQ: &str = "\
    INSERT INTO quorate_outbox_key (topic, key, n) VALUES ($1, $2, 1)
    ON CONFLICT (topic, key) DO UPDATE SET n = n + 1 RETURNING n";
/// See [`SQLITE_SEQ`]. Values: part, message id, topic, key, seq, headers, payload.
pub const SQLITE_INSERT: &str = "\
    INSERT INTO quorate_outbox (part, message_id, topic, key, seq, headers, payload, created_ms)
    VALUES ($1, $2, $3, $4, $5, $6, $7, CAST(unixepoch('subsec') * 1000 AS INTEGER)) RETURNING id";

impl SqliteOutbox {
    /// Makes the tables, or brings them to this version, and opens the outbox. `parts` counts only when the
    /// tables are made; SQLite has one writer, so few are enough.
    ///
    /// # Errors
    /// `Schema` when the tables are newer than this program or damaged; `Unavailable`.
    pub async fn migrate(pool: SqlitePool, parts: u16) -> Result<SqliteOutbox> {
        schema::migrate(&pool, parts).await?;
        SqliteOutbox::open(pool).await
    }

    /// Opens an outbox whose tables are there.
    ///
    /// # Errors
    /// `Missing`; `Schema` when they are of another version, or incomplete.
    pub async fn open(pool: SqlitePool) -> Result<SqliteOutbox> {
        let (parts, source) = schema::check(&pool).await?;
        Ok(SqliteOutbox {
            pool,
            limits: Limits::default(),
            inner: Arc::new(Inner {
                parts,
                source,
                hint: Arc::new(Notify::new()),
            }),
        })
    }

    /// The same with other limits on messages.
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Writes a message in the caller's transaction: it is sent if and when that commits.
    ///
    /// # Errors
    /// `Invalid`, `TooLarge` before anything is written; `Unavailable` and `Schema` of the database.
    pub async fn enqueue(&self, tx: &mut SqliteConnection, message: &Message) -> Result<Enqueued> {
        self.limits.check(message)?;
        let part = message.part(self.inner.parts);
        let mut seq: Option<i64> = None;
        if message.ordered {
            let row = sqlx::query(SQLITE_SEQ)
                .bind(&message.topic)
                .bind(&message.key)
                .fetch_one(&mut *tx)
                .await?;
            seq = Some(row.try_get(0)?);
        }
        let row = sqlx::query(SQLITE_INSERT)
            .bind(i64::from(part))
            .bind(message.id)
            .bind(&message.topic)
            .bind(&message.key)
            .bind(seq)
            .bind(headers_to_text(&message.headers))
            .bind(&message.payload[..])
            .fetch_one(&mut *tx)
            .await?;
        Ok(Enqueued {
            part,
            id: row.try_get(0)?,
            seq,
        })
    }

    /// Writes several messages. Messages of one key keep their order.
    ///
    /// # Errors
    /// As [`SqliteOutbox::enqueue`].
    pub async fn enqueue_all(&self, tx: &mut SqliteConnection, messages: &[Message]) -> Result<()> {
        for message in messages {
            self.limits.check(message)?;
        }
        for message in messages {
            self.enqueue(tx, message).await?;
        }
        Ok(())
    }

    /// The part of a message, for those who run [`SQLITE_INSERT`] themselves. Checks the message too.
    ///
    /// # Errors
    /// `Invalid`, `TooLarge`.
    pub fn part(&self, message: &Message) -> Result<u16> {
        self.limits.check(message)?;
        Ok(message.part(self.inner.parts))
    }

    /// The headers of a message as [`SQLITE_INSERT`] stores them.
    pub fn headers(&self, message: &Message) -> String {
        headers_to_text(&message.headers)
    }

    /// Wakes relays of this process at once; call it after the commit. A hint, never needed.
    pub fn wake(&self) {
        self.inner.hint.notify_waiters();
    }

    /// The pool that relays of this outbox use.
    pub fn pool(&self) -> &SqlitePool {
        &self.pool
    }
}
