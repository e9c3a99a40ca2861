//! Reading and saving: the relay's two statements.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row as _};
use tokio::sync::Notify;

use super::{BEGIN, Barrier, PgOutbox, parked, slots, trim};
use crate::message::headers_from_text;
use crate::points;
use crate::store::{
    BoxFuture, Change, Fence, Held, Lag, Most, Parked, Progress, Read, Row, Store, Which, Wish,
};
use crate::{Error, ErrorKind, Result};

pub(super) const COLUMNS: &str = "\
    id, message_id, topic, key, seq, headers, payload,
    (extract(epoch FROM created) * 1000)::bigint AS created_ms";
const READ: &str = "\
    SELECT {columns} FROM quorate_outbox WHERE slot IN ({slots}) AND id > $1 ORDER BY id LIMIT $2";
/// As many of the rows as are not too large together, and how many there were. Only those are fetched
/// from where large values lie.
const FIT: &str = "\
    SELECT * FROM (
        SELECT *, count(*) OVER () AS all_rows, row_number() OVER by_id AS nth,
               sum(octet_length(payload) + octet_length(headers)) OVER by_id AS bytes
        FROM ({read}) AS rows WINDOW by_id AS (ORDER BY id)
    ) AS sized WHERE nth = 1 OR bytes <= {bytes} ORDER BY id";
/// One statement, so one state of the database: of two rows of a key the later is never seen alone.
const READ_GAPS: &str = "\
    SELECT * FROM (
        (SELECT {columns} FROM quorate_outbox
         WHERE slot IN ({slots}) AND id > $1 ORDER BY id LIMIT $2)
        UNION ALL
        (SELECT r.* FROM unnest($3::bigint[], $4::bigint[]) AS g (low, high)
         CROSS JOIN LATERAL (
            SELECT {columns} FROM quorate_outbox
            WHERE slot IN ({slots}) AND id BETWEEN g.low AND g.high ORDER BY id LIMIT $2) r
         LIMIT $2)
    ) AS rows ORDER BY id LIMIT $2";
/// The sequence is read before the update gives this transaction its id: the order of the barrier.
/// If losing this statement in a crash of the database only repeats messages, it need not wait for the disk.
const SAVE: &str = "\
    WITH l AS MATERIALIZED (
        SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END AS last,
               set_config('synchronous_commit',
                          CASE WHEN $7 THEN current_setting('synchronous_commit') ELSE 'off' END,
                          true) AS fast
        FROM quorate_outbox_id_{part})
    UPDATE quorate_outbox_relay r
    SET floor = $1, done = $2, batch = $3, plan = $4, saves = $6 + 1 FROM l
    WHERE r.part = {part} AND r.epoch = $5 AND r.saves = $6 AND l.fast IS NOT NULL
    RETURNING l.last, pg_current_xact_id()::text::bigint,
              pg_snapshot_xmin(pg_current_snapshot())::text::bigint";

impl PgOutbox {
    async fn read_rows(&self, fence: Fence, progress: &Progress, most: Most) -> Result<Read> {
        // What is settled is known from before this read, so the read has all of it.
        let settled = {
            let barrier = self.inner.barriers[usize::from(fence.part)].lock();
            if barrier.epoch == fence.epoch {
                barrier.settled
            } else {
                progress.floor
            }
        };
        let (lows, highs) = progress.done.gaps(progress.floor);
        let after = progress.done.last().unwrap_or(progress.floor);
        let text = if lows.is_empty() { READ } else { READ_GAPS };
        let text = text
            .replace("{columns}", COLUMNS)
            .replace("{slots}", &slots(fence.part));
        let text = FIT
            .replace("{read}", &text)
            .replace("{bytes}", &most.bytes.to_string());
        let mut query = sqlx::query(AssertSqlSafe(text))
            .bind(after)
            .bind(i64::try_from(most.rows).unwrap_or(i64::MAX));
        if !lows.is_empty() {
            query = query.bind(lows).bind(highs);
        }
        let found = query.fetch_all(&self.pool).await?;
        let all: i64 = found.first().map_or(Ok(0), |row| row.try_get(8))?;
        let rows: Vec<Row> = found.iter().map(row).collect::<Result<_>>()?;
        let cut = rows.len() >= most.rows || (rows.len() as i64) < all;
        Ok(Read { rows, settled, cut })
    }

    async fn save_progress(
        &self,
        fence: Fence,
        progress: &Progress,
        change: &Change,
    ) -> Result<()> {
        let expected = *self.inner.barriers[usize::from(fence.part)].lock();
        if expected.epoch != fence.epoch {
            return Err(fenced(fence));
        }
        let seen = if change.parks.is_empty() && change.unparks.is_empty() {
            let mut connection = self.pool.acquire().await?;
            save_row(
                &mut connection,
                fence,
                progress,
                expected.saves,
                change.sync,
            )
            .await?
        } else {
            let mut tx = self.pool.begin_with(BEGIN).await?;
            let seen = save_row(&mut tx, fence, progress, expected.saves, change.sync).await?;
            points::pass("store.saved-row");
            parked::write(&mut tx, fence.part, change).await?;
            points::pass("store.parked");
            tx.commit().await?;
            seen
        };
        let mut barrier = self.inner.barriers[usize::from(fence.part)].lock();
        if barrier.epoch == fence.epoch {
            barrier.saves = expected.saves + 1;
            barrier.pass(&seen);
        }
        Ok(())
    }
}

/// What a save saw on its way.
struct Seen {
    /// The last id that was given out, read before `own` was taken.
    last: i64,
    /// This transaction's id.
    own: i64,
    /// The oldest transaction that ran when the statement began.
    oldest: i64,
}

async fn save_row(
    connection: &mut PgConnection,
    fence: Fence,
    progress: &Progress,
    saves: i64,
    sync: bool,
) -> Result<Seen> {
    let text = SAVE.replace("{part}", &fence.part.to_string());
    let row = sqlx::query(AssertSqlSafe(text))
        .bind(progress.floor)
        .bind(progress.done.to_flat())
        .bind(progress.batch)
        .bind(progress.plan.to_flat())
        .bind(fence.epoch)
        .bind(saves)
        .bind(sync)
        .fetch_optional(connection)
        .await?;
    let row = row.ok_or_else(|| fenced(fence))?;
    Ok(Seen {
        last: row.try_get(0)?,
        own: row.try_get(1)?,
        oldest: row.try_get(2)?,
    })
}

fn fenced(fence: Fence) -> Error {
    let text = format!(
        "part {} is not as it was left in epoch {}: another relay has it, or the database went back",
        fence.part, fence.epoch
    );
    Error::new(ErrorKind::Fenced, text)
}

impl Barrier {
    /// (last, own) make the next barrier, once the pending one is through. It is not replaced before:
    /// under load a newer one would never be.
    fn pass(&mut self, seen: &Seen) {
        if let Some((pending, barrier)) = self.pending {
            if seen.oldest < barrier {
                return;
            }
            self.settled = self.settled.max(pending);
        }
        self.pending = Some((seen.last, seen.own));
    }
}

/// Reads a row of [`COLUMNS`]. Headers that can't be read are damage, not an error: other rows go on.
pub(super) fn row(row: &PgRow) -> Result<Row> {
    let (headers, damage) = match headers_from_text(row.try_get(5)?) {
        Ok(headers) => (headers, None),
        Err(error) => (Vec::new(), Some(error.to_string())),
    };
    Ok(Row {
        id: row.try_get(0)?,
        message_id: row.try_get(1)?,
        topic: row.try_get(2)?,
        key: row.try_get(3)?,
        seq: row.try_get(4)?,
        headers,
        payload: row.try_get::<Vec<u8>, _>(6)?.into(),
        created_ms: row.try_get(7)?,
        damage,
    })
}

impl Store for PgOutbox {
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
        Box::pin(parked::wishes(&self.pool, part, most))
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
        Box::pin(parked::list(&self.pool, which, limit))
    }

    fn wish<'a>(&'a self, which: &'a Which, wish: Wish) -> BoxFuture<'a, Result<u64>> {
        Box::pin(parked::wish(&self.pool, which, wish))
    }
}
