//! One connection: a stream whose frames take whatever waits when they are made.
//!
//! Nobody waits for a frame to fill. While the connection is busy with one frame, requests gather
//! in the queue, and the next frame takes them all: batches grow with load by themselves.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::Stream;
use parking_lot::Mutex;
use quorate_proto::v1::kv_client::KvClient;
use quorate_proto::{MESSAGE_BYTES_MAX, v1};
use quorate_sharding::Request;
use tokio::time::Instant;
use tonic::Streaming;
use tonic::transport::Endpoint;

use super::pending::Pending;
use super::queue::{Item, Queue};
use crate::Reply;

/// How long a node that could not be reached is left alone: first, and at most.
const DOWN_MIN: Duration = Duration::from_millis(10);
const DOWN_MAX: Duration = Duration::from_millis(500);
/// How long a new stream may take to be answered.
const OPEN_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection to one node, made when there is something to send. Ends when dropped.
pub struct Connection {
    queue: Arc<Queue>,
}

impl Connection {
    /// A connection, not made yet. To be called inside a tokio runtime.
    pub fn new(endpoint: Endpoint) -> Self {
        let queue = Arc::new(Queue::default());
        tokio::spawn(drive(endpoint, queue.clone()));
        Connection { queue }
    }

    /// Puts a request into the next frame.
    pub fn send(&self, request: Request, reply: Reply) {
        self.queue.push(Item::new(request, reply));
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.queue.close();
    }
}

/// Makes the connection, serves it until it breaks, makes it again.
async fn drive(endpoint: Endpoint, queue: Arc<Queue>) {
    let mut down = DOWN_MIN;
    while queue.wait().await {
        let pending = Arc::new(Mutex::new(Pending::default()));
        match open(&endpoint, &queue, &pending).await {
            Ok(incoming) => {
                down = DOWN_MIN;
                let why = serve(incoming, &pending).await;
                tracing::debug!(uri = %endpoint.uri(), why, "stream ended");
                pending.lock().close(&why);
            }
            Err(why) => {
                tracing::debug!(uri = %endpoint.uri(), why, "could not connect");
                pending.lock().close(&why);
                queue.fail_until(Instant::now() + down, why);
                down = (down * 2).min(DOWN_MAX);
            }
        }
    }
}

async fn open(
    endpoint: &Endpoint,
    queue: &Arc<Queue>,
    pending: &Arc<Mutex<Pending>>,
) -> Result<Streaming<v1::ResponseFrame>, String> {
    let place = endpoint.uri().authority().map_or("", |a| a.as_str());
    let channel = endpoint
        .connect()
        .await
        .map_err(|error| format!("could not connect to {place}: {}", root_cause(&error)))?;
    let outgoing = Outgoing {
        queue: queue.clone(),
        pending: pending.clone(),
    };
    let mut client = KvClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    match tokio::time::timeout(OPEN_TIMEOUT, client.stream(outgoing)).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(format!("{place} refused a stream: {}", status.message())),
        Err(_) => Err(format!("{place} did not answer")),
    }
}

/// Hands responses to who waits for them, until the stream ends; says why it did.
async fn serve(mut incoming: Streaming<v1::ResponseFrame>, pending: &Mutex<Pending>) -> String {
    let mut replies: Vec<(Reply, v1::Response)> = Vec::new();
    loop {
        match incoming.message().await {
            Ok(Some(frame)) => {
                {
                    let mut pending = pending.lock();
                    for response in frame.responses {
                        if let Some(reply) = pending.remove(response.request_id) {
                            replies.push((reply, response));
                        }
                    }
                }
                for (reply, response) in replies.drain(..) {
                    let _ = reply.send(response.into_response());
                }
            }
            Ok(None) => return "the node closed the connection".into(),
            Err(status) => return format!("the connection broke: {}", status.message()),
        }
    }
}

/// The frames that go out: each made when there is room to send it.
struct Outgoing {
    queue: Arc<Queue>,
    pending: Arc<Mutex<Pending>>,
}

impl Stream for Outgoing {
    type Item = v1::RequestFrame;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<v1::RequestFrame>> {
        let mut pending = self.pending.lock();
        if pending.is_closed() {
            return Poll::Ready(None);
        }
        let Some(items) = ready!(self.queue.poll_take(cx)) else {
            return Poll::Ready(None);
        };
        let requests = items
            .into_iter()
            .map(
                |Item {
                     mut request, reply, ..
                 }| {
                    request.request_id = pending.insert(reply, request.operation.is_write());
                    request.into()
                },
            )
            .collect();
        Poll::Ready(Some(v1::RequestFrame { requests }))
    }
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}
