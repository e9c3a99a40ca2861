//! The seam below the client: how a request gets to a node.

use std::time::Duration;

use quorate_kv::{BoxFuture, Error, ErrorKind, Result};
use quorate_sharding::{
    GroupId, NamespaceSpec, NodeId, NodeStatus, ReplicaHash, ReplicaId, Request, Response, ShardMap,
};
use tokio::sync::oneshot;

/// Where a request's response goes. Dropped without one, it says: the connection is gone, and the
/// outcome is not known.
pub type Reply = oneshot::Sender<Response>;

/// What a node answers when asked for the map.
#[derive(Debug, Clone, Default)]
pub struct MapUpdate {
    /// The map, if it is newer than the one that the caller has.
    pub map: Option<ShardMap>,
    /// The leaders that the node knows of.
    pub leaders: Vec<(GroupId, NodeId)>,
}

/// Brings requests to nodes, named by their address, and responses back.
///
/// An implementation does not retry and does not follow redirects. It answers `Unavailable` with
/// outcome `NotApplied` only for what it surely did not send; what it may have sent and got no
/// answer for is `Unavailable` with outcome `Unknown`.
pub trait Transport: Send + Sync + 'static {
    /// Sends one request, without waiting. `request_id` is the transport's to set.
    fn send(&self, address: &str, request: Request, reply: Reply);

    /// Asks a node for the shard map.
    fn map(&self, address: &str, known_version: u64) -> BoxFuture<'_, Result<MapUpdate>>;

    /// Creates a namespace; gives the map that has it.
    fn create_namespace(
        &self,
        address: &str,
        spec: NamespaceSpec,
        timeout: Duration,
    ) -> BoxFuture<'_, Result<ShardMap>>;

    /// Drops a namespace.
    fn drop_namespace(
        &self,
        address: &str,
        name: &str,
        timeout: Duration,
    ) -> BoxFuture<'_, Result<()>>;

    /// Has the coordinator give a shard a replica on one node, take that on another away, or both; 0: none. Gives the
    /// new replica's id and the map.
    fn move_replica(
        &self,
        _address: &str,
        _shard: GroupId,
        _from: NodeId,
        _to: NodeId,
        _timeout: Duration,
    ) -> BoxFuture<'_, Result<(ReplicaId, ShardMap)>> {
        Box::pin(async { Err(unsupported("move replicas")) })
    }

    /// Has the coordinator remove a node that holds nothing; gives the map.
    fn remove_node(
        &self,
        _address: &str,
        _node: NodeId,
        _timeout: Duration,
    ) -> BoxFuture<'_, Result<ShardMap>> {
        Box::pin(async { Err(unsupported("remove nodes")) })
    }

    /// Asks a node for its state.
    fn status(&self, address: &str) -> BoxFuture<'_, Result<NodeStatus>>;

    /// Asks the replica of a shard on a node for its hash: at a new index if `index` is 0 (the
    /// leader only), else at that one.
    fn replica_hash(
        &self,
        address: &str,
        shard: GroupId,
        index: u64,
        timeout: Duration,
    ) -> BoxFuture<'_, Result<ReplicaHash>>;
}

fn unsupported(what: &str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("this transport can't {what}"),
    )
}
