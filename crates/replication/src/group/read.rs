//! Linearizable reads: an index that holds all that was acknowledged.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::errors::{LinearizableReadError, RaftError};
use openraft::{LinearizerOption, ReadPolicy};
use quorate_env::switch;
use tokio::time::Instant;

use super::{Group, not_leader, stopped, within};
use crate::error::{Error, Result};
use crate::raft::TypeConfig;
use crate::transport::Class;
use crate::types::ReplicaId;
use crate::wire::{self, Route};

/// How many rounds may be made in vain for one read.
const CONFIRMATIONS: u32 = 8;

impl Group {
    /// An index such that a state machine that applied it holds every write acknowledged before this
    /// call began (ReadIndex): read there and the read is linearizable. Works on every replica; a
    /// round to a quorum answers all callers that wait. Does **not** wait for this replica to apply
    /// it: see [`Group::read_barrier`].
    pub async fn read_index(&self, timeout: Duration) -> Result<u64> {
        let group = self.clone();
        let asked = async move {
            let runtime = group.inner.parts.runtime.clone();
            if group.is_leader() {
                return group.local_read_index().await;
            }
            let asker = group.clone();
            let round = move || {
                let asker = asker.clone();
                async move { asker.ask_leader().await }
            };
            group.inner.forwards.join(&runtime, round).await
        };
        within(timeout, "ReadIndex", asked).await?
    }

    /// As the leader: by lease, or by a round to a quorum.
    pub(super) async fn local_read_index(&self) -> Result<u64> {
        if switch::rarely("replication.read_index_refused", 5) {
            return Err(Error::NoQuorum);
        }
        if switch::bug("read_index_without_quorum") {
            let committed = self.status().committed;
            return committed.ok_or(Error::NoQuorum);
        }
        if self.is_cut_off() {
            return Err(Error::NoQuorum);
        }
        self.stir();
        let group = self.clone();
        let round = move || {
            let group = group.clone();
            async move {
                group.inner.parts.network.lease.want();
                match group.leased_index().await {
                    Some(index) => Ok(index),
                    None => group.confirmed_index().await,
                }
            }
        };
        self.inner
            .rounds
            .join(&self.inner.parts.runtime, round)
            .await
    }

    /// What is committed, if this replica leads and the lease says that nobody else does.
    ///
    /// The index is taken first, then the lease is looked at: when the index was taken, this replica led in its own
    /// view, and nobody led after it until the lease was looked at. So all that was acknowledged to anybody before
    /// that is in the index. How long the process stands still between that and its answer is of no matter, as with
    /// an answer to a round: the read took place before.
    async fn leased_index(&self) -> Option<u64> {
        let parts = &self.inner.parts;
        let left = || parts.network.lease.left(parts.replica, &self.voter_sets());
        left()?;
        // openraft says what is committed and whether it leads and hands over; its own lease is too long to be asked.
        let option = LinearizerOption::new(None, false).with_wait_timeout(Duration::ZERO);
        let answer = parts.raft.get_read_linearizer(option).await;
        let index = match answer {
            Ok(linearizer) => linearizer.read_log_id().index(),
            Err(_) if switch::bug("lease_kept_after_handing_over") => self.status().committed?,
            Err(_) => return None,
        };
        let left = left()?;
        switch::probe("leased", || [parts.id, parts.replica, self.status().term]);
        if left.is_zero() {
            self.renew();
        }
        Some(index)
    }

    /// Has a quorum promise anew while the lease still holds, so that no read waits for it.
    pub(super) fn renew(&self) {
        if self.inner.renewing.swap(true, Ordering::AcqRel) {
            return;
        }
        let group = self.clone();
        self.inner.parts.runtime.spawn(async move {
            let _done = Renewing(&group.inner.renewing);
            // Whoever reads next finds out what became of it.
            if group.confirmed_index().await.is_ok() {
                group.inner.parts.network.quiet.confirmed();
            }
        });
    }

    /// What is committed, when a quorum has acknowledged a message that was sent after this was called.
    pub(super) async fn confirmed_index(&self) -> Result<u64> {
        let parts = &self.inner.parts;
        if parts.network.quiet.holds_back() {
            return Err(Error::NoQuorum);
        }
        for _ in 0..CONFIRMATIONS {
            let since = Instant::now();
            let answer = parts.raft.get_read_linearizer(ReadPolicy::ReadIndex).await;
            let linearizer = answer.map_err(read_error)?;
            // openraft takes an answer to an append for one to all later appends that end at the same entry.
            let lease = &parts.network.lease;
            if lease.is_confirmed(parts.replica, &self.voter_sets(), since) {
                return Ok(linearizer.read_log_id().index());
            }
            tokio::task::yield_now().await;
        }
        Err(Error::NoQuorum)
    }

    /// The voters that this replica acts by; while they change, of both configurations. At most one step behind
    /// openraft, which publishes a configuration before it can have committed it: and quorums of two configurations
    /// that follow each other overlap.
    fn voter_sets(&self) -> Vec<BTreeSet<ReplicaId>> {
        let metrics = self.inner.metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        membership.get_joint_config().clone()
    }

    /// A round to the leader, which makes one to a quorum.
    async fn ask_leader(&self) -> Result<u64> {
        let leader = self.leader().ok_or(Error::NotLeader { leader: None })?;
        if leader.replica == self.replica() {
            return self.local_read_index().await;
        }
        let parts = &self.inner.parts;
        if parts.network.detector.is_silent(leader.node) {
            return Err(Error::NotLeader { leader: None });
        }
        let route = Route {
            to: leader.replica,
            from: parts.replica,
        };
        let payload = wire::read(route);
        let reply = parts
            .network
            .transport
            .send(leader.node, Class::Vote, parts.id, payload);
        let reply = within(parts.config.timing.election_max * 2, "ReadIndex", reply).await?;
        let reply = reply.map_err(|_| Error::NotLeader { leader: None })?;
        let mut reader = wire::decode_reply(parts.id, reply)?;
        reader.u64().map_err(|e| Error::Corrupt(e.to_string()))
    }

    /// [`Group::read_index`], then waits until this replica has applied it: a read of the state
    /// machine after this is linearizable. Returns the index.
    pub async fn read_barrier(&self, timeout: Duration) -> Result<u64> {
        let group = self.clone();
        let barrier = async move {
            let index = group.read_index(timeout).await?;
            if !switch::bug("read_before_applied") {
                group.wait_applied(index, timeout).await?;
            }
            Ok(index)
        };
        within(timeout, "the read", barrier).await?
    }
}

/// The lease is being renewed until this is dropped.
struct Renewing<'a>(&'a AtomicBool);

impl Drop for Renewing<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

fn read_error(error: RaftError<TypeConfig, LinearizableReadError<TypeConfig>>) -> Error {
    match error {
        RaftError::APIError(LinearizableReadError::ForwardToLeader(f)) => not_leader(&f),
        RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)) => Error::NoQuorum,
        RaftError::Fatal(fatal) => stopped(&fatal),
    }
}
