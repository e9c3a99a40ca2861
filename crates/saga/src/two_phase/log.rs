//! The decision log: a row for each outcome, written once.

use std::collections::HashMap;
use std::time::Duration;

use sqlx::{PgConnection, PgPool, Row};

use crate::at::millis;
use crate::{Error, ErrorKind, Result};

/// The version of the tables that this program reads and writes.
pub const TWO_PHASE_SCHEMA_VERSION: i32 = 1;
const LOCK: i64 = 0x7175_6f72_3270_6330;
const TABLES: [&str; 3] = [
    "CREATE TABLE quorate_2pc_schema (
        only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one), version int NOT NULL,
        log text NOT NULL, made timestamptz NOT NULL DEFAULT now())",
    "CREATE TABLE quorate_2pc_decision (
        transaction text PRIMARY KEY, state smallint NOT NULL, branches text[] NOT NULL,
        decided timestamptz NOT NULL DEFAULT clock_timestamp(), ended timestamptz)",
    "CREATE INDEX quorate_2pc_decision_open ON quorate_2pc_decision (transaction) WHERE state = 1",
];

/// What was decided of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TwoPhaseOutcome {
    /// To commit; some database may still have it prepared.
    Committing,
    /// Committed everywhere.
    Committed,
    /// Rolled back, since it was undecided for too long.
    Aborted,
}

impl TwoPhaseOutcome {
    pub(super) fn is_commit(self) -> bool {
        self != TwoPhaseOutcome::Aborted
    }

    fn number(self) -> i16 {
        match self {
            TwoPhaseOutcome::Committing => 1,
            TwoPhaseOutcome::Aborted => 2,
            TwoPhaseOutcome::Committed => 3,
        }
    }

    fn of(number: i16) -> Result<TwoPhaseOutcome> {
        match number {
            1 => Ok(TwoPhaseOutcome::Committing),
            2 => Ok(TwoPhaseOutcome::Aborted),
            3 => Ok(TwoPhaseOutcome::Committed),
            _ => {
                let text = format!(
                    "quorate_2pc_decision has state {number}, which is none: restore the row"
                );
                Err(Error::new(ErrorKind::Corrupt, text))
            }
        }
    }
}

pub(super) struct DecisionLog {
    pool: PgPool,
    /// Made with the tables.
    pub(super) name: String,
}

pub(super) async fn migrate(pool: &PgPool) -> Result<()> {
    let mut tx = pool.begin().await?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(LOCK)
        .execute(&mut *tx)
        .await?;
    if exists(&mut tx, "quorate_2pc_schema").await? {
        return Ok(());
    }
    if exists(&mut tx, "quorate_2pc_decision").await? {
        return Err(damaged(
            "there is a table quorate_2pc_decision without a version",
        ));
    }
    for text in TABLES {
        sqlx::query(text).execute(&mut *tx).await?;
    }
    let name = uuid::Uuid::now_v7().simple().to_string();
    sqlx::query("INSERT INTO quorate_2pc_schema (version, log) VALUES ($1, $2)")
        .bind(TWO_PHASE_SCHEMA_VERSION)
        .bind(&name[20..])
        .execute(&mut *tx)
        .await?;
    tx.commit().await?;
    Ok(())
}

async fn exists(connection: &mut PgConnection, name: &str) -> Result<bool> {
    let query = sqlx::query("SELECT to_regclass($1) IS NOT NULL").bind(name);
    Ok(query.fetch_one(connection).await?.try_get(0)?)
}

fn damaged(what: &str) -> Error {
    let text = format!(
        "the decision log is not what a migration leaves: {what}; restore it, or settle all prepared \
         transactions, drop the quorate_2pc tables and migrate again"
    );
    Error::new(ErrorKind::Schema, text)
}

impl DecisionLog {
    pub(super) async fn open(pool: PgPool) -> Result<DecisionLog> {
        let mut connection = pool.acquire().await?;
        if !exists(&mut connection, "quorate_2pc_schema").await? {
            let text = "the database has no decision log yet: migrate it (TwoPhase::migrate)";
            return Err(Error::new(ErrorKind::Missing, text));
        }
        let read = sqlx::query("SELECT version, log FROM quorate_2pc_schema");
        let row = read.fetch_optional(&mut *connection).await?;
        let row = row.ok_or_else(|| damaged("quorate_2pc_schema is empty"))?;
        let version: i32 = row.try_get(0)?;
        if version != TWO_PHASE_SCHEMA_VERSION {
            let text = format!(
                "the decision log is of version {version}, this program knows {TWO_PHASE_SCHEMA_VERSION}: use \
                 the program that fits, or migrate it"
            );
            return Err(Error::new(ErrorKind::Schema, text));
        }
        if !exists(&mut connection, "quorate_2pc_decision").await? {
            return Err(damaged("quorate_2pc_decision is missing"));
        }
        let name = row.try_get(1)?;
        drop(connection);
        Ok(DecisionLog { pool, name })
    }

    /// Decides, unless that is done; answers what is decided.
    pub(super) async fn decide(
        &self,
        transaction: &str,
        wanted: TwoPhaseOutcome,
        branches: &[String],
    ) -> Result<TwoPhaseOutcome> {
        let ended = "CASE WHEN $2 = 2 THEN clock_timestamp() END";
        let text = format!(
            "INSERT INTO quorate_2pc_decision (transaction, state, branches, ended)
             VALUES ($1, $2, $3, {ended}) ON CONFLICT (transaction) DO NOTHING"
        );
        let unknown = |error: sqlx::Error| Error::from(error).outcome_unknown();
        let query = sqlx::query(sqlx::AssertSqlSafe(text))
            .bind(transaction)
            .bind(wanted.number());
        let done = query
            .bind(branches)
            .execute(&self.pool)
            .await
            .map_err(unknown)?;
        if done.rows_affected() == 1 {
            return Ok(wanted);
        }
        let known = self
            .outcome(transaction)
            .await
            .map_err(Error::outcome_unknown)?;
        known.ok_or_else(|| damaged("a decision has vanished"))
    }

    pub(super) async fn outcome(&self, transaction: &str) -> Result<Option<TwoPhaseOutcome>> {
        let read = sqlx::query("SELECT state FROM quorate_2pc_decision WHERE transaction = $1");
        let row = read.bind(transaction).fetch_optional(&self.pool).await?;
        row.map(|row| TwoPhaseOutcome::of(row.try_get(0)?))
            .transpose()
    }

    pub(super) async fn outcomes(
        &self,
        transactions: &[String],
    ) -> Result<HashMap<String, TwoPhaseOutcome>> {
        let read =
            "SELECT transaction, state FROM quorate_2pc_decision WHERE transaction = ANY ($1)";
        let rows = sqlx::query(read)
            .bind(transactions)
            .fetch_all(&self.pool)
            .await?;
        let pair = |row: &sqlx::postgres::PgRow| {
            Ok((row.try_get(0)?, TwoPhaseOutcome::of(row.try_get(1)?)?))
        };
        rows.iter().map(pair).collect()
    }

    /// Those that are decided to commit and not known to be committed everywhere, with their branches.
    pub(super) async fn unfinished(&self) -> Result<Vec<(String, Vec<String>)>> {
        let read =
            "SELECT transaction, branches FROM quorate_2pc_decision WHERE state = 1 ORDER BY 1";
        let rows = sqlx::query(read).fetch_all(&self.pool).await?;
        rows.iter()
            .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
            .collect()
    }

    pub(super) async fn end(&self, transactions: &[String]) -> Result<u64> {
        let end = "UPDATE quorate_2pc_decision SET state = 3, ended = clock_timestamp()
             WHERE transaction = ANY ($1) AND state = 1";
        let done = sqlx::query(end)
            .bind(transactions)
            .execute(&self.pool)
            .await?;
        Ok(done.rows_affected())
    }

    pub(super) async fn forget(&self, age: Duration) -> Result<u64> {
        let forget = "DELETE FROM quorate_2pc_decision
             WHERE ended < clock_timestamp() - $1 * interval '1 millisecond'";
        let done = sqlx::query(forget)
            .bind(millis(age))
            .execute(&self.pool)
            .await?;
        Ok(done.rows_affected())
    }
}
