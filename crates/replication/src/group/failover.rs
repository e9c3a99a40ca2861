//! Standing for election at once when it is known that nobody leads.
//!
//! Timers find a dead leader only after the election time. A transport often knows at once: a process that dies has
//! its connections closed by its kernel, and nobody listens at its address. One that stands still or is cut off is
//! [silent](crate::detector). Each node that finds so lets go of the dead leader's lease and asks, by pre-vote, whether it would be elected: nobody's term changes unless a
//! quorum knows too, and would have it.
//!
//! Voters ask one after the other, in an order that is another for each group: so they don't split the votes, and
//! leads spread over the nodes. Where the first one's log is too old, the second wins.
//!
//! A leader that is thought dead and lives is deposed, no more: it commits nothing in its old term, and reads ask a
//! quorum. Reads that rest on a lease would need more: that the *process* is dead.
//!
//! A new group is in the same place: nobody leads it, and everybody knows. Its voters ask in turn too, again and
//! again, because the others may not have opened their replicas yet.

use std::time::Duration;

use openraft::RaftMetrics;
use openraft::async_runtime::WatchReceiver;
use openraft::raft::TransferLeaderRequest;
use quorate_env::switch;
use tokio::time::Instant;

use super::{Group, leader_of, stopped};
use crate::error::Result;
use crate::raft::{TypeConfig, Vote};
use crate::types::NodeId;

/// Between two voters that ask for the first time: longer than a round trip and the sync of a vote mostly take. Where
/// nodes are far from each other it is two measured round trips.
const STAGGER: Duration = Duration::from_millis(20);
/// Each further time it is twice as long, up to so many times: so a slow machine's elections get done.
const STAGGER_TIMES_MAX: u32 = 16;
/// For so long after a death what the dead node had sent may still be taken in.
const LATE: Duration = Duration::from_secs(1);

/// A node that is thought gone.
#[derive(Clone, Copy)]
pub(crate) enum Gone {
    /// Nobody listens at its address.
    Dead(NodeId),
    /// It does not answer. When it does again, it is left alone.
    Silent(NodeId),
}

impl Gone {
    fn node(self) -> NodeId {
        let (Gone::Dead(node) | Gone::Silent(node)) = self;
        node
    }
}

impl Group {
    /// Has this replica of a new group stand for election, and again at growing distances while nobody leads, for the
    /// election time. All first replicas are told so, each with its place in one order. Timers go on beside it.
    ///
    /// Being told their first members, all of them ask for votes in the same moment. One that is elected can be
    /// deposed by the vote that another gave itself, and those who followed it know nothing of that.
    pub async fn campaign(&self, place: u32, of: u32) -> Result<()> {
        self.stand(None, Turn { place, of }).await
    }

    /// If a node led the group, or might have been about to, stands for election whenever nobody leads, for the
    /// election time. Timers go on beside it.
    pub(crate) async fn leader_gone(self, gone: Gone) {
        let node = gone.node();
        // What this replica knows may be behind for a moment.
        let concerns = |metrics: &_| self.turn_after(metrics, node).is_some();
        let waited = self.wait_for(LATE, "a leader that is gone", concerns).await;
        let turn = self.turn_after(&self.inner.metrics.borrow_watched(), node);
        if let (Ok(()), Some(turn)) = (waited, turn) {
            self.stir();
            // A replica that stopped stands no more.
            let _ = self.stand(Some(gone), turn).await;
        }
    }

    /// One that is elected is watched for that long: a rival that asked in the same moment may hold a higher term
    /// and depose it, and yet not be electable itself, because its log is shorter by then.
    async fn stand(&self, gone: Option<Gone>, turn: Turn) -> Result<()> {
        let patience = self.inner.parts.config.timing.election_max;
        let lease = &self.inner.parts.network.lease;
        // Who is thought dead may live, and read: nobody who promised helps to elect another before that is over.
        if gone.is_some() && switch::bug("lease_let_go_of_when_thought_dead") {
            lease.forget();
        }
        let begin = lease.owes_until().unwrap_or_else(Instant::now);
        let shortest = STAGGER.max(self.inner.parts.network.detector.round_trip() * 2);
        let (mut round, mut stagger) = (begin, shortest);
        let end = round + patience;
        let mut dead = None;
        while round < end && !self.is_back(gone) {
            // What it had sent before it died may be taken in only now, and show that it led. Later it is a process
            // that was started anew.
            if dead.is_none() && round < begin + LATE {
                dead = gone.and_then(|gone| self.led_from(gone.node()));
            }
            if let Some(Dead { vote, replica }) = dead {
                // A transfer to nobody that is there: it lets go of the lease. What is taken in late may give the
                // lease anew, so each round lets go of it again.
                let let_go = TransferLeaderRequest::new(vote, replica, None);
                let asked = self.raft().handle_transfer_leader(let_go).await;
                // Refused: the vote has changed, so there is nothing to let go of.
                let _ = asked.map_err(|fatal| stopped(&fatal))?;
            }
            tokio::time::sleep_until(round + stagger * turn.place).await;
            if !self.is_led(dead.map(|dead| dead.vote)) {
                self.elect().await?;
            }
            round += stagger * turn.of;
            stagger = (stagger * 2).min(shortest * STAGGER_TIMES_MAX);
            tokio::time::sleep_until(round).await;
        }
        Ok(())
    }

    /// Whether one that was only silent answers again.
    fn is_back(&self, gone: Option<Gone>) -> bool {
        let detector = &self.inner.parts.network.detector;
        matches!(gone, Some(Gone::Silent(node)) if !detector.is_silent(node))
    }

    /// Whether somebody leads under another vote than the dead leader's.
    fn is_led(&self, dead: Option<Vote>) -> bool {
        let metrics = self.inner.metrics.borrow_watched();
        metrics.current_leader.is_some() && Some(metrics.vote) != dead
    }

    /// The leader, if it is on this node.
    fn led_from(&self, node: NodeId) -> Option<Dead> {
        let metrics = self.inner.metrics.borrow_watched();
        let leader = leader_of(&metrics).filter(|leader| leader.node == node)?;
        Some(Dead {
            vote: metrics.vote,
            replica: leader.replica,
        })
    }

    /// When this replica's turn is to follow a leader on this node, or one that was about to be elected. None: it is
    /// not for this replica to stand, or another node leads.
    fn turn_after(&self, metrics: &RaftMetrics<TypeConfig>, node: NodeId) -> Option<Turn> {
        if leader_of(metrics).is_some_and(|leader| leader.node != node) {
            return None;
        }
        let membership = metrics.membership_config.membership();
        let on_node = |voter: &u64| membership.get_node(voter).is_some_and(|held| *held == node);
        let (gone, mut heirs): (Vec<u64>, Vec<u64>) = membership.voter_ids().partition(on_node);
        if gone.is_empty() {
            return None;
        }
        heirs.sort_unstable();
        let own = heirs.iter().position(|voter| *voter == self.replica())? as u64;
        let of = heirs.len() as u64;
        Some(Turn {
            place: ((own + self.id()) % of) as u32,
            of: of as u32,
        })
    }
}

/// The leader that is to be followed.
#[derive(Clone, Copy)]
struct Dead {
    vote: Vote,
    replica: u64,
}

/// When a voter asks in each round: how many ask before it, of how many.
struct Turn {
    place: u32,
    of: u32,
}
