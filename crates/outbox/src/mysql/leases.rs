//! Leases: who works on which part.
//!
//! Time is the database's. A clock that steps ends leases early or late; who still believes to hold one
//! is stopped by the epoch.

use std::time::Duration;

use sqlx::{MySqlConnection, Row};

use super::session::{IDLE, NAME_BYTES, Tx, commit_error, fits, text};
use super::store::{limit, ranges};
use super::{MySqlOutbox, Saves, parked};
use crate::store::{Claim, Fence, Held, Progress};
use crate::{Result, points};

const ALIVE: &str = "\
    INSERT INTO quorate_outbox_member (owner, alive_until)
    VALUES (?, UTC_TIMESTAMP(6) + INTERVAL ? MICROSECOND)
    ON DUPLICATE KEY UPDATE alive_until = VALUES(alive_until)";
/// Relays that wake up together must not wait for each other's rows in a circle.
const DEAD: &str = "\
    SELECT owner FROM quorate_outbox_member WHERE alive_until < UTC_TIMESTAMP(6)
    FOR UPDATE SKIP LOCKED";
const BURY: &str = "DELETE FROM quorate_outbox_member WHERE owner = ?";
const RENEW: &str = "\
    UPDATE quorate_outbox_relay SET lease_until = UTC_TIMESTAMP(6) + INTERVAL ? MICROSECOND
    WHERE part = ? AND epoch = ?";
const FREE: &str = "\
    SELECT part, epoch, floor, done, batch, plan, saves FROM quorate_outbox_relay
    WHERE lease_until < UTC_TIMESTAMP(6) ORDER BY lease_until, part LIMIT ?
    FOR UPDATE SKIP LOCKED";
const CLAIM: &str = "\
    UPDATE quorate_outbox_relay
    SET epoch = epoch + 1, owner = ?, lease_until = UTC_TIMESTAMP(6) + INTERVAL ? MICROSECOND
    WHERE part = ?";
const RELEASE: &str = "\
    UPDATE quorate_outbox_relay SET lease_until = '1970-01-01' WHERE part = ? AND epoch = ?";
/// Longer leases are as good as for ever, and could not be added to a date.
const TTL_MAX: Duration = Duration::from_secs(365 * 86_400);

impl MySqlOutbox {
    pub(super) async fn hold_leases(
        &self,
        owner: &str,
        held: &[Fence],
        ttl: Duration,
    ) -> Result<Held> {
        fits("the relay's name", owner, NAME_BYTES)?;
        let micros = ttl.min(TTL_MAX).as_micros() as i64;
        let mut tx = Tx::begin(&self.pool, IDLE, None).await?;
        enter(tx.connection(), owner, micros).await?;
        let mut kept = Vec::new();
        for fence in held {
            let renewed = sqlx::query(RENEW)
                .bind(micros)
                .bind(i64::from(fence.part))
                .bind(fence.epoch)
                .execute(tx.connection())
                .await?;
            if renewed.rows_affected() == 1 {
                kept.push(fence.part);
            }
        }
        let members = sqlx::query("SELECT count(*) FROM quorate_outbox_member")
            .fetch_one(tx.connection())
            .await?;
        let members: i64 = members.try_get(0)?;
        let share = usize::from(self.inner.parts).div_ceil(members.max(1) as usize);
        let wanted = share.saturating_sub(kept.len());
        let claimed = claim(tx.connection(), owner, micros, wanted).await?;
        points::pass("store.claimed");
        tx.commit().await.map_err(commit_error)?;
        points::pass("store.claim-committed");
        for (claim, saves) in &claimed {
            *self.inner.saves[usize::from(claim.fence.part)].lock() = *saves;
        }
        Ok(Held {
            surplus: kept.len().saturating_sub(share),
            kept,
            claimed: claimed.into_iter().map(|(claim, _)| claim).collect(),
        })
    }

    pub(super) async fn release_leases(&self, held: &[Fence]) -> Result<()> {
        for fence in held {
            sqlx::query(RELEASE)
                .bind(i64::from(fence.part))
                .bind(fence.epoch)
                .execute(&self.pool)
                .await?;
        }
        Ok(())
    }

    pub(super) async fn end_membership(&self, owner: &str) -> Result<()> {
        let query = sqlx::query(BURY).bind(owner.as_bytes());
        query.execute(&self.pool).await?;
        Ok(())
    }
}

/// Counts as a member, and those that are silent no more.
async fn enter(tx: &mut MySqlConnection, owner: &str, micros: i64) -> Result<()> {
    sqlx::query(ALIVE)
        .bind(owner.as_bytes())
        .bind(micros)
        .execute(&mut *tx)
        .await?;
    let dead = sqlx::query(DEAD).fetch_all(&mut *tx).await?;
    for row in dead {
        let owner: Vec<u8> = row.try_get(0)?;
        sqlx::query(BURY).bind(owner).execute(&mut *tx).await?;
    }
    Ok(())
}

/// Takes free parts; answers each with what is known of it from now on.
async fn claim(
    tx: &mut MySqlConnection,
    owner: &str,
    micros: i64,
    wanted: usize,
) -> Result<Vec<(Claim, Saves)>> {
    if wanted == 0 {
        return Ok(Vec::new());
    }
    let free = sqlx::query(FREE).bind(limit(wanted));
    let free = free.fetch_all(&mut *tx).await?;
    let mut claims = Vec::new();
    for row in free {
        let part = row.try_get::<i64, _>(0)? as u16;
        sqlx::query(CLAIM)
            .bind(owner.as_bytes())
            .bind(micros)
            .bind(i64::from(part))
            .execute(&mut *tx)
            .await?;
        let epoch = row.try_get::<i64, _>(1)? + 1;
        let progress = Progress {
            floor: row.try_get(2)?,
            done: ranges(&text(&row, 3)?)?,
            batch: row.try_get(4)?,
            plan: ranges(&text(&row, 5)?)?,
        };
        let claim = Claim {
            fence: Fence { part, epoch },
            progress,
            parked: parked::streams(tx, part).await?,
        };
        let count = row.try_get(6)?;
        claims.push((claim, Saves { epoch, count }));
    }
    Ok(claims)
}
