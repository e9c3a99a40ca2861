//! The journal in an SQLite database, beside its outbox.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quorate_outbox::sqlite::SqliteOutbox;
use quorate_outbox::store::BoxFuture;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Row, SqliteConnection, SqlitePool};
use uuid::Uuid;

use super::{
    Append, Count, Due, Fence, Filter, Journal, Open, Record, Share, fenced, part, status_of,
    wrong_version,
};
use crate::machine::write_log;
use crate::points;
use crate::{Error, ErrorKind, Result};

/// The version of the tables that this program reads and writes.
pub const SQLITE_SAGA_VERSION: i64 = 1;
/// One list of statements for each version, from 1.
const MIGRATIONS: &[&str] = &["\
    CREATE TABLE quorate_saga_schema (
        only_one INTEGER PRIMARY KEY CHECK (only_one = 1), version INTEGER NOT NULL,
        epoch INTEGER NOT NULL);
    INSERT INTO quorate_saga_schema VALUES (1, 0, 0);
    CREATE TABLE quorate_saga (
        id BLOB PRIMARY KEY, name TEXT NOT NULL, version INTEGER NOT NULL, key TEXT NOT NULL,
        part INTEGER NOT NULL, seq INTEGER NOT NULL, status INTEGER NOT NULL, wake_ms INTEGER,
        started_ms INTEGER NOT NULL, log TEXT NOT NULL);
    CREATE INDEX quorate_saga_wake ON quorate_saga (wake_ms) WHERE wake_ms IS NOT NULL;
    CREATE INDEX quorate_saga_stuck ON quorate_saga (started_ms) WHERE status = 2;
    CREATE TABLE quorate_saga_member (
        owner TEXT PRIMARY KEY, epoch INTEGER NOT NULL, alive_until_ms INTEGER NOT NULL) WITHOUT ROWID"];
const TABLES: [&str; 2] = ["quorate_saga", "quorate_saga_member"];
const COLUMNS: &str = "id, name, version, key, seq, status, wake_ms, started_ms, log";

fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_millis() as i64)
}

/// Sagas in an SQLite database. Cheap to clone; may be used from many tasks.
#[derive(Clone)]
pub struct SqliteJournal {
    pool: SqlitePool,
    outbox: SqliteOutbox,
}

impl SqliteJournal {
    /// Makes the tables, or brings them to this version, and opens the journal. Commands leave by `outbox`, which
    /// is in the same database.
    ///
    /// # Errors
    /// `Schema` when the tables are newer than this program or damaged; `Unavailable`.
    pub async fn migrate(outbox: SqliteOutbox) -> Result<SqliteJournal> {
        let pool = outbox.pool().clone();
        let mut tx = pool.begin_with("BEGIN IMMEDIATE").await?;
        let found = match exists(&mut tx, "quorate_saga_schema").await? {
            true => version(&mut tx).await?,
            false => 0,
        };
        let from = usize::try_from(found).unwrap_or(0);
        if from < MIGRATIONS.len() {
            for statements in &MIGRATIONS[from..] {
                sqlx::raw_sql(*statements).execute(&mut *tx).await?;
            }
            let done = sqlx::query("UPDATE quorate_saga_schema SET version = $1");
            done.bind(SQLITE_SAGA_VERSION).execute(&mut *tx).await?;
        }
        // Before another connection is asked for: there may be no other.
        tx.commit().await?;
        SqliteJournal::open(outbox).await
    }

    /// Opens a journal whose tables are there.
    ///
    /// # Errors
    /// `Missing`; `Schema` when they are of another version, or incomplete.
    pub async fn open(outbox: SqliteOutbox) -> Result<SqliteJournal> {
        let pool = outbox.pool().clone();
        let mut connection = pool.acquire().await?;
        if !exists(&mut connection, "quorate_saga_schema").await? {
            let text = "the database has no sagas yet: migrate it (SqliteJournal::migrate)";
            return Err(Error::new(ErrorKind::Missing, text));
        }
        let found = version(&mut connection).await?;
        if found != SQLITE_SAGA_VERSION {
            return Err(wrong_version(Some(found), SQLITE_SAGA_VERSION));
        }
        for table in TABLES {
            if !exists(&mut connection, table).await? {
                let text = format!("the saga tables are damaged: {table} is missing; restore it");
                return Err(Error::new(ErrorKind::Schema, text));
            }
        }
        drop(connection);
        Ok(SqliteJournal { pool, outbox })
    }

    /// Begins sagas in the caller's own transaction: they are there if and when it commits. Call
    /// [`SqliteJournal::wake`] then. Answers as [`Journal::append`].
    ///
    /// # Errors
    /// `Unavailable` and `Schema` of the database, after which the transaction has to be rolled back.
    pub async fn append_in(
        &self,
        tx: &mut SqliteConnection,
        appends: &[Append],
    ) -> Result<Vec<bool>> {
        let mut written = Vec::with_capacity(appends.len());
        for one in appends {
            let kept = append(tx, one).await?;
            points::pass("journal.written");
            if kept {
                self.outbox.enqueue_all(tx, &one.messages).await?;
            }
            written.push(kept);
        }
        points::pass("journal.enqueued");
        Ok(written)
    }

    /// Wakes relays of this process at once. A hint, never needed.
    pub fn wake(&self) {
        self.outbox.wake();
    }

    async fn append_all(&self, fence: Option<&Fence>, appends: &[Append]) -> Result<Vec<bool>> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        if let Some(fence) = fence {
            let text = "SELECT 1 FROM quorate_saga_member WHERE owner = $1 AND epoch = $2";
            let held = sqlx::query(text).bind(&fence.owner).bind(fence.epoch);
            if held.fetch_optional(&mut *tx).await?.is_none() {
                return Err(fenced(fence));
            }
        }
        let written = self.append_in(&mut tx, appends).await?;
        tx.commit()
            .await
            .map_err(|e| Error::from(e).outcome_unknown())?;
        points::pass("journal.committed");
        self.outbox.wake();
        Ok(written)
    }
}

async fn exists(connection: &mut SqliteConnection, table: &str) -> Result<bool> {
    let row = sqlx::query("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = $1");
    Ok(row.bind(table).fetch_optional(connection).await?.is_some())
}

async fn version(connection: &mut SqliteConnection) -> Result<i64> {
    let row = sqlx::query("SELECT version FROM quorate_saga_schema");
    let row = row.fetch_optional(connection).await?;
    let row = row.ok_or_else(|| wrong_version(None, SQLITE_SAGA_VERSION))?;
    Ok(row.try_get(0)?)
}

async fn append(tx: &mut SqliteConnection, one: &Append) -> Result<bool> {
    let mut log = String::new();
    write_log(&mut log, &one.events)?;
    let added = one.events.len() as i64;
    let done = if one.seq == 0 {
        sqlx::query(
            "INSERT INTO quorate_saga (id, name, version, key, part, seq, status, wake_ms, started_ms, log)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT (id) DO NOTHING",
        )
        .bind(one.id)
        .bind(&one.name)
        .bind(i64::from(one.version))
        .bind(&one.key)
        .bind(i64::from(part(one.id)))
        .bind(added)
        .bind(one.status.number())
        .bind(one.wake_ms)
        .bind(one.started_ms)
        .bind(log)
        .execute(tx)
        .await?
    } else {
        sqlx::query(
            "UPDATE quorate_saga SET seq = seq + $1, status = $2, wake_ms = $3, log = log || $4
             WHERE id = $5 AND seq = $6",
        )
        .bind(added)
        .bind(one.status.number())
        .bind(one.wake_ms)
        .bind(log)
        .bind(one.id)
        .bind(one.seq)
        .execute(tx)
        .await?
    };
    Ok(done.rows_affected() == 1)
}

fn record(row: &SqliteRow) -> Result<Record> {
    Ok(Record {
        id: row.try_get(0)?,
        name: row.try_get(1)?,
        version: row.try_get::<i64, _>(2)?.clamp(0, u32::MAX.into()) as u32,
        key: row.try_get(3)?,
        seq: row.try_get(4)?,
        status: status_of(row.try_get(5)?)?,
        wake_ms: row.try_get(6)?,
        started_ms: row.try_get(7)?,
        log: row.try_get(8)?,
    })
}

impl Journal for SqliteJournal {
    fn join<'a>(&'a self, owner: &'a str, ttl: Duration) -> BoxFuture<'a, Result<Fence>> {
        Box::pin(async move {
            let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
            let text = "UPDATE quorate_saga_schema SET epoch = epoch + 1 RETURNING epoch";
            let epoch: i64 = sqlx::query(text).fetch_one(&mut *tx).await?.try_get(0)?;
            sqlx::query(
                "INSERT INTO quorate_saga_member VALUES ($1, $2, $3) ON CONFLICT (owner)
                 DO UPDATE SET epoch = excluded.epoch, alive_until_ms = excluded.alive_until_ms",
            )
            .bind(owner)
            .bind(epoch)
            .bind(now_ms() + ttl.as_millis() as i64)
            .execute(&mut *tx)
            .await?;
            tx.commit().await?;
            Ok(Fence {
                owner: owner.to_owned(),
                epoch,
            })
        })
    }

    fn beat<'a>(&'a self, fence: &'a Fence, ttl: Duration) -> BoxFuture<'a, Result<Share>> {
        Box::pin(async move {
            let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
            let text = "UPDATE quorate_saga_member SET alive_until_ms = $3 WHERE owner = $1 AND epoch = $2";
            let beat = sqlx::query(text).bind(&fence.owner).bind(fence.epoch);
            let beat = beat.bind(now_ms() + ttl.as_millis() as i64);
            if beat.execute(&mut *tx).await?.rows_affected() == 0 {
                return Err(fenced(fence));
            }
            let bury = sqlx::query("DELETE FROM quorate_saga_member WHERE alive_until_ms < $1");
            bury.bind(now_ms()).execute(&mut *tx).await?;
            let text = "SELECT coalesce(sum(owner < $1), 0), count(*) FROM quorate_saga_member";
            let row = sqlx::query(text).bind(&fence.owner);
            let row = row.fetch_one(&mut *tx).await?;
            tx.commit().await?;
            Ok(Share {
                rank: row.try_get::<i64, _>(0)? as u32,
                of: row.try_get::<i64, _>(1)? as u32,
            })
        })
    }

    fn leave<'a>(&'a self, fence: &'a Fence) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let text = "DELETE FROM quorate_saga_member WHERE owner = $1 AND epoch = $2";
            let left = sqlx::query(text).bind(&fence.owner).bind(fence.epoch);
            left.execute(&self.pool).await?;
            Ok(())
        })
    }

    fn append<'a>(
        &'a self,
        fence: Option<&'a Fence>,
        appends: &'a [Append],
    ) -> BoxFuture<'a, Result<Vec<bool>>> {
        Box::pin(self.append_all(fence, appends))
    }

    fn load<'a>(&'a self, ids: &'a [Uuid]) -> BoxFuture<'a, Result<Vec<Record>>> {
        Box::pin(async move {
            let mut found = Vec::with_capacity(ids.len());
            let mut connection = self.pool.acquire().await?;
            let text = format!("SELECT {COLUMNS} FROM quorate_saga WHERE id = $1");
            for id in ids {
                let row = sqlx::query(AssertSqlSafe(text.clone())).bind(*id);
                let row = row.fetch_optional(&mut *connection).await?;
                found.extend(row.as_ref().map(record).transpose()?);
            }
            Ok(found)
        })
    }

    fn due<'a>(
        &'a self,
        share: Share,
        known: &'a [(String, u32)],
        now_ms: i64,
        limit: usize,
    ) -> BoxFuture<'a, Result<Due>> {
        Box::pin(async move {
            let pairs: Vec<serde_json::Value> = known
                .iter()
                .map(|(name, version)| serde_json::json!([name, version]))
                .collect();
            let text = "SELECT id, wake_ms FROM quorate_saga
                WHERE wake_ms IS NOT NULL AND part % $1 = $2 AND EXISTS (
                    SELECT 1 FROM json_each($3) AS k WHERE k.value ->> 0 = quorate_saga.name
                    AND k.value ->> 1 = quorate_saga.version)
                ORDER BY wake_ms LIMIT $4";
            let rows = sqlx::query(text)
                .bind(i64::from(share.of.max(1)))
                .bind(i64::from(share.rank))
                .bind(serde_json::Value::Array(pairs).to_string())
                .bind(i64::try_from(limit).unwrap_or(i64::MAX))
                .fetch_all(&self.pool)
                .await?;
            let mut due = Due::default();
            for row in &rows {
                let at: i64 = row.try_get(1)?;
                if at > now_ms {
                    due.next_ms = Some(at);
                    break;
                }
                due.ids.push(row.try_get(0)?);
            }
            Ok(due)
        })
    }

    fn list<'a>(&'a self, filter: &'a Filter, limit: usize) -> BoxFuture<'a, Result<Vec<Record>>> {
        Box::pin(async move {
            let text = format!(
                "SELECT {COLUMNS} FROM quorate_saga
                 WHERE ($1 IS NULL OR status = $1) AND ($2 IS NULL OR name = $2)
                 ORDER BY started_ms, id LIMIT $3"
            );
            let rows = sqlx::query(AssertSqlSafe(text))
                .bind(filter.status.map(|status| status.number()))
                .bind(&filter.name)
                .bind(i64::try_from(limit).unwrap_or(i64::MAX))
                .fetch_all(&self.pool)
                .await?;
            rows.iter().map(record).collect()
        })
    }

    fn count(&self) -> BoxFuture<'_, Result<Vec<Count>>> {
        Box::pin(async move {
            let text = "SELECT name, version, status, count(*), min(started_ms) FROM quorate_saga
                GROUP BY 1, 2, 3 ORDER BY 1, 2, 3";
            let rows = sqlx::query(text).fetch_all(&self.pool).await?;
            let count = |row: &SqliteRow| {
                Ok(Count {
                    name: row.try_get(0)?,
                    version: row.try_get::<i64, _>(1)?.clamp(0, u32::MAX.into()) as u32,
                    status: status_of(row.try_get(2)?)?,
                    sagas: row.try_get(3)?,
                    oldest_ms: row.try_get(4)?,
                })
            };
            rows.iter().map(count).collect()
        })
    }

    fn open(&self) -> BoxFuture<'_, Result<Open>> {
        Box::pin(async move {
            let text =
                "SELECT coalesce(sum(stuck = 0), 0), coalesce(sum(stuck = 1), 0), min(started_ms)
                FROM (SELECT 0 AS stuck, started_ms FROM quorate_saga
                        WHERE wake_ms IS NOT NULL AND status <> 2
                      UNION ALL SELECT 1, started_ms FROM quorate_saga WHERE status = 2) AS s";
            let row = sqlx::query(text).fetch_one(&self.pool).await?;
            Ok(Open {
                running: row.try_get(0)?,
                stuck: row.try_get(1)?,
                oldest_ms: row.try_get(2)?,
            })
        })
    }

    fn forget(&self, before_ms: i64, limit: usize) -> BoxFuture<'_, Result<u64>> {
        Box::pin(async move {
            let text = "DELETE FROM quorate_saga WHERE id IN (
                SELECT id FROM quorate_saga WHERE started_ms < $1 AND status >= 3 LIMIT $2)";
            let done = sqlx::query(text).bind(before_ms);
            let done = done.bind(i64::try_from(limit).unwrap_or(i64::MAX));
            Ok(done.execute(&self.pool).await?.rows_affected())
        })
    }
}
