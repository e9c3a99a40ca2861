//! Changes of a shard's members: a replica moves to another node, or goes, and another one comes, under load and
//! faults; of the coordinator's group too. What is told to the cluster is what its operator would tell it.

use std::time::Duration;

use quorate_node::ClusterCommand;
use quorate_sharding::{COORDINATOR_GROUP, NodeId, Shard};

use crate::cluster::Cluster;

/// How many replicas a shard is to have in the end.
const REPLICAS: usize = 3;

/// Whether all shards are to be whole again, and when that is looked after next.
#[derive(Default)]
pub(super) struct Members {
    is_healing: bool,
    next_us: u64,
}

/// A shard as the map has it, and the nodes without a replica of it.
fn known(cluster: &Cluster, shard: u64) -> Option<(Shard, Vec<NodeId>)> {
    let maps = cluster.hosts.values().filter_map(|host| host.life.as_ref());
    let map = maps
        .map(|life| life.node.map())
        .max_by_key(|map| map.version)?;
    let shard = map.shard(shard)?;
    let free = map
        .nodes
        .keys()
        .filter(|node| shard.replica_on(**node).is_none());
    Some((Shard::clone(shard), free.copied().collect()))
}

fn tell(cluster: &Cluster, shard: u64, from: NodeId, to: NodeId) -> bool {
    let Some(leader) = cluster.leads(COORDINATOR_GROUP) else {
        return false;
    };
    let command = ClusterCommand::MoveReplica { shard, from, to };
    drop(cluster.ask(leader, move |node| async move {
        // Refused or lost: then it is not done.
        node.coordinate(command, Duration::from_secs(3))
            .await
            .is_ok()
    }));
    true
}

impl Members {
    /// Moves a replica, takes one away or adds one.
    pub(super) fn change(&mut self, cluster: &Cluster, shard: u64) -> bool {
        let shard = match cluster.random.one_in(4) {
            true => COORDINATOR_GROUP,
            false => shard,
        };
        let Some((known, free)) = known(cluster, shard).filter(|(known, _)| known.is_settled())
        else {
            return false;
        };
        let pick = |count: usize| cluster.random.below(count.max(1) as u64) as usize;
        let from = known.replicas[pick(known.replicas.len())].node;
        match free.get(pick(free.len())) {
            Some(to) if known.replicas.len() < REPLICAS => tell(cluster, shard, 0, *to),
            Some(to) if cluster.random.one_in(2) => tell(cluster, shard, from, *to),
            _ if known.replicas.len() >= REPLICAS => tell(cluster, shard, from, 0),
            _ => false,
        }
    }

    /// No faults any more: every shard is to have all its replicas again.
    pub(super) fn heal(&mut self, cluster: &Cluster) {
        self.is_healing = true;
        self.next_us = cluster.now_us;
    }

    /// Goes on with that until it is so.
    pub(super) fn step(&mut self, cluster: &Cluster) {
        if !self.is_healing || cluster.now_us < self.next_us {
            return;
        }
        self.next_us = cluster.now_us + 1_000_000;
        for shard in cluster.shards() {
            if let Some((known, free)) = known(cluster, shard)
                && known.is_settled()
                && known.replicas.len() < REPLICAS
                && let Some(to) = free.first()
            {
                tell(cluster, shard, 0, *to);
            }
        }
    }
}
