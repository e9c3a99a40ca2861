//! The cluster's calls: namespaces, status, hashes.

use quorate_kv::Error;
use quorate_sharding::{GroupStatus, Health, NamespaceSpec, NodeStatus, ReplicaHash, Role};

use super::invalid;
use super::map::{cluster_from_wire, cluster_to_wire};
use crate::v1;

impl From<NamespaceSpec> for v1::CreateNamespaceRequest {
    fn from(spec: NamespaceSpec) -> Self {
        v1::CreateNamespaceRequest {
            name: spec.name,
            layout: Some(spec.kind.into()),
            shards: spec.shards,
            replicas: spec.replicas,
            splits: spec.splits,
            timeout_ms: 0,
        }
    }
}

impl TryFrom<v1::CreateNamespaceRequest> for NamespaceSpec {
    type Error = Error;

    fn try_from(wire: v1::CreateNamespaceRequest) -> Result<Self, Error> {
        Ok(NamespaceSpec {
            name: wire.name,
            kind: wire
                .layout
                .ok_or_else(|| invalid("a namespace without layout"))?
                .try_into()?,
            shards: wire.shards,
            replicas: wire.replicas,
            splits: wire.splits,
        })
    }
}

impl From<Role> for v1::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::Unknown => v1::Role::Unknown,
            Role::Follower => v1::Role::Follower,
            Role::Candidate => v1::Role::Candidate,
            Role::Leader => v1::Role::Leader,
            Role::Learner => v1::Role::Learner,
        }
    }
}

impl From<v1::Role> for Role {
    fn from(wire: v1::Role) -> Self {
        match wire {
            v1::Role::Unknown => Role::Unknown,
            v1::Role::Follower => Role::Follower,
            v1::Role::Candidate => Role::Candidate,
            v1::Role::Leader => Role::Leader,
            v1::Role::Learner => Role::Learner,
        }
    }
}

impl From<Health> for v1::Health {
    fn from(health: Health) -> Self {
        match health {
            Health::Unknown => v1::Health::Unknown,
            Health::Works => v1::Health::Works,
            Health::NoLeader => v1::Health::NoLeader,
            Health::NoQuorum => v1::Health::NoQuorum,
            Health::Stopped => v1::Health::Stopped,
        }
    }
}

impl From<v1::Health> for Health {
    fn from(wire: v1::Health) -> Self {
        match wire {
            v1::Health::Unknown => Health::Unknown,
            v1::Health::Works => Health::Works,
            v1::Health::NoLeader => Health::NoLeader,
            v1::Health::NoQuorum => Health::NoQuorum,
            v1::Health::Stopped => Health::Stopped,
        }
    }
}

impl From<GroupStatus> for v1::GroupStatus {
    fn from(status: GroupStatus) -> Self {
        v1::GroupStatus {
            group: status.group,
            namespace: status.namespace,
            replica: status.replica,
            role: v1::Role::from(status.role).into(),
            health: v1::Health::from(status.health).into(),
            leader: status.leader.unwrap_or_default(),
            term: status.term,
            last_index: status.last_index,
            committed_index: status.committed_index,
            applied_index: status.applied_index,
            version: status.version,
            epoch: Some(status.epoch.into()),
            size_bytes: status.size_bytes,
            fault: status.fault.unwrap_or_default(),
        }
    }
}

impl From<v1::GroupStatus> for GroupStatus {
    fn from(wire: v1::GroupStatus) -> Self {
        GroupStatus {
            group: wire.group,
            namespace: wire.namespace,
            replica: wire.replica,
            role: wire.role().into(),
            health: wire.health().into(),
            leader: (wire.leader != 0).then_some(wire.leader),
            term: wire.term,
            last_index: wire.last_index,
            committed_index: wire.committed_index,
            applied_index: wire.applied_index,
            version: wire.version,
            epoch: wire.epoch.unwrap_or_default().into(),
            size_bytes: wire.size_bytes,
            fault: (!wire.fault.is_empty()).then_some(wire.fault),
        }
    }
}

impl From<NodeStatus> for v1::StatusResponse {
    fn from(status: NodeStatus) -> Self {
        v1::StatusResponse {
            cluster: cluster_to_wire(status.cluster),
            node: status.node,
            address: status.address,
            binary_version: status.binary_version,
            uptime_ms: status.uptime_ms,
            map_version: status.map_version,
            engine_bytes: status.engine_bytes,
            log_bytes: status.log_bytes,
            free_bytes: status.free_bytes,
            groups: status.groups.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<v1::StatusResponse> for NodeStatus {
    type Error = Error;

    fn try_from(wire: v1::StatusResponse) -> Result<Self, Error> {
        Ok(NodeStatus {
            cluster: cluster_from_wire(&wire.cluster)?.unwrap_or_default(),
            node: wire.node,
            address: wire.address,
            binary_version: wire.binary_version,
            uptime_ms: wire.uptime_ms,
            map_version: wire.map_version,
            engine_bytes: wire.engine_bytes,
            log_bytes: wire.log_bytes,
            free_bytes: wire.free_bytes,
            groups: wire.groups.into_iter().map(Into::into).collect(),
        })
    }
}

impl From<ReplicaHash> for v1::ReplicaHash {
    fn from(hash: ReplicaHash) -> Self {
        v1::ReplicaHash {
            shard: hash.shard,
            replica: hash.replica,
            node: hash.node,
            index: hash.index,
            hash: hash.hash,
            keys: hash.keys,
        }
    }
}

impl From<v1::ReplicaHash> for ReplicaHash {
    fn from(wire: v1::ReplicaHash) -> Self {
        ReplicaHash {
            shard: wire.shard,
            replica: wire.replica,
            node: wire.node,
            index: wire.index,
            hash: wire.hash,
            keys: wire.keys,
        }
    }
}
