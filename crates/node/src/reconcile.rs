//! Making this node what the shard map says: opening its replicas, growing the coordinator.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use quorate_replication::{Group, StateMachine};
use quorate_sharding::{COORDINATOR_GROUP, GroupId, Shard, ShardEpoch, ShardMap};

use crate::coordinator::{ClusterCommand, Coordinator, CoordinatorMachine};
use crate::error::Result;
use crate::jobs;
use crate::machine::{Machine, ShardMachine};
use crate::node::Inner;
use crate::remains;
use crate::reopen::Reopening;
use crate::shard::ShardReplica;

const PERIOD: Duration = Duration::from_millis(200);
const TIMEOUT: Duration = Duration::from_secs(10);

/// Opens replicas as the map names them, for as long as the node lives.
pub(crate) async fn follow_map(inner: Arc<Inner>) {
    let mut changes = inner.context.map.clone();
    if inner.identity.founder {
        while let Err(error) = found(&inner).await {
            tracing::error!(%error, "the cluster could not be founded");
            tokio::time::sleep(PERIOD).await;
        }
    }
    // What is opened is in the map on disk: by that it is known whose a damaged record of the log may be.
    let mut saved = Arc::clone(&changes.borrow());
    let mut cleared = 0;
    let mut reopening = Reopening::default();
    loop {
        let map = Arc::clone(&changes.borrow_and_update());
        if map.version > saved.version {
            let (writer, to_save) = (Arc::clone(&inner), Arc::clone(&map));
            match jobs::run(inner.env(), move || writer.dir.save_map(&to_save)).await {
                Ok(()) => saved = Arc::clone(&map),
                Err(error) => tracing::error!(%error, "the shard map could not be saved"),
            }
        }
        reopening.close_due(&inner).await;
        if map.version > cleared && remains::remove(&inner, &map).await {
            cleared = map.version;
        }
        let all_open = open_missing(&inner, &saved).await && saved.version == map.version;
        let pause = tokio::time::sleep(PERIOD);
        if !all_open {
            pause.await;
            continue;
        }
        tokio::select! {
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            // Replicas may have stopped.
            () = pause => {}
        }
    }
}

/// The founder opens the coordinator before there is a map that names it.
async fn found(inner: &Arc<Inner>) -> Result<()> {
    if inner.map.borrow().cluster != 0 || inner.taints.of(COORDINATOR_GROUP).is_some() {
        return Ok(());
    }
    let open = inner.coordinator.read().clone();
    let group = match open.filter(|group| group.stop_reason().is_none()) {
        Some(group) => group,
        None => open_coordinator(inner, 1).await?,
    };
    group
        .bootstrap(BTreeMap::from([(1, inner.identity.node)]))
        .await?;
    while inner.map.borrow().cluster == 0 {
        if let Some(reason) = group.stop_reason() {
            return Err(quorate_replication::Error::Stopped(reason.message).into());
        }
        let command = ClusterCommand::Found {
            cluster: inner.identity.cluster,
            address: inner.config.address.clone(),
            data_id: inner.identity.data_id,
        };
        if let Err(error) = group.propose(command.encode(), TIMEOUT).await {
            tracing::debug!(%error, "founding the cluster: not yet");
            tokio::time::sleep(PERIOD).await;
        }
    }
    Ok(())
}

/// Opens what the map gives this node and is not open; false if something could not be.
async fn open_missing(inner: &Arc<Inner>, map: &ShardMap) -> bool {
    let mut all = true;
    for shard in map.shards() {
        let Some(replica) = shard.replica_on(inner.identity.node) else {
            continue;
        };
        if let Some(why) = inner.taints.forbids(shard.id, replica.id) {
            inner.broken.lock().insert(shard.id, why);
            continue;
        }
        let opened = if shard.id == COORDINATOR_GROUP {
            if inner.coordinator.read().is_some() {
                continue;
            }
            open_coordinator(inner, replica.id).await.map(|_| ())
        } else {
            if inner.shards.read().contains_key(&shard.id) {
                continue;
            }
            open_shard(inner, map, shard, replica.id).await
        };
        match opened {
            Ok(()) => {
                inner.broken.lock().remove(&shard.id);
            }
            Err(error) => {
                all = false;
                let known = inner.broken.lock().insert(shard.id, error.to_string());
                if known.as_deref() != Some(&error.to_string()) {
                    tracing::error!(shard = shard.id, %error, "a replica could not be opened");
                }
            }
        }
    }
    all
}

/// Lets go of what an earlier attempt left half open: a group that runs, or has stopped, without
/// having been made known.
async fn close_left_over(inner: &Inner, group: GroupId) -> Result<()> {
    if inner.groups.group(group).is_ok() {
        inner.groups.close_group(group).await?;
    }
    Ok(())
}

async fn open_coordinator(inner: &Arc<Inner>, replica: u64) -> Result<Group> {
    close_left_over(inner, COORDINATOR_GROUP).await?;
    let (engine, map) = (Arc::clone(&inner.engine), inner.map.clone());
    let machine = jobs::run(inner.env(), move || {
        CoordinatorMachine::open(engine, map, replica)
    })
    .await;
    let machine = Coordinator(Arc::new(machine.map_err(replication_error)?));
    let group = inner
        .groups
        .open_group(COORDINATOR_GROUP, replica, Arc::new(machine))
        .await?;
    *inner.coordinator.write() = Some(group.clone());
    Ok(group)
}

pub(crate) async fn open_shard(
    inner: &Arc<Inner>,
    map: &ShardMap,
    shard: &Shard,
    replica: u64,
) -> Result<()> {
    close_left_over(inner, shard.id).await?;
    let Some(namespace) = map.namespace(shard.namespace) else {
        return Err(crate::Error::Invalid(format!(
            "shard {} is of no namespace",
            shard.id
        )));
    };
    let (env, engine) = (inner.env().clone(), Arc::clone(&inner.engine));
    let (spool, mine, kind) = (
        inner.dir.path().join("snapshots"),
        shard.clone(),
        namespace.kind,
    );
    let open = move || ShardMachine::open(env, engine, spool, (mine, replica), kind);
    let machine = jobs::run(inner.env(), open)
        .await
        .map_err(replication_error)?;
    let handle: Arc<dyn StateMachine> = Arc::new(Machine(Arc::clone(&machine)));
    let group = inner.groups.open_group(shard.id, replica, handle).await?;
    if shard.epoch.members == ShardEpoch::FIRST.members {
        // All first replicas are told the same; one that has members already is left alone.
        let members = shard
            .replicas
            .iter()
            .map(|replica| (replica.id, replica.node));
        let is_new = group.bootstrap(members.collect()).await?;
        let place = shard.replicas.iter().position(|one| one.id == replica);
        let place = place.unwrap_or_default();
        if (is_new || place == 0) && group.leader().is_none() {
            // The others may not have opened their replicas yet, so it asks for a while.
            let (first, of) = (group.clone(), shard.replicas.len());
            tokio::spawn(async move { first.campaign(place as u32, of as u32).await });
        }
    }
    let context = Arc::clone(&inner.context);
    let replica = ShardReplica::new(group, machine, context);
    inner.shards.write().insert(shard.id, replica);
    Ok(())
}

fn replication_error(error: io::Error) -> quorate_replication::Error {
    error.into()
}

/// Where this node leads the coordinator: brings its group to the size it should have.
pub(crate) async fn lead_coordinator(inner: Arc<Inner>) {
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let group = inner.coordinator.read().clone();
        if let Some(group) = group.filter(Group::is_leader)
            && let Err(error) = grow_coordinator(&inner, &group).await
        {
            tracing::debug!(%error, "growing the coordinator: not yet");
        }
    }
}

async fn grow_coordinator(inner: &Inner, group: &Group) -> Result<()> {
    let map = inner.context.map();
    let Some(shard) = map.shard(COORDINATOR_GROUP) else {
        return Ok(());
    };
    let members = group.status().members;
    let is_as_named = !members.joint && members.voters.len() == shard.replicas.len();
    if is_as_named && shard.is_settled() && shard.replicas.len() < inner.config.coordinator_replicas
    {
        let free = map
            .nodes
            .keys()
            .find(|node| shard.replica_on(**node).is_none());
        if let Some(&node) = free {
            let command = ClusterCommand::GrowCoordinator { node };
            group.propose(command.encode(), TIMEOUT).await?;
        }
    }
    Ok(())
}

/// Before a planned stop: hands each group that this node leads to a voter that is up to date.
pub(crate) async fn hand_over(inner: &Inner) {
    let transfer = async {
        for group in inner.groups.all().into_iter().filter(Group::is_leader) {
            let status = group.status();
            let others = status
                .members
                .voters
                .keys()
                .filter(|id| **id != status.replica);
            let Some(&best) = others.min_by_key(|id| status.lag(**id).unwrap_or(u64::MAX)) else {
                continue;
            };
            if let Err(error) = group
                .transfer_leader(best, Duration::from_millis(500))
                .await
            {
                tracing::debug!(group = group.id(), %error, "leadership was not handed on");
            }
        }
    };
    // A stop must not wait for peers that are gone.
    let _ = tokio::time::timeout(Duration::from_secs(3), transfer).await;
}
