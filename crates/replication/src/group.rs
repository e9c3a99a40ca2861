//! [`Group`]: a handle to this node's replica of one group.

mod failover;
mod health;
mod members;
mod message;
mod quiet;
mod read;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use openraft::RaftMetrics;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::ForwardReason;
use openraft::errors::{ClientWriteError, Fatal, ForwardToLeader, InitializeError, RaftError};
use openraft::impls::ProgressResponder;
use openraft::type_config::alias::WatchReceiverOf;
use openraft::{Raft, ServerState};
use parking_lot::Mutex;
use quorate_env::switch;
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::error::{Error, Result};
use crate::inbox::Inbox;
use crate::log::GroupLog;
use crate::machine::{self, Machine};
use crate::network::Network;
use crate::raft::{Payload, TypeConfig};
use crate::reads::Rounds;
use crate::state_machine::StateMachine;
use crate::types::{Config, GroupId, Leader, Members, NodeId, ReplicaId, Role, Status};
use crate::watch::AppliedWatch;

pub(crate) use failover::Gone;

/// This node's replica of one group. Cheap to clone; all methods may be called from anywhere.
#[derive(Clone)]
pub struct Group {
    inner: Arc<Inner>,
}

/// A proposal that was applied here.
#[derive(Debug, Clone)]
pub struct Proposed {
    /// The index of its entry.
    pub index: u64,
    /// What the state machine answered.
    pub result: Bytes,
}

/// What a group is made of.
pub(crate) struct Parts {
    pub id: GroupId,
    pub replica: ReplicaId,
    pub config: Arc<Config>,
    pub runtime: Handle,
    pub raft: Raft<TypeConfig, Machine>,
    pub machine: Arc<dyn StateMachine>,
    pub handle: machine::Handle,
    pub log: GroupLog,
    pub watch: Arc<AppliedWatch>,
    pub network: Network,
}

struct Inner {
    parts: Parts,
    metrics: WatchReceiverOf<TypeConfig, RaftMetrics<TypeConfig>>,
    inbox: Inbox,
    /// When a message of the leader last came that this replica followed. openraft knows it too, and
    /// tells it nobody.
    leader_heard: Mutex<Option<Instant>>,
    /// Rounds that ask a quorum, when this replica leads.
    rounds: Arc<Rounds>,
    /// Rounds that ask the leader, when another does.
    forwards: Arc<Rounds>,
    /// Whether a round is under way to renew the lease.
    renewing: AtomicBool,
    inflight_bytes: AtomicUsize,
    inflight: AtomicUsize,
}

/// Counts a proposal while it is under way.
struct InFlight<'a> {
    inner: &'a Inner,
    bytes: usize,
}

impl<'a> InFlight<'a> {
    fn enter(inner: &'a Inner, bytes: usize) -> Result<InFlight<'a>> {
        let config = &inner.parts.config;
        let count = inner.inflight.fetch_add(1, Ordering::Relaxed);
        let before = inner.inflight_bytes.fetch_add(bytes, Ordering::Relaxed);
        let entered = InFlight { inner, bytes };
        let full = count >= config.inflight_proposals_max
            || (before > 0 && before + bytes > config.inflight_bytes_max);
        if full {
            Err(Error::Overloaded)
        } else {
            Ok(entered)
        }
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.inner.inflight.fetch_sub(1, Ordering::Relaxed);
        self.inner
            .inflight_bytes
            .fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Group {
    pub(crate) fn new(parts: Parts) -> Group {
        let metrics = parts.raft.metrics();
        let jobs = Arc::clone(&parts.network.env.jobs);
        let inbox = Inbox::new(Arc::clone(&parts.machine), jobs);
        let inner = Inner {
            parts,
            metrics,
            inbox,
            leader_heard: Mutex::default(),
            rounds: Arc::default(),
            forwards: Arc::default(),
            renewing: AtomicBool::new(false),
            inflight_bytes: AtomicUsize::new(0),
            inflight: AtomicUsize::new(0),
        };
        Group {
            inner: Arc::new(inner),
        }
    }

    fn raft(&self) -> &Raft<TypeConfig, Machine> {
        &self.inner.parts.raft
    }

    /// The group.
    pub fn id(&self) -> GroupId {
        self.inner.parts.id
    }

    /// This replica of it.
    pub fn replica(&self) -> ReplicaId {
        self.inner.parts.replica
    }

    /// Gives a new group its first members, this replica among them. Every first replica is told the
    /// same, once or many times, in any order; a group that has members already is left alone. Whether it is new.
    pub async fn bootstrap(&self, members: BTreeMap<ReplicaId, NodeId>) -> Result<bool> {
        if members.get(&self.replica()) != Some(&self.inner.parts.config.node) {
            return Err(Error::Invalid(
                "this replica is not among the first members".into(),
            ));
        }
        match self.raft().initialize(members).await {
            Ok(()) => Ok(true),
            // It has a log or a vote: it was told before, or heard from one that was.
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(false),
            Err(RaftError::APIError(error)) => Err(Error::Invalid(error.to_string())),
            Err(RaftError::Fatal(fatal)) => Err(stopped(&fatal)),
        }
    }

    /// Has the group agree on a command and apply it here. Several may be under way; they are applied
    /// in the order in which the futures are first polled, while this replica leads and is not just waking. Errors that say
    /// nothing happened: `NotLeader`, `NoQuorum`, `TooLarge`, `Overloaded`, `Stopped`. Any later
    /// doubt is `OutcomeUnknown`.
    pub async fn propose(&self, command: Bytes, timeout: Duration) -> Result<Proposed> {
        let limit = self.inner.parts.config.proposal_bytes_max;
        if command.len() > limit {
            return Err(Error::TooLarge {
                bytes: command.len(),
                limit,
            });
        }
        if self.is_cut_off() {
            return Err(Error::NoQuorum);
        }
        // One that just stopped may still take the command, and drop it unseen.
        if let Err(fatal) = &self.inner.metrics.borrow_watched().running_state {
            return Err(stopped(fatal));
        }
        if switch::rarely("replication.proposal_refused", 5) {
            return Err(Error::Overloaded);
        }
        let _counted = InFlight::enter(&self.inner, command.len())?;
        self.ready_to_write(timeout).await?;
        let (responder, done) = ProgressResponder::complete_only();
        // Out of tokio's budget: with none left, this poll would not queue it, and order would be lost.
        let send = self
            .raft()
            .client_write_ff(Payload(command), Some(responder));
        let sent = tokio::task::unconstrained(send).await;
        sent.map_err(|fatal| stopped(&fatal))?;
        let answer = match tokio::time::timeout(timeout, done).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => return Err(Error::OutcomeUnknown("the group stopped".into())),
            Err(_) => return Err(Error::OutcomeUnknown("the deadline passed".into())),
        };
        match answer {
            Ok(written) => Ok(Proposed {
                index: written.log_id.index,
                result: written.data,
            }),
            Err(error) => Err(write_error(error)),
        }
    }

    /// The last index applied here; `None` before the first.
    pub fn applied_index(&self) -> Option<u64> {
        self.inner.parts.watch.applied()
    }

    /// Waits until this replica has applied an index.
    pub async fn wait_applied(&self, index: u64, timeout: Duration) -> Result<()> {
        let Some(ready) = self.inner.parts.watch.wait(index) else {
            return Ok(());
        };
        let ready = within(timeout, "applying", ready).await?;
        ready.map_err(|_| Error::Stopped("the group stopped".into()))
    }

    /// Who leads, as far as this replica knows.
    pub fn leader(&self) -> Option<Leader> {
        leader_of(&self.inner.metrics.borrow_watched())
    }

    /// Whether this replica believes that it leads.
    pub fn is_leader(&self) -> bool {
        self.inner.metrics.borrow_watched().state == ServerState::Leader
    }

    /// How this replica sees itself and the group.
    pub fn status(&self) -> Status {
        let metrics = self.inner.metrics.borrow_watched();
        let role = match (&metrics.running_state, metrics.state) {
            (Err(_), _) | (_, ServerState::Shutdown) => Role::Stopped,
            (_, ServerState::Learner) => Role::Learner,
            (_, ServerState::Follower) => Role::Follower,
            (_, ServerState::Candidate) => Role::Candidate,
            (_, ServerState::Leader) => Role::Leader,
        };
        let matched = metrics.replication.iter().flatten();
        Status {
            replica: self.replica(),
            role,
            health: self.health_of(&metrics),
            term: metrics.current_term,
            leader: leader_of(&metrics),
            last_index: metrics.last_log_index,
            committed: metrics.local_committed.map(|id| id.index),
            applied: self.applied_index(),
            flushed: self.inner.parts.machine.flushed(),
            purged: self.inner.parts.log.purged().map(|id| id.index),
            members: members_of(&metrics),
            matched: matched
                .map(|(id, upto)| (*id, upto.map(|id| id.index)))
                .collect(),
        }
    }

    /// Stands for election now, if a quorum would have it (pre-vote).
    pub async fn elect(&self) -> Result<()> {
        self.raft()
            .trigger()
            .elect(true)
            .await
            .map_err(|fatal| stopped(&fatal))
    }

    /// Stops the replica.
    pub(crate) async fn shutdown(&self) -> Result<()> {
        let stopped = self.raft().shutdown().await;
        self.inner.parts.watch.close();
        stopped.map_err(|e| Error::Stopped(e.to_string()))
    }

    /// Waits until nothing of the replica, which was stopped, works on its state machine.
    pub(crate) async fn let_go(&self) {
        self.inner.parts.handle.let_go().await;
    }

    /// Waits until the metrics say so.
    async fn wait_for(
        &self,
        timeout: Duration,
        what: &str,
        mut ready: impl FnMut(&RaftMetrics<TypeConfig>) -> bool + Send,
    ) -> Result<()> {
        let mut metrics = self.inner.metrics.clone();
        let wait = async {
            loop {
                if ready(&metrics.borrow_watched()) {
                    return Ok(());
                }
                if metrics.changed().await.is_err() {
                    return Err(Error::Stopped("the group stopped".into()));
                }
            }
        };
        within(timeout, what, wait).await?
    }
}

async fn within<T>(timeout: Duration, what: &str, work: impl Future<Output = T>) -> Result<T> {
    let done = tokio::time::timeout(timeout, work).await;
    done.map_err(|_| Error::DeadlineExceeded(format!("{what} took longer than {timeout:?}")))
}

fn leader_of(metrics: &RaftMetrics<TypeConfig>) -> Option<Leader> {
    let replica = metrics.current_leader?;
    let node = *metrics.membership_config.membership().get_node(&replica)?;
    Some(Leader { replica, node })
}

fn members_of(metrics: &RaftMetrics<TypeConfig>) -> Members {
    let membership = metrics.membership_config.membership();
    let voters: std::collections::BTreeSet<u64> = membership.voter_ids().collect();
    let mut members = Members {
        joint: membership.get_joint_config().len() > 1,
        ..Members::default()
    };
    for (replica, node) in membership.nodes() {
        let of = if voters.contains(replica) {
            &mut members.voters
        } else {
            &mut members.learners
        };
        of.insert(*replica, *node);
    }
    members
}

fn stopped(fatal: &Fatal<TypeConfig>) -> Error {
    Error::Stopped(fatal.to_string())
}

fn not_leader(forward: &ForwardToLeader<TypeConfig>) -> Error {
    match (forward.reason, forward.leader_id, forward.leader_node) {
        (ForwardReason::LeaseExpired, _, _) => Error::NoQuorum,
        (_, Some(replica), Some(node)) => Error::NotLeader {
            leader: Some(Leader { replica, node }),
        },
        _ => Error::NotLeader { leader: None },
    }
}

fn write_error(error: ClientWriteError<TypeConfig>) -> Error {
    match error {
        ClientWriteError::ForwardToLeader(forward) => not_leader(&forward),
        // It was in the log of a leader that lost it; another replica may still have committed it.
        ClientWriteError::LogEntryDiscarded(_) => {
            Error::OutcomeUnknown("leadership was lost before it was committed".into())
        }
        ClientWriteError::ChangeMembershipError(error) => members::change_error(error),
        ClientWriteError::PreconditionFailed(error) => Error::Invalid(error.to_string()),
    }
}
