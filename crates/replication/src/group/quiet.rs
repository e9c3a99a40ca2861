//! When a replica goes quiet and when it wakes: see [`quiet`](crate::quiet).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::{Instant as _, RaftMetrics, ServerState};
use quorate_env::switch;
use tokio::time::Instant;

use super::{Group, leader_of, within};
use crate::error::{Error, Result};
use crate::quiet::{Calm, Pulses};
use crate::raft::{LogId, TypeConfig, Vote};
use crate::transport::Class;
use crate::types::{GroupId, NodeId, ReplicaId};
use crate::wire::{self, Route};

/// The other replicas, each with its node.
type Others = Vec<(ReplicaId, NodeId)>;

impl Group {
    /// Whether the group is idle, so that neither heartbeats nor timers of it go.
    pub fn is_quiet(&self) -> bool {
        self.inner.parts.network.quiet.is_quiet()
    }

    /// Something happens in the group.
    pub(super) fn stir(&self) -> bool {
        self.inner.parts.network.quiet.stir()
    }

    /// Before a write: one that led quietly asks a quorum, or openraft refuses.
    pub(super) async fn ready_to_write(&self, timeout: Duration) -> Result<()> {
        self.stir();
        let quiet = &self.inner.parts.network.quiet;
        if !quiet.is_unconfirmed() || !self.is_leader() {
            return Ok(());
        }
        match within(timeout, "waking the group", self.confirmed_index()).await {
            Ok(confirmed) => confirmed.map(|_| quiet.confirmed()),
            Err(_) => Err(Error::NoQuorum),
        }
    }

    /// Looks after the replica, once in a while: wakes it if what it relies on is gone, and asks the others to be
    /// quiet if nothing happens. Tells what it leads quietly, and who relies on it.
    pub(crate) fn look_after(
        &self,
        pulses: &Arc<Pulses>,
        incarnation: u64,
        led: &mut BTreeMap<GroupId, Vec<NodeId>>,
    ) {
        let parts = &self.inner.parts;
        let (quiet, config) = (&parts.network.quiet, &parts.config);
        if let Some(calm) = quiet.calm() {
            let lives = self.inner.metrics.borrow_watched().running_state.is_ok();
            if lives && pulses.bear_out(config.node, &calm, config.timing.election_min) {
                if calm.leader == config.node {
                    led.insert(parts.id, calm.members);
                }
                self.hold_back();
                return;
            }
            quiet.wake(Duration::ZERO);
        }
        quiet.resume(|on| parts.raft.runtime_config().tick(on));
        self.hold_back();
        if config.quiet_after.is_zero() || !self.is_leader() {
            return;
        }
        if quiet.may_ask(Instant::now(), config.quiet_after) {
            let (group, pulses) = (self.clone(), Arc::clone(pulses));
            parts
                .runtime
                .spawn(async move { group.ask_for_quiet(&pulses, incarnation).await });
        }
    }

    /// A leader that reaches its followers and does not hear them would lead for ever, for they hear it. So one that
    /// has heard no quorum for an election time-out is silent for two of them, then shows itself for two, in turn.
    /// While it is silent it sends no entries either.
    /// openraft has the same (`quorum_loss_probe_interval`), but takes a leader that was quiet for one without a quorum.
    fn hold_back(&self) {
        let parts = &self.inner.parts;
        let quiet = &parts.network.quiet;
        let metrics = self.inner.metrics.borrow_watched();
        // One that is alone hears nobody. When others join, its time begins.
        let membership = metrics.membership_config.membership();
        let is_alone = membership.voter_ids().count() == 1;
        let leads = metrics.state == ServerState::Leader && !is_alone;
        let on = match quiet.leads_since(leads) {
            None => false,
            Some(since) => {
                let acked = metrics.last_quorum_acked.map(|acked| acked.elapsed());
                let silence = acked.map_or(since.elapsed(), |acked| acked.min(since.elapsed()));
                let lease = parts.config.timing.election_max;
                let turns =
                    silence.saturating_sub(lease).as_nanos() / (2 * lease).as_nanos().max(1);
                silence >= lease && turns.is_multiple_of(2)
            }
        };
        drop(metrics);
        if quiet.hold_back(on) {
            parts.raft.runtime_config().heartbeat(!on);
        }
    }

    async fn ask_for_quiet(&self, pulses: &Pulses, incarnation: u64) {
        let parts = &self.inner.parts;
        let Some((calm, last, others)) = self.proposal_of_quiet(incarnation) else {
            return parts.network.quiet.settle(None, |_| {});
        };
        let members = calm.members.clone();
        let agreed = self.agree_on_quiet(calm, last, others).await;
        let ticks = |on| parts.raft.runtime_config().tick(on);
        // What was agreed upon must still be so: the vote and the end of the log.
        let calm = agreed.filter(|(calm, last)| self.at_rest(&calm.vote, last));
        // Who agreed has answered just now.
        for node in calm.iter().flat_map(|(calm, _)| &calm.members) {
            pulses.answered(*node);
        }
        parts
            .network
            .quiet
            .settle(calm.map(|(calm, _)| calm), ticks);
        if !self.is_quiet() {
            pulses.not_led(parts.id, &members);
        } else {
            switch::probe("quiet", || [parts.id, parts.replica]);
        }
    }

    /// What all replicas agree to rely on.
    async fn agree_on_quiet(
        &self,
        calm: Calm,
        last: LogId,
        others: Others,
    ) -> Option<(Calm, LogId)> {
        let parts = &self.inner.parts;
        let incarnation = calm.incarnation;
        let answers = others.into_iter().map(|(to, node)| {
            let route = Route {
                to,
                from: parts.replica,
            };
            let payload = wire::quiet(route, incarnation, &calm.vote, &last);
            let transport = &parts.network.transport;
            let reply = transport.send(node, Class::Vote, parts.id, payload);
            let timeout = parts.config.message_timeout;
            async move {
                let reply = tokio::time::timeout(timeout, reply).await.ok()?.ok()?;
                let mut reader = wire::decode_reply(parts.id, reply).ok()?;
                reader.bool().ok()?.then_some(())
            }
        });
        let agreed = futures_util::future::join_all(answers).await;
        agreed.into_iter().collect::<Option<Vec<()>>>()?;
        Some((calm, last))
    }

    /// What to ask of whom, if all replicas are known to be at the same entry.
    fn proposal_of_quiet(&self, incarnation: u64) -> Option<(Calm, LogId, Others)> {
        let parts = &self.inner.parts;
        let metrics = self.inner.metrics.borrow_watched();
        let last = metrics.local_committed?;
        let membership = metrics.membership_config.membership();
        let matched = metrics.replication.as_ref()?;
        let others: Others = membership
            .nodes()
            .filter(|(replica, _)| **replica != parts.replica)
            .map(|(replica, node)| (*replica, *node))
            .collect();
        let is_level = |replica: &u64| matched.get(replica).is_some_and(|upto| *upto == Some(last));
        // One that does not hear the others must not keep them from electing.
        let lately = parts.config.timing.election_min;
        let acked = metrics.last_quorum_acked.map(|acked| acked.elapsed());
        let is_fit = acked.is_some_and(|acked| acked < lately)
            && !parts.network.quiet.hands_over(&metrics.vote)
            && rests(&metrics, &metrics.vote, &last)
            && membership.get_joint_config().len() == 1
            && !others.is_empty()
            && others.iter().all(|(replica, _)| is_level(replica));
        if !is_fit {
            return None;
        }
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        let calm = Calm {
            leader: parts.config.node,
            incarnation,
            vote: metrics.vote,
            voters: others
                .iter()
                .filter(|(replica, _)| voters.contains(replica))
                .map(|(_, node)| *node)
                .collect(),
            members: others.iter().map(|(_, node)| *node).collect(),
        };
        Some((calm, last, others))
    }

    fn at_rest(&self, vote: &Vote, last: &LogId) -> bool {
        let hands_over = self.inner.parts.network.quiet.hands_over(vote);
        !hands_over && self.is_leader() && rests(&self.inner.metrics.borrow_watched(), vote, last)
    }

    /// The leader asks this replica to be quiet: whether it is.
    pub(super) fn be_quiet(
        &self,
        pulses: &Pulses,
        incarnation: u64,
        vote: &Vote,
        last: &LogId,
    ) -> bool {
        let parts = &self.inner.parts;
        let metrics = self.inner.metrics.borrow_watched();
        let follows = matches!(metrics.state, ServerState::Follower | ServerState::Learner);
        let Some(leader) = leader_of(&metrics) else {
            return false;
        };
        if !follows || parts.config.quiet_after.is_zero() || !rests(&metrics, vote, last) {
            return false;
        }
        pulses.heard(leader.node, incarnation);
        let calm = Calm {
            leader: leader.node,
            incarnation,
            vote: *vote,
            voters: Vec::new(),
            members: Vec::new(),
        };
        let ticks = |on| parts.raft.runtime_config().tick(on);
        parts.network.quiet.follow(calm, ticks);
        true
    }

    /// A node says that it does not lead this group quietly any more.
    pub(crate) fn woken_by(&self, node: NodeId) {
        let parts = &self.inner.parts;
        let quiet = &parts.network.quiet;
        if quiet.calm().is_some_and(|calm| calm.leader == node) {
            quiet.wake(parts.config.timing.election_min);
        }
    }

    /// A replica that wakes for a pre-vote has the leader show itself, if there is one.
    pub(super) fn wake_leader(&self) {
        let parts = &self.inner.parts;
        if self.is_leader() {
            return self.renew();
        }
        let Some(leader) = self.leader() else { return };
        let route = Route {
            to: leader.replica,
            from: parts.replica,
        };
        let transport = &parts.network.transport;
        let told = transport.send(leader.node, Class::Vote, parts.id, wire::wake(route));
        let timeout = parts.config.message_timeout;
        // If it is lost, this replica stands for election, or grants the next pre-vote.
        parts.runtime.spawn(async move {
            let _ = tokio::time::timeout(timeout, told).await;
        });
    }
}

/// Whether everything up to that entry, the last, is committed and applied under this leader.
fn rests(metrics: &RaftMetrics<TypeConfig>, vote: &Vote, last: &LogId) -> bool {
    metrics.running_state.is_ok()
        && vote.committed
        && metrics.vote == *vote
        && metrics.last_log_index == Some(last.index)
        && metrics.local_committed == Some(*last)
        && metrics.last_applied == Some(*last)
}
