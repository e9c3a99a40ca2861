//! What a node does for itself once a second: watches the space on disk, and bounds the log.
//!
//! An entry may leave the log when its effect is on disk in the engine. While the log is within its
//! bounds each group keeps some entries for followers that are a little behind; past the bound the
//! engine is flushed, and whatever holds the oldest segments is purged. A follower that needed those
//! entries gets a snapshot.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use quorate_env::switch;
use quorate_replication::Group;

use crate::error::Result;
use crate::jobs;
use crate::node::Inner;
use crate::reconcile;

const PERIOD: Duration = Duration::from_secs(1);
/// The engine is looked at so often: memory for so long a burst is there.
const ENGINE_PERIOD: Duration = Duration::from_millis(50);
/// Of the reserve so much, as a divisor, is kept from deletes too: for votes, membership and compaction.
const EXHAUSTED: u64 = 4;
/// A node without space offers what it leads to others so often: they may have none either.
const OFFER_PERIOD: Duration = Duration::from_secs(10);
/// So many entries behind the flushed one are kept while there is room.
const ENTRIES_KEPT: u64 = 10_000;
/// Purging fewer than this is not worth a record in the log.
const ENTRIES_MIN: u64 = 1_000;

pub(crate) async fn run(inner: Arc<Inner>) {
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut was_near = false;
    loop {
        ticks.tick().await;
        was_near = look_at_log(&inner, was_near);
        if let Err(error) = bound_log(&inner).await {
            tracing::warn!(%error, "the log could not be shortened");
        }
    }
}

/// Applying never waits for the engine: the leader refuses new writes instead while the engine is
/// further behind than a throttled writer would be let. Also hears of a disk that failed.
pub(crate) async fn watch_engine(inner: Arc<Inner>) {
    let mut ticks = tokio::time::interval(ENGINE_PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let behind = inner.engine.debt().pressure >= 1.0;
        inner.context.engine_behind.store(behind, Ordering::Relaxed);
        let of_log = || inner.groups.log_failure().map(|error| error.to_string());
        let of_engine = || inner.engine.failure().map(|error| error.to_string());
        if let Some(why) = of_log().or_else(of_engine) {
            tracing::error!(why, "the disk failed: this node can't go on");
            inner.failed.send_replace(Some(why));
            return;
        }
    }
}

/// Watches the space on disk: below the reserve, client writes are refused, so that what is in the
/// log already, votes, deletes and compaction have room; below a quarter of it deletes are refused
/// too. If it fills all the same, the log and the engine wait, and go on when there is space.
pub(crate) async fn watch_space(inner: Arc<Inner>) {
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut offered = None;
    loop {
        let now = ticks.tick().await;
        let may_offer = offered.is_none_or(|at| now - at >= OFFER_PERIOD);
        if look_at_space(&inner, may_offer).await {
            offered = Some(now);
        }
        inner.engine.retry();
    }
}

/// Gives whether what this node leads was offered to others.
async fn look_at_space(inner: &Arc<Inner>, may_offer: bool) -> bool {
    let looker = Arc::clone(inner);
    let space = jobs::run(inner.env(), move || {
        looker.env().disk.space(looker.dir.path())
    })
    .await;
    let free = match space {
        Ok(space) => space.free,
        Err(error) => {
            tracing::warn!(%error, "the free space of the data directory is not known");
            return false;
        }
    };
    let (reserve, log_is_full) = (inner.config.free_bytes_min, inner.groups.log_is_full());
    let full = free < reserve || log_is_full;
    let exhausted = free < reserve / EXHAUSTED || log_is_full;
    let context = &inner.context;
    context.free_bytes.store(free, Ordering::Relaxed);
    context.disk_exhausted.store(exhausted, Ordering::Relaxed);
    inner.engine.set_short_of_space(full);
    if full && !exhausted {
        // What was deleted gives its space back when the deletion is in a table.
        begin_flush(inner).await;
    }
    let offers = full && may_offer && inner.groups.all().iter().any(Group::is_leader);
    if offers {
        offer(inner);
    }
    match (context.disk_full.swap(full, Ordering::Relaxed), full) {
        (false, true) => tracing::error!(
            "the disk is full or nearly so: client writes are refused, but for deletes"
        ),
        (true, false) => tracing::info!("the disk has space again: client writes are taken"),
        _ => {}
    }
    offers
}

/// Others may have space: what this node leads is offered to them. Meanwhile clients are told to come again.
fn offer(inner: &Arc<Inner>) {
    inner.context.handing_over.store(true, Ordering::Relaxed);
    let leads = Arc::clone(inner);
    tokio::spawn(async move {
        reconcile::hand_over(&leads).await;
        leads.context.handing_over.store(false, Ordering::Relaxed);
    });
}

/// Begins to flush; whoever watches the space does not wait for it.
async fn begin_flush(inner: &Arc<Inner>) {
    let engine = Arc::clone(&inner.engine);
    if let Err(error) = jobs::run(inner.env(), move || engine.flush_async()).await {
        tracing::warn!(%error, "a flush to make space could not begin");
    }
}

/// Says that the log nears its bound, before followers lose what they lack. Gives whether it does.
fn look_at_log(inner: &Inner, was_near: bool) -> bool {
    let (bytes, bound) = (inner.groups.log_bytes(), inner.config.log_bytes_max);
    let is_near = bytes > bound / 5 * 4;
    if is_near {
        inner.context.log_near_bound.fetch_add(1, Ordering::Relaxed);
    }
    if is_near && !was_near {
        tracing::warn!(
            bytes,
            bound,
            "the log nears its bound, raft.log_bytes_max: replicas that are far behind will get snapshots"
        );
    }
    is_near
}

async fn bound_log(inner: &Arc<Inner>) -> Result<()> {
    let purges = switch::pick("node.log_purged_at_once", 2);
    let at_once = purges.is_some();
    let (kept, fewest) = match at_once {
        true => (0, 0),
        false => (ENTRIES_KEPT, ENTRIES_MIN),
    };
    if purges == Some(1) {
        let engine = Arc::clone(&inner.engine);
        jobs::run(inner.env(), move || engine.flush()).await?;
    }
    for group in inner.groups.all() {
        let status = group.status();
        let upto = status
            .flushed
            .map_or(0, |flushed| flushed.saturating_sub(kept));
        if upto > status.purged.unwrap_or(0) + fewest {
            purge(&group, upto).await;
        }
    }
    inner.groups.release_segments().await?;
    let excess = inner
        .groups
        .log_bytes()
        .saturating_sub(inner.config.log_bytes_max);
    if excess == 0 {
        return Ok(());
    }
    let engine = Arc::clone(&inner.engine);
    jobs::run(inner.env(), move || engine.flush()).await?;
    let segments = excess.div_ceil(inner.config.log_segment_bytes);
    for (group, upto) in inner.groups.pinning(segments) {
        if let Ok(group) = inner.groups.group(group) {
            purge(&group, upto).await;
        }
    }
    inner.groups.release_segments().await?;
    Ok(())
}

/// A replica that has stopped can't purge; the others must all the same.
async fn purge(group: &Group, upto: u64) {
    if let Err(error) = group.purge(upto).await {
        tracing::warn!(group = group.id(), %error, "a group's log could not be purged");
    }
}
