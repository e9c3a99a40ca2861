//! The hot path: frames of requests in, frames of answers out.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use quorate_node::{Node, Replies, ReplyBatch, Unsent, answer_bytes};
use quorate_proto::v1::kv_server::Kv;
use quorate_proto::{status_of_error, v1};
use quorate_sharding::Request as Routed;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::host::Host;

/// So many frames wait for a slow reader before its requests are no longer taken.
const FRAMES: usize = 64;
/// A frame of answers is closed when it has about so many bytes.
const FRAME_BYTES: usize = 4 << 20;
/// While answers of so many bytes wait for the reader of a stream, its reads are refused.
const UNSENT_BYTES: usize = 32 << 20;
/// So many requests of one stream are under way before the next frame is taken.
const UNDER_WAY: usize = 16 << 10;

/// Serves operations on keys.
pub struct KvService(pub Arc<Host>);

#[tonic::async_trait]
impl Kv for KvService {
    type StreamStream = Outgoing;

    async fn stream(
        &self,
        request: Request<Streaming<v1::RequestFrame>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let node = self.0.node().map_err(|error| status_of_error(&error))?;
        let (out, frames) = mpsc::channel(FRAMES);
        let (replies, answers, unsent) = Replies::bounded(UNSENT_BYTES);
        let stream = ClientStream {
            host: Arc::clone(&self.0),
            node,
            out,
        };
        tokio::spawn(stream.run(request.into_inner(), replies, answers));
        Ok(Response::new(Outgoing { frames, unsent }))
    }

    async fn execute(
        &self,
        request: Request<v1::RequestFrame>,
    ) -> Result<Response<v1::ResponseFrame>, Status> {
        let node = self.0.node().map_err(|error| status_of_error(&error))?;
        let (good, mut responses) = sort_out(request.into_inner());
        let wanted = good.len();
        self.0.metrics.took(&good);
        let (replies, mut answers) = Replies::channel();
        node.execute(good, &replies);
        drop(replies);
        while responses.len() < wanted
            && let Some(batch) = answers.recv().await
        {
            self.0.metrics.answered(&batch);
            responses.extend(batch.into_iter().map(|(id, r)| v1::Response::new(id, r)));
        }
        Ok(Response::new(v1::ResponseFrame { responses }))
    }
}

/// Turns a frame into requests, and answers those that make no sense.
fn sort_out(frame: v1::RequestFrame) -> (Vec<Routed>, Vec<v1::Response>) {
    let mut good = Vec::with_capacity(frame.requests.len());
    let mut bad = Vec::new();
    for request in frame.requests {
        let id = request.request_id;
        match Routed::try_from(request) {
            Ok(request) => good.push(request),
            Err(error) => bad.push(v1::Response::new(id, Err(error.into()))),
        }
    }
    (good, bad)
}

/// A frame of answers, and what they count for in the stream's [`Unsent`].
struct Frame {
    responses: v1::ResponseFrame,
    bytes: usize,
}

impl Frame {
    /// A frame of answers that the node did not make.
    fn uncounted(responses: Vec<v1::Response>) -> Frame {
        Frame {
            responses: v1::ResponseFrame { responses },
            bytes: 0,
        }
    }
}

/// The frames that go out, each taken when there is room to send it.
pub struct Outgoing {
    frames: mpsc::Receiver<Frame>,
    unsent: Unsent,
}

impl Stream for Outgoing {
    type Item = Result<v1::ResponseFrame, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let frame = ready!(self.frames.poll_recv(cx));
        Poll::Ready(frame.map(|frame| {
            self.unsent.taken(frame.bytes);
            Ok(frame.responses)
        }))
    }
}

struct ClientStream {
    host: Arc<Host>,
    node: Node,
    out: mpsc::Sender<Frame>,
}

impl ClientStream {
    async fn run(
        self,
        mut frames: Streaming<v1::RequestFrame>,
        replies: Replies,
        mut answers: mpsc::UnboundedReceiver<ReplyBatch>,
    ) {
        let mut under_way = 0_usize;
        let mut open = true;
        while open || under_way > 0 {
            tokio::select! {
                biased;
                Some(batch) = answers.recv(), if under_way > 0 => {
                    let frame = self.gather(batch, &mut answers);
                    under_way = under_way.saturating_sub(frame.responses.responses.len());
                    if self.out.send(frame).await.is_err() {
                        return;
                    }
                }
                frame = frames.message(), if open && under_way < UNDER_WAY => match frame {
                    Ok(Some(frame)) => {
                        let (good, bad) = sort_out(frame);
                        self.host.metrics.took(&good);
                        under_way += good.len();
                        self.node.execute(good, &replies);
                        if !bad.is_empty() && self.out.send(Frame::uncounted(bad)).await.is_err() {
                            return;
                        }
                    }
                    Ok(None) | Err(_) => open = false,
                },
            }
        }
    }

    /// One frame of all answers that are there.
    fn gather(
        &self,
        first: ReplyBatch,
        answers: &mut mpsc::UnboundedReceiver<ReplyBatch>,
    ) -> Frame {
        let mut frame = Frame::uncounted(Vec::with_capacity(first.len()));
        let responses = &mut frame.responses.responses;
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(batch) = next {
            self.host.metrics.answered(&batch);
            for (id, response) in batch {
                frame.bytes += answer_bytes(&response);
                let response = v1::Response::new(id, response);
                bytes += prost::Message::encoded_len(&response);
                responses.push(response);
            }
            next = if bytes < FRAME_BYTES {
                answers.try_recv().ok()
            } else {
                None
            };
        }
        frame
    }
}
