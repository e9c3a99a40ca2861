//! The tables, their versions and their migration.
//!
//! A migration is one transaction under an advisory lock: it is done or not. What was made by other
//! means, or lost parts since, is told by comparing the version with what is there.

use sqlx::{AssertSqlSafe, PgConnection, PgPool, Row};

use super::RING;
use crate::{Error, ErrorKind, Result};

/// The version of the tables that this program reads and writes.
pub const PG_SCHEMA_VERSION: i32 = 1;
const LOCK: i64 = 0x7175_6f72_6f75_7462;
const PARTS_MAX: u16 = 64;

/// What is in a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PgSchema {
    /// The version of the tables.
    pub version: i32,
    /// How many parts the outbox has.
    pub parts: u16,
    /// The name of this outbox.
    pub source: String,
}

/// One statement after the other; `{part}` statements are repeated for each part.
const TABLES: &[&str] = &[
    "CREATE TABLE quorate_outbox (
        part smallint NOT NULL, id bigint NOT NULL, slot smallint NOT NULL,
        message_id uuid NOT NULL, topic text NOT NULL, key text, seq bigint,
        headers text NOT NULL, payload bytea NOT NULL,
        created timestamptz NOT NULL DEFAULT clock_timestamp()
    ) PARTITION BY LIST (slot)",
    "CREATE TABLE quorate_outbox_key (
        topic text NOT NULL, key text NOT NULL, n bigint NOT NULL, PRIMARY KEY (topic, key)
    ) WITH (fillfactor = 70)",
    "CREATE TABLE quorate_outbox_relay (
        part smallint PRIMARY KEY, epoch bigint NOT NULL, owner text NOT NULL,
        lease_until timestamptz NOT NULL, floor bigint NOT NULL, done bigint[] NOT NULL,
        batch bigint NOT NULL, plan bigint[] NOT NULL, saves bigint NOT NULL
    ) WITH (fillfactor = 10)",
    "CREATE TABLE quorate_outbox_member (
        owner text PRIMARY KEY, alive_until timestamptz NOT NULL
    )",
    "CREATE TABLE quorate_outbox_parked (
        part smallint NOT NULL, id bigint NOT NULL, message_id uuid NOT NULL, topic text NOT NULL,
        key text, seq bigint, headers text NOT NULL, payload bytea NOT NULL,
        created timestamptz NOT NULL, reason text NOT NULL, attempts bigint NOT NULL,
        wish smallint NOT NULL, parked_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        PRIMARY KEY (part, id)
    )",
    "CREATE INDEX quorate_outbox_parked_stream ON quorate_outbox_parked (part, topic, key, seq)",
];
const PER_PART: &[&str] = &[
    "CREATE SEQUENCE quorate_outbox_id_{part} CACHE 1",
    "INSERT INTO quorate_outbox_relay
     VALUES ({part}, 0, '', '-infinity', 0, '{}', 0, '{}', 0)",
];
const PER_SLOT: &[&str] = &[
    "CREATE TABLE quorate_outbox_{part}_{ring} PARTITION OF quorate_outbox FOR VALUES IN ({slot})
     WITH (autovacuum_vacuum_insert_scale_factor = 10)",
    "CREATE UNIQUE INDEX quorate_outbox_{part}_{ring}_id ON quorate_outbox_{part}_{ring} (id)",
];

/// Makes the tables unless they are there.
pub(super) async fn migrate(pool: &PgPool, parts: u16) -> Result<()> {
    if parts == 0 || parts > PARTS_MAX {
        let text = format!("an outbox has 1 to {PARTS_MAX} parts, not {parts}");
        return Err(Error::new(ErrorKind::Invalid, text));
    }
    let mut tx = pool.begin().await?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(LOCK)
        .execute(&mut *tx)
        .await?;
    if read(&mut tx).await?.is_none() {
        if exists(&mut tx, "quorate_outbox").await? {
            return Err(damaged("there is a table quorate_outbox without a version"));
        }
        create(&mut tx, parts).await?;
        tx.commit().await?;
    }
    Ok(())
}

async fn create(tx: &mut PgConnection, parts: u16) -> Result<()> {
    run(
        tx,
        "CREATE TABLE quorate_outbox_schema (
            only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one), version int NOT NULL,
            parts int NOT NULL, source text NOT NULL, made timestamptz NOT NULL DEFAULT now()
        )",
    )
    .await?;
    for statement in TABLES {
        run(tx, statement).await?;
    }
    for part in 0..i64::from(parts) {
        for statement in PER_PART {
            run(tx, &statement.replace("{part}", &part.to_string())).await?;
        }
        for ring in 0..RING {
            for statement in PER_SLOT {
                let text = statement
                    .replace("{part}", &part.to_string())
                    .replace("{ring}", &ring.to_string())
                    .replace("{slot}", &(part * RING + ring).to_string());
                run(tx, &text).await?;
            }
        }
    }
    sqlx::query("INSERT INTO quorate_outbox_schema (version, parts, source) VALUES ($1, $2, $3)")
        .bind(PG_SCHEMA_VERSION)
        .bind(i32::from(parts))
        .bind(uuid::Uuid::now_v7().simple().to_string())
        .execute(&mut *tx)
        .await?;
    Ok(())
}

async fn run(tx: &mut PgConnection, text: &str) -> Result<()> {
    // Only our own constants and numbers are in these statements.
    sqlx::query(AssertSqlSafe(text)).execute(tx).await?;
    Ok(())
}

async fn exists(tx: &mut PgConnection, name: &str) -> Result<bool> {
    let row = sqlx::query("SELECT to_regclass($1) IS NOT NULL")
        .bind(name)
        .fetch_one(tx)
        .await?;
    Ok(row.try_get(0)?)
}

/// What the database says of itself; `None` when nothing is there.
async fn read(tx: &mut PgConnection) -> Result<Option<PgSchema>> {
    if !exists(tx, "quorate_outbox_schema").await? {
        return Ok(None);
    }
    let row = sqlx::query("SELECT version, parts, source FROM quorate_outbox_schema")
        .fetch_optional(tx)
        .await?
        .ok_or_else(|| damaged("quorate_outbox_schema is empty"))?;
    let version: i32 = row.try_get(0)?;
    if version != PG_SCHEMA_VERSION {
        let text = format!(
            "the outbox's tables are of version {version}, this program knows {PG_SCHEMA_VERSION}: {}",
            if version > PG_SCHEMA_VERSION {
                "use a newer program"
            } else {
                "migrate them"
            }
        );
        return Err(Error::new(ErrorKind::Schema, text));
    }
    let parts: i32 = row.try_get(1)?;
    Ok(Some(PgSchema {
        version,
        parts: u16::try_from(parts)
            .ok()
            .filter(|parts| (1..=PARTS_MAX).contains(parts))
            .ok_or_else(|| damaged("the number of parts is not 1 to 64"))?,
        source: row.try_get(2)?,
    }))
}

/// Reads the version and looks whether all that belongs to it is there.
pub(super) async fn check(pool: &PgPool) -> Result<PgSchema> {
    let mut connection = pool.acquire().await?;
    let Some(found) = read(&mut connection).await? else {
        let text = "the database has no outbox yet: migrate it (PgOutbox::migrate)";
        return Err(Error::new(ErrorKind::Missing, text));
    };
    let mut names: Vec<String> = ["", "_key", "_relay", "_member", "_parked"]
        .map(|end| format!("quorate_outbox{end}"))
        .to_vec();
    for part in 0..found.parts {
        names.push(format!("quorate_outbox_id_{part}"));
        names.extend((0..RING).map(|ring| format!("quorate_outbox_{part}_{ring}")));
    }
    let row = sqlx::query(
        "SELECT coalesce(string_agg(n, ', '), '') FROM unnest($1::text[]) AS n
         WHERE to_regclass(n) IS NULL",
    )
    .bind(&names)
    .fetch_one(&mut *connection)
    .await?;
    let missing: String = row.try_get(0)?;
    if !missing.is_empty() {
        return Err(damaged(&format!("these are missing: {missing}")));
    }
    Ok(found)
}

fn damaged(what: &str) -> Error {
    let text = format!(
        "the outbox's tables are not what a migration leaves: {what}; restore them, or drop all \
         quorate_outbox tables and migrate again"
    );
    Error::new(ErrorKind::Schema, text)
}
