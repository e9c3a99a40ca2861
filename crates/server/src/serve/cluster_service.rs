//! The cluster's own calls: making it, joining it, its map, its namespaces, its state.
//!
//! What the coordinator has to decide is passed on to the node that leads it, once.

use std::sync::Arc;
use std::time::Duration;

use quorate_kv::{Error, ErrorKind, Outcome};
use quorate_node::{ClusterCommand, Node};
use quorate_proto::v1::cluster_client::ClusterClient;
use quorate_proto::v1::cluster_server::Cluster;
use quorate_proto::{
    PROTOCOL_VERSION, cluster_from_wire, cluster_to_wire, error_of_status, status_of_error, v1,
};
use quorate_sharding::{Failure, NamespaceSpec, NodeId, ReplicaHash};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

use super::host::Host;
use super::status::wire_status;

const TIMEOUT: Duration = Duration::from_secs(10);
/// Marks a call that a node passed on, so that it is not passed on again.
const PASSED_ON: &str = "quorate-passed-on";

/// Serves the cluster's calls.
pub struct ClusterService(pub Arc<Host>);

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn init(&self, _request: Request<v1::InitRequest>) -> Answer<v1::InitResponse> {
        let node = self
            .0
            .init()
            .await
            .map_err(|error| status_of_error(&error))?;
        let identity = node.identity();
        let cluster = cluster_to_wire(identity.cluster);
        Ok(Response::new(v1::InitResponse {
            cluster,
            node: identity.node,
        }))
    }

    async fn join(&self, request: Request<v1::JoinRequest>) -> Answer<v1::JoinResponse> {
        let node = self.node()?;
        let passed_on = request.metadata().contains_key(PASSED_ON);
        let join = request.into_inner();
        check_join(&node, &join)?;
        let command = ClusterCommand::Join {
            address: join.address.clone(),
            data_id: join.data_id,
        };
        match node.coordinate(command, TIMEOUT).await {
            Ok(id) => {
                let map = Some((&*node.map()).into());
                Ok(Response::new(v1::JoinResponse { node: id, map }))
            }
            Err(failure) => {
                let mut leader = self.leader(&node, failure, passed_on).await?;
                leader.join(mark(join)).await
            }
        }
    }

    async fn map(&self, request: Request<v1::MapRequest>) -> Answer<v1::MapResponse> {
        let node = self.node()?;
        let map = node.map();
        let newer = map.version > request.into_inner().known_version;
        let leaders = node.status().replicas.into_iter().filter_map(|replica| {
            let leader = replica.group.leader?;
            Some(v1::LeaderHint {
                shard: replica.shard,
                node: leader.node,
            })
        });
        Ok(Response::new(v1::MapResponse {
            map: newer.then(|| (&*map).into()),
            leaders: leaders.collect(),
        }))
    }

    async fn create_namespace(
        &self,
        request: Request<v1::CreateNamespaceRequest>,
    ) -> Answer<v1::CreateNamespaceResponse> {
        let node = self.node()?;
        let passed_on = request.metadata().contains_key(PASSED_ON);
        let create = request.into_inner();
        let timeout = timeout_of(create.timeout_ms);
        let spec = NamespaceSpec::try_from(create.clone()).map_err(|e| status_of_error(&e))?;
        match node
            .coordinate(ClusterCommand::CreateNamespace(spec), timeout)
            .await
        {
            Ok(id) => {
                let namespace = u32::try_from(id).unwrap_or_default();
                let map = Some((&*node.map()).into());
                Ok(Response::new(v1::CreateNamespaceResponse {
                    namespace,
                    map,
                }))
            }
            Err(failure) => {
                let mut leader = self.leader(&node, failure, passed_on).await?;
                leader.create_namespace(mark(create)).await
            }
        }
    }

    async fn drop_namespace(
        &self,
        _request: Request<v1::DropNamespaceRequest>,
    ) -> Answer<v1::DropNamespaceResponse> {
        let message = "this server can't drop a namespace yet: delete its keys";
        Err(status_of_error(&Error::new(
            ErrorKind::Unsupported,
            message,
        )))
    }

    async fn move_replica(
        &self,
        request: Request<v1::MoveReplicaRequest>,
    ) -> Answer<v1::MoveReplicaResponse> {
        let node = self.node()?;
        let passed_on = request.metadata().contains_key(PASSED_ON);
        let asked = request.into_inner();
        let command = match asked.damaged {
            0 => ClusterCommand::MoveReplica {
                shard: asked.shard,
                from: asked.from,
                to: asked.to,
            },
            replica => ClusterCommand::WithdrawReplica {
                shard: asked.shard,
                replica,
                beside: asked.beside,
            },
        };
        match node.coordinate(command, timeout_of(asked.timeout_ms)).await {
            Ok(replica) => {
                let map = Some((&*node.map()).into());
                Ok(Response::new(v1::MoveReplicaResponse { replica, map }))
            }
            Err(failure) => {
                let mut leader = self.leader(&node, failure, passed_on).await?;
                leader.move_replica(mark(asked)).await
            }
        }
    }

    async fn settle_members(
        &self,
        request: Request<v1::SettleMembersRequest>,
    ) -> Answer<v1::SettleMembersResponse> {
        let node = self.node()?;
        let passed_on = request.metadata().contains_key(PASSED_ON);
        let asked = request.into_inner();
        let command = ClusterCommand::SettleMembers {
            shard: asked.shard,
            members: asked.members,
        };
        match node.coordinate(command, TIMEOUT).await {
            Ok(_) => Ok(Response::new(v1::SettleMembersResponse {})),
            Err(failure) => {
                let mut leader = self.leader(&node, failure, passed_on).await?;
                leader.settle_members(mark(asked)).await
            }
        }
    }

    async fn remove_node(
        &self,
        request: Request<v1::RemoveNodeRequest>,
    ) -> Answer<v1::RemoveNodeResponse> {
        let node = self.node()?;
        let passed_on = request.metadata().contains_key(PASSED_ON);
        let asked = request.into_inner();
        let command = ClusterCommand::RemoveNode { node: asked.node };
        match node.coordinate(command, timeout_of(asked.timeout_ms)).await {
            Ok(_) => {
                let map = Some((&*node.map()).into());
                Ok(Response::new(v1::RemoveNodeResponse { map }))
            }
            Err(failure) => {
                let mut leader = self.leader(&node, failure, passed_on).await?;
                leader.remove_node(mark(asked)).await
            }
        }
    }

    async fn status(&self, _request: Request<v1::StatusRequest>) -> Answer<v1::StatusResponse> {
        Ok(Response::new(wire_status(&self.node()?).into()))
    }

    async fn replica_hashes(
        &self,
        request: Request<v1::ReplicaHashesRequest>,
    ) -> Answer<v1::ReplicaHashesResponse> {
        let node = self.node()?;
        let asked = request.into_inner();
        let timeout = timeout_of(asked.timeout_ms);
        let me = node.identity().node;
        let map = node.map();
        let replica = map
            .shard(asked.shard)
            .and_then(|shard| shard.replica_on(me));
        let mut hash = ReplicaHash {
            shard: asked.shard,
            replica: replica.map_or(0, |replica| replica.id),
            node: me,
            ..ReplicaHash::default()
        };
        hash.index = match asked.index {
            0 => node
                .start_hash(asked.shard, timeout)
                .await
                .map_err(status_of_failure)?,
            index => index,
        };
        let found = node.state_hash(asked.shard, hash.index, timeout).await;
        let found = found.map_err(status_of_failure)?;
        (hash.hash, hash.keys) = (found.hash, found.keys);
        Ok(Response::new(v1::ReplicaHashesResponse {
            hash: Some(hash.into()),
        }))
    }
}

/// How long a caller waits; 0: it did not say.
fn timeout_of(ms: u32) -> Duration {
    match ms {
        0 => TIMEOUT,
        ms => Duration::from_millis(ms.into()),
    }
}

fn mark<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert(PASSED_ON, tonic::metadata::MetadataValue::from_static("1"));
    request.set_timeout(TIMEOUT);
    request
}

/// The status of a failure; its redirect goes along.
fn status_of_failure(failure: Failure) -> Status {
    use prost::Message;
    let status = status_of_error(&failure.error);
    let details = v1::Error::from(failure).encode_to_vec();
    Status::with_details(status.code(), status.message(), details.into())
}

fn check_join(node: &Node, join: &v1::JoinRequest) -> Result<(), Status> {
    let refuse = |message: String| {
        Err(status_of_error(&Error::new(
            ErrorKind::InvalidArgument,
            message,
        )))
    };
    let cluster = cluster_from_wire(&join.cluster).map_err(|e| status_of_error(&e))?;
    if cluster.is_some_and(|cluster| cluster != node.identity().cluster) {
        return refuse("this node is of another cluster: check the seeds".into());
    }
    if join.protocol != PROTOCOL_VERSION {
        let speaks = join.protocol;
        return refuse(format!(
            "this cluster speaks protocol {PROTOCOL_VERSION}, not {speaks}"
        ));
    }
    if join.address.is_empty() || join.data_id == 0 {
        return refuse("a node joins with its address and the id of its data".into());
    }
    Ok(())
}

impl ClusterService {
    fn node(&self) -> Result<Node, Status> {
        self.0.node().map_err(|error| status_of_error(&error))
    }

    /// A connection to the coordinator's leader, if that is what the failure is about.
    async fn leader(
        &self,
        node: &Node,
        failure: Failure,
        passed_on: bool,
    ) -> Result<ClusterClient<Channel>, Status> {
        let leader = failure
            .redirect
            .as_ref()
            .and_then(|redirect| redirect.leader);
        match leader {
            Some(leader) if !passed_on && leader != node.identity().node => {
                connect_node(node, leader).await
            }
            _ => Err(status_of_failure(failure)),
        }
    }
}

async fn connect_node(node: &Node, to: NodeId) -> Result<ClusterClient<Channel>, Status> {
    let address = node.map().node(to).map(|node| node.address.clone());
    let unavailable = |why: String| {
        let message = format!("node {to}, which leads the coordinator, can't be reached: {why}");
        status_of_error(&Error::new(ErrorKind::Unavailable, message))
    };
    let address = address.ok_or_else(|| unavailable("its address is not known".into()))?;
    connect(&address)
        .await
        .map_err(|error| unavailable(error.to_string()))
}

/// A connection to a server's cluster calls.
pub async fn connect(address: &str) -> Result<ClusterClient<Channel>, Error> {
    let unreachable = |e: tonic::transport::Error| {
        let message = format!("{address} can't be reached: {}", innermost(&e));
        Error::new(ErrorKind::Unavailable, message)
    };
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(unreachable)?;
    let endpoint = endpoint.connect_timeout(Duration::from_secs(2));
    let channel = endpoint.connect().await.map_err(unreachable)?;
    Ok(ClusterClient::new(channel).max_decoding_message_size(quorate_proto::MESSAGE_BYTES_MAX))
}

/// What is at the bottom of an error: the part that says something.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// The error of a call that failed.
pub fn call_error(status: &Status) -> Error {
    error_of_status(status, Outcome::NotApplied)
}
