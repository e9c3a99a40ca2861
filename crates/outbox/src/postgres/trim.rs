//! Freeing space, and measuring what waits.

use sqlx::{AssertSqlSafe, Row as _};

use super::{BEGIN, PgOutbox, RING, slots};
use crate::store::Lag;
use crate::{Ranges, Result, points};

/// A table with fewer rows is left alone until it has been idle.
const TRIM_ROWS: i64 = 20_000;

/// Truncates every table of these parts whose rows are all below the floor. Answers how many ids that were,
/// about.
///
/// Truncating asks for a lock that conflicts with writers; it gives up after 20 ms and comes again
/// later, so that nobody queues behind it for long.
pub(super) async fn run(outbox: &PgOutbox, parts: &[u16]) -> Result<i64> {
    let mut freed = 0;
    for part in parts {
        let extents = (0..RING).map(|ring| {
            let table = table(*part, ring);
            format!(
                "SELECT {ring}::bigint, min(id), max(id), coalesce((SELECT created < clock_timestamp()
                 - interval '30 s' FROM {table} ORDER BY id DESC LIMIT 1), false),
                 (SELECT floor FROM quorate_outbox_relay WHERE part = {part}) FROM {table}"
            )
        });
        let extents: Vec<String> = extents.collect();
        let rows = sqlx::query(AssertSqlSafe(extents.join(" UNION ALL ")));
        for row in rows.fetch_all(&outbox.pool).await? {
            let (low, high): (Option<i64>, Option<i64>) = (row.try_get(1)?, row.try_get(2)?);
            let (Some(low), Some(high)) = (low, high) else {
                continue;
            };
            let (idle, floor): (bool, i64) = (row.try_get(3)?, row.try_get(4)?);
            if high <= floor && (idle || high - low >= TRIM_ROWS) {
                let is_gone = truncate(outbox, &table(*part, row.try_get(0)?), floor).await?;
                freed += if is_gone { high - low + 1 } else { 0 };
            }
        }
    }
    Ok(freed)
}

fn table(part: u16, ring: i64) -> String {
    format!("quorate_outbox_{part}_{ring}")
}

/// False when somebody is at the table, or a row above the floor is in it by now.
async fn truncate(outbox: &PgOutbox, table: &str, floor: i64) -> Result<bool> {
    let mut tx = outbox.pool.begin_with(BEGIN).await?;
    sqlx::query("SET LOCAL lock_timeout = '20ms'")
        .execute(&mut *tx)
        .await?;
    // With the lock nobody has an unfinished row in it; one that waits for it has an id above the floor.
    let lock = format!("LOCK TABLE ONLY {table} IN ACCESS EXCLUSIVE MODE");
    if sqlx::query(AssertSqlSafe(lock))
        .execute(&mut *tx)
        .await
        .is_err()
    {
        return Ok(false);
    }
    let above = format!("SELECT EXISTS (SELECT 1 FROM {table} WHERE id > $1)");
    let row = sqlx::query(AssertSqlSafe(above))
        .bind(floor)
        .fetch_one(&mut *tx)
        .await?;
    if row.try_get(0)? {
        return Ok(false);
    }
    sqlx::query(AssertSqlSafe(format!("TRUNCATE ONLY {table}")))
        .execute(&mut *tx)
        .await?;
    points::pass("trim.truncated");
    tx.commit().await?;
    points::pass("trim.committed");
    Ok(true)
}

/// Beyond this the number that waits is told by the sequence, rolled-back ids included.
const COUNTED: i64 = 10_000;

/// Counts what waits, part by part.
pub(super) async fn lag(outbox: &PgOutbox) -> Result<Lag> {
    let mut lag = Lag::default();
    let each = (0..outbox.inner.parts).map(|part| {
        format!(
            "SELECT floor, done, CASE WHEN is_called THEN last_value ELSE 0 END, {part}
             FROM quorate_outbox_relay, quorate_outbox_id_{part} WHERE part = {part}"
        )
    });
    let each: Vec<String> = each.collect();
    let rows = sqlx::query(AssertSqlSafe(each.join(" UNION ALL ")));
    for row in rows.fetch_all(&outbox.pool).await? {
        let (floor, last): (i64, i64) = (row.try_get(0)?, row.try_get(2)?);
        let part = row.try_get::<i32, _>(3)? as u16;
        let done = Ranges::from_flat(&row.try_get::<Vec<i64>, _>(1)?).unwrap_or_default();
        let at_most = last - floor - done.count();
        if at_most <= 0 {
            continue;
        }
        let waiting = if at_most > COUNTED {
            at_most
        } else {
            above(outbox, part, floor).await? - done.count()
        };
        if waiting > 0 {
            lag.waiting += waiting;
            lag.oldest_ms = lag.oldest_ms.max(oldest(outbox, part, floor, &done).await?);
        }
    }
    let row = sqlx::query("SELECT count(*) FROM quorate_outbox_parked")
        .fetch_one(&outbox.pool)
        .await?;
    lag.parked = row.try_get(0)?;
    Ok(lag)
}

async fn above(outbox: &PgOutbox, part: u16, floor: i64) -> Result<i64> {
    let text = format!(
        "SELECT count(*) FROM quorate_outbox WHERE slot IN ({}) AND id > $1",
        slots(part)
    );
    let row = sqlx::query(AssertSqlSafe(text))
        .bind(floor)
        .fetch_one(&outbox.pool)
        .await?;
    Ok(row.try_get(0)?)
}

/// The age of the first row that is not done.
async fn oldest(outbox: &PgOutbox, part: u16, floor: i64, done: &Ranges) -> Result<i64> {
    let text = format!(
        "SELECT coalesce((extract(epoch FROM clock_timestamp() - o.created) * 1000)::bigint, 0)
         FROM quorate_outbox o WHERE slot IN ({slots}) AND id > $1 AND NOT EXISTS (
            SELECT 1 FROM unnest($2::bigint[], $3::bigint[]) AS d (low, high)
            WHERE o.id BETWEEN d.low AND d.high)
         ORDER BY id LIMIT 1",
        slots = slots(part)
    );
    let flat = done.to_flat();
    let lows: Vec<i64> = flat.iter().copied().step_by(2).collect();
    let highs: Vec<i64> = flat.iter().copied().skip(1).step_by(2).collect();
    let row = sqlx::query(AssertSqlSafe(text))
        .bind(floor)
        .bind(lows)
        .bind(highs)
        .fetch_optional(&outbox.pool)
        .await?;
    Ok(row.map(|row| row.try_get(0)).transpose()?.unwrap_or(0))
}
