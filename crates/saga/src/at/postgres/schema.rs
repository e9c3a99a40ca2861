//! The tables, their version and their migration: one transaction under an advisory lock, done or not.

use sqlx::{AssertSqlSafe, PgConnection, PgPool, Row};

use crate::{Error, ErrorKind, Result};

/// The version of the tables that this program reads and writes.
pub const PG_AT_SCHEMA_VERSION: i32 = 1;
const LOCK: i64 = 0x7175_6f72_6f75_6174;

/// What `quorate_at_register` says of a branch that comes too late.
pub(super) const ENDED: &str = "QR001";
/// What it says of a branch that has committed before.
pub(super) const REPEATED: &str = "QR002";

/// Tables that are made together, and bear one version.
pub(super) struct Schema {
    /// What they are for, in errors.
    pub(super) what: &'static str,
    /// The table with the version, and a name that is made with it.
    pub(super) version_in: &'static str,
    pub(super) names: &'static [&'static str],
    pub(super) tables: &'static [&'static str],
}

/// Of a database with branches. The key of a lock is hashed for the index alone: an entry there must not be
/// longer than a third of a page, a key may.
pub(super) const RESOURCE: Schema = Schema {
    what: "AT resource",
    version_in: "quorate_at_schema",
    names: &["quorate_at_work", "quorate_at_lock", "quorate_at_undo", "quorate_at_audit"],
    tables: &[
        "CREATE TABLE quorate_at_work (
            gid text PRIMARY KEY, home text NOT NULL, branches text[] NOT NULL, state smallint NOT NULL,
            deadline timestamptz NOT NULL, differences text NOT NULL DEFAULT '',
            ended timestamptz) WITH (fillfactor = 50)",
        "CREATE INDEX quorate_at_work_open ON quorate_at_work (gid) WHERE state <> 1",
        "CREATE INDEX quorate_at_work_ended ON quorate_at_work (ended) WHERE state = 1",
        "CREATE TABLE quorate_at_lock (
            tbl text NOT NULL, digest bytea NOT NULL, key text NOT NULL, gid text NOT NULL,
            began_ms bigint NOT NULL, PRIMARY KEY (tbl, digest))",
        "CREATE TABLE quorate_at_undo (
            gid text NOT NULL, seq bigint GENERATED ALWAYS AS IDENTITY, branch text NOT NULL,
            tbl text NOT NULL, key text NOT NULL, before jsonb, after jsonb, PRIMARY KEY (gid, seq))",
        "CREATE TABLE quorate_at_audit (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, gid text NOT NULL, action text NOT NULL,
            who text NOT NULL, why text NOT NULL, differences text NOT NULL,
            at timestamptz NOT NULL DEFAULT clock_timestamp())",
        // In its own transaction a branch registers in the row of its global transaction, or is refused.
        "CREATE FUNCTION quorate_at_register(gid_ text, home_ text, branch_ text, left_ms bigint)
         RETURNS void LANGUAGE plpgsql AS $quorate$
         BEGIN
             INSERT INTO quorate_at_work AS w (gid, home, branches, state, deadline)
             VALUES (gid_, home_, ARRAY[branch_], 0,
                 clock_timestamp() + left_ms * interval '1 millisecond')
             ON CONFLICT (gid) DO UPDATE SET branches = w.branches || excluded.branches
             WHERE w.state = 0 AND NOT w.branches @> excluded.branches;
             IF FOUND THEN
                 RETURN;
             END IF;
             PERFORM 1 FROM quorate_at_work w WHERE w.gid = gid_ AND w.state = 0;
             IF FOUND THEN
                 RAISE EXCEPTION 'the branch has committed already' USING ERRCODE = 'QR002';
             END IF;
             RAISE EXCEPTION 'the global transaction has ended' USING ERRCODE = 'QR001';
         END $quorate$",
    ],
};

/// Of the place where outcomes are decided.
pub(super) const HOME: Schema = Schema {
    what: "AT home",
    version_in: "quorate_at_home",
    names: &["quorate_at_global"],
    tables: &[
        "CREATE TABLE quorate_at_global (
            gid text PRIMARY KEY, status smallint NOT NULL,
            decided timestamptz NOT NULL DEFAULT clock_timestamp(), ended timestamptz)
         WITH (fillfactor = 50)",
        "CREATE INDEX quorate_at_global_open ON quorate_at_global (gid) WHERE status IN (1, 2)",
        "CREATE INDEX quorate_at_global_ended ON quorate_at_global (ended)",
    ],
};

pub(super) async fn migrate(pool: &PgPool, schema: &Schema) -> Result<()> {
    let mut tx = pool.begin().await?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(LOCK)
        .execute(&mut *tx)
        .await?;
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
        "CREATE TABLE {} (only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one),
         version int NOT NULL, name text NOT NULL, made timestamptz NOT NULL DEFAULT now())",
        schema.version_in
    );
    run(&mut tx, &version).await?;
    for statement in schema.tables {
        run(&mut tx, statement).await?;
    }
    let name = uuid::Uuid::now_v7().simple().to_string();
    let insert = format!(
        "INSERT INTO {} (version, name) VALUES ($1, $2)",
        schema.version_in
    );
    let insert = sqlx::query(AssertSqlSafe(insert))
        .bind(PG_AT_SCHEMA_VERSION)
        .bind(name);
    insert.execute(&mut *tx).await?;
    tx.commit().await?;
    Ok(())
}

/// Answers the name that was made with the tables.
pub(super) async fn check(pool: &PgPool, schema: &Schema) -> Result<String> {
    let mut connection = pool.acquire().await?;
    if !exists(&mut connection, schema.version_in).await? {
        let text = format!("the database is no {} yet: migrate it", schema.what);
        return Err(Error::new(ErrorKind::Missing, text));
    }
    let read = format!("SELECT version, name FROM {}", schema.version_in);
    let row = sqlx::query(AssertSqlSafe(read))
        .fetch_optional(&mut *connection)
        .await?;
    let empty = || damaged(schema, &format!("{} is empty", schema.version_in));
    let row = row.ok_or_else(empty)?;
    let version: i32 = row.try_get(0)?;
    if version != PG_AT_SCHEMA_VERSION {
        let text = format!(
            "the tables of the {} are of version {version}, this program knows {PG_AT_SCHEMA_VERSION}: use \
             the program that fits, or migrate them",
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

async fn run(tx: &mut PgConnection, text: &str) -> Result<()> {
    // Only our own constants are in these statements.
    sqlx::query(AssertSqlSafe(text)).execute(tx).await?;
    Ok(())
}

async fn exists(connection: &mut PgConnection, name: &str) -> Result<bool> {
    let query = sqlx::query("SELECT to_regclass($1) IS NOT NULL").bind(name);
    Ok(query.fetch_one(connection).await?.try_get(0)?)
}

fn damaged(schema: &Schema, what: &str) -> Error {
    let text = format!(
        "the tables of the {} are not what a migration leaves: {what}; restore them, or drop {} and {} and \
         migrate again",
        schema.what,
        schema.version_in,
        schema.names.join(", ")
    );
    Error::new(ErrorKind::Schema, text)
}
