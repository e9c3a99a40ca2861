//! The real client over the simulated network.

use std::time::Duration;

use quorate_client::{MapUpdate, Reply, Transport};
use quorate_kv::{BoxFuture, Error, ErrorKind, Outcome, Result};
use quorate_node::ClusterCommand;
use quorate_sharding::{GroupId, NamespaceSpec, NodeStatus, ReplicaHash, Request, ShardMap};
use tokio::sync::oneshot;

use crate::host::Life;
use crate::network::{Lane, Mail, Network};
use crate::switches::Board;

/// What one client sends by.
pub struct ClientTransport {
    /// Whose it is.
    pub client: u64,
    /// Over what.
    pub network: Network,
    /// For the bug of a transport that says too much.
    pub board: Board,
}

/// The node of an address.
fn node_of(address: &str) -> u64 {
    let id = address.strip_prefix("node-");
    id.and_then(|id| id.parse().ok()).unwrap_or(0)
}

fn gone() -> Error {
    Error::new(ErrorKind::Unavailable, "the connection broke").with_outcome(Outcome::Unknown)
}

impl ClientTransport {
    async fn ask<T: Send + 'static>(
        &self,
        address: &str,
        ask: impl FnOnce(&Life, oneshot::Sender<T>) + Send + 'static,
    ) -> Result<T> {
        let node = node_of(address);
        let (reply, answer) = oneshot::channel();
        let (network, client) = (self.network.clone(), self.client);
        let (inner_reply, inner_answer) = oneshot::channel();
        let carry = move |life: &Life| {
            ask(life, inner_reply);
            life.spawn(async move {
                let Ok(answer) = inner_answer.await else {
                    return;
                };
                let back = move || {
                    let _ = reply.send(answer);
                };
                network.send_loose(node, client, Mail::Back(Box::new(back)));
            });
        };
        self.network
            .send_loose(client, node, Mail::Ask(Box::new(carry)));
        answer.await.map_err(|_| gone())
    }
}

/// The planted bug: an answer that is lost is told as a request that was not sent.
fn say_not_applied(reply: Reply) -> Reply {
    let (inner, answer) = oneshot::channel();
    tokio::spawn(async move {
        let gone = Error::new(ErrorKind::Unavailable, "the connection broke");
        let response = answer.await.unwrap_or_else(|_| Err(gone.into()));
        let _ = reply.send(response);
    });
    inner
}

fn update(life: &Life, known_version: u64) -> MapUpdate {
    let map = life.node.map();
    let newer = map.version > known_version;
    let replicas = life.node.status().replicas;
    let leaders = replicas
        .iter()
        .filter_map(|replica| Some((replica.shard, replica.group.leader?.node)));
    MapUpdate {
        map: newer.then(|| ShardMap::clone(&map)),
        leaders: leaders.collect(),
    }
}

impl Transport for ClientTransport {
    fn send(&self, address: &str, request: Request, reply: Reply) {
        let node = node_of(address);
        if self.network.is_down(node) {
            let error = Error::new(ErrorKind::Unavailable, "the connection is refused");
            // Who asked may have given up.
            let _ = reply.send(Err(error.into()));
            return;
        }
        let reply = match self.board.has_bug("lost_answer_said_not_applied") {
            true => say_not_applied(reply),
            false => reply,
        };
        let mail = Mail::Request {
            request: Box::new(request),
            reply,
        };
        self.network.send(self.client, node, Lane::Client, mail);
    }

    fn map(&self, address: &str, known_version: u64) -> BoxFuture<'_, Result<MapUpdate>> {
        let address = address.to_owned();
        Box::pin(async move {
            let asked = self.ask(&address, move |life, reply| {
                let _ = reply.send(update(life, known_version));
            });
            asked.await
        })
    }

    fn create_namespace(
        &self,
        address: &str,
        spec: NamespaceSpec,
        timeout: Duration,
    ) -> BoxFuture<'_, Result<ShardMap>> {
        let address = address.to_owned();
        Box::pin(async move {
            let asked = self.ask(&address, move |life, reply| {
                let node = life.node.clone();
                life.spawn(async move {
                    let command = ClusterCommand::CreateNamespace(spec);
                    let done = node.coordinate(command, timeout).await;
                    let _ = reply.send(done.map(|_| ShardMap::clone(&node.map())));
                });
            });
            asked.await?.map_err(|failure| failure.error)
        })
    }

    fn drop_namespace(&self, _: &str, _: &str, _: Duration) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Err(Error::new(ErrorKind::Unsupported, "not simulated")) })
    }

    fn status(&self, _address: &str) -> BoxFuture<'_, Result<NodeStatus>> {
        Box::pin(async { Err(Error::new(ErrorKind::Unsupported, "not simulated")) })
    }

    fn replica_hash(
        &self,
        _address: &str,
        _shard: GroupId,
        _index: u64,
        _timeout: Duration,
    ) -> BoxFuture<'_, Result<ReplicaHash>> {
        Box::pin(async { Err(Error::new(ErrorKind::Unsupported, "not simulated")) })
    }
}
