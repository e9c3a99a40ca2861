//! Leases: who works on which part.
//!
//! Time is the database's. A clock that steps ends leases early or late; who still believes to hold one
//! is stopped by the epoch.

use std::collections::HashSet;
use std::time::Duration;

use sqlx::{PgConnection, Row};

use super::parked;
use super::{BEGIN, Barrier, PgOutbox};
use crate::store::{Claim, Fence, Held, Progress};
use crate::{Error, ErrorKind, Ranges, Result, points};

const ALIVE: &str = "\
    INSERT INTO quorate_outbox_member (owner, alive_until)
    VALUES ($1, clock_timestamp() + make_interval(secs => $2))
    ON CONFLICT (owner) DO UPDATE SET alive_until = excluded.alive_until";
/// Relays that wake up together must not wait for each other's rows in a circle.
const BURY: &str = "\
    DELETE FROM quorate_outbox_member WHERE owner IN (
        SELECT owner FROM quorate_outbox_member WHERE alive_until < clock_timestamp()
        FOR UPDATE SKIP LOCKED)";
const RENEW: &str = "\
    UPDATE quorate_outbox_relay r SET lease_until = clock_timestamp() + make_interval(secs => $1)
    FROM unnest($2::bigint[], $3::bigint[]) AS h (part, epoch)
    WHERE r.part = h.part AND r.epoch = h.epoch RETURNING r.part";
const CLAIM: &str = "\
    UPDATE quorate_outbox_relay
    SET epoch = epoch + 1, owner = $1, lease_until = clock_timestamp() + make_interval(secs => $2)
    WHERE part IN (
        SELECT part FROM quorate_outbox_relay WHERE lease_until < clock_timestamp()
        ORDER BY lease_until, part LIMIT $3 FOR UPDATE SKIP LOCKED)
    RETURNING part, epoch, floor, done, batch, plan, saves";
const RELEASE: &str = "\
    UPDATE quorate_outbox_relay r SET lease_until = '-infinity'
    FROM unnest($1::bigint[], $2::bigint[]) AS h (part, epoch)
    WHERE r.part = h.part AND r.epoch = h.epoch";

impl PgOutbox {
    pub(super) async fn hold_leases(
        &self,
        owner: &str,
        held: &[Fence],
        ttl: Duration,
    ) -> Result<Held> {
        let secs = ttl.as_secs_f64();
        let mut tx = self.pool.begin_with(BEGIN).await?;
        sqlx::query(ALIVE)
            .bind(owner)
            .bind(secs)
            .execute(&mut *tx)
            .await?;
        sqlx::query(BURY).execute(&mut *tx).await?;
        let (parts, epochs) = columns(held);
        let renewed = sqlx::query(RENEW)
            .bind(secs)
            .bind(parts)
            .bind(epochs)
            .fetch_all(&mut *tx)
            .await?;
        let kept: Vec<u16> = renewed
            .iter()
            .map(|row| Ok(row.try_get::<i16, _>(0)? as u16))
            .collect::<Result<_>>()?;
        let members = sqlx::query("SELECT count(*) FROM quorate_outbox_member")
            .fetch_one(&mut *tx)
            .await?;
        let members: i64 = members.try_get(0)?;
        let share = usize::from(self.inner.parts).div_ceil(members.max(1) as usize);
        let wanted = share.saturating_sub(kept.len());
        let claimed = claim(&mut tx, owner, secs, wanted).await?;
        points::pass("store.claimed");
        tx.commit().await?;
        points::pass("store.claim-committed");
        for (claim, barrier) in &claimed {
            *self.inner.barriers[usize::from(claim.fence.part)].lock() = *barrier;
        }
        Ok(Held {
            surplus: kept.len().saturating_sub(share),
            kept,
            claimed: claimed.into_iter().map(|(claim, _)| claim).collect(),
        })
    }

    pub(super) async fn release_leases(&self, held: &[Fence]) -> Result<()> {
        let (parts, epochs) = columns(held);
        sqlx::query(RELEASE)
            .bind(parts)
            .bind(epochs)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    pub(super) async fn end_membership(&self, owner: &str) -> Result<()> {
        sqlx::query("DELETE FROM quorate_outbox_member WHERE owner = $1")
            .bind(owner)
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}

/// Takes free parts; answers each with what is known of it from now on.
async fn claim(
    tx: &mut PgConnection,
    owner: &str,
    secs: f64,
    wanted: usize,
) -> Result<Vec<(Claim, Barrier)>> {
    if wanted == 0 {
        return Ok(Vec::new());
    }
    let rows = sqlx::query(CLAIM)
        .bind(owner)
        .bind(secs)
        .bind(wanted as i64)
        .fetch_all(&mut *tx)
        .await?;
    let mut claims = Vec::new();
    for row in rows {
        let part = row.try_get::<i16, _>(0)? as u16;
        let parked: HashSet<_> = parked::streams(tx, part).await?;
        let (epoch, floor) = (row.try_get(1)?, row.try_get(2)?);
        let progress = Progress {
            floor,
            done: ranges(&row.try_get::<Vec<i64>, _>(3)?)?,
            batch: row.try_get(4)?,
            plan: ranges(&row.try_get::<Vec<i64>, _>(5)?)?,
        };
        let claim = Claim {
            fence: Fence { part, epoch },
            progress,
            parked,
        };
        let barrier = Barrier {
            epoch,
            settled: floor,
            pending: None,
            saves: row.try_get(6)?,
        };
        claims.push((claim, barrier));
    }
    Ok(claims)
}

fn ranges(flat: &[i64]) -> Result<Ranges> {
    Ranges::from_flat(flat).ok_or_else(|| {
        let text = "quorate_outbox_relay: the list of published ids is not one";
        Error::new(ErrorKind::Corrupt, text)
    })
}

fn columns(held: &[Fence]) -> (Vec<i64>, Vec<i64>) {
    held.iter()
        .map(|fence| (i64::from(fence.part), fence.epoch))
        .unzip()
}
