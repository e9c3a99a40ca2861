//! Messages that were set aside, and what operators want of them.

use std::collections::HashSet;

use futures_util::StreamExt;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Row as _};

use super::slots;
use super::store::{COLUMNS, row};
use crate::Result;
use crate::message::headers_to_text;
use crate::store::{Change, Most, Parked, Unpark, Which, Wish, parked_query};

const PARK: &str = "\
    INSERT INTO quorate_outbox_parked
        (part, id, message_id, topic, key, seq, headers, payload, created, reason, attempts, wish)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, to_timestamp($9 / 1000.0), $10, 1, 0)
    ON CONFLICT (part, id) DO NOTHING";
/// What can't be read is set aside as it is stored.
const PARK_DAMAGED: &str = "\
    INSERT INTO quorate_outbox_parked
        (part, id, message_id, topic, key, seq, headers, payload, created, reason, attempts, wish)
    SELECT part, id, message_id, topic, key, seq, headers, payload, created, $2, 1, 0
    FROM quorate_outbox WHERE slot IN ({slots}) AND id = $1
    ON CONFLICT (part, id) DO NOTHING";
const BACK: &str = "\
    UPDATE quorate_outbox_parked SET reason = $3, attempts = attempts + 1,
        wish = CASE WHEN wish = $4 THEN 0 ELSE wish END
    WHERE part = $1 AND id = $2";

pub(super) async fn write(tx: &mut PgConnection, part: u16, change: &Change) -> Result<()> {
    let damaged = PARK_DAMAGED.replace("{slots}", &slots(part));
    let part = i32::from(part);
    for park in &change.parks {
        let row = &park.row;
        if row.damage.is_some() {
            sqlx::query(AssertSqlSafe(damaged.as_str()))
                .bind(row.id)
                .bind(&park.reason)
                .execute(&mut *tx)
                .await?;
            continue;
        }
        sqlx::query(PARK)
            .bind(part)
            .bind(row.id)
            .bind(row.message_id)
            .bind(&row.topic)
            .bind(&row.key)
            .bind(row.seq)
            .bind(headers_to_text(&row.headers))
            .bind(&row.payload[..])
            .bind(row.created_ms)
            .bind(&park.reason)
            .execute(&mut *tx)
            .await?;
    }
    for unpark in &change.unparks {
        let query = match unpark {
            Unpark::Gone(id) => {
                let text = "DELETE FROM quorate_outbox_parked WHERE part = $1 AND id = $2";
                sqlx::query(text).bind(part).bind(id)
            }
            Unpark::Back { id, wish, reason } => sqlx::query(BACK)
                .bind(part)
                .bind(id)
                .bind(reason)
                .bind(i32::from(wish.number())),
        };
        query.execute(&mut *tx).await?;
    }
    Ok(())
}

pub(super) async fn streams(
    connection: &mut PgConnection,
    part: u16,
) -> Result<HashSet<(String, String)>> {
    let rows = sqlx::query(
        "SELECT DISTINCT topic, key FROM quorate_outbox_parked
         WHERE part = $1 AND seq IS NOT NULL AND key IS NOT NULL",
    )
    .bind(i32::from(part))
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
        .collect()
}

/// Of a stream only what has nothing without a wish before it.
pub(super) async fn wishes(pool: &PgPool, part: u16, most: Most) -> Result<Vec<Parked>> {
    let text = format!(
        "SELECT {COLUMNS}, part, reason, attempts, wish FROM quorate_outbox_parked p
         WHERE part = $1 AND wish <> 0 AND (seq IS NULL OR NOT EXISTS (
            SELECT 1 FROM quorate_outbox_parked b WHERE b.part = p.part AND b.topic = p.topic
            AND b.key = p.key AND b.seq < p.seq AND b.wish = 0))
         ORDER BY topic, key, seq, id LIMIT $2"
    );
    let rows = sqlx::query(AssertSqlSafe(text))
        .bind(i32::from(part))
        .bind(i64::try_from(most.rows).unwrap_or(i64::MAX))
        .fetch(pool);
    most.fill(rows.map(|row| parked(&row?))).await
}

pub(super) async fn list(
    pool: &PgPool,
    which: Option<&Which>,
    limit: usize,
) -> Result<Vec<Parked>> {
    let (topic, key, id) = Which::parameters(which);
    let rows = sqlx::query(AssertSqlSafe(parked_query(COLUMNS)))
        .bind(topic)
        .bind(key)
        .bind(id)
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(pool)
        .await?;
    rows.iter().map(parked).collect()
}

pub(super) async fn wish(pool: &PgPool, which: &Which, wish: Wish) -> Result<u64> {
    let number = i32::from(wish.number());
    let query = match which {
        Which::Stream { topic, key } => sqlx::query(
            "UPDATE quorate_outbox_parked SET wish = $1
             WHERE topic = $2 AND key = $3 AND seq IS NOT NULL",
        )
        .bind(number)
        .bind(topic)
        .bind(key),
        Which::Message(id) => {
            sqlx::query("UPDATE quorate_outbox_parked SET wish = $1 WHERE message_id = $2")
                .bind(number)
                .bind(id)
        }
    };
    Ok(query.execute(pool).await?.rows_affected())
}

fn parked(from: &PgRow) -> Result<Parked> {
    Ok(Parked {
        row: row(from)?,
        part: from.try_get::<i16, _>(8)? as u16,
        reason: from.try_get(9)?,
        attempts: from.try_get(10)?,
        wish: Wish::of(i64::from(from.try_get::<i16, _>(11)?)),
    })
}
