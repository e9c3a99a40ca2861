//! A node's state in the terms of the wire.

use quorate_node::{Node, ReplicaStatus};
use quorate_replication::{Health as RaftHealth, Role as RaftRole};
use quorate_sharding::{GroupStatus, Health, NodeStatus, Role};

/// The state of a node, for `quorate status`.
pub fn wire_status(node: &Node) -> NodeStatus {
    let status = node.status();
    let broken = status.broken.iter().map(|(group, why)| GroupStatus {
        group: *group,
        health: Health::Stopped,
        fault: Some(why.clone()),
        ..GroupStatus::default()
    });
    NodeStatus {
        cluster: status.identity.cluster,
        node: status.identity.node,
        address: status.address.clone(),
        binary_version: env!("CARGO_PKG_VERSION").into(),
        uptime_ms: u64::try_from(status.uptime.as_millis()).unwrap_or(u64::MAX),
        map_version: status.map_version,
        engine_bytes: status
            .engine
            .levels
            .iter()
            .map(|level| level.size_bytes)
            .sum::<u64>()
            + status.engine.memtable_bytes,
        log_bytes: status.log_bytes,
        free_bytes: status.free_bytes,
        groups: status.replicas.iter().map(group).chain(broken).collect(),
    }
}

fn group(replica: &ReplicaStatus) -> GroupStatus {
    let raft = &replica.group;
    let (health, fault) = match &raft.health {
        RaftHealth::Works => (Health::Works, None),
        RaftHealth::NoLeader => (Health::NoLeader, None),
        RaftHealth::NoQuorum => (Health::NoQuorum, None),
        RaftHealth::Stopped(reason) => (Health::Stopped, Some(reason.message.clone())),
    };
    let leader = raft.leader.filter(|_| health == Health::Works);
    GroupStatus {
        group: replica.shard,
        namespace: replica.namespace,
        replica: raft.replica,
        role: match raft.role {
            RaftRole::Learner => Role::Learner,
            RaftRole::Follower => Role::Follower,
            RaftRole::Candidate => Role::Candidate,
            RaftRole::Leader => Role::Leader,
            RaftRole::Stopped => Role::Unknown,
        },
        health,
        leader: leader.map(|leader| leader.node),
        term: raft.term,
        last_index: raft.last_index.unwrap_or_default(),
        committed_index: raft.committed.unwrap_or_default(),
        applied_index: raft.applied.unwrap_or_default(),
        version: replica.version,
        epoch: replica.epoch,
        size_bytes: replica.size_bytes,
        fault,
    }
}
