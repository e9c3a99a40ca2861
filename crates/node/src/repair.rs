//! Damage of this node's files, and its repair, unasked.
//!
//! ```text
//! a file of the engine or a record of the log is damaged
//!   -> every replica here of which it may hold something is tainted: noted on disk, closed, never opened again
//!   -> the engine goes on without what is lost
//!   -> the coordinator takes the replica away, one of all shards at a time
//!   -> its group lets go of it: only a quorum of the others can
//!   -> what is left of it here is removed; the coordinator gives the shard a new replica here, which the others fill
//! ```
//!
//! Every step can be done twice. All that is under way is in `DAMAGE` and in the map, so a crash changes nothing.
//! As long as the others are no quorum nothing of a damaged replica is removed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use quorate_env::switch;
use quorate_replication::LogDamage;
use quorate_sharding::{COORDINATOR_GROUP, GroupId, ReplicaId, Shard, ShardMap};
use quorate_storage::{DamagedFile, Lsm};

use crate::coordinator::ClusterCommand;
use crate::error::Result;
use crate::identity::{DataDir, Identity};
use crate::jobs;
use crate::keys::{DATA, META, group_range, shard_range};
use crate::node::Inner;
use crate::taint::{Taint, TaintBook};

const PERIOD: Duration = Duration::from_millis(100);
/// The first pause before the coordinator is asked again; each further one is twice as long.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// After so long a repair no longer waits for that of another shard, which may never end.
const ALONE_MAX: Duration = Duration::from_secs(120);

/// When the coordinator is asked for something again.
pub(crate) struct Asking {
    /// The members version that it was asked at: a change of that is progress.
    members: u64,
    first: Duration,
    next: Duration,
    pause: Duration,
}

/// Looks after damage for as long as the node lives.
pub(crate) async fn watch(inner: Arc<Inner>) {
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if inner.engine.is_damaged() || inner.groups.is_log_damaged() {
            let finder = Arc::clone(&inner);
            jobs::run(inner.env(), move || finder.find()).await;
        }
        close_tainted(&inner).await;
        forget_repaired(&inner).await;
    }
}

impl Inner {
    /// Judges what was found damaged. Blocks.
    fn find(&self) {
        let (map, identity) = (self.context.map(), self.identity);
        for damage in self.groups.take_log_damage() {
            taint_for_log(&self.taints, &map, identity, &damage);
        }
        // Saves all of it.
        if let Err(error) = find_in_engine(&self.engine, &self.dir, &self.taints, &map) {
            tracing::error!(%error, "damage could not be noted: tried again");
        }
    }
}

/// Taints what damage of the engine's files touches, and has the engine go on without. Blocks.
///
/// # Errors
/// What keeps it from being noted on disk; the damage is found again then.
pub(crate) fn find_in_engine(
    engine: &Lsm,
    dir: &DataDir,
    taints: &TaintBook,
    map: &ShardMap,
) -> Result<()> {
    let Some(identity) = dir.identity() else {
        return Ok(());
    };
    let found = engine.judge_damage();
    for damaged in &found {
        tracing::error!(file = %damaged.path.display(), what = damaged.what, "a file is damaged");
        for (shard, replica) in replicas_here(map, identity) {
            if touches(damaged, shard) {
                add(taints, shard, replica, &damaged.what);
                if switch::bug("one_taint_for_a_file") {
                    break;
                }
            }
        }
    }
    // First this: what is given up must never be read again.
    taints.save(dir)?;
    found.iter().for_each(|damaged| engine.give_up(damaged));
    Ok(())
}

/// Taints what damage of the log touches; in memory only.
pub(crate) fn taint_for_log(
    taints: &TaintBook,
    map: &ShardMap,
    identity: Identity,
    damage: &LogDamage,
) {
    tracing::error!(what = damage.what, "the log is damaged");
    for (shard, replica) in replicas_here(map, identity) {
        let touched = match &damage.replicas {
            None => true,
            Some(replicas) => replicas.contains(&(shard.id, replica)),
        };
        if touched {
            add(taints, shard, replica, &damage.what);
        }
    }
}

/// What the map has of this node, those that are leaving included.
fn replicas_here(map: &ShardMap, identity: Identity) -> Vec<(&Shard, ReplicaId)> {
    let of = |shard: &Shard| {
        let mut all = shard.replicas.iter().chain(&shard.leaving);
        all.find(|r| r.node == identity.node).map(|r| r.id)
    };
    map.shards()
        .filter_map(|shard| Some((&**shard, of(shard)?)))
        .collect()
}

fn touches(damaged: &DamagedFile, shard: &Shard) -> bool {
    let (lower, upper) = group_range(shard.id);
    if damaged.touches(META, &lower, Some(&upper)) {
        return true;
    }
    let (lower, upper) = shard_range(shard);
    shard.id != COORDINATOR_GROUP && damaged.touches(DATA, &lower, Some(&upper))
}

fn add(taints: &TaintBook, shard: &Shard, replica: ReplicaId, what: &str) {
    let range = match shard.id {
        COORDINATOR_GROUP => (Vec::new(), Vec::new()),
        _ => shard_range(shard),
    };
    let taint = Taint {
        replica,
        removed: false,
        range,
        what: what.to_owned(),
    };
    if taints.add(shard.id, taint) {
        let shard = shard.id;
        tracing::error!(
            shard,
            replica,
            what,
            "a replica is damaged: it is made anew from its peers"
        );
    }
}

/// A tainted replica answers nothing and votes for nobody.
async fn close_tainted(inner: &Arc<Inner>) {
    let mut closing = Vec::new();
    for (group, taint) in inner.taints.all() {
        let Ok(running) = inner.groups.group(group) else {
            continue;
        };
        if running.replica() != taint.replica || switch::bug("tainted_replica_goes_on") {
            continue;
        }
        inner.shards.write().remove(&group);
        if group == COORDINATOR_GROUP {
            *inner.coordinator.write() = None;
        }
        let groups = inner.groups.clone();
        closing.push(tokio::spawn(async move {
            // It is stopped in any case; whoever removes what is left closes it again.
            if let Err(error) = groups.close_group(group).await {
                tracing::warn!(shard = group, %error, "a damaged replica could not be closed yet");
            }
        }));
    }
    for closed in closing {
        // A task that was aborted ends with the node.
        let _ = closed.await;
    }
}

/// Forgets what was repaired, or is not this node's to repair any more.
async fn forget_repaired(inner: &Arc<Inner>) {
    let map = inner.context.map();
    let node = inner.identity.node;
    let removed = inner.taints.all().into_iter().filter(|(_, t)| t.removed);
    let mut changed = false;
    for (group, taint) in removed {
        let is_over = match map.shard(group) {
            None => true,
            Some(shard) => match shard.replica_on(node) {
                Some(other) => other.id != taint.replica,
                // The coordinator grows by itself.
                None => {
                    group == COORDINATOR_GROUP || is_full(&map, shard) || map.node(node).is_none()
                }
            },
        };
        if is_over {
            inner.taints.forget(group);
            inner.asking.lock().remove(&group);
            inner.repaired.fetch_add(1, Ordering::Relaxed);
            changed = true;
            let replica = taint.replica;
            tracing::info!(shard = group, replica, "a damaged replica was replaced");
        }
    }
    if changed {
        let saver = Arc::clone(inner);
        let saved = jobs::run(inner.env(), move || saver.taints.save(&saver.dir)).await;
        if let Err(error) = saved {
            // Until it is, a restart looks again.
            tracing::warn!(%error, "what was repaired could not be noted");
        }
    }
}

fn is_full(map: &ShardMap, shard: &Shard) -> bool {
    let namespace = map.namespace(shard.namespace);
    namespace.is_none_or(|namespace| shard.replicas.len() >= namespace.replicas as usize)
}

/// What the coordinator is to be asked for now; what is refused is asked for again, less and less often.
pub(crate) fn wishes(inner: &Inner) -> Vec<ClusterCommand> {
    let map = inner.context.map();
    // Whoever calls need not be of the node's runtime.
    let now = inner.env().clock.now();
    let mut asking = inner.asking.lock();
    let mut wishes = Vec::new();
    for (group, taint) in inner.taints.all() {
        let Some(shard) = map.shard(group) else {
            continue;
        };
        let asked = asked(&mut asking, shard, now);
        if now < asked.next {
            continue;
        }
        let beside = now - asked.first >= ALONE_MAX;
        if let Some(wish) = wish(inner, shard, &taint, beside) {
            asked.next = now + asked.pause;
            asked.pause = (asked.pause * 2).min(PAUSE_MAX);
            wishes.push(wish);
        }
    }
    wishes
}

fn asked<'a>(
    asking: &'a mut BTreeMap<GroupId, Asking>,
    shard: &Shard,
    now: Duration,
) -> &'a mut Asking {
    let members = shard.epoch.members;
    let new = || Asking {
        members,
        first: now,
        next: now,
        pause: PAUSE_MIN,
    };
    let asked = asking.entry(shard.id).or_insert_with(new);
    if asked.members != members {
        *asked = new();
    }
    asked
}

fn wish(inner: &Inner, shard: &Shard, taint: &Taint, beside: bool) -> Option<ClusterCommand> {
    let replica = taint.replica;
    if !shard.is_settled() {
        return None;
    }
    if shard.replicas.iter().any(|r| r.id == replica) {
        let shard = shard.id;
        return Some(ClusterCommand::WithdrawReplica {
            shard,
            replica,
            beside,
        });
    }
    let node = inner.identity.node;
    let is_missing = taint.removed && shard.replica_on(node).is_none();
    (is_missing && shard.id != COORDINATOR_GROUP).then_some(ClusterCommand::MoveReplica {
        shard: shard.id,
        from: 0,
        to: node,
    })
}
