//! [`ShardMap`]: which shards there are and who holds them.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::{
    Error, GroupId, Namespace, NamespaceId, NodeId, NodeInfo, ReplicaId, Result, SYSTEM_NAMESPACE,
    Shard,
};

/// The ids that the coordinator gives out next. They only grow: no id is used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextIds {
    /// The next node's.
    pub node: NodeId,
    /// The next shard's and group's.
    pub shard: GroupId,
    /// The next replica's.
    pub replica: ReplicaId,
    /// The next namespace's.
    pub namespace: NamespaceId,
}

impl Default for NextIds {
    fn default() -> Self {
        NextIds {
            node: 1,
            shard: crate::COORDINATOR_GROUP + 1,
            replica: 1,
            namespace: SYSTEM_NAMESPACE + 1,
        }
    }
}

/// All nodes, namespaces and shards of a cluster, at one version. Cheap to clone.
///
/// Invariants, in the coordinator's map ([`ShardMap::validate`]):
/// - the shards of a namespace cover all encoded keys, without gap or overlap;
/// - a shard's replicas are on distinct, known nodes; replica ids and shard ids are unique;
/// - names are unique, and `next` is above every id in use.
///
/// A client's map may have gaps after [`ShardMap::apply_shards`]: a key in a gap is looked up as
/// `None`, and the client fetches the map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardMap {
    /// The cluster's id.
    pub cluster: u128,
    /// Raised by every change.
    pub version: u64,
    /// What ids come next.
    pub next: NextIds,
    /// The nodes.
    pub nodes: BTreeMap<NodeId, NodeInfo>,
    namespaces: BTreeMap<NamespaceId, Namespace>,
    /// By namespace, then in the order of their starts, which never overlap.
    shards: BTreeMap<NamespaceId, Vec<Arc<Shard>>>,
}

impl ShardMap {
    /// The map of a new cluster: nothing in it.
    pub fn new(cluster: u128) -> Self {
        ShardMap {
            cluster,
            version: 0,
            next: NextIds::default(),
            nodes: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            shards: BTreeMap::new(),
        }
    }

    /// Puts a map together from its parts, without judging it.
    pub fn from_parts(
        cluster: u128,
        version: u64,
        next: NextIds,
        nodes: impl IntoIterator<Item = NodeInfo>,
        namespaces: impl IntoIterator<Item = Namespace>,
        shards: impl IntoIterator<Item = Shard>,
    ) -> Self {
        let mut by_namespace: BTreeMap<NamespaceId, Vec<Arc<Shard>>> = BTreeMap::new();
        for shard in shards {
            by_namespace
                .entry(shard.namespace)
                .or_default()
                .push(Arc::new(shard));
        }
        for list in by_namespace.values_mut() {
            list.sort_by(|a, b| a.start.cmp(&b.start));
        }
        ShardMap {
            cluster,
            version,
            next,
            nodes: nodes.into_iter().map(|n| (n.id, n)).collect(),
            namespaces: namespaces.into_iter().map(|n| (n.id, n)).collect(),
            shards: by_namespace,
        }
    }

    /// A node by its id.
    pub fn node(&self, id: NodeId) -> Option<&NodeInfo> {
        self.nodes.get(&id)
    }

    /// All namespaces in the order of their ids, the system's own too.
    pub fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        self.namespaces.values()
    }

    /// A namespace by its id.
    pub fn namespace(&self, id: NamespaceId) -> Option<&Namespace> {
        self.namespaces.get(&id)
    }

    /// A namespace by its name.
    pub fn namespace_by_name(&self, name: &str) -> Option<&Namespace> {
        self.namespaces.values().find(|n| n.name == name)
    }

    /// The shards of a namespace in the order of their keys.
    pub fn shards_of(&self, namespace: NamespaceId) -> &[Arc<Shard>] {
        self.shards.get(&namespace).map_or(&[], Vec::as_slice)
    }

    /// Every shard of every namespace.
    pub fn shards(&self) -> impl Iterator<Item = &Arc<Shard>> {
        self.shards.values().flatten()
    }

    /// A shard by its id.
    pub fn shard(&self, id: GroupId) -> Option<&Arc<Shard>> {
        self.shards().find(|s| s.id == id)
    }

    /// The shard that holds an encoded key.
    pub fn lookup(&self, namespace: NamespaceId, encoded: &[u8]) -> Option<&Arc<Shard>> {
        let list = self.shards_of(namespace);
        let after = list.partition_point(|s| &s.start[..] <= encoded);
        let shard = list.get(after.checked_sub(1)?)?;
        shard.contains(encoded).then_some(shard)
    }

    /// The shards that share keys with the encoded range `start..end` (an empty end: no end), in
    /// the order of their keys.
    pub fn overlapping(&self, namespace: NamespaceId, start: &[u8], end: &[u8]) -> &[Arc<Shard>] {
        let list = self.shards_of(namespace);
        let from = list.partition_point(|s| !s.end.is_empty() && &s.end[..] <= start);
        let to = if end.is_empty() {
            list.len()
        } else {
            list.partition_point(|s| &s.start[..] < end)
        };
        list.get(from..to).unwrap_or_default()
    }

    /// Takes in a newer map of the same cluster, but keeps each shard of which this one knows a
    /// later epoch. An older map, or another cluster's, changes nothing. True if it was taken.
    pub fn merge(&mut self, newer: ShardMap) -> bool {
        if newer.cluster != self.cluster || newer.version <= self.version {
            return false;
        }
        let old = std::mem::replace(self, newer);
        for (namespace, list) in old.shards {
            // Of a namespace that was dropped, nothing is kept.
            if self.namespaces.contains_key(&namespace) {
                list.iter().for_each(|shard| self.take_shard(shard));
            }
        }
        true
    }

    /// Takes in shards that a redirect brought; one that is older than what is here is ignored,
    /// and what a newer one overlaps goes.
    pub fn apply_shards(&mut self, shards: &[Shard]) {
        for shard in shards {
            self.take_shard(&Arc::new(shard.clone()));
        }
    }

    fn take_shard(&mut self, shard: &Arc<Shard>) {
        let list = self.shards.entry(shard.namespace).or_default();
        let known_newer = |s: &Arc<Shard>| {
            if s.id == shard.id {
                s.epoch >= shard.epoch
            } else {
                // A shard that was split or merged out of another has a higher range version.
                s.overlaps(&shard.start, &shard.end) && s.epoch.range >= shard.epoch.range
            }
        };
        if list.iter().any(known_newer) {
            return;
        }
        list.retain(|s| s.id != shard.id && !s.overlaps(&shard.start, &shard.end));
        let at = list.partition_point(|s| s.start < shard.start);
        list.insert(at, shard.clone());
    }

    /// Adds a namespace with its shards. Does not touch `version`.
    pub(crate) fn insert_namespace(&mut self, namespace: Namespace, shards: Vec<Shard>) {
        let list = shards.into_iter().map(Arc::new).collect();
        self.shards.insert(namespace.id, list);
        self.namespaces.insert(namespace.id, namespace);
    }

    /// Removes a namespace and its shards. Does not touch `version`.
    pub(crate) fn remove_namespace(&mut self, id: NamespaceId) -> Vec<Arc<Shard>> {
        self.namespaces.remove(&id);
        self.shards.remove(&id).unwrap_or_default()
    }

    /// Replaces a shard by a newer state of itself, same id and range.
    pub(crate) fn replace_shard(&mut self, shard: Shard) {
        let list = self.shards.entry(shard.namespace).or_default();
        list.retain(|s| s.id != shard.id);
        let at = list.partition_point(|s| s.start < shard.start);
        list.insert(at, Arc::new(shard));
    }

    /// Checks the invariants of the coordinator's map.
    ///
    /// # Errors
    /// [`Error::InvalidMap`] naming the first one that is broken.
    pub fn validate(&self) -> Result<()> {
        let mut names: Vec<&str> = self.namespaces().map(|n| n.name.as_str()).collect();
        names.sort_unstable();
        if names.windows(2).any(|w| w[0] == w[1]) {
            return broken("two namespaces share a name");
        }
        let mut ids: Vec<GroupId> = self.shards().map(|s| s.id).collect();
        ids.sort_unstable();
        if ids.windows(2).any(|w| w[0] == w[1]) {
            return broken("two shards share an id");
        }
        let mut replicas: Vec<ReplicaId> = self
            .shards()
            .flat_map(|s| s.replicas.iter().chain(&s.leaving).map(|r| r.id))
            .collect();
        replicas.sort_unstable();
        if replicas.windows(2).any(|w| w[0] == w[1]) {
            return broken("two replicas share an id");
        }
        if self.shards.keys().any(|n| !self.namespaces.contains_key(n)) {
            return broken("a shard belongs to no namespace");
        }
        let next = &self.next;
        let used_up = self.nodes.keys().any(|n| *n >= next.node)
            || ids.last().is_some_and(|s| *s >= next.shard)
            || replicas.last().is_some_and(|r| *r >= next.replica)
            || self.namespaces.keys().any(|n| *n >= next.namespace);
        if used_up {
            return broken("an id is not below the next one to give out");
        }
        self.namespaces
            .keys()
            .try_for_each(|n| self.validate_shards(*n))
    }

    fn validate_shards(&self, namespace: NamespaceId) -> Result<()> {
        let list = self.shards_of(namespace);
        let mut expected = Bytes::new();
        for (i, shard) in list.iter().enumerate() {
            if shard.start != expected {
                return broken(format!(
                    "namespace {namespace} has a gap or overlap at shard {}",
                    shard.id
                ));
            }
            let last = i + 1 == list.len();
            if shard.end.is_empty() != last || (!last && shard.end <= shard.start) {
                return broken(format!(
                    "shard {} of namespace {namespace} ends wrongly",
                    shard.id
                ));
            }
            expected = shard.end.clone();
            if shard.replicas.is_empty() {
                return broken(format!("shard {} has no replica", shard.id));
            }
            for (j, replica) in shard.replicas.iter().enumerate() {
                if shard.replicas[..j].iter().any(|r| r.node == replica.node) {
                    return broken(format!(
                        "shard {} has two replicas on node {}",
                        shard.id, replica.node
                    ));
                }
                if !self.nodes.contains_key(&replica.node) {
                    return broken(format!(
                        "shard {} is on node {}, which is not known",
                        shard.id, replica.node
                    ));
                }
            }
        }
        if list.is_empty() {
            return broken(format!("namespace {namespace} has no shard"));
        }
        Ok(())
    }
}

fn broken<T>(what: impl Into<String>) -> Result<T> {
    Err(Error::InvalidMap(what.into()))
}
