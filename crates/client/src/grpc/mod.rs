//! The transport over gRPC: a few connections to each node, one stream on each.

use std::collections::HashMap;
use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::RwLock;
use quorate_kv::{BoxFuture, Error, ErrorKind, Outcome, Result};
use quorate_proto::v1::cluster_client::ClusterClient;
use quorate_proto::v1::kv_client::KvClient;
use quorate_proto::{MESSAGE_BYTES_MAX, error_of_status, v1};
use quorate_sharding::{
    Failure, GroupId, NamespaceSpec, NodeId, NodeStatus, ReplicaHash, ReplicaId, Request, Response,
    ShardMap,
};
use tonic::transport::{Channel, Endpoint};

use crate::{ClientOptions, MapUpdate, Reply, Transport};

mod connection;
mod pending;
mod queue;

use connection::Connection;

/// How long a node may take to tell its state.
const STATUS_TIMEOUT: Duration = Duration::from_secs(3);
/// How often a connection is checked for life, and how long that may take.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// HTTP/2 windows, in bytes: large enough that no stream waits for window updates.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;

/// Requests over gRPC. Connections are made when first used, and made again when they break.
pub struct GrpcTransport {
    options: ClientOptions,
    links: RwLock<HashMap<String, Arc<Link>>>,
}

/// What leads to one node.
struct Link {
    connections: Vec<Connection>,
    next: AtomicUsize,
    channel: Channel,
}

impl GrpcTransport {
    /// A transport without any connection yet.
    pub fn new(options: &ClientOptions) -> Self {
        GrpcTransport {
            options: options.clone(),
            links: RwLock::default(),
        }
    }

    fn link(&self, address: &str) -> Result<Arc<Link>> {
        if let Some(link) = self.links.read().get(address) {
            return Ok(link.clone());
        }
        let endpoint = endpoint(address, &self.options)?;
        let mut links = self.links.write();
        let link = links.entry(address.to_owned()).or_insert_with(|| {
            let connections = 0..self.options.connections.max(1);
            Arc::new(Link {
                connections: connections
                    .map(|_| Connection::new(endpoint.clone()))
                    .collect(),
                next: AtomicUsize::new(0),
                channel: endpoint.connect_lazy(),
            })
        });
        Ok(link.clone())
    }

    fn cluster(&self, address: &str) -> Result<ClusterClient<Channel>> {
        let channel = self.link(address)?.channel.clone();
        Ok(ClusterClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX))
    }
}

impl Transport for GrpcTransport {
    fn send(&self, address: &str, request: Request, reply: Reply) {
        let link = match self.link(address) {
            Ok(link) => link,
            Err(error) => {
                let _ = reply.send(Err(error.into()));
                return;
            }
        };
        if self.options.batching {
            let at = link.next.fetch_add(1, Ordering::Relaxed) % link.connections.len();
            link.connections[at].send(request, reply);
        } else {
            let channel = link.channel.clone();
            tokio::spawn(async move {
                let _ = reply.send(execute(channel, request).await);
            });
        }
    }

    fn map(&self, address: &str, known_version: u64) -> BoxFuture<'_, Result<MapUpdate>> {
        let client = self.cluster(address);
        Box::pin(async move {
            let request = v1::MapRequest { known_version };
            let answer = client?.map(request).await.map_err(read_error)?.into_inner();
            Ok(MapUpdate {
                map: answer.map.map(ShardMap::try_from).transpose()?,
                leaders: answer.leaders.iter().map(|l| (l.shard, l.node)).collect(),
            })
        })
    }

    fn create_namespace(
        &self,
        address: &str,
        spec: NamespaceSpec,
        timeout: Duration,
    ) -> BoxFuture<'_, Result<ShardMap>> {
        let client = self.cluster(address);
        Box::pin(async move {
            let mut request = v1::CreateNamespaceRequest::from(spec);
            request.timeout_ms = millis(timeout);
            let call = async move { client?.create_namespace(request).await.map_err(write_error) };
            let answer = within(timeout, Outcome::Unknown, call).await?.into_inner();
            let map = answer.map.ok_or_else(|| bad_answer("no map"))?;
            ShardMap::try_from(map)
        })
    }

    fn drop_namespace(
        &self,
        address: &str,
        name: &str,
        timeout: Duration,
    ) -> BoxFuture<'_, Result<()>> {
        let client = self.cluster(address);
        let request = v1::DropNamespaceRequest {
            name: name.to_owned(),
            timeout_ms: millis(timeout),
        };
        Box::pin(async move {
            let call = async move { client?.drop_namespace(request).await.map_err(write_error) };
            within(timeout, Outcome::Unknown, call).await.map(drop)
        })
    }

    fn move_replica(
        &self,
        address: &str,
        shard: GroupId,
        from: NodeId,
        to: NodeId,
        timeout: Duration,
    ) -> BoxFuture<'_, Result<(ReplicaId, ShardMap)>> {
        let client = self.cluster(address);
        let request = v1::MoveReplicaRequest {
            damaged: 0,
            beside: false,
            shard,
            from,
            to,
            timeout_ms: millis(timeout),
        };
        Box::pin(async move {
            let call = async move { client?.move_replica(request).await.map_err(write_error) };
            let answer = within(timeout, Outcome::Unknown, call).await?.into_inner();
            let map = answer.map.ok_or_else(|| bad_answer("no map"))?;
            Ok((answer.replica, ShardMap::try_from(map)?))
        })
    }

    fn remove_node(
        &self,
        address: &str,
        node: NodeId,
        timeout: Duration,
    ) -> BoxFuture<'_, Result<ShardMap>> {
        let client = self.cluster(address);
        let request = v1::RemoveNodeRequest {
            node,
            timeout_ms: millis(timeout),
        };
        Box::pin(async move {
            let call = async move { client?.remove_node(request).await.map_err(write_error) };
            let answer = within(timeout, Outcome::Unknown, call).await?.into_inner();
            let map = answer.map.ok_or_else(|| bad_answer("no map"))?;
            ShardMap::try_from(map)
        })
    }

    fn status(&self, address: &str) -> BoxFuture<'_, Result<NodeStatus>> {
        let client = self.cluster(address);
        Box::pin(async move {
            let call = async move {
                let answer = client?.status(v1::StatusRequest {}).await;
                answer.map_err(read_error)
            };
            let answer = within(STATUS_TIMEOUT, Outcome::NotApplied, call).await?;
            NodeStatus::try_from(answer.into_inner())
        })
    }

    fn replica_hash(
        &self,
        address: &str,
        shard: GroupId,
        index: u64,
        timeout: Duration,
    ) -> BoxFuture<'_, Result<ReplicaHash>> {
        let client = self.cluster(address);
        Box::pin(async move {
            let request = v1::ReplicaHashesRequest {
                shard,
                index,
                timeout_ms: millis(timeout),
            };
            let call = async move { client?.replica_hashes(request).await.map_err(read_error) };
            let answer = within(timeout, Outcome::NotApplied, call)
                .await?
                .into_inner();
            let hash = answer.hash.ok_or_else(|| bad_answer("no hash"))?;
            Ok(hash.into())
        })
    }
}

fn endpoint(address: &str, options: &ClientOptions) -> Result<Endpoint> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|_| {
        Error::new(
            ErrorKind::InvalidArgument,
            format!("`{address}` is not an endpoint: write host:port"),
        )
    })?;
    Ok(endpoint
        .connect_timeout(options.connect_timeout)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW))
}

/// One request as a call of its own.
async fn execute(channel: Channel, request: Request) -> Response {
    let is_write = request.operation.is_write();
    let frame = v1::RequestFrame {
        requests: vec![request.into()],
    };
    let mut client = KvClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    match client.execute(frame).await {
        Ok(answer) => match answer.into_inner().responses.pop() {
            Some(response) => response.into_response(),
            None => Err(Failure::from(bad_answer("no response"))),
        },
        Err(status) if is_write => Err(write_error(status).into()),
        Err(status) => Err(read_error(status).into()),
    }
}

async fn within<T>(
    timeout: Duration,
    outcome: Outcome,
    call: impl Future<Output = Result<T>>,
) -> Result<T> {
    match tokio::time::timeout(timeout, call).await {
        Ok(result) => result,
        Err(_) => Err(Error::new(
            ErrorKind::DeadlineExceeded,
            format!("no answer within {} ms", timeout.as_millis()),
        )
        .with_outcome(outcome)),
    }
}

fn read_error(status: tonic::Status) -> Error {
    described(&status, Outcome::NotApplied)
}

/// The error of a write: its outcome is known if no connection could be made for it.
fn write_error(status: tonic::Status) -> Error {
    let outcome = if never_connected(&status) {
        Outcome::NotApplied
    } else {
        Outcome::Unknown
    };
    described(&status, outcome)
}

fn described(status: &tonic::Status, outcome: Outcome) -> Error {
    if !never_connected(status) {
        return error_of_status(status, outcome);
    }
    let mut cause: Option<&dyn std::error::Error> = status.source();
    let mut message = "could not connect".to_owned();
    while let Some(error) = cause {
        if error.source().is_none() {
            message = format!("could not connect: {error}");
        }
        cause = error.source();
    }
    Error::new(ErrorKind::Unavailable, message).with_outcome(outcome)
}

fn never_connected(status: &tonic::Status) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = status.source();
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

fn bad_answer(what: &str) -> Error {
    Error::new(
        ErrorKind::Internal,
        format!("the server's answer has {what}"),
    )
    .with_outcome(Outcome::Unknown)
}

fn millis(timeout: Duration) -> u32 {
    u32::try_from(timeout.as_millis())
        .unwrap_or(u32::MAX)
        .max(1)
}
