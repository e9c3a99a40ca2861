//! The receiving side of peer traffic.

use std::sync::Arc;

use quorate_proto::v1::peer_server::Peer;
use quorate_proto::{PROTOCOL_VERSION, cluster_from_wire, status_of_error, v1};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::host::Host;
use super::liveness::Lookouts;
use super::peers::class_of;

/// So many replies wait for the stream before the next message is taken.
const QUEUE: usize = 4096;

/// Serves the streams of peers.
pub struct PeerService {
    host: Arc<Host>,
    lookouts: Arc<Lookouts>,
}

impl PeerService {
    pub fn new(host: Arc<Host>) -> PeerService {
        PeerService {
            host,
            lookouts: Arc::default(),
        }
    }
}

#[tonic::async_trait]
impl Peer for PeerService {
    type ChannelStream = ReceiverStream<Result<v1::PeerFrame, Status>>;

    async fn channel(
        &self,
        request: Request<Streaming<v1::PeerFrame>>,
    ) -> Result<Response<Self::ChannelStream>, Status> {
        let node = self.host.node().map_err(|error| status_of_error(&error))?;
        let mut frames = request.into_inner();
        let first = frames.message().await?;
        let hello = first.and_then(|frame| frame.hello);
        let hello = hello.ok_or_else(|| Status::invalid_argument("the stream has no hello"))?;
        check_hello(&hello, &node.identity())?;
        let (replies, outgoing) = mpsc::channel(QUEUE);
        let lookouts = Arc::clone(&self.lookouts);
        tokio::spawn(async move {
            while let Ok(Some(frame)) = frames.message().await {
                let Some(class) = class_of(frame.class) else {
                    continue;
                };
                // The message takes its place here; its reply may overtake others.
                let reply = node.handle_peer(hello.from_node, class, frame.group, frame.payload);
                let Ok(place) = replies.clone().reserve_owned().await else {
                    break;
                };
                let (id, group) = (frame.id, frame.group);
                tokio::spawn(async move {
                    let payload = reply.await;
                    let frame = v1::PeerFrame {
                        id,
                        group,
                        payload,
                        reply: true,
                        ..Default::default()
                    };
                    place.send(Ok(frame));
                });
            }
            lookouts.stream_ended(&node, hello.from_node).await;
        });
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}

fn check_hello(hello: &v1::Hello, me: &quorate_node::Identity) -> Result<(), Status> {
    let cluster = cluster_from_wire(&hello.cluster).ok().flatten();
    if cluster != Some(me.cluster) {
        return Err(Status::failed_precondition(
            "this node is of another cluster",
        ));
    }
    if hello.to_node != me.node {
        return Err(Status::failed_precondition(format!(
            "this is node {}",
            me.node
        )));
    }
    if hello.protocol != PROTOCOL_VERSION {
        let message = format!(
            "this node speaks protocol {PROTOCOL_VERSION}, not {}",
            hello.protocol
        );
        return Err(Status::failed_precondition(message));
    }
    Ok(())
}
