//! Bringing the members of each group to those that the map names: the work of whoever leads the group.
//!
//! ```text
//! map: a shard's replicas change -> the nodes named open theirs, empty
//!   -> the leader adds them as learners, waits until they have caught up, makes them voters by joint consensus
//!   -> the leader sees that its group is as the map says, and has the coordinator note it
//! map: nothing is leaving any more -> who is named no more removes its replica
//! ```
//!
//! Every step can be done twice, and by another leader than the one before. A leader that is to go first hands the
//! lead to one that stays.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use quorate_replication::{Group, Status};
use quorate_sharding::{GroupId, NodeId, ReplicaId, Shard};

use crate::error::Result;
use crate::node::Inner;

const PERIOD: Duration = Duration::from_millis(200);
const TIMEOUT: Duration = Duration::from_secs(10);
/// A replica that is behind the leader by more entries has not caught up.
const LAG_MAX: u64 = 256;

type Members = BTreeMap<ReplicaId, NodeId>;

/// Looks after the groups that this node leads, for as long as the node lives.
pub(crate) async fn lead(inner: Arc<Inner>) {
    let busy: Arc<Mutex<BTreeSet<GroupId>>> = Arc::default();
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let map = inner.context.map();
        let mut unsettled = BTreeMap::new();
        for group in inner.groups.all().into_iter().filter(Group::is_leader) {
            let Some(shard) = map.shard(group.id()) else {
                continue;
            };
            // Nothing is on its way.
            if shard.is_settled() {
                continue;
            }
            let status = group.status();
            if is_as_named(&status, shard) {
                unsettled.insert(shard.id, shard.epoch.members);
            } else if knows_all(&status, shard) && busy.lock().insert(group.id()) {
                tokio::spawn(change(Arc::clone(&busy), group, Arc::clone(shard)));
            }
        }
        *inner.unsettled.lock() = unsettled;
    }
}

fn named(shard: &Shard) -> Members {
    shard.replicas.iter().map(|r| (r.id, r.node)).collect()
}

fn is_as_named(status: &Status, shard: &Shard) -> bool {
    let members = &status.members;
    !members.joint && members.learners.is_empty() && members.voters == named(shard)
}

/// Whether the map names every voter. If not, the group is further than the map that is known here.
fn knows_all(status: &Status, shard: &Shard) -> bool {
    let mut voters = status.members.voters.keys();
    voters.all(|id| {
        shard
            .replicas
            .iter()
            .chain(&shard.leaving)
            .any(|r| r.id == *id)
    })
}

async fn change(busy: Arc<Mutex<BTreeSet<GroupId>>>, group: Group, shard: Arc<Shard>) {
    if let Err(error) = step(&group, &shard).await {
        tracing::debug!(group = group.id(), %error, "changing the members: not yet");
    }
    busy.lock().remove(&group.id());
}

/// Goes as far as it can now.
async fn step(group: &Group, shard: &Shard) -> Result<()> {
    let named = named(shard);
    let members = group.status().members;
    for (replica, node) in &named {
        if !members.voters.contains_key(replica) && !members.learners.contains_key(replica) {
            group.add_learner(*replica, *node, TIMEOUT).await?;
        }
    }
    let status = group.status();
    let own = group.replica();
    let behind = |id: &&ReplicaId| **id != own && status.lag(**id).is_none_or(|lag| lag > LAG_MAX);
    let new = named
        .keys()
        .filter(|id| !status.members.voters.contains_key(id));
    if let Some(replica) = new.into_iter().find(behind) {
        tracing::debug!(
            group = group.id(),
            replica,
            "a new replica has not caught up yet"
        );
        return Ok(());
    }
    if named.contains_key(&own) {
        return Ok(group.change_members(named, TIMEOUT).await?);
    }
    // The leader is to go: not before another one leads.
    let stay = named
        .keys()
        .find(|id| status.members.voters.contains_key(id) && !behind(id));
    match stay {
        Some(heir) if !status.members.joint => Ok(group.transfer_leader(*heir, TIMEOUT).await?),
        _ => {
            let mut with_own = named;
            with_own.extend(
                status
                    .members
                    .voters
                    .get_key_value(&own)
                    .map(|(id, node)| (*id, *node)),
            );
            Ok(group.change_members(with_own, TIMEOUT).await?)
        }
    }
}
