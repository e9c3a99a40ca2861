//! What the client knows of the cluster: the map, and who seems to lead.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use quorate_sharding::{GroupId, NamespaceId, NodeId, Redirect, Shard, ShardMap};

use crate::ClientOptions;
use crate::window::Window;

/// Which shard an operation goes to.
#[derive(Debug, Clone)]
pub enum Place {
    /// The one that holds this encoded key.
    Holds(Bytes),
    /// The one that holds the last keys below this encoded key; empty: the namespace's last.
    Below(Bytes),
}

/// A shard and the node to ask.
#[derive(Debug, Clone)]
pub struct Target {
    /// The shard.
    pub shard: Arc<Shard>,
    /// The node.
    pub node: NodeId,
    /// Its address.
    pub address: Arc<str>,
    /// What is in flight to it.
    pub window: Arc<Window>,
}

/// A node as the client reaches it.
#[derive(Debug)]
struct Peer {
    address: Arc<str>,
    window: Arc<Window>,
}

/// The cached map with hints of leaders.
#[derive(Debug)]
pub struct Routes {
    map: ShardMap,
    leaders: HashMap<GroupId, NodeId>,
    peers: HashMap<NodeId, Peer>,
    /// Operations and bytes in flight to one node.
    in_flight_max: (usize, usize),
}

impl Routes {
    /// The routes of a map.
    pub fn new(map: ShardMap, options: &ClientOptions) -> Self {
        let mut routes = Routes {
            map,
            leaders: HashMap::new(),
            peers: HashMap::new(),
            in_flight_max: (options.in_flight_max, options.in_flight_bytes_max),
        };
        routes.read_peers();
        routes
    }

    /// The map.
    pub fn map(&self) -> &ShardMap {
        &self.map
    }

    fn read_peers(&mut self) {
        let (operations, bytes) = self.in_flight_max;
        let mut before = std::mem::take(&mut self.peers);
        for node in self.map.nodes.values() {
            let known = before.remove(&node.id).map(|peer| peer.window);
            let peer = Peer {
                address: Arc::from(node.address.as_str()),
                window: known.unwrap_or_else(|| Window::new(operations, bytes)),
            };
            self.peers.insert(node.id, peer);
        }
    }

    /// The shard at a place.
    pub fn shard(&self, namespace: NamespaceId, place: &Place) -> Option<&Arc<Shard>> {
        match place {
            Place::Holds(encoded) => self.map.lookup(namespace, encoded),
            Place::Below(end) => self.map.overlapping(namespace, &[], end).last(),
        }
    }

    /// The shard at a place and the node to ask: the leader for what must go there, else the
    /// replicas in turn. `turn` counts the replicas that were asked in vain; `avoid` is not asked
    /// if there is another one.
    pub fn target(
        &self,
        namespace: NamespaceId,
        place: &Place,
        leader: bool,
        turn: usize,
        avoid: Option<NodeId>,
    ) -> Option<Target> {
        let shard = self.shard(namespace, place)?;
        let preferred = match self.leaders.get(&shard.id) {
            Some(hint) if leader => shard.replicas.iter().position(|r| r.node == *hint),
            _ => None,
        };
        let at = preferred.unwrap_or_default() + turn;
        let replica = |at: usize| shard.replicas.get(at % shard.replicas.len().max(1));
        let mut node = replica(at)?.node;
        if avoid == Some(node) {
            node = replica(at + 1)?.node;
        }
        let peer = self.peers.get(&node)?;
        Some(Target {
            shard: shard.clone(),
            node,
            address: peer.address.clone(),
            window: peer.window.clone(),
        })
    }

    /// The leader that is known of a shard.
    pub fn leader(&self, shard: GroupId) -> Option<NodeId> {
        self.leaders.get(&shard).copied()
    }

    /// A node's address.
    pub fn address(&self, node: NodeId) -> Option<&Arc<str>> {
        self.peers.get(&node).map(|peer| &peer.address)
    }

    /// All addresses, those of the coordinator's replicas first.
    pub fn all_addresses(&self) -> Vec<Arc<str>> {
        let coordinator = self.map.shard(quorate_sharding::COORDINATOR_GROUP);
        let first: Vec<NodeId> = coordinator
            .map(|s| s.replicas.iter().map(|r| r.node).collect())
            .unwrap_or_default();
        let rest = self.map.nodes.keys().filter(|n| !first.contains(n));
        let mut ids: Vec<NodeId> = first.iter().chain(rest).copied().collect();
        if let Some(leader) = self.leader(quorate_sharding::COORDINATOR_GROUP) {
            ids.sort_by_key(|n| *n != leader);
        }
        ids.iter()
            .filter_map(|n| self.address(*n).cloned())
            .collect()
    }

    /// Notes who leads a shard.
    pub fn set_leader(&mut self, shard: GroupId, node: NodeId) {
        self.leaders.insert(shard, node);
    }

    /// Forgets that `node` leads a shard, if that is what is noted.
    pub fn forget_leader(&mut self, shard: GroupId, node: NodeId) {
        if self.leaders.get(&shard) == Some(&node) {
            self.leaders.remove(&shard);
        }
    }

    /// Takes in a newer map, and the leaders that came with it.
    pub fn update(&mut self, map: Option<ShardMap>, leaders: &[(GroupId, NodeId)]) {
        if let Some(map) = map
            && self.map.merge(map)
        {
            self.read_peers();
        }
        self.leaders.extend(leaders.iter().copied());
    }

    /// Follows a redirect from the replica of `shard` on `from`.
    pub fn redirect(&mut self, shard: GroupId, from: NodeId, redirect: &Redirect) {
        self.map.apply_shards(&redirect.shards);
        match redirect.leader {
            Some(leader) if leader != from => self.set_leader(shard, leader),
            _ => self.forget_leader(shard, from),
        }
    }
}
