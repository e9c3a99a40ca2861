//! The journal in a PostgreSQL database (13 or newer), beside its outbox.
//!
//! A saga is one row, and a step changes no column that is in an index: the update stays in its page. The time
//! to wake is indexed, and changes when a saga begins, when it ends, and when that time has come; in between it
//! may be too early, and then the saga is looked at and put off.

use std::time::Duration;

use quorate_outbox::postgres::PgOutbox;
use quorate_outbox::store::BoxFuture;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Row};
use uuid::Uuid;

use super::{
    Append, Count, Due, Fence, Filter, Journal, Open, PARTS, Record, Share, fenced, part,
    status_of, wrong_version,
};
use crate::machine::write_log;
use crate::points;
use crate::{Error, ErrorKind, Result};

/// The version of the tables that this program reads and writes.
pub const PG_SAGA_VERSION: i32 = 1;
const LOCK: i64 = 0x7175_6f72_7361_6761;
/// One list of statements for each version, from 1.
const MIGRATIONS: &[&str] = &["\
    CREATE TABLE quorate_saga_schema (
        only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one), version int NOT NULL,
        made timestamptz NOT NULL DEFAULT now());
    INSERT INTO quorate_saga_schema (version) VALUES (0);
    CREATE TABLE quorate_saga (
        id uuid PRIMARY KEY, name text NOT NULL, version bigint NOT NULL, key text NOT NULL,
        part int NOT NULL, seq bigint NOT NULL, status smallint NOT NULL, wake_ms bigint,
        started_ms bigint NOT NULL, log text NOT NULL
    ) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);
    CREATE INDEX quorate_saga_wake ON quorate_saga (wake_ms) WHERE wake_ms IS NOT NULL;
    CREATE INDEX quorate_saga_stuck ON quorate_saga (started_ms) WHERE status = 2;
    CREATE INDEX quorate_saga_started ON quorate_saga USING brin (started_ms);
    CREATE SEQUENCE quorate_saga_epoch;
    CREATE TABLE quorate_saga_member (
        owner text PRIMARY KEY, epoch bigint NOT NULL, alive_until timestamptz NOT NULL
    ) WITH (fillfactor = 10)"];
const TABLES: [&str; 2] = ["quorate_saga", "quorate_saga_member"];

/// A coordinator that is frozen in the middle must not keep its locks.
const BEGIN: &str = "BEGIN; SET LOCAL idle_in_transaction_session_timeout = '5s'";
const COLUMNS: &str = "id, name, version, key, seq, status, wake_ms, started_ms, log";
const INSERT: &str = "\
    INSERT INTO quorate_saga (id, name, version, key, part, seq, status, wake_ms, started_ms, log)
    SELECT * FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::text[], $5::int[], $6::bigint[],
        $7::smallint[], $8::bigint[], $9::bigint[], $10::text[])
    ON CONFLICT (id) DO NOTHING RETURNING id";
const UPDATE: &str = "\
    UPDATE quorate_saga s
    SET seq = s.seq + u.added, status = u.status, wake_ms = u.wake_ms, log = s.log || u.log
    FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::smallint[], $5::bigint[], $6::text[])
        AS u (id, seq, added, status, wake_ms, log)
    WHERE s.id = u.id AND s.seq = u.seq RETURNING s.id";
const JOIN: &str = "\
    INSERT INTO quorate_saga_member (owner, epoch, alive_until)
    VALUES ($1, nextval('quorate_saga_epoch'), clock_timestamp() + make_interval(secs => $2))
    ON CONFLICT (owner) DO UPDATE SET epoch = excluded.epoch, alive_until = excluded.alive_until
    RETURNING epoch";
const BEAT: &str = "\
    UPDATE quorate_saga_member SET alive_until = clock_timestamp() + make_interval(secs => $3)
    WHERE owner = $1 AND epoch = $2";
/// Members that wake up together must not wait for each other's rows in a circle.
const BURY: &str = "\
    DELETE FROM quorate_saga_member WHERE owner IN (
        SELECT owner FROM quorate_saga_member WHERE alive_until < clock_timestamp()
        FOR UPDATE SKIP LOCKED)";

/// Sagas in a PostgreSQL database. Cheap to clone; may be used from many tasks.
#[derive(Clone)]
pub struct PgJournal {
    pool: PgPool,
    outbox: PgOutbox,
}

impl PgJournal {
    /// Makes the tables, or brings them to this version, and opens the journal. Commands leave by `outbox`, which
    /// is in the same database.
    ///
    /// # Errors
    /// `Schema` when the tables are newer than this program or damaged; `Unavailable`.
    pub async fn migrate(outbox: PgOutbox) -> Result<PgJournal> {
        let pool = outbox.pool().clone();
        let mut tx = pool.begin().await?;
        let lock = sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(LOCK);
        lock.execute(&mut *tx).await?;
        let found = if exists(&mut tx, "quorate_saga_schema").await? {
            Some(version(&mut tx).await?)
        } else {
            None
        };
        let from = usize::try_from(found.unwrap_or(0)).unwrap_or(0);
        if from < MIGRATIONS.len() {
            for statements in &MIGRATIONS[from..] {
                sqlx::raw_sql(*statements).execute(&mut *tx).await?;
            }
            let done = sqlx::query("UPDATE quorate_saga_schema SET version = $1");
            done.bind(PG_SAGA_VERSION).execute(&mut *tx).await?;
        }
        // Before another connection is asked for: there may be no other.
        tx.commit().await?;
        PgJournal::open(outbox).await
    }

    /// Opens a journal whose tables are there.
    ///
    /// # Errors
    /// `Missing`; `Schema` when they are of another version, or incomplete.
    pub async fn open(outbox: PgOutbox) -> Result<PgJournal> {
        let pool = outbox.pool().clone();
        let mut connection = pool.acquire().await?;
        if !exists(&mut connection, "quorate_saga_schema").await? {
            let text = "the database has no sagas yet: migrate it (PgJournal::migrate)";
            return Err(Error::new(ErrorKind::Missing, text));
        }
        let found = version(&mut connection).await?;
        if found != PG_SAGA_VERSION {
            return Err(wrong_version(Some(found.into()), PG_SAGA_VERSION.into()));
        }
        for table in TABLES {
            if !exists(&mut connection, table).await? {
                let text = format!("the saga tables are damaged: {table} is missing; restore it");
                return Err(Error::new(ErrorKind::Schema, text));
            }
        }
        drop(connection);
        Ok(PgJournal { pool, outbox })
    }

    /// Begins sagas in the caller's own transaction: they are there if and when it commits. Call
    /// [`PgJournal::wake`] then. Answers as [`Journal::append`].
    ///
    /// # Errors
    /// `Unavailable` and `Schema` of the database, after which the transaction has to be rolled back.
    pub async fn append_in(&self, tx: &mut PgConnection, appends: &[Append]) -> Result<Vec<bool>> {
        let (begun, gone_on): (Vec<&Append>, Vec<&Append>) =
            appends.iter().partition(|one| one.seq == 0);
        let mut written = insert(tx, &begun).await?;
        points::pass("journal.begun");
        written.extend(update(tx, &gone_on).await?);
        points::pass("journal.written");
        let written: Vec<bool> = appends
            .iter()
            .map(|one| written.contains(&one.id))
            .collect();
        let kept = appends.iter().zip(&written).filter(|(_, kept)| **kept);
        let messages: Vec<_> = kept
            .flat_map(|(one, _)| one.messages.iter().cloned())
            .collect();
        self.outbox.enqueue_all(tx, &messages).await?;
        points::pass("journal.enqueued");
        Ok(written)
    }

    /// Wakes relays of this process at once. A hint, never needed.
    pub fn wake(&self) {
        self.outbox.wake();
    }

    async fn append_all(&self, fence: Option<&Fence>, appends: &[Append]) -> Result<Vec<bool>> {
        let mut tx = self.pool.begin_with(BEGIN).await?;
        if let Some(fence) = fence {
            // Who buries this member waits until this is through.
            let text =
                "SELECT 1 FROM quorate_saga_member WHERE owner = $1 AND epoch = $2 FOR KEY SHARE";
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

async fn exists(connection: &mut PgConnection, table: &str) -> Result<bool> {
    let row = sqlx::query("SELECT to_regclass($1) IS NOT NULL").bind(table);
    Ok(row.fetch_one(connection).await?.try_get(0)?)
}

async fn version(connection: &mut PgConnection) -> Result<i32> {
    let row = sqlx::query("SELECT version FROM quorate_saga_schema");
    let row = row.fetch_optional(connection).await?;
    let row = row.ok_or_else(|| wrong_version(None, PG_SAGA_VERSION.into()))?;
    Ok(row.try_get(0)?)
}

/// By id, so that no two calls wait for each other in a circle.
fn sorted<'a>(appends: &[&'a Append]) -> Vec<&'a Append> {
    let mut sorted = appends.to_vec();
    sorted.sort_by_key(|one| one.id);
    sorted
}

fn column<T>(appends: &[&Append], of: impl Fn(&Append) -> T) -> Vec<T> {
    appends.iter().map(|one| of(one)).collect()
}

fn logs(appends: &[&Append]) -> Result<Vec<String>> {
    let text = |one: &&Append| {
        let mut log = String::new();
        write_log(&mut log, &one.events)?;
        Ok(log)
    };
    appends.iter().map(text).collect()
}

async fn insert(tx: &mut PgConnection, appends: &[&Append]) -> Result<Vec<Uuid>> {
    if appends.is_empty() {
        return Ok(Vec::new());
    }
    let all = sorted(appends);
    let rows = sqlx::query(INSERT)
        .bind(column(&all, |one| one.id))
        .bind(column(&all, |one| one.name.clone()))
        .bind(column(&all, |one| i64::from(one.version)))
        .bind(column(&all, |one| one.key.clone()))
        .bind(column(&all, |one| part(one.id) as i32))
        .bind(column(&all, |one| one.events.len() as i64))
        .bind(column(&all, |one| one.status.number()))
        .bind(column(&all, |one| one.wake_ms))
        .bind(column(&all, |one| one.started_ms))
        .bind(logs(&all)?)
        .fetch_all(tx)
        .await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

async fn update(tx: &mut PgConnection, appends: &[&Append]) -> Result<Vec<Uuid>> {
    if appends.is_empty() {
        return Ok(Vec::new());
    }
    let all = sorted(appends);
    let rows = sqlx::query(UPDATE)
        .bind(column(&all, |one| one.id))
        .bind(column(&all, |one| one.seq))
        .bind(column(&all, |one| one.events.len() as i64))
        .bind(column(&all, |one| one.status.number()))
        .bind(column(&all, |one| one.wake_ms))
        .bind(logs(&all)?)
        .fetch_all(tx)
        .await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

fn record(row: &PgRow) -> Result<Record> {
    Ok(Record {
        id: row.try_get(0)?,
        name: row.try_get(1)?,
        version: row.try_get::<i64, _>(2)?.clamp(0, u32::MAX.into()) as u32,
        key: row.try_get(3)?,
        seq: row.try_get(4)?,
        status: status_of(row.try_get::<i16, _>(5)?.into())?,
        wake_ms: row.try_get(6)?,
        started_ms: row.try_get(7)?,
        log: row.try_get(8)?,
    })
}

impl Journal for PgJournal {
    fn join<'a>(&'a self, owner: &'a str, ttl: Duration) -> BoxFuture<'a, Result<Fence>> {
        Box::pin(async move {
            let row = sqlx::query(JOIN).bind(owner).bind(ttl.as_secs_f64());
            let row = row.fetch_one(&self.pool).await?;
            Ok(Fence {
                owner: owner.to_owned(),
                epoch: row.try_get(0)?,
            })
        })
    }

    fn beat<'a>(&'a self, fence: &'a Fence, ttl: Duration) -> BoxFuture<'a, Result<Share>> {
        Box::pin(async move {
            let beat = sqlx::query(BEAT).bind(&fence.owner).bind(fence.epoch);
            let beat = beat.bind(ttl.as_secs_f64()).execute(&self.pool).await?;
            if beat.rows_affected() == 0 {
                return Err(fenced(fence));
            }
            sqlx::query(BURY).execute(&self.pool).await?;
            let text =
                "SELECT count(*) FILTER (WHERE owner < $1), count(*) FROM quorate_saga_member";
            let row = sqlx::query(text).bind(&fence.owner);
            let row = row.fetch_one(&self.pool).await?;
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
            let text = format!("SELECT {COLUMNS} FROM quorate_saga WHERE id = ANY($1)");
            let rows = sqlx::query(AssertSqlSafe(text)).bind(ids);
            let rows = rows.fetch_all(&self.pool).await?;
            rows.iter().map(record).collect()
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
            let text = "SELECT id, wake_ms FROM quorate_saga
                WHERE wake_ms IS NOT NULL AND part % $1 = $2 AND EXISTS (
                    SELECT 1 FROM unnest($3::text[], $4::bigint[]) AS k (name, version)
                    WHERE k.name = quorate_saga.name AND k.version = quorate_saga.version)
                ORDER BY wake_ms LIMIT $5";
            let (names, versions): (Vec<&str>, Vec<i64>) = known
                .iter()
                .map(|(n, v)| (n.as_str(), i64::from(*v)))
                .unzip();
            let rows = sqlx::query(text)
                .bind(share.of.clamp(1, PARTS as u32) as i32)
                .bind(share.rank as i32)
                .bind(names)
                .bind(versions)
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
            let count = |row: &PgRow| {
                Ok(Count {
                    name: row.try_get(0)?,
                    version: row.try_get::<i64, _>(1)?.clamp(0, u32::MAX.into()) as u32,
                    status: status_of(row.try_get::<i16, _>(2)?.into())?,
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
                "SELECT count(*) FILTER (WHERE stuck = 0), count(*) FILTER (WHERE stuck = 1),
                    min(started_ms)
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
