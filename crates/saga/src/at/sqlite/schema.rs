//! The tables, their version and their migration: one transaction, done or not.

use sqlx::{AssertSqlSafe, Row, SqliteConnection, SqlitePool};

use crate::{Error, ErrorKind, Result};

/// The version of the tables that this program reads and writes.
pub const SQLITE_AT_SCHEMA_VERSION: i64 = 1;

/// Tables that are made together, and bear one version.
pub(super) struct Schema {
    /// What they are for, in errors.
    pub(super) what: &'static str,
    pub(super) version_in: &'static str,
    pub(super) names: &'static [&'static str],
    pub(super) tables: &'static str,
}

/// Of a database with branches.
pub(super) const RESOURCE: Schema = Schema {
    what: "AT resource",
    version_in: "quorate_at_schema",
    names: &[
        "quorate_at_work",
        "quorate_at_lock",
        "quorate_at_undo",
        "quorate_at_audit",
        "quorate_at_owner",
    ],
    tables: "\
        CREATE TABLE quorate_at_work (
            gid TEXT PRIMARY KEY, home TEXT NOT NULL, branches TEXT NOT NULL, state INTEGER NOT NULL,
            deadline_ms INTEGER NOT NULL, differences TEXT NOT NULL DEFAULT '', ended_ms INTEGER
        ) WITHOUT ROWID;
        CREATE INDEX quorate_at_work_open ON quorate_at_work (gid) WHERE state <> 1;
        CREATE INDEX quorate_at_work_ended ON quorate_at_work (ended_ms) WHERE state = 1;
        CREATE TABLE quorate_at_lock (
            tbl TEXT NOT NULL, key TEXT NOT NULL, gid TEXT NOT NULL, began_ms INTEGER NOT NULL,
            PRIMARY KEY (tbl, key)) WITHOUT ROWID;
        CREATE TABLE quorate_at_undo (
            seq INTEGER PRIMARY KEY AUTOINCREMENT, gid TEXT NOT NULL, branch TEXT NOT NULL,
            tbl TEXT NOT NULL, key TEXT NOT NULL, before TEXT, after TEXT);
        CREATE INDEX quorate_at_undo_gid ON quorate_at_undo (gid, seq);
        CREATE TABLE quorate_at_audit (
            id INTEGER PRIMARY KEY AUTOINCREMENT, gid TEXT NOT NULL, action TEXT NOT NULL,
            who TEXT NOT NULL, why TEXT NOT NULL, differences TEXT NOT NULL,
            at_ms INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000 AS INTEGER)));
        CREATE TABLE quorate_at_owner (
            only_one INTEGER PRIMARY KEY CHECK (only_one = 1), gid TEXT NOT NULL);
        INSERT INTO quorate_at_owner VALUES (1, '')",
};

/// Of the place where outcomes are decided.
pub(super) const HOME: Schema = Schema {
    what: "AT home",
    version_in: "quorate_at_home",
    names: &["quorate_at_global"],
    tables: "\
        CREATE TABLE quorate_at_global (
            gid TEXT PRIMARY KEY, status INTEGER NOT NULL,
            decided_ms INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000 AS INTEGER)),
            ended_ms INTEGER) WITHOUT ROWID;
        CREATE INDEX quorate_at_global_open ON quorate_at_global (gid) WHERE status IN (1, 2);
        CREATE INDEX quorate_at_global_ended ON quorate_at_global (ended_ms)",
};

pub(super) async fn migrate(pool: &SqlitePool, schema: &Schema) -> Result<()> {
    let mut tx = pool.begin_with("BEGIN IMMEDIATE").await?;
    if exists(&mut tx, schema.version_in).await? {
        return Ok(());
    }
    for name in schema.names {
        if exists(&mut tx, name).await? {
            return Err(damaged(
                schema,
                &format!("there is a table {name} without a version"),
            ));
        }
    }
    let version = format!(
        "CREATE TABLE {} (only_one INTEGER PRIMARY KEY CHECK (only_one = 1),
         version INTEGER NOT NULL, name TEXT NOT NULL)",
        schema.version_in
    );
    // Only our own constants are in these statements.
    sqlx::raw_sql(AssertSqlSafe(version))
        .execute(&mut *tx)
        .await?;
    sqlx::raw_sql(schema.tables).execute(&mut *tx).await?;
    let insert = format!("INSERT INTO {} VALUES (1, $1, $2)", schema.version_in);
    sqlx::query(AssertSqlSafe(insert))
        .bind(SQLITE_AT_SCHEMA_VERSION)
        .bind(uuid::Uuid::now_v7().simple().to_string())
        .execute(&mut *tx)
        .await?;
    tx.commit().await?;
    Ok(())
}

/// Answers the name that was made with the tables.
pub(super) async fn check(pool: &SqlitePool, schema: &Schema) -> Result<String> {
    let mut connection = pool.acquire().await?;
    if !exists(&mut connection, schema.version_in).await? {
        let text = format!("the database is no {} yet: migrate it", schema.what);
        return Err(Error::new(ErrorKind::Missing, text));
    }
    let read = format!("SELECT version, name FROM {}", schema.version_in);
    let row = sqlx::query(AssertSqlSafe(read))
        .fetch_optional(&mut *connection)
        .await?;
    let row = row.ok_or_else(|| damaged(schema, &format!("{} is empty", schema.version_in)))?;
    let version: i64 = row.try_get(0)?;
    if version != SQLITE_AT_SCHEMA_VERSION {
        let text = format!(
            "the tables of the {} are of version {version}, this program knows \
             {SQLITE_AT_SCHEMA_VERSION}: use the program that fits, or migrate them",
            schema.what
        );
        return Err(Error::new(ErrorKind::Schema, text));
    }
    for name in schema.names {
        if !exists(&mut connection, name).await? {
            return Err(damaged(schema, &format!("{name} is missing")));
        }
    }
    Ok(row.try_get(1)?)
}

async fn exists(connection: &mut SqliteConnection, name: &str) -> Result<bool> {
    let query =
        sqlx::query("SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = $1");
    let count: i64 = query.bind(name).fetch_one(connection).await?.try_get(0)?;
    Ok(count > 0)
}

fn damaged(schema: &Schema, what: &str) -> Error {
    let text = format!(
        "the tables of the {} are not what a migration leaves: {what}; restore them, or drop {} and {} \
         and migrate again",
        schema.what,
        schema.version_in,
        schema.names.join(", ")
    );
    Error::new(ErrorKind::Schema, text)
}
