//! Outcomes in an SQLite database: one row for each, written once.

use std::time::Duration;

use quorate_outbox::store::BoxFuture;
use sqlx::{Row, SqlitePool};

use super::{failed, schema};
use crate::Result;
use crate::at::global::millis;
use crate::at::home::{decision_of, number_of, status_of};
use crate::at::{Decision, GlobalStatus, Home};

/// The place where outcomes are decided, in an SQLite database. Cheap to clone.
#[derive(Clone)]
pub struct SqliteHome {
    pool: SqlitePool,
    name: String,
}

impl SqliteHome {
    /// Makes the tables unless they are there, and opens the home. Its name is made with them.
    ///
    /// # Errors
    /// `Schema` when the tables are newer than this program or damaged; `Unavailable`.
    pub async fn migrate(pool: SqlitePool) -> Result<SqliteHome> {
        schema::migrate(&pool, &schema::HOME).await?;
        SqliteHome::open(pool).await
    }

    /// Opens a home whose tables are there.
    ///
    /// # Errors
    /// `Missing`; `Schema` when they are of another version, or incomplete.
    pub async fn open(pool: SqlitePool) -> Result<SqliteHome> {
        let name = schema::check(&pool, &schema::HOME).await?;
        Ok(SqliteHome { pool, name })
    }
}

fn list(gids: &[String]) -> String {
    serde_json::to_string(gids).unwrap_or_default()
}

crate::at::home::sql_home!(
    SqliteHome,
    failed,
    list,
    "ended_ms < CAST(unixepoch('subsec') * 1000 AS INTEGER) - $1",
    "INSERT INTO quorate_at_global (gid, status) VALUES ($1, $2)
     ON CONFLICT (gid) DO UPDATE SET status = status RETURNING status",
    "UPDATE quorate_at_global SET status = $1,
        ended_ms = CASE WHEN $1 IN (3, 4) THEN CAST(unixepoch('subsec') * 1000 AS INTEGER) END
     WHERE status = $2 AND gid IN (SELECT value FROM json_each($3))"
);
