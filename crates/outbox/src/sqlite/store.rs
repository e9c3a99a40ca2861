//! The store: leases, reading, saving, what is parked.

use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::StreamExt;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Row as _, SqliteConnection};
use tokio::sync::Notify;

use super::SqliteOutbox;
use crate::message::{headers_from_text, headers_to_text};
use crate::points;
use crate::store::{
    BoxFuture, Change, Claim, Fence, Held, Lag, Most, Parked, Progress, Read, Row, Store, Unpark,
    Which, Wish, parked_query,
};
use crate::{Error, ErrorKind, Ranges, Result};

const COLUMNS: &str = "id, message_id, topic, key, seq, headers, payload, created_ms";
/// What can't be read is set aside as it is stored.
const PARK_DAMAGED: &str = "\
    INSERT OR IGNORE INTO quorate_outbox_parked
        (part, id, message_id, topic, key, seq, headers, payload, created_ms, reason, attempts, wish)
    SELECT part, id, $2, topic, key, seq, headers, payload, created_ms, $3, 1, 0
    FROM quorate_outbox WHERE id = $1";
/// At most so many published rows are deleted at once, so that no writer waits for long.
const TRIM_ROWS: i64 = 5_000;

fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_millis() as i64)
}

fn ranges(text: &str) -> Result<Ranges> {
    let flat: Option<Vec<i64>> = serde_json::from_str(text).ok();
    flat.and_then(|flat| Ranges::from_flat(&flat))
        .ok_or_else(|| {
            let text = "quorate_outbox_relay: the list of published ids is not one";
            Error::new(ErrorKind::Corrupt, text)
        })
}

fn ranges_text(ranges: &Ranges) -> String {
    serde_json::to_string(&ranges.to_flat()).unwrap_or_else(|_| "[]".into())
}

impl SqliteOutbox {
    async fn hold_leases(&self, owner: &str, held: &[Fence], ttl: Duration) -> Result<Held> {
        let until = now_ms() + ttl.as_millis() as i64;
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        sqlx::query(
            "INSERT INTO quorate_outbox_member VALUES ($1, $2)
             ON CONFLICT (owner) DO UPDATE SET alive_until_ms = excluded.alive_until_ms",
        )
        .bind(owner)
        .bind(until)
        .execute(&mut *tx)
        .await?;
        sqlx::query("DELETE FROM quorate_outbox_member WHERE alive_until_ms < $1")
            .bind(now_ms())
            .execute(&mut *tx)
            .await?;
        let mut kept = Vec::new();
        for fence in held {
            let done = sqlx::query(
                "UPDATE quorate_outbox_relay SET lease_until_ms = $1 WHERE part = $2 AND epoch = $3",
            )
            .bind(until)
            .bind(i64::from(fence.part))
            .bind(fence.epoch)
            .execute(&mut *tx)
            .await?;
            if done.rows_affected() == 1 {
                kept.push(fence.part);
            }
        }
        let members = sqlx::query("SELECT count(*) FROM quorate_outbox_member")
            .fetch_one(&mut *tx)
            .await?;
        let members: i64 = members.try_get(0)?;
        let share = usize::from(self.inner.parts).div_ceil(members.max(1) as usize);
        let wanted = share.saturating_sub(kept.len());
        let claimed = claim(&mut tx, owner, until, wanted).await?;
        points::pass("store.claimed");
        tx.commit().await?;
        points::pass("store.claim-committed");
        Ok(Held {
            surplus: kept.len().saturating_sub(share),
            kept,
            claimed,
        })
    }

    async fn release_leases(&self, held: &[Fence]) -> Result<()> {
        for fence in held {
            sqlx::query(
                "UPDATE quorate_outbox_relay SET lease_until_ms = 0 WHERE part = $1 AND epoch = $2",
            )
            .bind(i64::from(fence.part))
            .bind(fence.epoch)
            .execute(&self.pool)
            .await?;
        }
        Ok(())
    }

    async fn read_rows(&self, fence: Fence, progress: &Progress, most: Most) -> Result<Read> {
        let text =
            format!("SELECT {COLUMNS} FROM quorate_outbox WHERE part = $1 AND id > $2 ORDER BY id");
        let mut found = sqlx::query(AssertSqlSafe(text))
            .bind(i64::from(fence.part))
            .bind(progress.floor)
            .fetch(&self.pool);
        // One writer at a time: whatever is not there yet gets a larger id.
        let mut read = Read {
            settled: progress.floor,
            ..Read::default()
        };
        let mut bytes = 0;
        while let Some(one) = found.next().await.transpose()? {
            let id = one.try_get(0)?;
            if !progress.done.contains(id) {
                let row = row(&one, fence.part)?;
                bytes += row.size();
                let is_full = bytes > most.bytes && !read.rows.is_empty();
                if is_full || read.rows.len() >= most.rows {
                    read.cut = true;
                    break;
                }
                read.rows.push(row);
            }
            read.settled = id;
        }
        Ok(read)
    }

    async fn save_progress(
        &self,
        fence: Fence,
        progress: &Progress,
        change: &Change,
    ) -> Result<()> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let saved = sqlx::query(
            "UPDATE quorate_outbox_relay SET floor = $1, done = $2, batch = $3, plan = $4
             WHERE part = $5 AND epoch = $6",
        )
        .bind(progress.floor)
        .bind(ranges_text(&progress.done))
        .bind(progress.batch)
        .bind(ranges_text(&progress.plan))
        .bind(i64::from(fence.part))
        .bind(fence.epoch)
        .execute(&mut *tx)
        .await?;
        if saved.rows_affected() == 0 {
            let text = format!(
                "part {} is no longer held in epoch {}: another relay has it",
                fence.part, fence.epoch
            );
            return Err(Error::new(ErrorKind::Fenced, text));
        }
        points::pass("store.saved-row");
        write_change(&mut tx, fence.part, change).await?;
        points::pass("store.parked");
        tx.commit().await?;
        Ok(())
    }

    /// Of a stream only what has nothing without a wish before it.
    async fn wanted(&self, part: u16, most: Most) -> Result<Vec<Parked>> {
        let text = format!(
            "SELECT {COLUMNS}, part, reason, attempts, wish FROM quorate_outbox_parked p
             WHERE part = $1 AND wish <> 0 AND (seq IS NULL OR NOT EXISTS (
                SELECT 1 FROM quorate_outbox_parked b WHERE b.part = p.part AND b.topic = p.topic
                AND b.key = p.key AND b.seq < p.seq AND b.wish = 0))
             ORDER BY topic, key, seq, id LIMIT $2"
        );
        let rows = sqlx::query(AssertSqlSafe(text))
            .bind(i64::from(part))
            .bind(i64::try_from(most.rows).unwrap_or(i64::MAX))
            .fetch(&self.pool);
        most.fill(rows.map(|row| parked(&row?))).await
    }

    async fn list(&self, which: Option<&Which>, limit: usize) -> Result<Vec<Parked>> {
        let (topic, key, id) = Which::parameters(which);
        let rows = sqlx::query(AssertSqlSafe(parked_query(COLUMNS)))
            .bind(topic)
            .bind(key)
            .bind(id)
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(parked).collect()
    }

    async fn measure(&self) -> Result<Lag> {
        let mut lag = Lag::default();
        for part in 0..i64::from(self.inner.parts) {
            let state = sqlx::query("SELECT floor, done FROM quorate_outbox_relay WHERE part = $1")
                .bind(part)
                .fetch_one(&self.pool)
                .await?;
            let done = ranges(state.try_get(1)?)?;
            let row = sqlx::query(
                "SELECT count(*), coalesce(min(created_ms), 0) FROM quorate_outbox
                 WHERE part = $1 AND id > $2",
            )
            .bind(part)
            .bind(state.try_get::<i64, _>(0)?)
            .fetch_one(&self.pool)
            .await?;
            let waiting = row.try_get::<i64, _>(0)? - done.count();
            if waiting > 0 {
                lag.waiting += waiting;
                lag.oldest_ms = lag.oldest_ms.max(now_ms() - row.try_get::<i64, _>(1)?);
            }
        }
        let row = sqlx::query("SELECT count(*) FROM quorate_outbox_parked")
            .fetch_one(&self.pool)
            .await?;
        lag.parked = row.try_get(0)?;
        Ok(lag)
    }

    async fn delete_published(&self) -> Result<i64> {
        let done = sqlx::query(
            "DELETE FROM quorate_outbox WHERE id IN (
                SELECT o.id FROM quorate_outbox_relay r
                JOIN quorate_outbox o ON o.part = r.part AND o.id <= r.floor LIMIT $1)",
        )
        .bind(TRIM_ROWS)
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected() as i64)
    }

    async fn set_wish(&self, which: &Which, wish: Wish) -> Result<u64> {
        let number = i64::from(wish.number());
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
        Ok(query.execute(&self.pool).await?.rows_affected())
    }
}

async fn claim(
    tx: &mut SqliteConnection,
    owner: &str,
    until: i64,
    wanted: usize,
) -> Result<Vec<Claim>> {
    let rows = sqlx::query(
        "UPDATE quorate_outbox_relay SET epoch = epoch + 1, owner = $1, lease_until_ms = $2
         WHERE part IN (SELECT part FROM quorate_outbox_relay WHERE lease_until_ms < $3
                        ORDER BY lease_until_ms, part LIMIT $4)
         RETURNING part, epoch, floor, done, batch, plan",
    )
    .bind(owner)
    .bind(until)
    .bind(now_ms())
    .bind(wanted as i64)
    .fetch_all(&mut *tx)
    .await?;
    let mut claims = Vec::new();
    for row in rows {
        let part = row.try_get::<i64, _>(0)? as u16;
        claims.push(Claim {
            fence: Fence {
                part,
                epoch: row.try_get(1)?,
            },
            progress: Progress {
                floor: row.try_get(2)?,
                done: ranges(row.try_get(3)?)?,
                batch: row.try_get(4)?,
                plan: ranges(row.try_get(5)?)?,
            },
            parked: streams(tx, part).await?,
        });
    }
    Ok(claims)
}

async fn streams(tx: &mut SqliteConnection, part: u16) -> Result<HashSet<(String, String)>> {
    let rows = sqlx::query(
        "SELECT DISTINCT topic, key FROM quorate_outbox_parked
         WHERE part = $1 AND seq IS NOT NULL AND key IS NOT NULL",
    )
    .bind(i64::from(part))
    .fetch_all(tx)
    .await?;
    // Of which stream a damaged one is may not be known.
    let readable = |row: &SqliteRow| Some((row.try_get(0).ok()?, row.try_get(1).ok()?));
    Ok(rows.iter().filter_map(readable).collect())
}

async fn write_change(tx: &mut SqliteConnection, part: u16, change: &Change) -> Result<()> {
    let part = i64::from(part);
    for park in &change.parks {
        let row = &park.row;
        if row.damage.is_some() {
            sqlx::query(PARK_DAMAGED)
                .bind(row.id)
                .bind(row.message_id)
                .bind(&park.reason)
                .execute(&mut *tx)
                .await?;
            continue;
        }
        sqlx::query(
            "INSERT OR IGNORE INTO quorate_outbox_parked
                (part, id, message_id, topic, key, seq, headers, payload, created_ms, reason,
                 attempts, wish)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 1, 0)",
        )
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
            Unpark::Back { id, wish, reason } => sqlx::query(
                "UPDATE quorate_outbox_parked SET reason = $3, attempts = attempts + 1,
                    wish = CASE WHEN wish = $4 THEN 0 ELSE wish END
                 WHERE part = $1 AND id = $2",
            )
            .bind(part)
            .bind(id)
            .bind(reason)
            .bind(i64::from(wish.number())),
        };
        query.execute(&mut *tx).await?;
    }
    Ok(())
}

/// Reads a row of [`COLUMNS`]. What can't be read is damage, not an error: other rows go on.
fn row(row: &SqliteRow, part: u16) -> Result<Row> {
    let id = row.try_get(0)?;
    let damage = RefCell::new(None);
    let note = |error: Error| {
        damage.borrow_mut().get_or_insert(error.to_string());
    };
    let text = |column: usize| {
        let got = row.try_get::<Option<String>, _>(column);
        got.map_err(|error| note(error.into())).ok().flatten()
    };
    let number = |column: usize| {
        let got = row.try_get::<Option<i64>, _>(column);
        got.map_err(|error| note(error.into())).ok().flatten()
    };
    let message_id = row.try_get(1).map_err(|error| note(error.into()));
    let (topic, mut key, mut seq) = (text(2), text(3), number(4));
    let headers = headers_from_text(&text(5).unwrap_or_default()).map_err(note);
    let payload = row.try_get::<Vec<u8>, _>(6).map_err(|e| note(e.into()));
    let created_ms = number(7).unwrap_or(0);
    if topic.is_none() || (seq.is_some() && key.is_none()) {
        // Of which stream it is is not known.
        (key, seq) = (None, None);
    }
    Ok(Row {
        id,
        message_id: message_id.unwrap_or_else(|()| Row::made_id(part, id)),
        topic: topic.unwrap_or_default(),
        key,
        seq,
        headers: headers.unwrap_or_default(),
        payload: payload.unwrap_or_default().into(),
        created_ms,
        damage: damage.into_inner(),
    })
}

fn parked(from: &SqliteRow) -> Result<Parked> {
    let part = from.try_get::<i64, _>(8)? as u16;
    Ok(Parked {
        row: row(from, part)?,
        part,
        reason: from.try_get(9)?,
        attempts: from.try_get(10)?,
        wish: Wish::of(from.try_get(11)?),
    })
}

impl Store for SqliteOutbox {
    fn parts(&self) -> u16 {
        self.inner.parts
    }

    fn source(&self) -> &str {
        &self.inner.source
    }

    fn hint(&self) -> Arc<Notify> {
        Arc::clone(&self.inner.hint)
    }

    fn hold<'a>(
        &'a self,
        owner: &'a str,
        held: &'a [Fence],
        ttl: Duration,
    ) -> BoxFuture<'a, Result<Held>> {
        Box::pin(self.hold_leases(owner, held, ttl))
    }

    fn release<'a>(&'a self, held: &'a [Fence]) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.release_leases(held))
    }

    fn leave<'a>(&'a self, owner: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            sqlx::query("DELETE FROM quorate_outbox_member WHERE owner = $1")
                .bind(owner)
                .execute(&self.pool)
                .await?;
            Ok(())
        })
    }

    fn read<'a>(
        &'a self,
        fence: Fence,
        progress: &'a Progress,
        most: Most,
    ) -> BoxFuture<'a, Result<Read>> {
        Box::pin(self.read_rows(fence, progress, most))
    }

    fn save<'a>(
        &'a self,
        fence: Fence,
        progress: &'a Progress,
        change: &'a Change,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.save_progress(fence, progress, change))
    }

    fn wishes(&self, part: u16, most: Most) -> BoxFuture<'_, Result<Vec<Parked>>> {
        Box::pin(self.wanted(part, most))
    }

    fn parked_streams(&self, part: u16) -> BoxFuture<'_, Result<HashSet<(String, String)>>> {
        Box::pin(async move {
            let mut connection = self.pool.acquire().await?;
            streams(&mut connection, part).await
        })
    }

    fn trim<'a>(&'a self, _: &'a [u16]) -> BoxFuture<'a, Result<i64>> {
        Box::pin(self.delete_published())
    }

    fn lag(&self) -> BoxFuture<'_, Result<Lag>> {
        Box::pin(self.measure())
    }

    fn parked<'a>(
        &'a self,
        which: Option<&'a Which>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Parked>>> {
        Box::pin(self.list(which, limit))
    }

    fn wish<'a>(&'a self, which: &'a Which, wish: Wish) -> BoxFuture<'a, Result<u64>> {
        Box::pin(self.set_wish(which, wish))
    }
}
