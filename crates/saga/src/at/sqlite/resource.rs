//! The second phase, and what is known of global transactions here.

use std::time::Duration;

use quorate_outbox::store::BoxFuture;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Row};

use super::{SqliteAt, failed};
use crate::at::global::{millis, now_ms};
use crate::at::image::differences_of;
use crate::at::{Ordered, Resource, Undone, Which, Work};
use crate::{Error, ErrorKind, Result, points};

/// States of a row of `quorate_at_work`.
pub(super) const OPEN: i64 = 0;
pub(super) const ENDED: i64 = 1;
pub(super) const DIRTY: i64 = 2;

const WORK: &str = "SELECT gid, branches, state = 0 AND deadline_ms < ?, differences
     FROM quorate_at_work WHERE home = ? AND state <> 1";

/// In this order, in one transaction.
pub(super) const FREE: [&str; 2] = [
    "DELETE FROM quorate_at_lock WHERE (tbl, key) IN (
        SELECT tbl, key FROM quorate_at_undo WHERE gid IN (SELECT value FROM json_each($1)))
     AND gid IN (SELECT value FROM json_each($1))",
    "DELETE FROM quorate_at_undo WHERE gid IN (SELECT value FROM json_each($1))",
];

pub(super) fn branches_of(text: &str) -> Result<Vec<String>> {
    serde_json::from_str(text).map_err(|error| {
        let text = format!("branches of a row of quorate_at_work can't be read: {error}");
        Error::new(ErrorKind::Corrupt, text)
    })
}

impl SqliteAt {
    async fn work_of(
        &self,
        home: &str,
        which: Which,
        after: &str,
        limit: i64,
    ) -> Result<Vec<Work>> {
        let now_ms = now_ms();
        let filter = match which {
            Which::Expired => format!(" AND state = 0 AND deadline_ms < {now_ms}"),
            Which::Dirty => " AND state = 2".to_owned(),
            Which::Open => String::new(),
        };
        let text = format!("{WORK}{filter} AND gid > ? ORDER BY gid LIMIT ?");
        let query = sqlx::query(AssertSqlSafe(text))
            .bind(now_ms)
            .bind(home)
            .bind(after)
            .bind(limit);
        let rows = query.fetch_all(&self.pool).await.map_err(failed)?;
        rows.iter().map(work_of).collect()
    }

    async fn finish_all(&self, home: &str, gids: &[String]) -> Result<()> {
        let mut tx = self
            .pool
            .begin_with("BEGIN IMMEDIATE")
            .await
            .map_err(failed)?;
        let mine = sqlx::query(
            "UPDATE quorate_at_work SET state = 1, ended_ms = ?
             WHERE gid IN (SELECT value FROM json_each(?)) AND home = ? AND state <> 1 RETURNING gid",
        );
        let mine = mine
            .bind(now_ms())
            .bind(serde_json::to_string(gids).unwrap_or_default());
        let mine = mine.bind(home).fetch_all(&mut *tx).await.map_err(failed)?;
        let mine: sqlx::Result<Vec<String>> = mine.iter().map(|row| row.try_get(0)).collect();
        let mine = serde_json::to_string(&mine?).unwrap_or_default();
        points::pass("at.finish-marked");
        for text in FREE {
            sqlx::query(text)
                .bind(&mine)
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

fn work_of(row: &SqliteRow) -> Result<Work> {
    Ok(Work {
        gid: row.try_get(0)?,
        branches: branches_of(row.try_get(1)?)?,
        expired: row.try_get_unchecked::<i64, _>(2)? != 0,
        differences: differences_of(row.try_get(3)?)?,
    })
}

impl Resource for SqliteAt {
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
            let text = format!("{WORK} AND gid = ?");
            let query = sqlx::query(AssertSqlSafe(text))
                .bind(now_ms())
                .bind(home)
                .bind(gid);
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
            let text = "DELETE FROM quorate_at_work WHERE home = ? AND state = 1 AND ended_ms < ?";
            let query = sqlx::query(text)
                .bind(home)
                .bind(now_ms().saturating_sub(millis(age)));
            Ok(query
                .execute(&self.pool)
                .await
                .map_err(failed)?
                .rows_affected())
        })
    }
}
