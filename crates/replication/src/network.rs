//! The network as openraft sees it: [`Peer`] turns its requests into messages for a [`Transport`].
//!
//! Each replica holds three of them for each peer: entries go as `Class::Append`, heartbeats and votes
//! as `Class::Vote`, snapshots as `Class::Snapshot`, so none waits behind another. Entries are
//! pipelined: up to [`PIPELINE`] messages are under way, and the replies are taken in order.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, Stream, StreamExt};
use openraft::errors::{
    NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable,
};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult,
    TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RPCTypes};
use quorate_env::{Env, JobClass, switch};
use tokio::time::Instant;

use crate::codec::{Malformed, Reader};
use crate::detector::Detector;
use crate::error::Error;
use crate::lease::Lease;
use crate::machine::{Snapshot, SnapshotData, run_job};
use crate::quiet::Quiet;
use crate::raft::{LogId, TypeConfig, Vote};
use crate::transport::{Class, Transport, TransportError};
use crate::types::{GroupId, NodeId, ReplicaId};
use crate::wire::{self, Route};

/// How many appends to one peer may be under way. Few: what waits meanwhile goes in one message, and
/// with 64 of them sixteen busy groups took twice the work for each entry.
const PIPELINE: usize = 4;
/// A step of a snapshot is repeated for so many times its time limit, then the transfer is given up.
const SNAPSHOT_PATIENCE: u32 = 4;
/// Before a step is repeated: a peer that can't be reached says so at once.
const SNAPSHOT_PAUSE: Duration = Duration::from_millis(200);

type RpcError = RPCError<TypeConfig>;

/// What all peers of one replica share.
#[derive(Clone)]
pub(crate) struct Network {
    pub transport: Arc<dyn Transport>,
    pub env: Env,
    pub group: GroupId,
    pub replica: ReplicaId,
    pub message_timeout: Duration,
    pub snapshot_timeout: Duration,
    pub snapshot_chunk_bytes: usize,
    pub lease: Arc<Lease>,
    pub quiet: Arc<Quiet>,
    pub detector: Arc<Detector>,
}

/// One peer of a replica, for one class of messages.
pub(crate) struct Peer {
    network: Network,
    node: NodeId,
    route: Route,
    class: Class,
}

impl Network {
    fn peer(&self, to: ReplicaId, node: NodeId, class: Class) -> Peer {
        let route = Route {
            to,
            from: self.replica,
        };
        Peer {
            network: self.clone(),
            node,
            route,
            class,
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, node: &u64) -> Peer {
        self.peer(target, *node, Class::Append)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &u64) -> Peer {
        self.peer(target, *node, Class::Vote)
    }

    async fn new_snapshot_client(&mut self, target: u64, node: &u64) -> Peer {
        self.peer(target, *node, Class::Snapshot)
    }
}

fn unreachable_error(why: impl ToString) -> RpcError {
    RPCError::Unreachable(Unreachable::from_string(why))
}

fn network_error(why: impl ToString) -> RpcError {
    RPCError::Network(NetworkError::from_string(why))
}

/// What an error reply of a peer means to openraft: a peer that is not there, or not yet, is
/// backed off from.
fn peer_error(error: Error) -> RpcError {
    match error {
        Error::Corrupt(_) => network_error(error),
        _ => unreachable_error(error),
    }
}

fn malformed(error: Malformed) -> RpcError {
    network_error(error)
}

impl Peer {
    /// Sends a message at once; the future is the body of the reply, within the deadline.
    fn call(
        &self,
        class: Class,
        payload: Bytes,
        timeout: Duration,
        action: RPCTypes,
    ) -> impl Future<Output = Result<Reader, RpcError>> + Send + use<> {
        let group = self.network.group;
        let reply = self.exchange(class, payload, timeout, action);
        async move { wire::decode_reply(group, reply.await?).map_err(peer_error) }
    }

    /// The same; the future is the reply as it came.
    fn exchange(
        &self,
        class: Class,
        payload: Bytes,
        timeout: Duration,
        action: RPCTypes,
    ) -> impl Future<Output = Result<Bytes, RpcError>> + Send + use<> {
        let (id, target, group) = (self.route.from, self.route.to, self.network.group);
        let reply = self
            .network
            .transport
            .send(self.node, class, group, payload);
        async move {
            match tokio::time::timeout(timeout, reply).await {
                Ok(Ok(_)) if switch::rarely("replication.reply_lost", 20) => {
                    Err(network_error("the reply was lost"))
                }
                Ok(Ok(bytes)) => Ok(bytes),
                Ok(Err(TransportError::Unreachable(why))) => Err(unreachable_error(why)),
                Ok(Err(TransportError::Broken(why))) => Err(network_error(why)),
                Err(_) => Err(RPCError::Timeout(Timeout {
                    action,
                    id,
                    target,
                    timeout,
                })),
            }
        }
    }

    fn send_append(&self, request: AppendEntriesRequest<TypeConfig>) -> InFlight {
        let prev = request.prev_log_id;
        let last = request.entries.last().map(|entry| entry.log_id).or(prev);
        if self.network.quiet.holds_back() {
            // Entries keep followers from electing as heartbeats do.
            let refused = Err(unreachable_error("no quorum is heard"));
            let reply = std::future::ready(refused).boxed();
            return InFlight { prev, last, reply };
        }
        match request.entries.is_empty() {
            true => self.network.quiet.wake(Duration::ZERO),
            false => self.network.quiet.stir(),
        };
        let lease = Arc::clone(&self.network.lease);
        let (by, sent) = (self.route.to, lease.sending());
        let payload = wire::append(self.route, &request, sent.asks);
        let timeout = self.network.message_timeout;
        let call = self.call(self.class, payload, timeout, RPCTypes::AppendEntries);
        let reply = async move {
            let reply = wire::decode_append_reply(call.await?).map_err(malformed)?;
            // A conflict is told before the vote that was taken with it is durable.
            use AppendEntriesResponse::{PartialSuccess, Success};
            if matches!(reply, Success | PartialSuccess(_)) {
                lease.acked(by, sent);
            }
            Ok(reply)
        };
        InFlight {
            prev,
            last,
            reply: reply.boxed(),
        }
    }

    async fn send_vote(
        &self,
        pre: bool,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        // A candidate owes what it promised as a voter does. Asked here, when openraft has taken its own vote, and
        // so takes no append of the old leader any more.
        self.network.quiet.wake(Duration::ZERO);
        let is_bypassed =
            request.leadership_transfer && switch::bug("lease_kept_after_handing_over");
        if !is_bypassed && !self.network.lease.kept().await && !pre {
            return Err(unreachable_error("a leader has the promise of this voter"));
        }
        let payload = wire::vote(self.route, pre, &request);
        let timeout = option.hard_ttl().min(self.network.message_timeout);
        let reader = self
            .call(Class::Vote, payload, timeout, RPCTypes::Vote)
            .await?;
        wire::decode_vote_reply(reader).map_err(malformed)
    }

    /// A step that may be repeated: when the connection breaks, or nothing is heard, it is sent again, so that the
    /// transfer goes on where it was cut. What the peer refuses is final: it knows nothing of the transfer, say.
    async fn snapshot_step(&self, payload: Bytes) -> Result<Reader, RpcError> {
        let timeout = self.network.snapshot_timeout;
        let give_up = Instant::now() + timeout * SNAPSHOT_PATIENCE;
        loop {
            let (class, action) = (Class::Snapshot, RPCTypes::InstallSnapshot);
            match self.exchange(class, payload.clone(), timeout, action).await {
                Ok(reply) => {
                    return wire::decode_reply(self.network.group, reply).map_err(peer_error);
                }
                Err(error) if Instant::now() >= give_up => return Err(error),
                Err(_) => tokio::time::sleep(SNAPSHOT_PAUSE).await,
            }
        }
    }

    async fn send_snapshot(
        &self,
        vote: Vote,
        snapshot: Snapshot,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let SnapshotData::Source(mut source) = snapshot.snapshot else {
            let error = unreachable_error("a snapshot without data can't be sent");
            return Err(error.into());
        };
        let (route, jobs) = (self.route, &self.network.env.jobs);
        let session = self.network.env.random.next_u64();
        self.snapshot_step(wire::snapshot_begin(route, session))
            .await?;
        let chunk_bytes = match switch::fires("replication.snapshot_in_small_chunks") {
            true => 256,
            false => self.network.snapshot_chunk_bytes,
        };
        let mut number = 0;
        loop {
            let read = move || {
                let chunk = source.next_chunk(chunk_bytes);
                (source, chunk)
            };
            let (back, chunk) = run_job(jobs, JobClass::Read, read)
                .await
                .map_err(unreachable_error)?;
            source = back;
            let Some(chunk) = chunk.map_err(unreachable_error)? else {
                break;
            };
            self.snapshot_step(wire::snapshot_chunk(route, session, number, &chunk))
                .await?;
            number += 1;
        }
        let install = wire::snapshot_install(route, session, number, &vote, &snapshot.meta);
        let (timeout, action) = (self.network.snapshot_timeout, RPCTypes::InstallSnapshot);
        let installed = self.call(Class::Snapshot, install, timeout, action);
        let mut reader = installed.await?;
        Ok(SnapshotResponse::new(reader.vote().map_err(malformed)?))
    }
}

/// An append whose reply is awaited.
struct InFlight {
    prev: Option<LogId>,
    last: Option<LogId>,
    reply: BoxFuture<'static, Result<AppendEntriesResponse<TypeConfig>, RpcError>>,
}

impl InFlight {
    /// The reply in the terms of a stream, and whether the stream goes on after it.
    fn resolve(
        &self,
        reply: Result<AppendEntriesResponse<TypeConfig>, RpcError>,
    ) -> (Result<StreamAppendResult<TypeConfig>, RpcError>, bool) {
        let response = match reply {
            Ok(AppendEntriesResponse::Conflict) if self.prev.is_none() => {
                return (
                    Err(network_error("a conflict before the first entry")),
                    false,
                );
            }
            Ok(response) => response,
            Err(_) if switch::bug("learner_counted") => AppendEntriesResponse::Success,
            Err(_) if switch::bug("commit_without_quorum") => AppendEntriesResponse::Success,
            Err(error) => return (Err(error), false),
        };
        let goes_on = match &response {
            AppendEntriesResponse::Success => true,
            AppendEntriesResponse::PartialSuccess(upto) => *upto == self.last,
            _ => false,
        };
        (
            Ok(response.into_stream_result(self.prev, self.last)),
            goes_on,
        )
    }
}

/// Requests in, replies out, in order, many under way.
struct Pipeline<'a, S> {
    peer: &'a Peer,
    input: Option<S>,
    under_way: VecDeque<InFlight>,
    ended: bool,
}

impl<S> Stream for Pipeline<'_, S>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
{
    type Item = Result<StreamAppendResult<TypeConfig>, RpcError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        while !this.ended && this.under_way.len() < PIPELINE {
            let Some(input) = &mut this.input else { break };
            match input.poll_next_unpin(cx) {
                Poll::Ready(Some(request)) => {
                    this.under_way.push_back(this.peer.send_append(request));
                }
                Poll::Ready(None) => this.input = None,
                Poll::Pending => break,
            }
        }
        let Some(first) = this.under_way.front_mut() else {
            let over = this.ended || this.input.is_none();
            return if over {
                Poll::Ready(None)
            } else {
                Poll::Pending
            };
        };
        let Poll::Ready(reply) = first.reply.poll_unpin(cx) else {
            return Poll::Pending;
        };
        let (result, goes_on) = first.resolve(reply);
        this.under_way.pop_front();
        if !goes_on {
            this.ended = true;
            this.under_way.clear();
        }
        Poll::Ready(Some(result))
    }
}

impl RaftNetworkV2<TypeConfig> for Peer {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RpcError> {
        self.send_append(request).reply.await
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RpcError>>, RpcError>,
    >
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        let pipeline = Pipeline {
            peer: self,
            input: Some(input),
            under_way: VecDeque::new(),
            ended: false,
        };
        let replies: BoxStream<'s, _> = Box::pin(pipeline);
        Box::pin(std::future::ready(Ok(replies)))
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        self.send_vote(false, request, option).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        self.send_vote(true, request, option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        tokio::select! {
            biased;
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = self.send_snapshot(vote, snapshot) => sent,
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RpcError> {
        let payload = wire::transfer(self.route, &request);
        let timeout = self.network.message_timeout;
        let mut reader = self
            .call(Class::Vote, payload, timeout, RPCTypes::TransferLeader)
            .await?;
        if reader.bool().map_err(malformed)? {
            return Ok(Ok(()));
        }
        let expected = request.last_log_id().copied();
        Ok(Err(TransferLeaderError::LogNotFlushed {
            expected,
            actual: None,
        }))
    }
}
