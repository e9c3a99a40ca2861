//! Peer traffic over gRPC: one bidirectional stream for each peer and traffic class.
//!
//! A link is a task that holds its stream open. What is sent while there is no stream fails at once,
//! so that Raft knows; the link tries again with a growing pause. Replies come back by number.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use quorate_node::Identity;
use quorate_proto::v1::peer_client::PeerClient;
use quorate_proto::{MESSAGE_BYTES_MAX, PROTOCOL_VERSION, cluster_to_wire, v1};
use quorate_replication::{Class, GroupId, NodeId, Reply, Transport, TransportError};
use quorate_sharding::ShardMap;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

/// So many frames wait for a stream before it counts as stuck.
const QUEUE: usize = 4096;
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(500);
const CONNECT: Duration = Duration::from_secs(1);
/// A peer that says nothing for so long, though asked, is gone.
const KEEPALIVE: Duration = Duration::from_secs(2);

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Result<Bytes, TransportError>>>>>;

/// The transport between the nodes of a cluster.
pub struct PeerTransport {
    identity: Identity,
    addresses: Arc<RwLock<HashMap<NodeId, String>>>,
    links: Mutex<HashMap<(NodeId, Class), Link>>,
    next_id: AtomicU64,
    runtime: tokio::runtime::Handle,
}

/// One stream's sending side.
#[derive(Clone)]
struct Link {
    /// Where frames go while the stream is up.
    open: Arc<RwLock<Option<mpsc::Sender<v1::PeerFrame>>>>,
    waiting: Waiting,
}

/// The number of a class on the wire.
pub fn class_code(class: Class) -> u32 {
    match class {
        Class::Append => 1,
        Class::Vote => 2,
        Class::Snapshot => 3,
    }
}

/// The class of a number.
pub fn class_of(code: u32) -> Option<Class> {
    Class::ALL
        .into_iter()
        .find(|class| class_code(*class) == code)
}

impl PeerTransport {
    /// A transport that knows no address yet. Must be called inside a tokio runtime.
    pub fn new(identity: Identity) -> PeerTransport {
        PeerTransport {
            identity,
            addresses: Arc::default(),
            links: Mutex::default(),
            next_id: AtomicU64::new(1),
            runtime: tokio::runtime::Handle::current(),
        }
    }

    /// Learns addresses from the shard map, now and whenever it changes.
    pub fn follow(&self, mut maps: watch::Receiver<Arc<ShardMap>>) {
        let addresses = Arc::clone(&self.addresses);
        self.runtime.spawn(async move {
            loop {
                let map = Arc::clone(&maps.borrow_and_update());
                let known = map
                    .nodes
                    .values()
                    .map(|node| (node.id, node.address.clone()));
                *addresses.write() = known.collect();
                if maps.changed().await.is_err() {
                    return;
                }
            }
        });
    }

    fn link(&self, to: NodeId, class: Class) -> Link {
        let mut links = self.links.lock();
        let new = || {
            let link = Link {
                open: Arc::default(),
                waiting: Arc::default(),
            };
            let keeper = Keeper {
                identity: self.identity,
                to,
                class,
                addresses: Arc::clone(&self.addresses),
                link: link.clone(),
            };
            self.runtime.spawn(keeper.run());
            link
        };
        links.entry((to, class)).or_insert_with(new).clone()
    }
}

impl Transport for PeerTransport {
    fn send(&self, to: NodeId, class: Class, group: GroupId, payload: Bytes) -> Reply {
        let link = self.link(to, class);
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let frame = v1::PeerFrame {
            id,
            class: class_code(class),
            group,
            from_node: self.identity.node,
            payload,
            ..v1::PeerFrame::default()
        };
        let (sender, receiver) = oneshot::channel();
        let open = link.open.read();
        let sent = match open.as_ref() {
            None => Err(TransportError::Unreachable(format!(
                "no stream to node {to}"
            ))),
            Some(frames) => {
                link.waiting.lock().insert(id, sender);
                frames.try_send(frame).map_err(|_| {
                    link.waiting.lock().remove(&id);
                    TransportError::Unreachable(format!("the queue to node {to} is full"))
                })
            }
        };
        drop(open);
        let waiting = Arc::clone(&link.waiting);
        Box::pin(async move {
            sent?;
            let _forget = Forget { waiting, id };
            match receiver.await {
                Ok(reply) => reply,
                Err(_) => Err(TransportError::Broken(format!(
                    "the stream to node {to} ended"
                ))),
            }
        })
    }
}

/// A reply that is given up must not be waited for.
struct Forget {
    waiting: Waiting,
    id: u64,
}

impl Drop for Forget {
    fn drop(&mut self) {
        self.waiting.lock().remove(&self.id);
    }
}

/// Keeps one stream open.
struct Keeper {
    identity: Identity,
    to: NodeId,
    class: Class,
    addresses: Arc<RwLock<HashMap<NodeId, String>>>,
    link: Link,
}

impl Keeper {
    async fn run(self) {
        let mut pause = PAUSE_MIN;
        let mut last_error = String::new();
        loop {
            let address = self.addresses.read().get(&self.to).cloned();
            if let Some(address) = address {
                match self.hold_stream(&address).await {
                    Ok(()) => pause = PAUSE_MIN,
                    Err(error) => {
                        let text = error.to_string();
                        if text != last_error {
                            let class = self.class;
                            tracing::debug!(node = self.to, ?class, error = text, "no stream");
                            last_error = text;
                        }
                    }
                }
                *self.link.open.write() = None;
                // Dropping the senders tells all who wait.
                self.link.waiting.lock().clear();
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Opens the stream and serves it until it ends.
    async fn hold_stream(
        &self,
        address: &str,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            .initial_stream_window_size(8 << 20)
            .initial_connection_window_size(16 << 20)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true);
        let channel = endpoint.connect().await?;
        let mut client = PeerClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let (frames, outgoing) = mpsc::channel(QUEUE);
        let hello = v1::Hello {
            cluster: cluster_to_wire(self.identity.cluster),
            from_node: self.identity.node,
            to_node: self.to,
            protocol: PROTOCOL_VERSION,
        };
        frames
            .send(v1::PeerFrame {
                hello: Some(hello),
                ..v1::PeerFrame::default()
            })
            .await?;
        let opened = tokio::time::timeout(CONNECT, client.channel(ReceiverStream::new(outgoing)));
        let mut replies = opened.await??.into_inner();
        *self.link.open.write() = Some(frames);
        while let Some(frame) = replies.message().await? {
            let Some(sender) = self.link.waiting.lock().remove(&frame.id) else {
                continue;
            };
            let reply = if frame.error.is_empty() {
                Ok(frame.payload)
            } else {
                Err(TransportError::Unreachable(frame.error))
            };
            // Who asked may have given up.
            let _ = sender.send(reply);
        }
        Ok(())
    }
}
