//! Fences in an SQLite database, beside its outbox.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quorate_outbox::Message;
use quorate_outbox::sqlite::SqliteOutbox;
use sqlx::{Row, SqliteConnection};
use uuid::Uuid;

use super::fences::{FenceKey, Fences, outcome_of, text_of};
use crate::machine::Outcome;
use crate::{Error, ErrorKind, Result};

/// The version of the tables that this program reads and writes.
pub const SQLITE_FENCES_VERSION: i64 = 1;
const TABLES: &str = "\
    CREATE TABLE quorate_saga_fence_schema (
        only_one INTEGER PRIMARY KEY CHECK (only_one = 1), version INTEGER NOT NULL);
    INSERT INTO quorate_saga_fence_schema VALUES (1, 1);
    CREATE TABLE quorate_saga_fence (
        saga BLOB NOT NULL, branch TEXT NOT NULL, slot INTEGER NOT NULL, outcome TEXT,
        at_ms INTEGER NOT NULL, PRIMARY KEY (saga, branch, slot)) WITHOUT ROWID;
    CREATE TABLE quorate_saga_lock (
        name TEXT PRIMARY KEY, saga BLOB NOT NULL, started_ms INTEGER NOT NULL) WITHOUT ROWID";
const THAT: &str = "saga = $1 AND branch = $2 AND slot = $3";

/// The fences and semantic locks of a service, in its SQLite database. Cheap to clone.
#[derive(Clone)]
pub struct SqliteFences {
    outbox: SqliteOutbox,
}

impl SqliteFences {
    /// Makes the tables, unless they are there, and opens them. Replies leave by `outbox`, which is in the same
    /// database.
    ///
    /// # Errors
    /// `Schema` when the tables are of another version; `Unavailable`.
    pub async fn migrate(outbox: SqliteOutbox) -> Result<SqliteFences> {
        let mut tx = outbox.pool().begin_with("BEGIN IMMEDIATE").await?;
        let there = "SELECT 1 FROM sqlite_master WHERE name = 'quorate_saga_fence_schema'";
        if sqlx::query(there).fetch_optional(&mut *tx).await?.is_none() {
            sqlx::raw_sql(TABLES).execute(&mut *tx).await?;
        }
        tx.commit().await?;
        SqliteFences::open(outbox).await
    }

    /// Opens fences whose tables are there.
    ///
    /// # Errors
    /// `Missing`; `Schema` when they are of another version.
    pub async fn open(outbox: SqliteOutbox) -> Result<SqliteFences> {
        let row = sqlx::query("SELECT version FROM quorate_saga_fence_schema");
        let row = row
            .fetch_optional(outbox.pool())
            .await
            .map_err(super::locks::open_error)?;
        let found: Option<i64> = row.map(|row| row.try_get(0)).transpose()?;
        super::locks::check_version(found, SQLITE_FENCES_VERSION)?;
        Ok(SqliteFences { outbox })
    }

    /// Forgets fences of this age; longer than any saga may take, and than any message is delivered again.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn forget(&self, age: Duration) -> Result<u64> {
        let done = sqlx::query("DELETE FROM quorate_saga_fence WHERE at_ms < $1");
        let done = done.bind(now_ms() - age.as_millis() as i64);
        Ok(done.execute(self.outbox.pool()).await?.rows_affected())
    }
}

fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_millis() as i64)
}

impl Fences for SqliteFences {
    type Connection = SqliteConnection;

    async fn claim(&self, tx: &mut SqliteConnection, keys: &[FenceKey]) -> Result<Vec<bool>> {
        let mut claimed = Vec::with_capacity(keys.len());
        for key in keys {
            let text = "INSERT INTO quorate_saga_fence (saga, branch, slot, at_ms)
                VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING";
            let done = sqlx::query(text)
                .bind(key.saga)
                .bind(&key.branch)
                .bind(key.slot.number())
                .bind(now_ms())
                .execute(&mut *tx)
                .await?;
            claimed.push(done.rows_affected() == 1);
        }
        Ok(claimed)
    }

    async fn look(
        &self,
        tx: &mut SqliteConnection,
        keys: &[FenceKey],
    ) -> Result<Vec<Option<Outcome>>> {
        let mut said = Vec::with_capacity(keys.len());
        for key in keys {
            let text = format!("SELECT outcome FROM quorate_saga_fence WHERE {THAT}");
            let found = sqlx::query(sqlx::AssertSqlSafe(text))
                .bind(key.saga)
                .bind(&key.branch)
                .bind(key.slot.number())
                .fetch_optional(&mut *tx)
                .await?;
            let text: Option<Option<String>> = found.map(|row| row.try_get(0)).transpose()?;
            said.push(text.map(|text| outcome_of(text.as_deref())).transpose()?);
        }
        Ok(said)
    }

    async fn settle(
        &self,
        tx: &mut SqliteConnection,
        outcomes: &[(FenceKey, Outcome)],
    ) -> Result<()> {
        for (key, outcome) in outcomes {
            let text = format!("UPDATE quorate_saga_fence SET outcome = $4 WHERE {THAT}");
            sqlx::query(sqlx::AssertSqlSafe(text))
                .bind(key.saga)
                .bind(&key.branch)
                .bind(key.slot.number())
                .bind(text_of(outcome)?)
                .execute(&mut *tx)
                .await?;
        }
        Ok(())
    }

    async fn give_up(&self, tx: &mut SqliteConnection, keys: &[FenceKey]) -> Result<()> {
        for key in keys {
            let text = format!("DELETE FROM quorate_saga_fence WHERE {THAT}");
            sqlx::query(sqlx::AssertSqlSafe(text))
                .bind(key.saga)
                .bind(&key.branch)
                .bind(key.slot.number())
                .execute(&mut *tx)
                .await?;
        }
        Ok(())
    }

    async fn send(&self, tx: &mut SqliteConnection, messages: &[Message]) -> Result<()> {
        Ok(self.outbox.enqueue_all(tx, messages).await?)
    }

    fn wake(&self) {
        self.outbox.wake();
    }

    async fn run(&self, tx: &mut SqliteConnection, text: &'static str) -> Result<()> {
        sqlx::query(text).execute(tx).await?;
        Ok(())
    }
}

impl super::locks::Locks for SqliteFences {
    async fn take(
        &self,
        tx: &mut SqliteConnection,
        name: &str,
        saga: Uuid,
        started_ms: i64,
    ) -> Result<(Uuid, i64)> {
        let insert = "INSERT INTO quorate_saga_lock VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
        let insert = sqlx::query(insert).bind(name).bind(saga).bind(started_ms);
        insert.execute(&mut *tx).await?;
        let row = sqlx::query("SELECT saga, started_ms FROM quorate_saga_lock WHERE name = $1");
        let row = row.bind(name).fetch_optional(tx).await?;
        let row = row.ok_or_else(|| {
            Error::new(
                ErrorKind::Unavailable,
                format!("the lock `{name}` was just given back"),
            )
        })?;
        Ok((row.try_get(0)?, row.try_get(1)?))
    }

    async fn release(&self, tx: &mut SqliteConnection, saga: Uuid) -> Result<u64> {
        let gone = sqlx::query("DELETE FROM quorate_saga_lock WHERE saga = $1").bind(saga);
        Ok(gone.execute(tx).await?.rows_affected())
    }
}
