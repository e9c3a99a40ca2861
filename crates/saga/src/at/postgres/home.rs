//! Outcomes in a PostgreSQL database: one row for each, written once.

use std::time::Duration;

use quorate_outbox::store::BoxFuture;
use sqlx::{PgPool, Row};

use super::{failed, schema};
use crate::Result;
use crate::at::global::millis;
use crate::at::home::{decision_of, number_of, status_of};
use crate::at::{Decision, GlobalStatus, Home};

/// The place where outcomes are decided, in a PostgreSQL database. Cheap to clone.
#[derive(Clone)]
pub struct PgHome {
    pool: PgPool,
    name: String,
}

impl PgHome {
    /// Makes the tables unless they are there, and opens the home. Its name is made with them.
    ///
    /// # Errors
    /// `Schema` when the tables are newer than this program or damaged; `Unavailable`.
    pub async fn migrate(pool: PgPool) -> Result<PgHome> {
        schema::migrate(&pool, &schema::HOME).await?;
        PgHome::open(pool).await
    }

    /// Opens a home whose tables are there.
    ///
    /// # Errors
    /// `Missing`; `Schema` when they are of another version, or incomplete.
    pub async fn open(pool: PgPool) -> Result<PgHome> {
        let name = schema::check(&pool, &schema::HOME).await?;
        Ok(PgHome { pool, name })
    }
}

crate::at::home::sql_home!(
    PgHome,
    failed,
    <[String]>::to_vec,
    "ended < now() - $1 * interval '1 millisecond'",
    // The statement that lost does not see the row of the one that won.
    "WITH mine AS (INSERT INTO quorate_at_global (gid, status) VALUES ($1, $2)
         ON CONFLICT (gid) DO NOTHING RETURNING status)
     SELECT status FROM mine UNION ALL SELECT status FROM quorate_at_global WHERE gid = $1 LIMIT 1",
    "UPDATE quorate_at_global SET status = $1, ended = CASE WHEN $1 IN (3, 4) THEN clock_timestamp() END
     WHERE status = $2 AND gid = ANY ($3)"
);
