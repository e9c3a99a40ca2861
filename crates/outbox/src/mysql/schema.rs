//! The tables, their version and their migration.
//!
//! MySQL commits each change of a table by itself. So a migration first notes that it has begun, and last that it
//! is done, under a named lock: one that died between is gone on with by the next, and opens for nobody before.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, MySqlConnection, MySqlPool, Row};

use super::session::text;
use crate::{Error, ErrorKind, Result};

/// The version of the tables that this program reads and writes.
pub const MYSQL_SCHEMA_VERSION: i64 = 1;
const PARTS_MAX: u16 = 64;
/// How long another's migration is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

const SCHEMA: &str = "\
    CREATE TABLE IF NOT EXISTS quorate_outbox_schema (
        only_one TINYINT NOT NULL PRIMARY KEY, version INT NOT NULL, parts INT NOT NULL,
        source VARBINARY(64) NOT NULL, is_done TINYINT NOT NULL";
/// In the order in which they are made.
const TABLES: &[(&str, &str)] = &[
    (
        "quorate_outbox",
        "part SMALLINT NOT NULL, id BIGINT NOT NULL, message_id BINARY(16) NOT NULL,
         topic VARBINARY(255) NOT NULL, `key` VARBINARY(2048), seq BIGINT, headers MEDIUMBLOB NOT NULL,
         payload LONGBLOB NOT NULL, bytes BIGINT NOT NULL, created DATETIME(6) NOT NULL,
         PRIMARY KEY (part, id)",
    ),
    (
        "quorate_outbox_counter",
        "part SMALLINT NOT NULL PRIMARY KEY, last_id BIGINT NOT NULL",
    ),
    (
        "quorate_outbox_key",
        "part SMALLINT NOT NULL, topic VARBINARY(255) NOT NULL, `key` VARBINARY(2048) NOT NULL,
         n BIGINT NOT NULL, PRIMARY KEY (part, topic, `key`)",
    ),
    (
        "quorate_outbox_relay",
        "part SMALLINT NOT NULL PRIMARY KEY, epoch BIGINT NOT NULL, owner VARBINARY(255) NOT NULL,
         lease_until DATETIME(6) NOT NULL, floor BIGINT NOT NULL, done LONGBLOB NOT NULL,
         batch BIGINT NOT NULL, plan LONGBLOB NOT NULL, saves BIGINT NOT NULL",
    ),
    (
        "quorate_outbox_member",
        "owner VARBINARY(255) NOT NULL PRIMARY KEY, alive_until DATETIME(6) NOT NULL",
    ),
    (
        "quorate_outbox_parked",
        "part SMALLINT NOT NULL, id BIGINT NOT NULL, message_id BINARY(16) NOT NULL,
         topic VARBINARY(255) NOT NULL, `key` VARBINARY(2048), seq BIGINT, headers MEDIUMBLOB NOT NULL,
         payload LONGBLOB NOT NULL, bytes BIGINT NOT NULL, created DATETIME(6) NOT NULL,
         reason MEDIUMBLOB NOT NULL, attempts BIGINT NOT NULL, wish INT NOT NULL, PRIMARY KEY (part, id),
         KEY quorate_outbox_parked_stream (part, topic, `key`, seq),
         KEY quorate_outbox_parked_message (message_id)",
    ),
];
/// Transactions need InnoDB, long keys its dynamic rows.
pub(crate) const ENGINE: &str = ") ENGINE = InnoDB ROW_FORMAT = DYNAMIC";

/// What the database says of itself.
struct Schema {
    parts: u16,
    source: String,
    is_done: bool,
}

/// Makes the tables unless they are there.
pub(super) async fn migrate(pool: &MySqlPool, parts: u16) -> Result<()> {
    if parts == 0 || parts > PARTS_MAX {
        let text = format!("an outbox has 1 to {PARTS_MAX} parts, not {parts}");
        return Err(Error::new(ErrorKind::Invalid, text));
    }
    let mut connection = locked(pool, "quorate_outbox").await?;
    let there = tables(&mut connection).await?;
    let is_new = !there
        .iter()
        .any(|(name, _)| name == "quorate_outbox_schema");
    if is_new && !there.is_empty() {
        let name = &there[0].0;
        return Err(damaged(&format!(
            "there is a table {name} without a version"
        )));
    }
    let found = match is_new {
        true => None,
        false => read(&mut connection).await?,
    };
    let found = match found {
        Some(found) => found,
        // Died between the first table and its row; later there are others.
        None if there.len() <= 1 => begin(&mut connection, parts).await?,
        None => return Err(damaged("quorate_outbox_schema is empty")),
    };
    if !found.is_done {
        create(&mut connection, found.parts).await?;
    }
    connection.close().await?;
    Ok(())
}

/// A connection of its own with a named lock of this database, which ends with it.
pub(crate) async fn locked(pool: &MySqlPool, name: &str) -> Result<MySqlConnection> {
    let mut connection = pool.acquire().await?.detach();
    let row = sqlx::query("SELECT DATABASE() IS NULL, GET_LOCK(CONCAT(?, MD5(DATABASE())), ?)")
        .bind(name)
        .bind(PATIENCE.as_secs() as i64)
        .fetch_one(&mut connection)
        .await?;
    if row.try_get::<i64, _>(0)? == 1 {
        let text = "no database is named: the URL is mysql://USER@HOST/NAME";
        return Err(Error::new(ErrorKind::Invalid, text));
    }
    if row.try_get::<Option<i64>, _>(1)? != Some(1) {
        let text = format!("another migration has held the lock for {PATIENCE:?}");
        return Err(Error::new(ErrorKind::Unavailable, text));
    }
    Ok(connection)
}

async fn begin(connection: &mut MySqlConnection, parts: u16) -> Result<Schema> {
    run(connection, format!("{SCHEMA}{ENGINE}")).await?;
    let source = uuid::Uuid::now_v7().simple().to_string();
    sqlx::query("INSERT INTO quorate_outbox_schema VALUES (1, ?, ?, ?, 0)")
        .bind(MYSQL_SCHEMA_VERSION)
        .bind(i64::from(parts))
        .bind(source.as_bytes())
        .execute(connection)
        .await?;
    Ok(Schema {
        parts,
        source,
        is_done: false,
    })
}

async fn create(connection: &mut MySqlConnection, parts: u16) -> Result<()> {
    for (name, columns) in TABLES {
        let text = format!("CREATE TABLE IF NOT EXISTS {name} ({columns}{ENGINE}");
        run(connection, text).await?;
    }
    let each = |row: &str| {
        let rows = (0..parts).map(|part| format!("({part}, {row})"));
        rows.collect::<Vec<_>>().join(", ")
    };
    let (counter, relay) = (each("0"), each("0, '', '1970-01-01', 0, '[]', 0, '[]', 0"));
    // Nobody has opened it, so what is there is what this makes.
    let mut tx = connection.begin().await?;
    for (name, rows) in [
        ("quorate_outbox_counter", counter),
        ("quorate_outbox_relay", relay),
    ] {
        let text = format!("INSERT IGNORE INTO {name} VALUES {rows}");
        run(&mut tx, text).await?;
    }
    let done = "UPDATE quorate_outbox_schema SET is_done = 1".to_owned();
    run(&mut tx, done).await?;
    tx.commit().await?;
    Ok(())
}

async fn run(connection: &mut MySqlConnection, text: String) -> Result<()> {
    // Only our own constants and numbers are in these statements.
    sqlx::raw_sql(AssertSqlSafe(text))
        .execute(connection)
        .await?;
    Ok(())
}

/// Our tables that are there, and whether each is of InnoDB.
async fn tables(connection: &mut MySqlConnection) -> Result<Vec<(String, bool)>> {
    let rows = sqlx::query(
        "SELECT CAST(table_name AS BINARY), CAST(coalesce(engine, '') AS BINARY)
         FROM information_schema.tables
         WHERE table_schema = DATABASE() AND table_name LIKE 'quorate\\_outbox%' ORDER BY table_name",
    )
    .fetch_all(connection)
    .await?;
    let mut found = Vec::new();
    for row in &rows {
        let (name, engine) = (text(row, 0)?, text(row, 1)?);
        let is_ours = name == "quorate_outbox_schema" || TABLES.iter().any(|(n, _)| *n == name);
        if is_ours {
            found.push((name, engine.eq_ignore_ascii_case("InnoDB")));
        }
    }
    Ok(found)
}

async fn read(connection: &mut MySqlConnection) -> Result<Option<Schema>> {
    let row = sqlx::query("SELECT version, parts, source, is_done FROM quorate_outbox_schema")
        .fetch_optional(connection)
        .await?;
    let Some(row) = row else {
        return Ok(None);
    };
    let version: i64 = row.try_get(0)?;
    if version != MYSQL_SCHEMA_VERSION {
        let what = if version > MYSQL_SCHEMA_VERSION {
            "use a newer program"
        } else {
            "migrate them"
        };
        let text = format!(
            "the outbox's tables are of version {version}, this program knows \
             {MYSQL_SCHEMA_VERSION}: {what}"
        );
        return Err(Error::new(ErrorKind::Schema, text));
    }
    let parts = u16::try_from(row.try_get::<i64, _>(1)?).ok();
    let parts = parts.filter(|parts| (1..=PARTS_MAX).contains(parts));
    Ok(Some(Schema {
        parts: parts.ok_or_else(|| damaged("the number of parts is not 1 to 64"))?,
        source: text(&row, 2)?,
        is_done: row.try_get::<i64, _>(3)? == 1,
    }))
}

/// Reads the version and looks whether all that belongs to it is there. Answers the number of parts and the name
/// of the outbox.
pub(super) async fn check(pool: &MySqlPool) -> Result<(u16, String)> {
    let mut connection = pool.acquire().await?;
    let there = tables(&mut connection).await?;
    if !there
        .iter()
        .any(|(name, _)| name == "quorate_outbox_schema")
    {
        let text = "the database has no outbox yet: migrate it (MySqlOutbox::migrate)";
        return Err(Error::new(ErrorKind::Missing, text));
    }
    let found = read(&mut connection).await?;
    let found = found.ok_or_else(|| damaged("quorate_outbox_schema is empty"))?;
    if !found.is_done {
        let text = "a migration of the outbox's tables died half way: migrate again (MySqlOutbox::migrate)";
        return Err(Error::new(ErrorKind::Schema, text));
    }
    for (name, _) in TABLES {
        match there.iter().find(|(n, _)| n == name) {
            None => return Err(damaged(&format!("{name} is missing"))),
            Some((_, false)) => return Err(damaged(&format!("{name} is not an InnoDB table"))),
            Some(_) => {}
        }
    }
    for name in ["quorate_outbox_counter", "quorate_outbox_relay"] {
        let count = format!(
            "SELECT count(*) FROM {name} WHERE part >= 0 AND part < {}",
            found.parts
        );
        let row = sqlx::query(AssertSqlSafe(count));
        let count: i64 = row.fetch_one(&mut *connection).await?.try_get(0)?;
        if count != i64::from(found.parts) {
            return Err(damaged(&format!("{name} has not a row for each part")));
        }
    }
    Ok((found.parts, found.source))
}

fn damaged(what: &str) -> Error {
    let text = format!(
        "the outbox's tables are not what a migration leaves: {what}; restore them, or drop all \
         quorate_outbox tables and migrate again"
    );
    Error::new(ErrorKind::Schema, text)
}
