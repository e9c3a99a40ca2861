//! Reading and saving.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use sqlx::mysql::MySqlRow;
use sqlx::{AssertSqlSafe, MySqlConnection, Row as _};
use tokio::sync::Notify;

use super::enqueue::no_counter;
use super::session::{IDLE, Tx, commit_error, optional, text};
use super::{MySqlOutbox, parked, trim};
use crate::message::headers_from_text;
use crate::points;
use crate::store::{
    BoxFuture, Change, Fence, Held, Lag, Most, Parked, Progress, Read, Row, Store, Which, Wish,
};
use crate::{Error, ErrorKind, Ranges, Result};

pub(super) const COLUMNS: &str = "\
    o.id, o.message_id, o.topic, o.`key`, o.seq, o.headers, o.payload,
    TIMESTAMPDIFF(MICROSECOND, '1970-01-01', o.created) DIV 1000";
const LAST: &str = "SELECT last_id FROM quorate_outbox_counter WHERE part = ?";
/// As many rows of these ranges as are not too large together, and how many there were. Only those are fetched
/// from where large values lie.
const READ: &str = "\
    SELECT {columns}, f.all_rows FROM (
        SELECT id, COUNT(*) OVER () AS all_rows, ROW_NUMBER() OVER (ORDER BY id) AS nth,
               SUM(bytes) OVER (ORDER BY id) AS bytes
        FROM (SELECT id, bytes FROM quorate_outbox WHERE part = ? AND ({ranges}) ORDER BY id LIMIT ?) AS n
    ) AS f STRAIGHT_JOIN quorate_outbox o ON o.part = ? AND o.id = f.id
    WHERE f.nth = 1 OR f.bytes <= ? ORDER BY f.id";
const RANGE: &str = "id BETWEEN ? AND ?";
/// So many ranges in one statement.
const RANGES: usize = 64;
const SAVE: &str = "\
    UPDATE quorate_outbox_relay
    SET floor = ?, done = ?, batch = ?, plan = ?, saves = saves + 1
    WHERE part = ? AND epoch = ? AND saves = ?";

impl MySqlOutbox {
    async fn read_rows(&self, fence: Fence, progress: &Progress, most: Most) -> Result<Read> {
        // The counter before the rows: see the module. Rows above it wait for the next read.
        let row = sqlx::query(LAST)
            .bind(i64::from(fence.part))
            .fetch_optional(&self.pool)
            .await?;
        let settled: i64 = row.ok_or_else(no_counter)?.try_get(0)?;
        let (lows, highs) = progress.done.gaps(progress.floor);
        let after = progress.done.last().unwrap_or(progress.floor);
        if settled < after {
            let text = format!(
                "part {}: {after} was published, and the database knows of {settled} ids: it went back",
                fence.part
            );
            return Err(Error::new(ErrorKind::Fenced, text));
        }
        let mut ranges: Vec<(i64, i64)> = lows.into_iter().zip(highs).collect();
        ranges.extend((settled > after).then_some((after + 1, settled)));
        let mut read = Read {
            settled,
            ..Read::default()
        };
        let mut left = most;
        for ranges in ranges.chunks(RANGES) {
            read.cut = self
                .read_ranges(fence, ranges, left, &mut read.rows)
                .await?;
            let bytes: usize = read.rows.iter().map(Row::size).sum();
            left.rows = most.rows.saturating_sub(read.rows.len());
            left.bytes = most.bytes.saturating_sub(bytes);
            if read.cut || left.rows == 0 || (left.bytes == 0 && !read.rows.is_empty()) {
                read.cut = true;
                break;
            }
        }
        Ok(read)
    }

    /// Adds rows of ranges; answers whether the limit ended it.
    async fn read_ranges(
        &self,
        fence: Fence,
        ranges: &[(i64, i64)],
        most: Most,
        rows: &mut Vec<Row>,
    ) -> Result<bool> {
        let text = READ
            .replace("{columns}", COLUMNS)
            .replace("{ranges}", &vec![RANGE; ranges.len()].join(" OR "));
        // Nearly always it is one range, and one text.
        let mut query = sqlx::query(AssertSqlSafe(text))
            .persistent(ranges.len() == 1)
            .bind(i64::from(fence.part));
        for (low, high) in ranges {
            query = query.bind(low).bind(high);
        }
        let found = query
            .bind(limit(most.rows))
            .bind(i64::from(fence.part))
            .bind(limit(most.bytes))
            .fetch_all(&self.pool)
            .await?;
        let all: i64 = found.first().map_or(Ok(0), |row| row.try_get(8))?;
        for one in &found {
            rows.push(row(one)?);
        }
        Ok(found.len() >= most.rows || (found.len() as i64) < all)
    }

    async fn save_progress(
        &self,
        fence: Fence,
        progress: &Progress,
        change: &Change,
    ) -> Result<()> {
        let expected = *self.inner.saves[usize::from(fence.part)].lock();
        if expected.epoch != fence.epoch {
            return Err(fenced(fence));
        }
        if change.parks.is_empty() && change.unparks.is_empty() {
            let mut connection = self.pool.acquire().await?;
            save_row(&mut connection, fence, progress, expected.count).await?;
        } else {
            let mut tx = Tx::begin(&self.pool, IDLE, None).await?;
            save_row(tx.connection(), fence, progress, expected.count).await?;
            points::pass("store.saved-row");
            parked::write(tx.connection(), fence.part, change).await?;
            points::pass("store.parked");
            tx.commit().await.map_err(commit_error)?;
        }
        let mut saves = self.inner.saves[usize::from(fence.part)].lock();
        if saves.epoch == fence.epoch {
            saves.count = expected.count + 1;
        }
        Ok(())
    }
}

async fn save_row(
    connection: &mut MySqlConnection,
    fence: Fence,
    progress: &Progress,
    saves: i64,
) -> Result<()> {
    let saved = sqlx::query(SAVE)
        .bind(progress.floor)
        .bind(ranges_text(&progress.done))
        .bind(progress.batch)
        .bind(ranges_text(&progress.plan))
        .bind(i64::from(fence.part))
        .bind(fence.epoch)
        .bind(saves)
        .execute(connection)
        .await?;
    match saved.rows_affected() {
        0 => Err(fenced(fence)),
        _ => Ok(()),
    }
}

fn fenced(fence: Fence) -> Error {
    let text = format!(
        "part {} is not as it was left in epoch {}: another relay has it, or the database went back",
        fence.part, fence.epoch
    );
    Error::new(ErrorKind::Fenced, text)
}

/// A limit as a parameter.
pub(super) fn limit(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

pub(super) fn ranges(text: &str) -> Result<Ranges> {
    let flat: Option<Vec<i64>> = serde_json::from_str(text).ok();
    let read = flat.and_then(|flat| Ranges::from_flat(&flat));
    read.ok_or_else(|| {
        let text = "quorate_outbox_relay: the list of published ids is not one";
        Error::new(ErrorKind::Corrupt, text)
    })
}

fn ranges_text(ranges: &Ranges) -> Vec<u8> {
    serde_json::to_vec(&ranges.to_flat()).unwrap_or_else(|_| b"[]".to_vec())
}

/// Reads a row of [`COLUMNS`]. What can't be read is damage, not an error: other rows go on.
pub(super) fn row(row: &MySqlRow) -> Result<Row> {
    let mut damage = None;
    let mut note = |error: Error| {
        damage.get_or_insert(error.to_string());
    };
    let topic = text(row, 2).map_err(&mut note).ok();
    let key = optional(row, 3).map_err(&mut note);
    let headers = text(row, 5).and_then(|text| headers_from_text(&text));
    let headers = headers.map_err(&mut note).unwrap_or_default();
    let seq: Option<i64> = row.try_get(4)?;
    let (key, seq) = match (&topic, key) {
        (Some(_), Ok(Some(key))) => (Some(key), seq),
        (Some(_), Ok(None)) if seq.is_none() => (None, None),
        // Of which stream it is is not known.
        _ => {
            note(Error::new(
                ErrorKind::Corrupt,
                "its topic or key is not known",
            ));
            (None, None)
        }
    };
    Ok(Row {
        id: row.try_get(0)?,
        message_id: row.try_get(1)?,
        topic: topic.unwrap_or_default(),
        key,
        seq,
        headers,
        payload: row.try_get::<Vec<u8>, _>(6)?.into(),
        created_ms: row.try_get(7)?,
        damage,
    })
}

impl Store for MySqlOutbox {
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
        Box::pin(self.end_membership(owner))
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
        Box::pin(parked::wishes(self, part, most))
    }

    fn parked_streams(&self, part: u16) -> BoxFuture<'_, Result<HashSet<(String, String)>>> {
        Box::pin(async move {
            let mut connection = self.pool.acquire().await?;
            parked::streams(&mut connection, part).await
        })
    }

    fn trim<'a>(&'a self, parts: &'a [u16]) -> BoxFuture<'a, Result<i64>> {
        Box::pin(trim::run(self, parts))
    }

    fn lag(&self) -> BoxFuture<'_, Result<Lag>> {
        Box::pin(trim::lag(self))
    }

    fn parked<'a>(
        &'a self,
        which: Option<&'a Which>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Parked>>> {
        Box::pin(parked::list(self, which, limit))
    }

    fn wish<'a>(&'a self, which: &'a Which, wish: Wish) -> BoxFuture<'a, Result<u64>> {
        Box::pin(parked::wish(self, which, wish))
    }
}
