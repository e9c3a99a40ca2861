//! The gRPC transport against real sockets: the fake cluster behind a port.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use quorate_kv::conformance::{Suite, run};
use quorate_kv::{ErrorKind, Get, Kv, Outcome, Put};
use quorate_proto::{status_of_error, v1};
use quorate_sharding::{Encoding, NamespaceSpec, Request};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::{Response, Status, Streaming};

use super::fake::{Fake, Fault};
use crate::{Client, ClientOptions};

/// The only node.
const NODE: u64 = 1;
/// What a frame may be.
const FRAME_BYTES_MAX: usize = 64 << 20;

#[derive(Clone)]
struct Service(Arc<Fake>);

impl Service {
    async fn answer(&self, wire: v1::Request) -> v1::Response {
        let id = wire.request_id;
        let (reply, response) = oneshot::channel();
        match Request::try_from(wire) {
            Ok(request) => self.0.answer_as(NODE, request, reply),
            Err(error) => drop(reply.send(Err(error.into()))),
        }
        match response.await {
            Ok(response) => v1::Response::new(id, response),
            // Never answered.
            Err(_) => std::future::pending().await,
        }
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl v1::kv_server::Kv for Service {
    type StreamStream = Answers<v1::ResponseFrame>;

    async fn stream(
        &self,
        request: tonic::Request<Streaming<v1::RequestFrame>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let mut incoming = request.into_inner();
        let (frames, outgoing) = mpsc::unbounded_channel();
        let service = self.clone();
        tokio::spawn(async move {
            while let Some(Ok(frame)) = incoming.next().await {
                let mut responses = Vec::new();
                for request in frame.requests {
                    responses.push(service.answer(request).await);
                }
                let _ = frames.send(Ok(v1::ResponseFrame { responses }));
            }
        });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(
            outgoing,
        ))))
    }

    async fn execute(
        &self,
        request: tonic::Request<v1::RequestFrame>,
    ) -> Result<Response<v1::ResponseFrame>, Status> {
        let mut responses = Vec::new();
        for request in request.into_inner().requests {
            responses.push(self.answer(request).await);
        }
        Ok(Response::new(v1::ResponseFrame { responses }))
    }
}

#[tonic::async_trait]
impl v1::cluster_server::Cluster for Service {
    async fn map(
        &self,
        request: tonic::Request<v1::MapRequest>,
    ) -> Result<Response<v1::MapResponse>, Status> {
        let known = request.into_inner().known_version;
        let state = self.0.state.lock();
        let newer = state.map.version > known;
        Ok(Response::new(v1::MapResponse {
            map: newer.then(|| v1::ShardMap::from(&state.map)),
            leaders: Vec::new(),
        }))
    }

    async fn create_namespace(
        &self,
        request: tonic::Request<v1::CreateNamespaceRequest>,
    ) -> Result<Response<v1::CreateNamespaceResponse>, Status> {
        let spec =
            NamespaceSpec::try_from(request.into_inner()).map_err(|e| status_of_error(&e))?;
        let mut state = self.0.state.lock();
        state.create(&spec).map_err(|e| status_of_error(&e))?;
        Ok(Response::new(v1::CreateNamespaceResponse {
            namespace: 0,
            map: Some(v1::ShardMap::from(&state.map)),
        }))
    }

    async fn move_replica(
        &self,
        request: tonic::Request<v1::MoveReplicaRequest>,
    ) -> Result<Response<v1::MoveReplicaResponse>, Status> {
        let asked = request.into_inner();
        let some = |node| (node != 0).then_some(node);
        let mut state = self.0.state.lock();
        let moved = state
            .map
            .move_replica(asked.shard, some(asked.from), some(asked.to));
        let replica = moved.map_err(|e| status_of_error(&e.into()))?;
        Ok(Response::new(v1::MoveReplicaResponse {
            replica,
            map: Some(v1::ShardMap::from(&state.map)),
        }))
    }

    async fn settle_members(
        &self,
        _: tonic::Request<v1::SettleMembersRequest>,
    ) -> Result<Response<v1::SettleMembersResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn remove_node(
        &self,
        request: tonic::Request<v1::RemoveNodeRequest>,
    ) -> Result<Response<v1::RemoveNodeResponse>, Status> {
        let mut state = self.0.state.lock();
        let removed = state.map.remove_node(request.into_inner().node);
        removed.map_err(|e| status_of_error(&e.into()))?;
        Ok(Response::new(v1::RemoveNodeResponse {
            map: Some(v1::ShardMap::from(&state.map)),
        }))
    }

    async fn init(
        &self,
        _: tonic::Request<v1::InitRequest>,
    ) -> Result<Response<v1::InitResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn join(
        &self,
        _: tonic::Request<v1::JoinRequest>,
    ) -> Result<Response<v1::JoinResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn drop_namespace(
        &self,
        _: tonic::Request<v1::DropNamespaceRequest>,
    ) -> Result<Response<v1::DropNamespaceResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn status(
        &self,
        _: tonic::Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn replica_hashes(
        &self,
        _: tonic::Request<v1::ReplicaHashesRequest>,
    ) -> Result<Response<v1::ReplicaHashesResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

/// A node behind a port; dropped, it dies with all its connections.
struct Server(Option<Runtime>);

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Serves the fake on a port of its own.
async fn serve(fake: &Arc<Fake>) -> (SocketAddr, Server) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let map = &mut fake.state.lock().map;
    map.set_node_address(NODE, &address.to_string());
    let service = Service(fake.clone());
    let kv = v1::kv_server::KvServer::new(service.clone());
    let runtime = Runtime::new().unwrap();
    runtime.spawn(async move {
        let listener = TcpListener::from_std(listener).unwrap();
        tonic::transport::Server::builder()
            .add_service(kv.max_decoding_message_size(FRAME_BYTES_MAX))
            .add_service(v1::cluster_server::ClusterServer::new(service))
            .serve_with_incoming(TcpListenerStream::new(listener))
            .await
    });
    (address, Server(Some(runtime)))
}

fn cluster(encoding: Encoding) -> Arc<Fake> {
    Fake::new(1, encoding, 4)
}

async fn connect(address: SocketAddr, options: ClientOptions) -> Client {
    Client::connect(&[address.to_string()], options)
        .await
        .unwrap()
}

#[tokio::test]
async fn conformance_over_streams_and_over_calls() {
    for batching in [true, false] {
        let fake = cluster(Encoding::Ordered);
        let (address, _server) = serve(&fake).await;
        let options = ClientOptions {
            batching,
            connections: 2,
            ..ClientOptions::default()
        };
        let kv = connect(address, options)
            .await
            .namespace("ns")
            .await
            .unwrap();
        run(&kv, &Suite::new("suite")).await;
    }
}

#[tokio::test]
async fn replicas_are_moved_and_waited_for_and_nodes_removed() {
    let fake = cluster(Encoding::Ordered);
    let (address, _server) = serve(&fake).await;
    let client = connect(address, ClientOptions::default()).await;
    let (shard, new) = {
        let map = &mut fake.state.lock().map;
        let shard = map.shards().next().unwrap().clone();
        (
            shard,
            map.register_node("elsewhere:1", std::collections::BTreeMap::new()),
        )
    };
    let old = shard.replicas[0].node;
    let made = client
        .move_replica(shard.id, Some(old), Some(new))
        .await
        .unwrap();
    let known = client.map().shard(shard.id).unwrap().replica_on(new);
    assert_eq!(known.map(|replica| replica.id), Some(made));
    let late = client
        .settled(shard.id, Duration::from_millis(50))
        .await
        .unwrap_err();
    assert_eq!(late.kind(), ErrorKind::DeadlineExceeded);
    let held = client.remove_node(new).await.unwrap_err();
    assert_eq!(held.kind(), ErrorKind::InvalidArgument);
    assert!(
        fake.state
            .lock()
            .map
            .settle_members(shard.id, shard.epoch.members + 1)
    );
    client
        .settled(shard.id, Duration::from_secs(10))
        .await
        .unwrap();
    let unknown = client.settled(99, Duration::ZERO).await.unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::InvalidArgument);
    let back = client
        .move_replica(shard.id, Some(new), Some(old))
        .await
        .unwrap();
    assert!(back > made);
    assert!(
        fake.state
            .lock()
            .map
            .settle_members(shard.id, shard.epoch.members + 2)
    );
    client.remove_node(new).await.unwrap();
    assert!(client.map().node(new).is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_operations_are_matched_with_their_answers() {
    let fake = cluster(Encoding::Ordered);
    let (address, _server) = serve(&fake).await;
    let kv = connect(address, ClientOptions::default())
        .await
        .namespace("ns")
        .await
        .unwrap();
    let tasks: Vec<_> = (0..64u64)
        .map(|task| {
            let kv = kv.clone();
            tokio::spawn(async move {
                for i in 0..200 {
                    let text = format!("{task}-{i}");
                    kv.put(Put::new(text.clone(), text.clone())).await.unwrap();
                    let entry = kv.get(Get::new(text.clone())).await.unwrap().unwrap();
                    assert_eq!(entry.value, text);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn node_that_dies_makes_sent_writes_unknown_and_unsent_ones_not_applied() {
    let fake = cluster(Encoding::Ordered);
    let (address, server) = serve(&fake).await;
    let client = connect(address, ClientOptions::default()).await;
    let kv = client.namespace("ns").await.unwrap();
    kv.put(Put::new("k", "1")).await.unwrap();
    fake.fault(Fault::Silence);
    let waiting = tokio::spawn({
        let kv = kv.clone();
        async move { kv.put(Put::new("k", "2")).await }
    });
    while !fake.state.lock().faults.is_empty() {
        tokio::task::yield_now().await;
    }
    drop(server);
    let error = waiting.await.unwrap().unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unknown);
    let put = Put::new("k", "3").timeout(Duration::from_millis(200));
    let error = kv.put(put).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
}

#[tokio::test]
async fn endpoint_without_a_node_is_unavailable() {
    let options = ClientOptions {
        timeout: Duration::from_millis(200),
        ..ClientOptions::default()
    };
    // Port 1 of the loopback address has no listener.
    let made = Client::connect(&["127.0.0.1:1".into()], options.clone()).await;
    let error = made.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let made = Client::connect(&["not an address".into()], options).await;
    assert_eq!(made.err().unwrap().kind(), ErrorKind::InvalidArgument);
}
