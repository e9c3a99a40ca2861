//! Messages that were set aside, and what operators want of them.

use std::collections::HashSet;

use sqlx::mysql::MySqlRow;
use sqlx::{MySql, MySqlConnection, QueryBuilder, Row as _};

use super::MySqlOutbox;
use super::session::optional;
use super::store::{COLUMNS, limit, row};
use crate::message::headers_to_text;
use crate::store::{Change, Most, Park, Parked, Unpark, Which, Wish};
use crate::{Message, Result};

const PARK: &str = "\
    INSERT INTO quorate_outbox_parked
        (part, id, message_id, topic, `key`, seq, headers, payload, bytes, created, reason, attempts, wish)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, TIMESTAMPADD(MICROSECOND, ? * 1000, '1970-01-01'), ?, 1, 0)
    ON DUPLICATE KEY UPDATE id = id";
/// What can't be read is set aside as it is stored.
const PARK_DAMAGED: &str = "\
    INSERT INTO quorate_outbox_parked
        (part, id, message_id, topic, `key`, seq, headers, payload, bytes, created, reason, attempts, wish)
    SELECT o.part, o.id, o.message_id, o.topic, o.`key`, o.seq, o.headers, o.payload, o.bytes, o.created,
           ?, 1, 0
    FROM quorate_outbox o WHERE o.part = ? AND o.id = ?
    ON DUPLICATE KEY UPDATE quorate_outbox_parked.id = quorate_outbox_parked.id";
const GONE: &str = "DELETE FROM quorate_outbox_parked WHERE part = ? AND id = ?";
const BACK: &str = "\
    UPDATE quorate_outbox_parked SET reason = ?, attempts = attempts + 1,
        wish = CASE WHEN wish = ? THEN 0 ELSE wish END
    WHERE part = ? AND id = ?";
/// Of a stream only what has nothing without a wish before it.
const WISHED: &str = "\
    SELECT p.id, p.bytes FROM quorate_outbox_parked p
    WHERE p.part = ? AND p.wish <> 0 AND (p.seq IS NULL OR NOT EXISTS (
        SELECT 1 FROM quorate_outbox_parked b WHERE b.part = p.part AND b.topic = p.topic
        AND b.`key` = p.`key` AND b.seq < p.seq AND b.wish = 0))
    ORDER BY p.topic, p.`key`, p.seq, p.id LIMIT ?";

/// Written with what a relay read: a reason is cut, so that it fits into a packet wherever the message did.
const REASON_BYTES: usize = 16 << 10;

pub(super) async fn write(tx: &mut MySqlConnection, part: u16, change: &Change) -> Result<()> {
    for park in &change.parks {
        if park.row.damage.is_some() {
            sqlx::query(PARK_DAMAGED)
                .bind(cut(&park.reason))
                .bind(i64::from(part))
                .bind(park.row.id)
                .execute(&mut *tx)
                .await?;
        } else {
            set_aside(tx, part, park).await?;
        }
    }
    let part = i64::from(part);
    for unpark in &change.unparks {
        let query = match unpark {
            Unpark::Gone(id) => sqlx::query(GONE).bind(part).bind(id),
            Unpark::Back { id, wish, reason } => sqlx::query(BACK)
                .bind(cut(reason))
                .bind(i64::from(wish.number()))
                .bind(part)
                .bind(id),
        };
        query.execute(&mut *tx).await?;
    }
    Ok(())
}

async fn set_aside(tx: &mut MySqlConnection, part: u16, park: &Park) -> Result<()> {
    let row = &park.row;
    let headers = headers_to_text(&row.headers);
    let bytes = headers.len() + row.payload.len();
    sqlx::query(PARK)
        .bind(i64::from(part))
        .bind(row.id)
        .bind(row.message_id)
        .bind(row.topic.as_bytes())
        .bind(row.key.as_deref().map(str::as_bytes))
        .bind(row.seq)
        .bind(headers.into_bytes())
        .bind(&row.payload[..])
        .bind(bytes as i64)
        .bind(row.created_ms)
        .bind(cut(&park.reason))
        .execute(tx)
        .await?;
    Ok(())
}

fn cut(reason: &str) -> &[u8] {
    &reason.as_bytes()[..reason.floor_char_boundary(REASON_BYTES)]
}

pub(super) async fn streams(
    connection: &mut MySqlConnection,
    part: u16,
) -> Result<HashSet<(String, String)>> {
    let rows = sqlx::query(
        "SELECT DISTINCT topic, `key` FROM quorate_outbox_parked
         WHERE part = ? AND seq IS NOT NULL AND `key` IS NOT NULL",
    )
    .bind(i64::from(part))
    .fetch_all(connection)
    .await?;
    // Of which stream a damaged one is may not be known.
    let readable = |row: &MySqlRow| {
        let (topic, key) = (optional(row, 0).ok()?, optional(row, 1).ok()?);
        Some((topic?, key?))
    };
    Ok(rows.iter().filter_map(readable).collect())
}

pub(super) async fn wishes(outbox: &MySqlOutbox, part: u16, most: Most) -> Result<Vec<Parked>> {
    // First which, then what they are: only what fits is fetched.
    let found = sqlx::query(WISHED)
        .bind(i64::from(part))
        .bind(limit(most.rows))
        .fetch_all(&outbox.pool)
        .await?;
    let (mut ids, mut bytes): (Vec<i64>, usize) = (Vec::new(), 0);
    for row in &found {
        bytes = bytes.saturating_add(row.try_get::<i64, _>(1)?.max(0) as usize);
        if bytes > most.bytes && !ids.is_empty() {
            break;
        }
        ids.push(row.try_get(0)?);
    }
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let mut query = select();
    query.push(" WHERE o.part = ").push_bind(i64::from(part));
    query.push(" AND o.wish <> 0 AND o.id IN (");
    let mut list = query.separated(", ");
    for id in &ids {
        list.push_bind(*id);
    }
    query.push(") ORDER BY o.topic, o.`key`, o.seq, o.id");
    let rows = query.build().persistent(false).fetch_all(&outbox.pool);
    rows.await?.iter().map(parked).collect()
}

fn select() -> QueryBuilder<MySql> {
    QueryBuilder::new(format!(
        "SELECT {COLUMNS}, o.part, o.reason, o.attempts, o.wish FROM quorate_outbox_parked o"
    ))
}

pub(super) async fn list(
    outbox: &MySqlOutbox,
    which: Option<&Which>,
    most: usize,
) -> Result<Vec<Parked>> {
    let mut query = select();
    match which {
        None => {}
        Some(Which::Stream { topic, key }) => {
            query
                .push(" WHERE o.part = ")
                .push_bind(outbox.part_of(key));
            query.push(" AND o.topic = ").push_bind(topic.as_bytes());
            query.push(" AND o.`key` = ").push_bind(key.as_bytes());
            query.push(" AND o.seq IS NOT NULL");
        }
        Some(Which::Message(id)) => {
            query.push(" WHERE o.message_id = ").push_bind(*id);
        }
    }
    query.push(" ORDER BY o.part, o.topic, o.`key`, o.seq, o.id LIMIT ");
    let rows = query.push_bind(limit(most)).build().fetch_all(&outbox.pool);
    rows.await?.iter().map(parked).collect()
}

pub(super) async fn wish(outbox: &MySqlOutbox, which: &Which, wish: Wish) -> Result<u64> {
    let number = i64::from(wish.number());
    let query = match which {
        Which::Stream { topic, key } => sqlx::query(
            "UPDATE quorate_outbox_parked SET wish = ?
             WHERE part = ? AND topic = ? AND `key` = ? AND seq IS NOT NULL",
        )
        .bind(number)
        .bind(outbox.part_of(key))
        .bind(topic.as_bytes())
        .bind(key.as_bytes()),
        Which::Message(id) => {
            sqlx::query("UPDATE quorate_outbox_parked SET wish = ? WHERE message_id = ?")
                .bind(number)
                .bind(id)
        }
    };
    Ok(query.execute(&outbox.pool).await?.rows_affected())
}

impl MySqlOutbox {
    /// The part of all messages of a key that have an order.
    fn part_of(&self, key: &str) -> i64 {
        i64::from(Message::keyed("", key, "").part(self.inner.parts))
    }
}

fn parked(from: &MySqlRow) -> Result<Parked> {
    Ok(Parked {
        row: row(from)?,
        part: from.try_get::<i64, _>(8)? as u16,
        reason: String::from_utf8_lossy(&from.try_get::<Vec<u8>, _>(9)?).into_owned(),
        attempts: from.try_get(10)?,
        wish: Wish::of(from.try_get(11)?),
    })
}
