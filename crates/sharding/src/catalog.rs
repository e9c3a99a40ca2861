//! The coordinator's changes to its map: deterministic, so that every replica of the coordinator's
//! group makes the same map from the same commands.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::{
    COORDINATOR_GROUP, Error, GroupId, Namespace, NamespaceId, NamespaceKind, NodeId, NodeInfo,
    NodeLoad, Replica, ReplicaId, Result, SYSTEM_NAMESPACE, Shard, ShardEpoch, ShardMap,
    bounds_from_splits, initial_bounds, place_with_loads,
};

/// The longest name of a namespace, in bytes.
const NAME_BYTES_MAX: usize = 128;

/// What a namespace is created from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceSpec {
    /// Its name: 1 to 128 of ASCII letters, digits, `-`, `_`, `.`, `/`, not beginning with `_`.
    pub name: String,
    /// Its layout.
    pub kind: NamespaceKind,
    /// How many shards, if `splits` is empty; a compact one has 1.
    pub shards: u32,
    /// How many replicas each.
    pub replicas: u32,
    /// Encoded keys between the shards; empty: even bounds.
    pub splits: Vec<Bytes>,
}

impl NamespaceSpec {
    /// The ranges that its shards will have.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if shards or splits do not fit.
    pub fn bounds(&self) -> Result<Vec<(Bytes, Bytes)>> {
        if self.kind == NamespaceKind::Compact && (self.shards > 1 || !self.splits.is_empty()) {
            return Err(Error::InvalidArgument(
                "a compact namespace has exactly one shard".into(),
            ));
        }
        if self.splits.is_empty() {
            initial_bounds(self.kind.encoding(), self.shards as usize)
        } else {
            bounds_from_splits(&self.splits)
        }
    }

    fn check_name(&self) -> Result<()> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./".contains(&b);
        let fits = (1..=NAME_BYTES_MAX).contains(&self.name.len());
        if fits && self.name.bytes().all(plain) && !self.name.starts_with('_') {
            return Ok(());
        }
        Err(Error::InvalidArgument(format!(
            "a namespace's name has 1 to {NAME_BYTES_MAX} of the characters a-z A-Z 0-9 - _ . / \
             and does not begin with _"
        )))
    }
}

impl ShardMap {
    /// Registers a node and gives it its id; an address that is known keeps its id.
    pub fn register_node(&mut self, address: &str, labels: BTreeMap<String, String>) -> NodeId {
        if let Some(known) = self.nodes.values_mut().find(|n| n.address == address) {
            let id = known.id;
            if known.labels != labels {
                known.labels = labels;
                self.version += 1;
            }
            return id;
        }
        let id = self.next.node;
        self.next.node += 1;
        let address = address.to_owned();
        self.nodes.insert(
            id,
            NodeInfo {
                id,
                address,
                labels,
            },
        );
        self.version += 1;
        id
    }

    /// Changes the address of a node that moved. False if there is no such node.
    pub fn set_node_address(&mut self, id: NodeId, address: &str) -> bool {
        let Some(node) = self.nodes.get_mut(&id) else {
            return false;
        };
        if node.address != address {
            node.address = address.to_owned();
            self.version += 1;
        }
        true
    }

    /// Sets the replicas of the coordinator's group, which is the only shard of the system's own
    /// namespace.
    pub fn set_coordinator(&mut self, replicas: Vec<Replica>) {
        let epoch = match self.shards_of(SYSTEM_NAMESPACE) {
            [known] if known.replicas == replicas => return,
            [known, ..] => ShardEpoch {
                members: known.epoch.members + 1,
                ..known.epoch
            },
            [] => ShardEpoch::FIRST,
        };
        // One that grows is settled when its group has taken on the new member, as any other.
        let settled = match self.shards_of(SYSTEM_NAMESPACE) {
            [known, ..] => known.settled,
            [] => epoch.members,
        };
        let above = replicas.iter().map(|r| r.id + 1).max().unwrap_or_default();
        self.next.replica = self.next.replica.max(above);
        let namespace = Namespace {
            id: SYSTEM_NAMESPACE,
            name: "_system".into(),
            kind: NamespaceKind::Compact,
            replicas: replicas.len() as u32,
            incarnation: 0,
        };
        let shard = Shard {
            id: COORDINATOR_GROUP,
            namespace: SYSTEM_NAMESPACE,
            start: Bytes::new(),
            end: Bytes::new(),
            epoch,
            leaving: Vec::new(),
            settled,
            replicas,
        };
        self.insert_namespace(namespace, vec![shard]);
        self.version += 1;
    }

    /// Gives out a replica id, for a replica that is made outside of a new namespace.
    pub fn take_replica_id(&mut self) -> u64 {
        let id = self.next.replica;
        self.next.replica += 1;
        self.version += 1;
        id
    }

    /// Creates a namespace and places its shards on the nodes that hold the least.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] if the name is taken, [`Error::InvalidArgument`] if the spec does
    /// not make sense or there are too few nodes. The map is unchanged then.
    pub fn create_namespace(&mut self, spec: &NamespaceSpec) -> Result<NamespaceId> {
        spec.check_name()?;
        if self.namespace_by_name(&spec.name).is_some() {
            return Err(Error::AlreadyExists(format!(
                "there is a namespace `{}` already",
                spec.name
            )));
        }
        let bounds = spec.bounds()?;
        let placed = place_with_loads(self.loads(), bounds.len(), spec.replicas as usize)?;
        let id = self.next.namespace;
        let mut shards = Vec::with_capacity(bounds.len());
        for ((start, end), nodes) in bounds.into_iter().zip(placed) {
            let first_replica = self.next.replica;
            self.next.replica += nodes.len() as u64;
            shards.push(Shard {
                id: self.next.shard,
                namespace: id,
                start,
                end,
                epoch: ShardEpoch::FIRST,
                leaving: Vec::new(),
                settled: ShardEpoch::FIRST.members,
                replicas: (first_replica..)
                    .zip(nodes)
                    .map(|(id, node)| Replica { id, node })
                    .collect(),
            });
            self.next.shard += 1;
        }
        let namespace = Namespace {
            id,
            name: spec.name.clone(),
            kind: spec.kind,
            replicas: spec.replicas,
            incarnation: 0,
        };
        self.insert_namespace(namespace, shards);
        self.next.namespace += 1;
        self.version += 1;
        Ok(id)
    }

    /// Removes a namespace; its shards, which are to be torn down, or nothing if it is not there.
    pub fn drop_namespace(&mut self, id: NamespaceId) -> Vec<std::sync::Arc<Shard>> {
        if id == SYSTEM_NAMESPACE || self.namespace(id).is_none() {
            return Vec::new();
        }
        self.version += 1;
        self.remove_namespace(id)
    }

    /// Gives a shard a new replica on one node, takes the one on another away, or both at once, and raises its
    /// members version; gives the new replica's id, 0 if there is none. What is taken away stays among the
    /// leaving until the change is settled: until then the group may need it for its quorum. So a replica is made
    /// anew on its node by taking it away, and adding one once that is settled.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if that makes no sense; [`Error::Unsettled`] while an earlier change is under way.
    /// The map is unchanged then.
    pub fn move_replica(
        &mut self,
        shard: u64,
        from: Option<NodeId>,
        to: Option<NodeId>,
    ) -> Result<ReplicaId> {
        let refuse = |why: String| Err(Error::InvalidArgument(why));
        let Some(known) = self.shard(shard).cloned() else {
            return refuse(format!("there is no shard {shard}"));
        };
        if !known.is_settled() {
            return Err(Error::Unsettled(shard));
        }
        let mut changed = Shard::clone(&known);
        if from == to {
            return refuse(
                "name the node to move from, the node to move to, or two different ones".into(),
            );
        }
        if let Some(from) = from {
            let Some(place) = changed.replicas.iter().position(|r| r.node == from) else {
                return refuse(format!("shard {shard} has no replica on node {from}"));
            };
            changed.leaving.push(changed.replicas.remove(place));
        }
        let mut id = 0;
        if let Some(node) = to {
            if self.node(node).is_none() {
                return refuse(format!("there is no node {node}"));
            }
            if changed.replica_on(node).is_some() {
                return refuse(format!(
                    "shard {shard} has a replica on node {node} already"
                ));
            }
            id = self.next.replica;
            changed.replicas.push(Replica { id, node });
        }
        if changed.replicas.is_empty() {
            return refuse(format!("shard {shard} would have no replica left"));
        }
        changed.epoch.members += 1;
        self.next.replica = self.next.replica.max(id + 1);
        self.replace_shard(changed);
        self.version += 1;
        Ok(id)
    }

    /// Takes away a replica that is damaged, as [`ShardMap::move_replica`] does: once that is settled, its node
    /// may get a new one. Unless it may be `beside` others, only while no other shard's members change, nor a
    /// replica of one is missing. True if it was there.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the others would be too few for a quorum; [`Error::Unsettled`] with the shard
    /// that has to be waited for. The map is unchanged then.
    pub fn withdraw_replica(
        &mut self,
        shard: GroupId,
        replica: ReplicaId,
        beside: bool,
    ) -> Result<bool> {
        let Some(known) = self.shard(shard).cloned() else {
            let why = format!("there is no shard {shard}");
            return Err(Error::InvalidArgument(why));
        };
        let Some(place) = known.replicas.iter().position(|r| r.id == replica) else {
            return Ok(false);
        };
        if !known.is_settled() {
            return Err(Error::Unsettled(shard));
        }
        if known.replicas.len() < 3 {
            let why = format!(
                "shard {shard} has {} replicas: without replica {replica} the others are no quorum",
                known.replicas.len()
            );
            return Err(Error::InvalidArgument(why));
        }
        let changes = |other: &&std::sync::Arc<Shard>| {
            let namespace = self.namespace(other.namespace);
            let wanted = namespace.map_or(0, |namespace| namespace.replicas as usize);
            other.id != shard && (!other.is_settled() || other.replicas.len() < wanted)
        };
        if let Some(other) = self.shards().find(changes).filter(|_| !beside) {
            return Err(Error::Unsettled(other.id));
        }
        let mut changed = Shard::clone(&known);
        changed.leaving.push(changed.replicas.remove(place));
        changed.epoch.members += 1;
        self.replace_shard(changed);
        self.version += 1;
        Ok(true)
    }

    /// Notes that the group of a shard has taken on the members of this version: those that were leaving are gone.
    /// True if that was news.
    pub fn settle_members(&mut self, shard: u64, members: u64) -> bool {
        let Some(known) = self.shard(shard).filter(|s| s.epoch.members == members) else {
            return false;
        };
        if known.is_settled() {
            return false;
        }
        let mut changed = Shard::clone(known);
        changed.leaving.clear();
        changed.settled = members;
        self.replace_shard(changed);
        self.version += 1;
        true
    }

    /// Removes a node that holds nothing any more. Its id is never given out again.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there is no such node, or shards are still on it.
    pub fn remove_node(&mut self, node: NodeId) -> Result<()> {
        if self.node(node).is_none() {
            return Err(Error::InvalidArgument(format!("there is no node {node}")));
        }
        let holds = |s: &&std::sync::Arc<Shard>| {
            s.replicas.iter().chain(&s.leaving).any(|r| r.node == node)
        };
        let held: Vec<String> = self
            .shards()
            .filter(holds)
            .map(|s| s.id.to_string())
            .collect();
        if !held.is_empty() {
            return Err(Error::InvalidArgument(format!(
                "node {node} still holds replicas of the shards {}: move them first",
                held.join(", ")
            )));
        }
        self.nodes.remove(&node);
        self.version += 1;
        Ok(())
    }

    /// Where the replicas of a node could go, each to the node that holds the least of those without one of the
    /// same shard: shards and their new nodes.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there is no such node, or a shard has a replica on every other one.
    pub fn evacuation(&self, node: NodeId) -> Result<Vec<(GroupId, NodeId)>> {
        if self.node(node).is_none() {
            return Err(Error::InvalidArgument(format!("there is no node {node}")));
        }
        let mut loads = self.loads();
        let mut moves = Vec::new();
        for shard in self.shards().filter(|s| s.replica_on(node).is_some()) {
            let free = loads
                .iter_mut()
                .filter(|(to, _)| shard.replica_on(**to).is_none());
            let Some((to, load)) = free.min_by_key(|(_, load)| (load.replicas, load.firsts)) else {
                return Err(Error::InvalidArgument(format!(
                    "shard {} has a replica on every other node than {node}: add a node first",
                    shard.id
                )));
            };
            load.replicas += 1;
            moves.push((shard.id, *to));
        }
        Ok(moves)
    }

    /// What each node holds, the coordinator's group apart.
    fn loads(&self) -> BTreeMap<NodeId, NodeLoad> {
        let mut loads: BTreeMap<NodeId, NodeLoad> = self
            .nodes
            .keys()
            .map(|n| (*n, NodeLoad::default()))
            .collect();
        for shard in self.shards().filter(|s| s.namespace != SYSTEM_NAMESPACE) {
            for (i, replica) in shard.replicas.iter().enumerate() {
                if let Some(load) = loads.get_mut(&replica.node) {
                    load.replicas += 1;
                    load.firsts += u64::from(i == 0);
                }
            }
        }
        loads
    }
}
