//! Whether a group serves, as far as one replica hears.
//!
//! A leader knows when a quorum last answered it. A follower knows when a message of the leader last
//! came that it followed, heartbeats among them. Neither is asked by anybody for it: both are there in
//! an idle group too, which costs nothing but the look.

use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::{Instant as _, RaftMetrics, ServerState};
use tokio::time::Instant;

use super::{Group, leader_of};
use crate::raft::TypeConfig;
use crate::types::{Health, StopReason};

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

    /// A message of the leader came then, and this replica follows it.
    pub(super) fn note_leader(&self, came: Instant) {
        let mut heard = self.inner.leader_heard.lock();
        *heard = (*heard).max(Some(came));
    }
}
