//! What homes in SQL have in common.

use super::{Decision, GlobalStatus};
use crate::{Error, ErrorKind, Result};

/// How a status is stored.
pub(crate) fn number_of(status: GlobalStatus) -> i16 {
    match status {
        GlobalStatus::Begun | GlobalStatus::Unknown => 0,
        GlobalStatus::Committing => 1,
        GlobalStatus::RollingBack => 2,
        GlobalStatus::Committed => 3,
        GlobalStatus::RolledBack => 4,
        GlobalStatus::NeedsOperator => 5,
    }
}

pub(crate) fn status_of(number: i16) -> Result<GlobalStatus> {
    Ok(match number {
        1 => GlobalStatus::Committing,
        2 => GlobalStatus::RollingBack,
        3 => GlobalStatus::Committed,
        4 => GlobalStatus::RolledBack,
        5 => GlobalStatus::NeedsOperator,
        _ => {
            let text =
                format!("quorate_at_global has status {number}, which is none: restore the row");
            return Err(Error::new(ErrorKind::Corrupt, text));
        }
    })
}

/// What was decided for a global transaction of that status.
pub(crate) fn decision_of(number: i16) -> Result<Decision> {
    Ok(match status_of(number)? {
        GlobalStatus::Committing | GlobalStatus::Committed => Decision::Commit,
        _ => Decision::Rollback,
    })
}

/// A home over a kind of pool. `$list` makes a parameter of names; `$ago` is true of rows that ended so many milliseconds ago;
/// `$decide` inserts `(gid, status)` and may answer the row that is there; `$advance` moves a list of names to a
/// status from another.
macro_rules! sql_home {
    ($home:ident, $failed:ident, $list:expr, $ago:literal, $decide:literal, $advance:literal) => {
        impl Home for $home {
            fn name(&self) -> &str {
                &self.name
            }

            fn decide<'a>(
                &'a self,
                gid: &'a str,
                decision: Decision,
            ) -> BoxFuture<'a, Result<Decision>> {
                Box::pin(async move {
                    let wanted = match decision {
                        Decision::Commit => GlobalStatus::Committing,
                        Decision::Rollback => GlobalStatus::RollingBack,
                    };
                    let written = sqlx::query($decide).bind(gid).bind(number_of(wanted));
                    let unknown = |error| $failed(error).outcome_unknown();
                    let row = written.fetch_optional(&self.pool).await.map_err(unknown)?;
                    let row = match row {
                        Some(row) => row,
                        None => {
                            let read = "SELECT status FROM quorate_at_global WHERE gid = $1";
                            let read = sqlx::query(read).bind(gid).fetch_one(&self.pool).await;
                            read.map_err(unknown)?
                        }
                    };
                    decision_of(row.try_get(0)?)
                })
            }

            fn status<'a>(&'a self, gid: &'a str) -> BoxFuture<'a, Result<Option<GlobalStatus>>> {
                Box::pin(async move {
                    let read = sqlx::query("SELECT status FROM quorate_at_global WHERE gid = $1");
                    let row = read
                        .bind(gid)
                        .fetch_optional(&self.pool)
                        .await
                        .map_err($failed)?;
                    row.map(|row| status_of(row.try_get(0)?)).transpose()
                })
            }

            fn unfinished<'a>(
                &'a self,
                after: &'a str,
                limit: i64,
            ) -> BoxFuture<'a, Result<Vec<(String, Decision)>>> {
                Box::pin(async move {
                    let read = "SELECT gid, status FROM quorate_at_global
                        WHERE status IN (1, 2) AND gid > $1 ORDER BY gid LIMIT $2";
                    let read = sqlx::query(read).bind(after).bind(limit);
                    let rows = read.fetch_all(&self.pool).await.map_err($failed)?;
                    let pair =
                        |row: &_| Ok((Row::try_get(row, 0)?, decision_of(Row::try_get(row, 1)?)?));
                    rows.iter().map(pair).collect()
                })
            }

            fn advance<'a>(
                &'a self,
                gids: &'a [String],
                from: GlobalStatus,
                to: GlobalStatus,
            ) -> BoxFuture<'a, Result<u64>> {
                Box::pin(async move {
                    let moved = sqlx::query($advance)
                        .bind(number_of(to))
                        .bind(number_of(from));
                    let moved = moved.bind($list(gids)).execute(&self.pool).await;
                    Ok(moved.map_err($failed)?.rows_affected())
                })
            }

            fn forget(&self, age: Duration) -> BoxFuture<'_, Result<u64>> {
                Box::pin(async move {
                    let text = concat!("DELETE FROM quorate_at_global WHERE ", $ago);
                    let done = sqlx::query(text)
                        .bind(millis(age))
                        .execute(&self.pool)
                        .await;
                    Ok(done.map_err($failed)?.rows_affected())
                })
            }
        }
    };
}
pub(crate) use sql_home;
