//! Whether a group serves, as far as one replica hears.
//!
//! A leader knows when a quorum last answered it. A follower knows when a message of the leader last
//! came that it followed, heartbeats among them. Neither is asked by anybody for it: both are there in
//! an idle group too, which costs nothing but the look.

use std::collections::BTreeSet;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::{Instant as _, RaftMetrics, ServerState};
use tokio::time::Instant;

use super::{Group, leader_of};
use crate::raft::TypeConfig;
use crate::types::{Health, NodeId, StopReason};

impl Group {
    /// Why this replica stopped, if it did: it answers nothing any more.
    pub fn stop_reason(&self) -> Option<StopReason> {
        self.stop_reason_of(&self.inner.metrics.borrow_watched())
    }

    fn stop_reason_of(&self, metrics: &RaftMetrics<TypeConfig>) -> Option<StopReason> {
        let fatal = metrics.running_state.as_ref().err()?;
        Some(self.inner.parts.handle.failure.stop_reason(fatal))
    }

    /// Whether the group serves, as far as this replica hears.
    pub(super) fn health_of(&self, metrics: &RaftMetrics<TypeConfig>) -> Health {
        if let Some(reason) = self.stop_reason_of(metrics) {
            return Health::Stopped(reason);
        }
        if self.inner.parts.network.quiet.is_quiet() {
            // It would wake if its leader's node, or its quorum, were silent.
            return Health::Works;
        }
        let silence_max = self.inner.parts.config.timing.election_max * 2;
        let is_recent = |silence: Duration| silence <= silence_max;
        if metrics.state == ServerState::Leader {
            // Who is alone is asked by nobody.
            let alone = metrics.membership_config.membership().voter_ids().count() == 1;
            let acked = metrics.last_quorum_acked.map(|acked| acked.elapsed());
            return match alone || acked.is_some_and(is_recent) {
                true => Health::Works,
                false => Health::NoQuorum,
            };
        }
        let heard = self.inner.leader_heard.lock().map(|at| at.elapsed());
        match leader_of(metrics).is_some() && heard.is_some_and(is_recent) {
            true => Health::Works,
            false => Health::NoLeader,
        }
    }

    /// Whether this replica leads, and so many voters are silent that nothing can be committed. Who asks is told at
    /// once, and not when its time is up.
    pub(super) fn is_cut_off(&self) -> bool {
        let detector = &self.inner.parts.network.detector;
        if !detector.is_any_silent() {
            return false;
        }
        let metrics = self.inner.metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let speaks = |voter: &&u64| {
            let node = membership.get_node(voter);
            node.is_some_and(|node| !detector.is_silent(*node))
        };
        let lacks_quorum =
            |voters: &BTreeSet<u64>| voters.iter().filter(speaks).count() <= voters.len() / 2;
        metrics.state == ServerState::Leader
            && membership.get_joint_config().iter().any(lacks_quorum)
    }

    /// Adds the nodes of the other replicas.
    pub(crate) fn add_peers(&self, peers: &mut BTreeSet<NodeId>) {
        let metrics = self.inner.metrics.borrow_watched();
        let nodes = metrics.membership_config.membership().nodes();
        let own = self.inner.parts.config.node;
        peers.extend(nodes.map(|(_, node)| *node).filter(|node| *node != own));
    }

    /// A message of the leader came then, and this replica follows it.
    pub(super) fn note_leader(&self, came: Instant) {
        let mut heard = self.inner.leader_heard.lock();
        *heard = (*heard).max(Some(came));
    }
}
