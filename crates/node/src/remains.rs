//! Replicas that this node holds and the map gives it no more: they are closed, and their log and data removed.
//!
//! A replica may go when the map no longer names it: neither among a shard's replicas nor among those that are
//! leaving, so its group counts on it no more.
//! Ids of replicas are never given out twice, so one that went stays gone.
//!
//! A crash may come between any two steps. What is left is found by what the engine and the log have of groups, and
//! removed once more.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use quorate_replication::Error as GroupError;
use quorate_sharding::{COORDINATOR_GROUP, GroupId, ReplicaId, Shard, ShardMap};
use quorate_storage::{Engine, IterOptions, KeyRange, Lsm, ReadAt};

use crate::error::{Error, Result};
use crate::jobs;
use crate::keys::{DATA, GROUPS, GroupField, META, group_key, group_of, group_range, shard_range};
use crate::machine::{engine_error, invalid};
use crate::node::Inner;
use crate::snapshot;

/// Removes what may go; false if something could not be, and has to be tried again.
pub(crate) async fn remove(inner: &Arc<Inner>, map: &ShardMap) -> bool {
    if map.cluster == 0 {
        return false;
    }
    let mut all = true;
    let held = match held(inner, &mut all).await {
        Ok(held) => held,
        Err(error) => {
            tracing::error!(%error, "what this node holds could not be read");
            return false;
        }
    };
    for (group, replica) in held {
        if !may_stay(map, group, replica) {
            match remove_replica(inner, group, replica).await {
                Ok(()) => tracing::info!(
                    shard = group,
                    replica,
                    "a replica that left the shard is removed"
                ),
                Err(error) => {
                    all = false;
                    tracing::error!(shard = group, replica, %error, "a replica could not be removed");
                }
            }
        }
    }
    all
}

fn may_stay(map: &ShardMap, group: GroupId, replica: ReplicaId) -> bool {
    map.shard(group).is_some_and(|shard| {
        let mut counted = shard.replicas.iter().chain(&shard.leaving);
        counted.any(|counted| counted.id == replica)
    })
}

/// The replicas of which log or engine have anything, and those that are damaged.
async fn held(inner: &Arc<Inner>, is_whole: &mut bool) -> Result<BTreeSet<(GroupId, ReplicaId)>> {
    let engine = Arc::clone(&inner.engine);
    let in_engine = match jobs::run(inner.env(), move || replicas_of(&engine)).await {
        // Only of replicas that are tainted: once they are removed the rest can be read.
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            tracing::debug!(%error, "what this node holds can't be read in whole");
            *is_whole = false;
            BTreeMap::new()
        }
        read => read.map_err(failed)?,
    };
    let in_log = inner.groups.stored_groups();
    let mut all: BTreeSet<_> = in_engine.into_iter().chain(in_log).collect();
    for (group, taint) in inner.taints.all() {
        // What engine and log have of it may be what was damaged.
        if taint.removed {
            continue;
        }
        all.retain(|(held, _)| *held != group);
        all.insert((group, taint.replica));
    }
    Ok(all)
}

pub(crate) fn replicas_of(engine: &Lsm) -> io::Result<BTreeMap<GroupId, ReplicaId>> {
    let range = IterOptions::range(GROUPS.0, GROUPS.1);
    let mut iter = engine.iterate(META, range).map_err(engine_error)?;
    let mut found = BTreeMap::new();
    iter.seek_to_first().map_err(engine_error)?;
    while iter.valid() {
        if let Some((group, field)) = group_of(iter.key())
            && field == GroupField::Replica as u8
        {
            let id = iter.value().try_into();
            let id = id
                .map_err(|_| invalid(format!("the replica id of group {group} has not 8 bytes")))?;
            found.insert(group, u64::from_be_bytes(id));
        }
        iter.next().map_err(engine_error)?;
    }
    Ok(found)
}

/// Closes this node's replica of a group, if it is open, and removes its log, then its data.
async fn remove_replica(inner: &Arc<Inner>, group: GroupId, replica: ReplicaId) -> Result<()> {
    inner.shards.write().remove(&group);
    if group == COORDINATOR_GROUP {
        *inner.coordinator.write() = None;
    }
    match inner.groups.close_group(group).await {
        Ok(()) | Err(GroupError::NoSuchGroup(_)) => {}
        Err(error) => return Err(error.into()),
    }
    inner.groups.remove_group(group).await?;
    let engine = Arc::clone(&inner.engine);
    let (disk, spool) = (
        Arc::clone(&inner.env().disk),
        inner.dir.path().join("snapshots"),
    );
    let taint = inner.taints.of(group).filter(|t| t.replica == replica);
    let range = taint.as_ref().map(|taint| taint.range.clone());
    let removed = jobs::run(inner.env(), move || {
        snapshot::forget(&*disk, &spool, group)?;
        match range {
            Some(range) => remove_tainted(&engine, group, &range),
            None => remove_state(&engine, group),
        }
    });
    removed.await.map_err(failed)?;
    if taint.is_some() {
        inner.taints.removed(group);
        let saver = Arc::clone(inner);
        jobs::run(inner.env(), move || saver.taints.save(&saver.dir)).await?;
    }
    inner.broken.lock().remove(&group);
    Ok(())
}

fn failed(error: io::Error) -> Error {
    Error::Io(error.to_string())
}

/// What is left of a damaged replica, without asking what it was. Durable on return.
fn remove_tainted(engine: &Lsm, group: GroupId, range: &(Vec<u8>, Vec<u8>)) -> io::Result<()> {
    let (lower, upper) = range;
    if !upper.is_empty() {
        let data = engine.remove_range(DATA, KeyRange::new(lower, upper));
        data.map_err(engine_error)?;
    }
    let (lower, upper) = group_range(group);
    let meta = engine.remove_range(META, KeyRange::new(&lower, &upper));
    meta.map_err(engine_error)
}

/// First the data, then what says that there is some. Durable on return.
pub(crate) fn remove_state(engine: &Lsm, group: GroupId) -> io::Result<()> {
    let key = group_key(group, GroupField::Shard);
    let stored = engine
        .get(META, &key, &ReadAt::NEWEST)
        .map_err(engine_error)?;
    if let Some(entry) = stored {
        let shard = Shard::from_bytes(&entry.value).map_err(invalid)?;
        let (lower, upper) = shard_range(&shard);
        let data = engine.remove_range(DATA, KeyRange::new(&lower, &upper));
        data.map_err(engine_error)?;
    }
    let (lower, upper) = group_range(group);
    let meta = engine.remove_range(META, KeyRange::new(&lower, &upper));
    meta.map_err(engine_error)
}
