//! The inbox in an SQLite database.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use sqlx::{Row, SqlitePool};
use uuid::Uuid;

use super::ledger::{Ledger, LedgerTx, Position, State, Stream, Waiting};
use super::now_ms;
use super::sql::{READY, WAITING};
use crate::message::{headers_from_text, headers_to_text};
use crate::store::{Which, Wish};
use crate::{Delivery, Error, ErrorKind, Partition, Result};

const VERSION: i64 = 1;
const TABLES: &str = "\
    CREATE TABLE quorate_inbox_schema (
        only_one INTEGER PRIMARY KEY CHECK (only_one = 1), version INTEGER NOT NULL);
    INSERT INTO quorate_inbox_schema VALUES (1, 1);
    CREATE TABLE quorate_inbox_position (
        consumer TEXT NOT NULL, topic TEXT NOT NULL, number INTEGER NOT NULL,
        generation INTEGER NOT NULL, next INTEGER NOT NULL,
        PRIMARY KEY (consumer, topic, number)) WITHOUT ROWID;
    CREATE TABLE quorate_inbox_key (
        consumer TEXT NOT NULL, source TEXT NOT NULL, topic TEXT NOT NULL, key TEXT NOT NULL,
        last_seq INTEGER NOT NULL,
        PRIMARY KEY (consumer, source, topic, key)) WITHOUT ROWID;
    CREATE TABLE quorate_inbox_seen (
        consumer TEXT NOT NULL, message_id BLOB NOT NULL, at_ms INTEGER NOT NULL,
        PRIMARY KEY (consumer, message_id)) WITHOUT ROWID;
    CREATE INDEX quorate_inbox_seen_at ON quorate_inbox_seen (consumer, at_ms);
    CREATE TABLE quorate_inbox_parked (
        consumer TEXT NOT NULL, message_id BLOB NOT NULL, source TEXT NOT NULL,
        topic TEXT NOT NULL, number INTEGER NOT NULL, at INTEGER NOT NULL, key TEXT,
        seq INTEGER, headers TEXT NOT NULL, payload BLOB NOT NULL, state INTEGER NOT NULL,
        reason TEXT NOT NULL, attempts INTEGER NOT NULL, wish INTEGER NOT NULL,
        parked_ms INTEGER NOT NULL, PRIMARY KEY (consumer, message_id)) WITHOUT ROWID;
    CREATE INDEX quorate_inbox_parked_stream
        ON quorate_inbox_parked (consumer, source, topic, key, seq)";

/// The inbox in an SQLite database. Cheap to clone.
#[derive(Clone)]
pub struct SqliteInbox {
    pool: SqlitePool,
}

impl SqliteInbox {
    /// Makes the tables, unless they are there, and opens the inbox.
    ///
    /// # Errors
    /// `Schema` when the tables are of another version; `Unavailable`.
    pub async fn migrate(pool: SqlitePool) -> Result<SqliteInbox> {
        let mut tx = pool.begin_with("BEGIN IMMEDIATE").await?;
        let there = sqlx::query("SELECT 1 FROM sqlite_master WHERE name = 'quorate_inbox_schema'")
            .fetch_optional(&mut *tx)
            .await?;
        if there.is_none() {
            sqlx::raw_sql(TABLES).execute(&mut *tx).await?;
        }
        tx.commit().await?;
        SqliteInbox::open(pool).await
    }

    /// Opens an inbox whose tables are there.
    ///
    /// # Errors
    /// `Missing`; `Schema` when they are of another version.
    pub async fn open(pool: SqlitePool) -> Result<SqliteInbox> {
        let row = sqlx::query("SELECT version FROM quorate_inbox_schema")
            .fetch_optional(&pool)
            .await
            .map_err(super::sql::open_error)?;
        let found: Option<i64> = row.map(|row| row.try_get(0)).transpose()?;
        super::sql::check_version(found, VERSION)?;
        Ok(SqliteInbox { pool })
    }
}

fn begin(_: Duration) -> &'static str {
    "BEGIN IMMEDIATE"
}

sql_ledger!(
    SqliteInbox,
    SqliteInboxTx,
    sqlx::Sqlite,
    sqlx::SqliteConnection,
    sqlx::sqlite::SqliteRow,
    begin,
    "",
    "json_each($2) AS t",
    "unhex(t.value)"
);
