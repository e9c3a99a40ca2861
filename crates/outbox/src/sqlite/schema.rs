//! The tables, their version and their migration: one transaction, done or not.

use sqlx::{Row, SqliteConnection, SqlitePool};

use crate::{Error, ErrorKind, Result};

/// The version of the tables that this program reads and writes.
pub const SQLITE_SCHEMA_VERSION: i64 = 1;
const PARTS_MAX: u16 = 64;

const TABLES: &str = "\
    CREATE TABLE quorate_outbox_schema (
        only_one INTEGER PRIMARY KEY CHECK (only_one = 1), version INTEGER NOT NULL,
        parts INTEGER NOT NULL, source TEXT NOT NULL);
    CREATE TABLE quorate_outbox (
        id INTEGER PRIMARY KEY AUTOINCREMENT, part INTEGER NOT NULL, message_id BLOB NOT NULL,
        topic TEXT NOT NULL, key TEXT, seq INTEGER, headers TEXT NOT NULL, payload BLOB NOT NULL,
        created_ms INTEGER NOT NULL);
    CREATE INDEX quorate_outbox_part ON quorate_outbox (part, id);
    CREATE TABLE quorate_outbox_key (
        topic TEXT NOT NULL, key TEXT NOT NULL, n INTEGER NOT NULL,
        PRIMARY KEY (topic, key)) WITHOUT ROWID;
    CREATE TABLE quorate_outbox_relay (
        part INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, owner TEXT NOT NULL,
        lease_until_ms INTEGER NOT NULL, floor INTEGER NOT NULL, done TEXT NOT NULL,
        batch INTEGER NOT NULL, plan TEXT NOT NULL);
    CREATE TABLE quorate_outbox_member (
        owner TEXT PRIMARY KEY, alive_until_ms INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE quorate_outbox_parked (
        part INTEGER NOT NULL, id INTEGER NOT NULL, message_id BLOB NOT NULL, topic TEXT NOT NULL,
        key TEXT, seq INTEGER, headers TEXT NOT NULL, payload BLOB NOT NULL,
        created_ms INTEGER NOT NULL, reason TEXT NOT NULL, attempts INTEGER NOT NULL,
        wish INTEGER NOT NULL, PRIMARY KEY (part, id)) WITHOUT ROWID;
    CREATE INDEX quorate_outbox_parked_stream ON quorate_outbox_parked (part, topic, key, seq)";
const NAMES: [&str; 6] = [
    "quorate_outbox_schema",
    "quorate_outbox",
    "quorate_outbox_key",
    "quorate_outbox_relay",
    "quorate_outbox_member",
    "quorate_outbox_parked",
];

pub(super) async fn migrate(pool: &SqlitePool, parts: u16) -> Result<()> {
    if parts == 0 || parts > PARTS_MAX {
        let text = format!("an outbox has 1 to {PARTS_MAX} parts, not {parts}");
        return Err(Error::new(ErrorKind::Invalid, text));
    }
    let mut tx = pool.begin_with("BEGIN IMMEDIATE").await?;
    let there = tables(&mut tx).await?;
    if there.iter().any(|name| name == NAMES[0]) {
        return Ok(());
    }
    if !there.is_empty() {
        return Err(damaged("there are tables without a version"));
    }
    sqlx::raw_sql(TABLES).execute(&mut *tx).await?;
    for part in 0..i64::from(parts) {
        sqlx::query("INSERT INTO quorate_outbox_relay VALUES ($1, 0, '', 0, 0, '[]', 0, '[]')")
            .bind(part)
            .execute(&mut *tx)
            .await?;
    }
    sqlx::query("INSERT INTO quorate_outbox_schema VALUES (1, $1, $2, $3)")
        .bind(SQLITE_SCHEMA_VERSION)
        .bind(i64::from(parts))
        .bind(uuid::Uuid::now_v7().simple().to_string())
        .execute(&mut *tx)
        .await?;
    tx.commit().await?;
    Ok(())
}

/// Our tables that are there.
async fn tables(tx: &mut SqliteConnection) -> Result<Vec<String>> {
    let rows = sqlx::query("SELECT name FROM sqlite_master WHERE type = 'table'")
        .fetch_all(tx)
        .await?;
    let mut names = Vec::new();
    for row in rows {
        let name: String = row.try_get(0)?;
        if NAMES.contains(&name.as_str()) {
            names.push(name);
        }
    }
    Ok(names)
}

/// The number of parts and the name of the outbox.
pub(super) async fn check(pool: &SqlitePool) -> Result<(u16, String)> {
    let mut connection = pool.acquire().await?;
    let there = tables(&mut connection).await?;
    if !there.iter().any(|name| name == NAMES[0]) {
        let text = "the database has no outbox yet: migrate it (SqliteOutbox::migrate)";
        return Err(Error::new(ErrorKind::Missing, text));
    }
    let row = sqlx::query("SELECT version, parts, source FROM quorate_outbox_schema")
        .fetch_optional(&mut *connection)
        .await?
        .ok_or_else(|| damaged("quorate_outbox_schema is empty"))?;
    let version: i64 = row.try_get(0)?;
    if version != SQLITE_SCHEMA_VERSION {
        let text = format!(
            "the outbox's tables are of version {version}, this program knows \
             {SQLITE_SCHEMA_VERSION}: use the program that fits, or migrate them"
        );
        return Err(Error::new(ErrorKind::Schema, text));
    }
    if let Some(missing) = NAMES.iter().find(|name| !there.iter().any(|n| n == *name)) {
        return Err(damaged(&format!("{missing} is missing")));
    }
    let parts: i64 = row.try_get(1)?;
    let parts = u16::try_from(parts)
        .ok()
        .filter(|p| (1..=PARTS_MAX).contains(p));
    let parts = parts.ok_or_else(|| damaged("the number of parts is not 1 to 64"))?;
    Ok((parts, row.try_get(2)?))
}

fn damaged(what: &str) -> Error {
    let text = format!(
        "the outbox's tables are not what a migration leaves: {what}; restore them, or drop all \
         quorate_outbox tables and migrate again"
    );
    Error::new(ErrorKind::Schema, text)
}
