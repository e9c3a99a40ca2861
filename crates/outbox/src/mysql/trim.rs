//! Freeing space, and measuring what waits.

use sqlx::Row as _;

use super::MySqlOutbox;
use super::session::{IDLE, Tx, commit_error, text};
use super::store::ranges;
use crate::store::Lag;
use crate::{Ranges, Result, points};

/// At most so many published rows are deleted at once, so that neither locks nor undo grow.
const TRIM_ROWS: u64 = 1_000;
/// So many times for each part, before it is another part's turn.
const TRIM_ROUNDS: usize = 50;
const TRIMMABLE: &str = "\
    SELECT r.floor FROM quorate_outbox_relay r WHERE r.part = ? AND EXISTS (
        SELECT 1 FROM quorate_outbox o WHERE o.part = r.part AND o.id <= r.floor)";
/// The rows of a part lie together, by id: the oldest are deleted, and their pages used again.
const TRIM: &str = "\
    DELETE FROM quorate_outbox WHERE part = ? AND id <= ? ORDER BY id LIMIT 1000";

/// Deletes published rows of these parts. Answers how many.
pub(super) async fn run(outbox: &MySqlOutbox, parts: &[u16]) -> Result<i64> {
    let mut freed = 0;
    for part in parts {
        let row = sqlx::query(TRIMMABLE)
            .bind(i64::from(*part))
            .fetch_optional(&outbox.pool)
            .await?;
        let Some(row) = row else {
            continue;
        };
        let floor: i64 = row.try_get(0)?;
        for _ in 0..TRIM_ROUNDS {
            // At READ COMMITTED the place where new rows come is not locked.
            let mut tx = Tx::begin(&outbox.pool, IDLE, None).await?;
            let done = sqlx::query(TRIM)
                .bind(i64::from(*part))
                .bind(floor)
                .execute(tx.connection())
                .await?;
            points::pass("trim.deleted");
            tx.commit().await.map_err(commit_error)?;
            points::pass("trim.committed");
            freed += done.rows_affected() as i64;
            if done.rows_affected() < TRIM_ROWS {
                break;
            }
        }
    }
    Ok(freed)
}

/// What waits: ids have no gaps, so it need not be counted.
pub(super) async fn lag(outbox: &MySqlOutbox) -> Result<Lag> {
    let rows = sqlx::query(
        "SELECT r.part, r.floor, r.done, c.last_id FROM quorate_outbox_relay r
         JOIN quorate_outbox_counter c ON c.part = r.part",
    )
    .fetch_all(&outbox.pool)
    .await?;
    let mut lag = Lag::default();
    for row in &rows {
        let (floor, last): (i64, i64) = (row.try_get(1)?, row.try_get(3)?);
        let done = ranges(&text(row, 2)?).unwrap_or_default();
        let waiting = last - floor - done.count();
        if waiting > 0 {
            lag.waiting += waiting;
            let age = oldest(outbox, row.try_get(0)?, floor, &done).await?;
            lag.oldest_ms = lag.oldest_ms.max(age);
        }
    }
    let row = sqlx::query("SELECT count(*) FROM quorate_outbox_parked")
        .fetch_one(&outbox.pool)
        .await?;
    lag.parked = row.try_get(0)?;
    Ok(lag)
}

/// The age of the first row that is not done.
async fn oldest(outbox: &MySqlOutbox, part: i64, floor: i64, done: &Ranges) -> Result<i64> {
    let after = done.last().unwrap_or(floor);
    let first = done.gaps(floor).0.first().copied().unwrap_or(after + 1);
    let row = sqlx::query(
        "SELECT TIMESTAMPDIFF(MICROSECOND, created, UTC_TIMESTAMP(6)) DIV 1000
         FROM quorate_outbox WHERE part = ? AND id >= ? ORDER BY id LIMIT 1",
    )
    .bind(part)
    .bind(first)
    .fetch_optional(&outbox.pool)
    .await?;
    let age: i64 = row.map(|row| row.try_get(0)).transpose()?.unwrap_or(0);
    Ok(age.max(0))
}
