//! What a group does with the messages of its peers.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use openraft::errors::RaftError;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest, VoteResponse};
use quorate_env::switch;
use tokio::time::Instant;

use super::{Group, stopped};
use crate::error::{Error, Result};
use crate::machine::{Snapshot, SnapshotData};
use crate::quiet::Pulses;
use crate::raft::TypeConfig;
use crate::types::Role;
use crate::wire::{self, Message, Route};

impl Group {
    /// Takes a message. It has its place in the group's queue when this returns.
    pub(crate) fn handle(
        &self,
        route: Route,
        message: Message,
        pulses: &Arc<Pulses>,
    ) -> BoxFuture<'static, Bytes> {
        let pulses = Arc::clone(pulses);
        let group = self.clone();
        let work = async move {
            let reply = group.answer(route, message, &pulses).await;
            reply.unwrap_or_else(|error| wire::error_reply(&error))
        };
        // Polled once here, so that the message is queued now and in order. Out of tokio's budget,
        // for with none left that first poll would do nothing.
        let mut work = tokio::task::unconstrained(work).boxed();
        match work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(reply) => std::future::ready(reply).boxed(),
            Poll::Pending => work,
        }
    }

    async fn answer(&self, route: Route, message: Message, pulses: &Pulses) -> Result<Bytes> {
        if route.to != self.replica() {
            return Err(Error::NoSuchGroup(self.id()));
        }
        let (raft, inbox) = (self.raft(), &self.inner.inbox);
        let was_quiet = self.hear(&message);
        Ok(match message {
            Message::Append(request, lease) => {
                wire::append_reply(&self.append(request, lease).await?)
            }
            Message::Vote(request) => wire::vote_reply(&self.vote(request).await?),
            Message::PreVote(request) => {
                wire::vote_reply(&self.pre_vote(request, was_quiet).await?)
            }
            Message::Quiet {
                incarnation,
                vote,
                last,
            } => {
                let agrees = |last| self.be_quiet(pulses, incarnation, &vote, &last);
                wire::quiet_reply(last.is_some_and(agrees))
            }
            Message::Wake => {
                if self.is_leader() {
                    self.renew();
                }
                wire::done_reply()
            }
            Message::Pulse { .. } => return Err(Error::NoSuchGroup(self.id())),
            Message::Transfer(request) => {
                let done = raft.handle_transfer_leader(request).await;
                wire::transfer_reply(&done.map_err(|fatal| stopped(&fatal))?)
            }
            Message::Read => {
                if !self.is_leader() {
                    return Err(Error::NotLeader {
                        leader: self.leader(),
                    });
                }
                wire::read_reply(self.local_read_index().await?)
            }
            Message::Begin { session } => {
                inbox.begin(route.from, session).await?;
                wire::done_reply()
            }
            Message::Chunk {
                session,
                number,
                bytes,
            } => {
                inbox.chunk(route.from, session, number, bytes).await?;
                wire::done_reply()
            }
            Message::Install {
                session,
                chunks,
                vote,
                meta,
            } => {
                let sink = inbox.finish(route.from, session, chunks)?;
                let snapshot = Snapshot {
                    meta,
                    snapshot: SnapshotData::Received(sink),
                };
                let done = raft.install_full_snapshot(vote, snapshot).await;
                wire::install_reply(&done.map_err(|fatal| stopped(&fatal))?.vote)
            }
        })
    }
}

impl Group {
    /// What comes wakes the group, or shows that it is awake. Says whether it was quiet.
    fn hear(&self, message: &Message) -> bool {
        let parts = &self.inner.parts;
        let grace = parts.config.timing.election_min;
        match message {
            Message::Quiet { .. } => false,
            Message::Append(request, _) if request.entries.is_empty() => {
                parts.network.quiet.wake(grace)
            }
            Message::PreVote(_) | Message::Wake => {
                let was_quiet = parts.network.quiet.wake(grace);
                self.stir();
                was_quiet
            }
            _ => self.stir(),
        }
    }

    async fn append(
        &self,
        request: AppendEntriesRequest<TypeConfig>,
        lease: Duration,
    ) -> Result<AppendEntriesResponse<TypeConfig>> {
        let came = Instant::now();
        self.inner.parts.network.lease.promise(lease);
        let response = self.raft().append_entries(request).await.map_err(fatal)?;
        switch::probe("followed", || {
            [self.id(), u64::from(self.status().role == Role::Learner)]
        });
        if !matches!(response, AppendEntriesResponse::HigherVote(_)) {
            self.note_leader(came);
        }
        Ok(response)
    }

    async fn pre_vote(
        &self,
        request: VoteRequest<TypeConfig>,
        was_quiet: bool,
    ) -> Result<VoteResponse<TypeConfig>> {
        self.inner.parts.network.lease.kept().await;
        let mut response = self.raft().pre_vote(request).await.map_err(fatal)?;
        if was_quiet {
            // The leader was silent because it was asked to be. If there is one, it shows itself now.
            response.vote_granted = false;
            self.wake_leader();
        }
        Ok(response)
    }

    /// Votes, when no leader has this voter's promise: one that hands over too, for who asks can't prove that it was
    /// the one that has the promise.
    async fn vote(&self, request: VoteRequest<TypeConfig>) -> Result<VoteResponse<TypeConfig>> {
        let (raft, lease) = (self.raft(), &self.inner.parts.network.lease);
        let is_bypassed =
            request.leadership_transfer && switch::bug("lease_kept_after_handing_over");
        if is_bypassed {
            return raft.vote(request).await.map_err(fatal);
        }
        lease.kept().await;
        let mut response = raft.vote(request).await.map_err(fatal)?;
        // What was promised before openraft took this vote is known by now; what came after it refused.
        response.vote_granted &= lease.owes_until().is_none();
        Ok(response)
    }
}

fn fatal(error: RaftError<TypeConfig>) -> Error {
    Error::Stopped(error.to_string())
}
