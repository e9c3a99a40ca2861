//! How a node sees itself: for `status`, `/metrics` and tests.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use quorate_kv::Version;
use quorate_replication::{Health, Status as GroupStatus};
use quorate_sharding::{COORDINATOR_GROUP, GroupId, NamespaceId, SYSTEM_NAMESPACE, ShardEpoch};
use quorate_storage::Stats;

use crate::identity::Identity;
use crate::node::Node;

/// A node's state at one moment.
#[derive(Debug, Clone)]
pub struct NodeStatus {
    /// Who it is.
    pub identity: Identity,
    /// Where it is reached.
    pub address: String,
    /// Since it was opened.
    pub uptime: Duration,
    /// The version of the shard map it knows.
    pub map_version: u64,
    /// Whether it refuses client writes for want of space.
    pub disk_full: bool,
    /// The space that the disk has left.
    pub free_bytes: u64,
    /// The shared log's files.
    pub log_bytes: u64,
    /// And their bound.
    pub log_bytes_max: u64,
    /// For how many seconds, since it was opened, they were at more than four fifths of it.
    pub log_near_bound: u64,
    /// The storage engine.
    pub engine: Stats,
    /// Its replicas, the coordinator's first.
    pub replicas: Vec<ReplicaStatus>,
    /// Shards that it should hold and could not open, with the reason.
    pub broken: Vec<(GroupId, String)>,
    /// Those of them whose replica here is damaged, and is made anew from its peers.
    pub damaged: BTreeSet<GroupId>,
    /// How many damaged replicas were replaced since it was opened.
    pub repaired: u64,
    /// Shards that it should hold and is about to open.
    pub opening: Vec<GroupId>,
}

/// A shard that this node should serve and does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The shard.
    pub shard: GroupId,
    /// What is the matter.
    pub kind: FaultKind,
    /// Why, where there is more to say than the kind does; else empty.
    pub reason: String,
}

/// What keeps a replica from serving.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// It knows no leader, or has not heard it for too long.
    NoLeader,
    /// It leads and has not heard a quorum for too long.
    NoQuorum,
    /// It has stopped: applying failed, or the disk did.
    Stopped,
    /// It could not be opened; that is tried again.
    Broken,
    /// Something of it is damaged on disk: it is made anew from its peers.
    Damaged,
    /// It is about to be opened.
    Opening,
}

impl FaultKind {
    /// Its name in `/health` and `/metrics`.
    pub fn name(self) -> &'static str {
        match self {
            FaultKind::NoLeader => "no_leader",
            FaultKind::NoQuorum => "no_quorum",
            FaultKind::Stopped => "stopped",
            FaultKind::Broken => "broken",
            FaultKind::Damaged => "damaged",
            FaultKind::Opening => "opening",
        }
    }
}

impl NodeStatus {
    /// The shards that this node should serve and does not; none if it is well.
    pub fn faults(&self) -> Vec<Fault> {
        let running = self.replicas.iter().filter_map(|replica| {
            let (kind, reason) = match &replica.group.health {
                Health::Works => return None,
                Health::NoLeader => (FaultKind::NoLeader, String::new()),
                Health::NoQuorum => (FaultKind::NoQuorum, String::new()),
                Health::Stopped(reason) => (FaultKind::Stopped, reason.message.clone()),
            };
            Some(Fault {
                shard: replica.shard,
                kind,
                reason,
            })
        });
        let broken = self.broken.iter().map(|(shard, why)| Fault {
            shard: *shard,
            kind: match self.damaged.contains(shard) {
                true => FaultKind::Damaged,
                false => FaultKind::Broken,
            },
            reason: why.clone(),
        });
        let opening = self.opening.iter().map(|shard| Fault {
            shard: *shard,
            kind: FaultKind::Opening,
            reason: String::new(),
        });
        running.chain(broken).chain(opening).collect()
    }
}

/// One replica of a node.
#[derive(Debug, Clone)]
pub struct ReplicaStatus {
    /// The group, which is the shard.
    pub shard: GroupId,
    /// The shard's namespace; 0 is the coordinator's.
    pub namespace: NamespaceId,
    /// The state of the shard that it serves.
    pub epoch: ShardEpoch,
    /// Raft's view.
    pub group: GroupStatus,
    /// The newest version applied here.
    pub version: Version,
    /// About how many bytes of keys and values it holds on disk.
    pub size_bytes: u64,
}

impl Node {
    /// How the node sees itself now.
    pub fn status(&self) -> NodeStatus {
        let inner = &self.inner;
        let mut replicas = Vec::new();
        if let Some(group) = inner.coordinator.read().as_ref() {
            let epoch = self.map().shard(COORDINATOR_GROUP).map(|shard| shard.epoch);
            replicas.push(ReplicaStatus {
                shard: COORDINATOR_GROUP,
                namespace: SYSTEM_NAMESPACE,
                epoch: epoch.unwrap_or_default(),
                group: group.status(),
                version: 0,
                size_bytes: 0,
            });
        }
        let mut shards: Vec<_> = inner.shards.read().values().cloned().collect();
        shards.sort_by_key(|replica| replica.machine.shard().id);
        replicas.extend(shards.iter().map(|replica| {
            let shard = replica.machine.shard();
            ReplicaStatus {
                shard: shard.id,
                namespace: shard.namespace,
                epoch: shard.epoch,
                group: replica.group.status(),
                version: replica.version(),
                size_bytes: replica.machine.size_bytes(),
            }
        }));
        let (broken, damaged) = self.out_of_order();
        let is_known = |id: GroupId| {
            replicas.iter().any(|replica| replica.shard == id)
                || broken.iter().any(|(shard, _)| *shard == id)
        };
        let map = self.map();
        let mine = map
            .shards()
            .filter(|shard| shard.replica_on(inner.identity.node).is_some());
        let opening: Vec<GroupId> = mine
            .map(|shard| shard.id)
            .filter(|id| !is_known(*id))
            .collect();
        NodeStatus {
            opening,
            identity: inner.identity,
            address: inner.config.address.clone(),
            uptime: inner.env().clock.now().saturating_sub(inner.started),
            map_version: self.map().version,
            disk_full: inner.context.disk_full.load(Ordering::Relaxed),
            free_bytes: inner.context.free_bytes.load(Ordering::Relaxed),
            log_bytes: inner.groups.log_bytes(),
            log_bytes_max: inner.config.log_bytes_max,
            log_near_bound: inner.context.log_near_bound.load(Ordering::Relaxed),
            engine: inner.engine.stats(),
            replicas,
            broken,
            damaged,
            repaired: inner.repaired.load(Ordering::Relaxed),
        }
    }

    /// Shards of this node that are not served, with the reasons, and which of them are damaged.
    fn out_of_order(&self) -> (Vec<(GroupId, String)>, BTreeSet<GroupId>) {
        let inner = &self.inner;
        let mut all = inner.broken.lock().clone();
        let runs = |group| inner.groups.group(group).is_ok();
        let tainted = inner
            .taints
            .all()
            .into_iter()
            .filter(|(group, _)| !runs(*group));
        let tainted: BTreeMap<GroupId, String> = tainted
            .map(|(group, taint)| (group, taint.says()))
            .collect();
        let damaged = tainted.keys().copied().collect();
        all.extend(tainted);
        (all.into_iter().collect(), damaged)
    }
}
