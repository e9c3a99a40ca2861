//! Changing who is in a group, who leads it, and how much log it keeps.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::time::Duration;

use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::raft::ClientWriteResponse;

use super::{Group, stopped, within, write_error};
use crate::error::{Error, Result};
use crate::raft::{LeaderId, TypeConfig};
use crate::types::{NodeId, ReplicaId};

/// A replica this close to the leader's end may be given the lead: it catches up while the transfer
/// waits for it.
const TRANSFER_LAG_MAX: u64 = 256;

/// How long openraft may take to note the position up to which it may purge.
const PURGE_NOTE_TIMEOUT: Duration = Duration::from_secs(5);

type Changed = std::result::Result<
    ClientWriteResponse<TypeConfig>,
    RaftError<TypeConfig, ClientWriteError<TypeConfig>>,
>;

impl Group {
    /// On the leader: makes these the voters, bringing new ones up to date first and dropping all
    /// others. Goes by joint consensus; if it fails half way, calling it again goes on.
    pub async fn change_members(
        &self,
        voters: BTreeMap<ReplicaId, NodeId>,
        timeout: Duration,
    ) -> Result<()> {
        let change = async {
            let known: BTreeSet<ReplicaId> = {
                let members = self.status().members;
                members
                    .voters
                    .into_keys()
                    .chain(members.learners.into_keys())
                    .collect()
            };
            for (replica, node) in &voters {
                if !known.contains(replica) {
                    changed(self.raft().add_learner(*replica, *node, true)).await?;
                }
            }
            let ids: BTreeSet<ReplicaId> = voters.keys().copied().collect();
            changed(self.raft().change_membership(ids, false)).await
        };
        self.changing(timeout, change).await
    }

    /// On the leader: adds a replica that receives the log and does not vote; returns when it is up to
    /// date.
    pub async fn add_learner(
        &self,
        replica: ReplicaId,
        node: NodeId,
        timeout: Duration,
    ) -> Result<()> {
        self.changing(
            timeout,
            changed(self.raft().add_learner(replica, node, true)),
        )
        .await
    }

    /// A change that does not end in time may still end later.
    async fn changing(
        &self,
        timeout: Duration,
        change: impl Future<Output = Result<()>>,
    ) -> Result<()> {
        self.ready_to_write(timeout).await?;
        match within(timeout, "the change of members", change).await {
            Ok(done) => done,
            Err(late) => Err(Error::OutcomeUnknown(late.to_string())),
        }
    }

    /// On the leader: hands leadership to a voter that is up to date, and waits until it leads. One
    /// that lags is `Invalid`: openraft stops writes and heartbeats once a transfer has begun, until
    /// somebody is elected.
    pub async fn transfer_leader(&self, to: ReplicaId, timeout: Duration) -> Result<()> {
        if to == self.replica() && self.is_leader() {
            return Ok(());
        }
        let status = self.status();
        if !self.is_leader() {
            return Err(Error::NotLeader {
                leader: status.leader,
            });
        }
        if !status.members.voters.contains_key(&to) {
            return Err(Error::Invalid(format!(
                "replica {to} is no voter of group {}",
                self.id()
            )));
        }
        if status.lag(to).is_none_or(|lag| lag > TRANSFER_LAG_MAX) {
            return Err(Error::Invalid(format!(
                "replica {to} is too far behind to lead"
            )));
        }
        self.ready_to_write(timeout).await?;
        let vote = self.inner.metrics.borrow_watched().vote;
        self.inner.parts.network.quiet.hand_over(vote);
        self.raft()
            .trigger()
            .transfer_leader(to)
            .await
            .map_err(|fatal| stopped(&fatal))?;
        self.wait_for(timeout, "the transfer", |metrics| {
            metrics.state != ServerState::Leader && metrics.current_leader == Some(to)
        })
        .await
    }

    /// Removes entries up to `upto` from the log here, as far as they are flushed. On a leader,
    /// replicas that still need them will be sent a snapshot. Returns the index asked for after that
    /// bound; the purge itself follows soon.
    pub async fn purge(&self, upto: u64) -> Result<Option<u64>> {
        let Some(flushed) = self.inner.parts.machine.flushed() else {
            return Ok(None);
        };
        let upto = upto.min(flushed);
        let log = &self.inner.parts.log;
        if log.purged().is_some_and(|purged| purged.index >= upto) {
            return Ok(log.purged().map(|purged| purged.index));
        }
        let noted = self
            .inner
            .metrics
            .borrow_watched()
            .snapshot
            .map(|id| id.index);
        let trigger = self.raft().trigger();
        if noted.is_none_or(|noted| noted < upto) {
            trigger.snapshot().await.map_err(|fatal| stopped(&fatal))?;
            self.wait_for(
                PURGE_NOTE_TIMEOUT,
                "noting the flushed position",
                |metrics| metrics.snapshot.is_some_and(|id| id.index >= upto),
            )
            .await?;
        }
        trigger
            .purge_log(upto)
            .await
            .map_err(|fatal| stopped(&fatal))?;
        Ok(Some(upto))
    }
}

async fn changed(change: impl Future<Output = Changed>) -> Result<()> {
    match change.await {
        Ok(_) => Ok(()),
        Err(RaftError::APIError(error)) => Err(write_error(error)),
        Err(RaftError::Fatal(fatal)) => Err(stopped(&fatal)),
    }
}

/// What a refused change of members means.
pub(super) fn change_error(error: ChangeMembershipError<LeaderId, u64>) -> Error {
    match error {
        ChangeMembershipError::InProgress(_) | ChangeMembershipError::UncommittedLeaderLog(_) => {
            Error::Busy
        }
        error => Error::Invalid(error.to_string()),
    }
}
