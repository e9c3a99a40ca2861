//! From the client's side straight into the node: requests cross no network.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use quorate_client::{MapUpdate, Reply, Transport};
use quorate_kv::{BoxFuture, Error, ErrorKind, Result};
use quorate_node::{ClusterCommand, Node, Replies};
use quorate_replication::{Class, NodeId, Reply as PeerReply, Transport as Peers, TransportError};
use quorate_sharding::{
    Failure, GroupId, NamespaceSpec, NodeStatus, ReplicaHash, Request, ShardMap,
};

/// The client's transport into a node of this process.
pub(crate) struct Local {
    node: Node,
    replies: Replies,
    waiting: Arc<Mutex<HashMap<u64, Reply>>>,
    next_id: AtomicU64,
}

impl Local {
    /// Must be called inside the runtime that shall carry answers.
    pub(crate) fn new(node: Node) -> Local {
        let (replies, mut answers) = Replies::channel();
        let waiting: Arc<Mutex<HashMap<u64, Reply>>> = Arc::default();
        let places = Arc::clone(&waiting);
        tokio::spawn(async move {
            while let Some(batch) = answers.recv().await {
                for (id, response) in batch {
                    let reply = places.lock().remove(&id);
                    if let Some(reply) = reply {
                        // Who asked may have given up.
                        let _ = reply.send(response);
                    }
                }
            }
        });
        Local {
            node,
            replies,
            waiting,
            next_id: AtomicU64::new(1),
        }
    }
}

impl Transport for Local {
    fn send(&self, _address: &str, mut request: Request, reply: Reply) {
        request.request_id = self.next_id.fetch_add(1, Ordering::Relaxed);
        self.waiting.lock().insert(request.request_id, reply);
        self.node.execute(vec![request], &self.replies);
    }

    fn map(&self, _address: &str, known_version: u64) -> BoxFuture<'_, Result<MapUpdate>> {
        let map = self.node.map();
        let newer = map.version > known_version;
        let map = newer.then(|| ShardMap::clone(&map));
        Box::pin(async move {
            Ok(MapUpdate {
                map,
                leaders: Vec::new(),
            })
        })
    }

    fn create_namespace(
        &self,
        _address: &str,
        spec: NamespaceSpec,
        timeout: Duration,
    ) -> BoxFuture<'_, Result<ShardMap>> {
        Box::pin(async move {
            let command = ClusterCommand::CreateNamespace(spec);
            self.node
                .coordinate(command, timeout)
                .await
                .map_err(plain)?;
            Ok(ShardMap::clone(&self.node.map()))
        })
    }

    fn drop_namespace(&self, _: &str, _: &str, _: Duration) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            let message = "a namespace can't be dropped yet: delete its keys";
            Err(Error::new(ErrorKind::Unsupported, message))
        })
    }

    fn status(&self, _address: &str) -> BoxFuture<'_, Result<NodeStatus>> {
        Box::pin(async {
            Err(Error::new(
                ErrorKind::Unsupported,
                "an embedded store has no status to ask for",
            ))
        })
    }

    fn replica_hash(
        &self,
        _address: &str,
        shard: GroupId,
        index: u64,
        timeout: Duration,
    ) -> BoxFuture<'_, Result<ReplicaHash>> {
        Box::pin(async move {
            let index = match index {
                0 => self.node.start_hash(shard, timeout).await.map_err(plain)?,
                index => index,
            };
            let found = self
                .node
                .state_hash(shard, index, timeout)
                .await
                .map_err(plain)?;
            let node = self.node.identity().node;
            let map = self.node.map();
            let replica = map
                .shard(shard)
                .and_then(|s| s.replica_on(node))
                .map_or(0, |r| r.id);
            Ok(ReplicaHash {
                shard,
                replica,
                node,
                index,
                hash: found.hash,
                keys: found.keys,
            })
        })
    }
}

fn plain(failure: Failure) -> Error {
    failure.error
}

/// The peers of a node that has none.
pub(crate) struct NoPeers;

impl Peers for NoPeers {
    fn send(&self, to: NodeId, _: Class, _: GroupId, _: bytes::Bytes) -> PeerReply {
        let why = format!("node {to}: an embedded store has no peers");
        Box::pin(async { Err(TransportError::Unreachable(why)) })
    }
}
