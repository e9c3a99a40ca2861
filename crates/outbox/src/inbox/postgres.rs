//! The inbox in a PostgreSQL database.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use sqlx::{AssertSqlSafe, PgPool, Row};
use uuid::Uuid;

use super::ledger::{Ledger, LedgerTx, Position, State, Stream, Waiting};
use super::now_ms;
use super::sql::{READY, WAITING};
use crate::message::{headers_from_text, headers_to_text};
use crate::store::{Which, Wish};
use crate::{Delivery, Error, ErrorKind, Partition, Result};

const VERSION: i32 = 1;
const LOCK: i64 = 0x7175_6f72_696e_6278;
const TABLES: &str = "\
    CREATE TABLE quorate_inbox_schema (
        only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one), version int NOT NULL);
    INSERT INTO quorate_inbox_schema (version) VALUES (1);
    CREATE TABLE quorate_inbox_position (
        consumer text NOT NULL, topic text NOT NULL, number int NOT NULL,
        generation bigint NOT NULL, next bigint NOT NULL,
        PRIMARY KEY (consumer, topic, number)) WITH (fillfactor = 10);
    CREATE TABLE quorate_inbox_key (
        consumer text NOT NULL, source text NOT NULL, topic text NOT NULL, key text NOT NULL,
        last_seq bigint NOT NULL,
        PRIMARY KEY (consumer, source, topic, key)) WITH (fillfactor = 70);
    CREATE TABLE quorate_inbox_seen (
        consumer text NOT NULL, message_id uuid NOT NULL, at_ms bigint NOT NULL,
        PRIMARY KEY (consumer, message_id));
    CREATE INDEX quorate_inbox_seen_at ON quorate_inbox_seen (consumer, at_ms);
    CREATE TABLE quorate_inbox_parked (
        consumer text NOT NULL, message_id uuid NOT NULL, source text NOT NULL,
        topic text NOT NULL, number int NOT NULL, at bigint NOT NULL, key text, seq bigint,
        headers text NOT NULL, payload bytea NOT NULL, state int NOT NULL, reason text NOT NULL,
        attempts bigint NOT NULL, wish int NOT NULL, parked_ms bigint NOT NULL,
        PRIMARY KEY (consumer, message_id));
    CREATE INDEX quorate_inbox_parked_stream
        ON quorate_inbox_parked (consumer, source, topic, key, seq)";

/// The inbox in a PostgreSQL database. Cheap to clone.
#[derive(Clone)]
pub struct PgInbox {
    pool: PgPool,
}

impl PgInbox {
    /// Makes the tables, unless they are there, and opens the inbox.
    ///
    /// # Errors
    /// `Schema` when the tables are of another version; `Unavailable`.
    pub async fn migrate(pool: PgPool) -> Result<PgInbox> {
        let mut tx = pool.begin().await?;
        sqlx::query("SELECT pg_advisory_xact_lock($1)")
            .bind(LOCK)
            .execute(&mut *tx)
            .await?;
        let row = sqlx::query("SELECT to_regclass('quorate_inbox_schema') IS NOT NULL")
            .fetch_one(&mut *tx)
            .await?;
        if !row.try_get::<bool, _>(0)? {
            sqlx::raw_sql(TABLES).execute(&mut *tx).await?;
        }
        tx.commit().await?;
        PgInbox::open(pool).await
    }

    /// Opens an inbox whose tables are there.
    ///
    /// # Errors
    /// `Missing`; `Schema` when they are of another version.
    pub async fn open(pool: PgPool) -> Result<PgInbox> {
        let row = sqlx::query("SELECT version FROM quorate_inbox_schema")
            .fetch_optional(&pool)
            .await
            .map_err(super::sql::open_error)?;
        let found: Option<i32> = row.map(|row| row.try_get(0)).transpose()?;
        super::sql::check_version(found.map(i64::from), i64::from(VERSION))?;
        Ok(PgInbox { pool })
    }
}

/// The handler's own time-out comes first, where somebody is awake to notice it.
fn begin(patience: Duration) -> AssertSqlSafe<String> {
    let idle = patience.saturating_add(Duration::from_secs(5));
    let ms = idle.as_millis().min(i32::MAX as u128);
    AssertSqlSafe(format!(
        "BEGIN; SET LOCAL idle_in_transaction_session_timeout = {ms}"
    ))
}

sql_ledger!(
    PgInbox,
    PgInboxTx,
    sqlx::Postgres,
    sqlx::PgConnection,
    sqlx::postgres::PgRow,
    begin,
    " FOR UPDATE",
    "jsonb_array_elements(CAST($2 AS jsonb)) AS t (value)",
    "CAST(t.value #>> '{}' AS uuid)"
);
