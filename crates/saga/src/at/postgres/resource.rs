//! The second phase, and what is known of global transactions here.

use std::time::Duration;

use quorate_outbox::store::BoxFuture;
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::{PgAt, failed};
use crate::at::global::millis;
use crate::at::image::differences_of;
use crate::at::{Ordered, Resource, Undone, Which, Work};
use crate::{Result, points};

/// States of a row of `quorate_at_work`.
pub(super) const OPEN: i16 = 0;
pub(super) const ENDED: i16 = 1;
pub(super) const DIRTY: i16 = 2;

const WORK: &str = "SELECT gid, branches, state = 0 AND deadline < clock_timestamp(), differences
     FROM quorate_at_work WHERE home = $1 AND state <> 1";

/// The row of the global transaction first: a branch that is registering now is waited for. Locks go by the
/// images' keys, so that no index of locks by owner has to be kept.
const FINISH: &str = "\
    WITH w AS (UPDATE quorate_at_work SET state = 1, ended = clock_timestamp()
               WHERE gid = ANY ($1) AND home = $2 AND state <> 1 RETURNING gid)
    SELECT array_agg(gid) FROM w";
const FREE: &str = "\
    WITH u AS (DELETE FROM quorate_at_undo WHERE gid = ANY ($1) RETURNING gid, tbl, key)
    DELETE FROM quorate_at_lock l USING u
    WHERE l.tbl = u.tbl AND l.digest = sha256(convert_to(u.key, 'UTF8')) AND l.gid = u.gid";

impl PgAt {
    async fn work_of(
        &self,
        home: &str,
        which: Which,
        after: &str,
        limit: i64,
    ) -> Result<Vec<Work>> {
        let filter = match which {
            Which::Expired => " AND state = 0 AND deadline < clock_timestamp()",
            Which::Dirty => " AND state = 2",
            Which::Open => "",
        };
        let text = format!("{WORK}{filter} AND gid > $2 ORDER BY gid LIMIT $3");
        let query = sqlx::query(sqlx::AssertSqlSafe(text))
            .bind(home)
            .bind(after)
            .bind(limit);
        let rows = query.fetch_all(&self.pool).await.map_err(failed)?;
        rows.iter().map(work_of).collect()
    }

    async fn finish_all(&self, home: &str, gids: &[String]) -> Result<()> {
        // Two that finish the same ones go in one order.
        let mut gids = gids.to_vec();
        gids.sort_unstable();
        let mut tx = self.pool.begin().await.map_err(failed)?;
        let mine: Option<Vec<String>> = sqlx::query(FINISH)
            .bind(&gids)
            .bind(home)
            .fetch_one(&mut *tx)
            .await
            .map_err(failed)?
            .try_get(0)?;
        points::pass("at.finish-marked");
        if let Some(mine) = mine {
            sqlx::query(FREE)
                .bind(mine)
                .execute(&mut *tx)
                .await
                .map_err(failed)?;
            points::pass("at.finish-freed");
        }
        tx.commit().await.map_err(failed)?;
        points::pass("at.finish-committed");
        Ok(())
    }
}

fn work_of(row: &PgRow) -> Result<Work> {
    Ok(Work {
        gid: row.try_get(0)?,
        branches: row.try_get(1)?,
        expired: row.try_get(2)?,
        differences: differences_of(row.try_get(3)?)?,
    })
}

impl Resource for PgAt {
    fn name(&self) -> &str {
        &self.name
    }

    fn work<'a>(
        &'a self,
        home: &'a str,
        which: Which,
        after: &'a str,
        limit: i64,
    ) -> BoxFuture<'a, Result<Vec<Work>>> {
        Box::pin(self.work_of(home, which, after, limit))
    }

    fn find<'a>(&'a self, home: &'a str, gid: &'a str) -> BoxFuture<'a, Result<Option<Work>>> {
        Box::pin(async move {
            let text = format!("{WORK} AND gid = $2");
            let query = sqlx::query(sqlx::AssertSqlSafe(text)).bind(home).bind(gid);
            let row = query.fetch_optional(&self.pool).await.map_err(failed)?;
            row.as_ref().map(work_of).transpose()
        })
    }

    fn finish<'a>(&'a self, home: &'a str, gids: &'a [String]) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.finish_all(home, gids))
    }

    fn undo<'a>(
        &'a self,
        home: &'a str,
        gid: &'a str,
        ordered: Option<&'a Ordered>,
    ) -> BoxFuture<'a, Result<Undone>> {
        Box::pin(self.undo_one(home, gid, ordered))
    }

    fn forget<'a>(&'a self, home: &'a str, age: Duration) -> BoxFuture<'a, Result<u64>> {
        Box::pin(async move {
            let forgotten = sqlx::query(
                "DELETE FROM quorate_at_work WHERE home = $1 AND state = 1
                 AND ended < clock_timestamp() - $2 * interval '1 millisecond'",
            );
            let forgotten = forgotten
                .bind(home)
                .bind(millis(age))
                .execute(&self.pool)
                .await;
            Ok(forgotten.map_err(failed)?.rows_affected())
        })
    }
}
