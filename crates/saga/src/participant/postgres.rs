//! Fences in a PostgreSQL database, beside its outbox.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quorate_outbox::Message;
use quorate_outbox::postgres::PgOutbox;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::fences::{FenceKey, Fences, outcome_of, text_of};
use crate::machine::Outcome;
use crate::{Error, ErrorKind, Result};

/// The version of the tables that this program reads and writes.
pub const PG_FENCES_VERSION: i32 = 1;
const LOCK: i64 = 0x7175_6f72_666e_6365;
const TABLES: &str = "\
    CREATE TABLE quorate_saga_fence_schema (
        only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one), version int NOT NULL);
    INSERT INTO quorate_saga_fence_schema (version) VALUES (1);
    CREATE TABLE quorate_saga_fence (
        saga uuid NOT NULL, branch text NOT NULL, slot smallint NOT NULL, outcome text,
        at_ms bigint NOT NULL, PRIMARY KEY (saga, branch, slot)) WITH (fillfactor = 90);
    CREATE INDEX quorate_saga_fence_at ON quorate_saga_fence USING brin (at_ms);
    CREATE TABLE quorate_saga_lock (
        name text PRIMARY KEY, saga uuid NOT NULL, started_ms bigint NOT NULL)";
const CLAIM: &str = "\
    INSERT INTO quorate_saga_fence (saga, branch, slot, at_ms)
    SELECT k.saga, k.branch, k.slot, $4 FROM unnest($1::uuid[], $2::text[], $3::smallint[])
        AS k (saga, branch, slot)
    ON CONFLICT (saga, branch, slot) DO NOTHING RETURNING saga, branch, slot";
const LOOK: &str = "\
    SELECT f.saga, f.branch, f.slot, f.outcome FROM quorate_saga_fence f
    JOIN unnest($1::uuid[], $2::text[], $3::smallint[]) AS k (saga, branch, slot)
        ON f.saga = k.saga AND f.branch = k.branch AND f.slot = k.slot";
const SETTLE: &str = "\
    UPDATE quorate_saga_fence f SET outcome = k.outcome
    FROM unnest($1::uuid[], $2::text[], $3::smallint[], $4::text[])
        AS k (saga, branch, slot, outcome)
    WHERE f.saga = k.saga AND f.branch = k.branch AND f.slot = k.slot";
const GIVE_UP: &str = "\
    DELETE FROM quorate_saga_fence f
    USING unnest($1::uuid[], $2::text[], $3::smallint[]) AS k (saga, branch, slot)
    WHERE f.saga = k.saga AND f.branch = k.branch AND f.slot = k.slot";

/// The fences and semantic locks of a service, in its PostgreSQL database. Cheap to clone.
#[derive(Clone)]
pub struct PgFences {
    outbox: PgOutbox,
}

impl PgFences {
    /// Makes the tables, unless they are there, and opens them. Replies leave by `outbox`, which is in the same
    /// database.
    ///
    /// # Errors
    /// `Schema` when the tables are of another version; `Unavailable`.
    pub async fn migrate(outbox: PgOutbox) -> Result<PgFences> {
        let mut tx = outbox.pool().begin().await?;
        let lock = sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(LOCK);
        lock.execute(&mut *tx).await?;
        let row = sqlx::query("SELECT to_regclass('quorate_saga_fence_schema') IS NOT NULL");
        if !row.fetch_one(&mut *tx).await?.try_get::<bool, _>(0)? {
            sqlx::raw_sql(TABLES).execute(&mut *tx).await?;
        }
        tx.commit().await?;
        PgFences::open(outbox).await
    }

    /// Opens fences whose tables are there.
    ///
    /// # Errors
    /// `Missing`; `Schema` when they are of another version.
    pub async fn open(outbox: PgOutbox) -> Result<PgFences> {
        let row = sqlx::query("SELECT version FROM quorate_saga_fence_schema");
        let row = row
            .fetch_optional(outbox.pool())
            .await
            .map_err(super::locks::open_error)?;
        let found: Option<i32> = row.map(|row| row.try_get(0)).transpose()?;
        super::locks::check_version(found.map(i64::from), i64::from(PG_FENCES_VERSION))?;
        Ok(PgFences { outbox })
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

type Columns = (Vec<Uuid>, Vec<String>, Vec<i16>);

/// In one order for everybody, so that no two transactions wait for each other in a circle.
fn columns<'a>(keys: impl Iterator<Item = &'a FenceKey>) -> Columns {
    let mut sorted: Vec<&FenceKey> = keys.collect();
    sorted.sort();
    let mut columns = Columns::default();
    for key in sorted {
        columns.0.push(key.saga);
        columns.1.push(key.branch.clone());
        columns.2.push(key.slot.number());
    }
    columns
}

type Place = (Uuid, String, i16);

fn place(key: &FenceKey) -> Place {
    (key.saga, key.branch.clone(), key.slot.number())
}

fn place_of(row: &sqlx::postgres::PgRow) -> Result<Place> {
    Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))
}

impl Fences for PgFences {
    type Connection = PgConnection;

    async fn claim(&self, tx: &mut PgConnection, keys: &[FenceKey]) -> Result<Vec<bool>> {
        let (sagas, branches, slots) = columns(keys.iter());
        let claimed = sqlx::query(CLAIM).bind(sagas).bind(branches).bind(slots);
        let rows = claimed.bind(now_ms()).fetch_all(tx).await?;
        let claimed: HashSet<Place> = rows.iter().map(place_of).collect::<Result<_>>()?;
        Ok(keys
            .iter()
            .map(|key| claimed.contains(&place(key)))
            .collect())
    }

    async fn look(&self, tx: &mut PgConnection, keys: &[FenceKey]) -> Result<Vec<Option<Outcome>>> {
        let (sagas, branches, slots) = columns(keys.iter());
        let found = sqlx::query(LOOK).bind(sagas).bind(branches).bind(slots);
        let mut said: HashMap<Place, Outcome> = HashMap::new();
        for row in found.fetch_all(tx).await? {
            let text: Option<String> = row.try_get(3)?;
            said.insert(place_of(&row)?, outcome_of(text.as_deref())?);
        }
        Ok(keys
            .iter()
            .map(|key| said.get(&place(key)).cloned())
            .collect())
    }

    async fn settle(&self, tx: &mut PgConnection, outcomes: &[(FenceKey, Outcome)]) -> Result<()> {
        if outcomes.is_empty() {
            return Ok(());
        }
        let mut columns = Columns::default();
        let mut texts = Vec::with_capacity(outcomes.len());
        for (key, outcome) in outcomes {
            columns.0.push(key.saga);
            columns.1.push(key.branch.clone());
            columns.2.push(key.slot.number());
            texts.push(text_of(outcome)?);
        }
        let settled = sqlx::query(SETTLE)
            .bind(columns.0)
            .bind(columns.1)
            .bind(columns.2);
        settled.bind(texts).execute(tx).await?;
        Ok(())
    }

    async fn give_up(&self, tx: &mut PgConnection, keys: &[FenceKey]) -> Result<()> {
        if keys.is_empty() {
            return Ok(());
        }
        let (sagas, branches, slots) = columns(keys.iter());
        let gone = sqlx::query(GIVE_UP).bind(sagas).bind(branches).bind(slots);
        gone.execute(tx).await?;
        Ok(())
    }

    async fn send(&self, tx: &mut PgConnection, messages: &[Message]) -> Result<()> {
        Ok(self.outbox.enqueue_all(tx, messages).await?)
    }

    fn wake(&self) {
        self.outbox.wake();
    }

    async fn run(&self, tx: &mut PgConnection, text: &'static str) -> Result<()> {
        sqlx::query(text).execute(tx).await?;
        Ok(())
    }
}

impl super::locks::Locks for PgFences {
    async fn take(
        &self,
        tx: &mut PgConnection,
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

    async fn release(&self, tx: &mut PgConnection, saga: Uuid) -> Result<u64> {
        let gone = sqlx::query("DELETE FROM quorate_saga_lock WHERE saga = $1").bind(saga);
        Ok(gone.execute(tx).await?.rows_affected())
    }
}
