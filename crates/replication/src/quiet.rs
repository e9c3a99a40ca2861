//! Quiet groups: those that nobody uses cost nothing.
//!
//! A group costs its heartbeats and the ticks of openraft's timers, used or not. So a leader whose group has been
//! idle for a while, with all replicas at the same entry, asks them to be quiet. When all agree, their ticks stop and
//! no heartbeat goes. What stands for them is the pulse of the leader's node: one small message from node to node for
//! all groups, with the number of the process that sends it.
//!
//! ```text
//! awake --- idle, all replicas agree ---> quiet
//!   ^                                       |
//!   '--- any message of the group, any -----'
//!        proposal or read, the leader's node
//!        silent or another process by now
//! ```
//!
//! Being quiet is no promise: whoever wakes ticks again, and stands for election in the end if it hears of no leader.
//! A replica that is asked for a pre-vote while it is quiet refuses this once and wakes the leader, which then shows
//! itself; if there is none, the next one is granted, and its own timers go on after a while. A leader that was quiet asks a quorum before it takes a write.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::raft::Vote;
use crate::types::{GroupId, NodeId};

/// The group of messages from node to node. No group has this number.
pub(crate) const NODE: GroupId = 0;

/// What a quiet replica relies on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Calm {
    /// The node that leads, and the process there.
    pub leader: NodeId,
    pub incarnation: u64,
    /// Under which vote.
    pub vote: Vote,
    /// On the leader: the nodes of the other voters. They must answer its node's pulse.
    pub voters: Vec<NodeId>,
    /// And of all other replicas: they hear it.
    pub members: Vec<NodeId>,
}

enum Phase {
    Awake,
    /// The leader has asked the others.
    Asking,
    Quiet(Calm),
}

struct State {
    phase: Phase,
    /// Whether openraft's timers tick.
    ticks: bool,
    /// Not before.
    ticks_from: Option<Instant>,
    idle_since: Option<Instant>,
    /// The vote under which it was told to hand over: openraft's leader is silent then, so that others elect, and must
    /// not have them be quiet.
    handed_over: Option<Vote>,
    /// Since when it leads and is awake.
    leads_since: Option<Instant>,
}

/// Whether a replica is quiet.
pub(crate) struct Quiet {
    state: Mutex<State>,
    /// Something happened since it was last looked at.
    stirred: AtomicBool,
    /// It led quietly: openraft's leader may have no quorum's answer that is fresh enough for a write.
    unconfirmed: AtomicBool,
    /// It leads without a quorum, and lets the others elect.
    holds_back: AtomicBool,
}

impl Default for Quiet {
    fn default() -> Quiet {
        let state = State {
            phase: Phase::Awake,
            ticks: true,
            ticks_from: None,
            idle_since: None,
            handed_over: None,
            leads_since: None,
        };
        Quiet {
            state: Mutex::new(state),
            stirred: AtomicBool::new(false),
            unconfirmed: AtomicBool::new(false),
            holds_back: AtomicBool::new(false),
        }
    }
}

impl Quiet {
    /// Something happens in the group: a quiet replica wakes. Whether it was quiet.
    pub fn stir(&self) -> bool {
        self.stirred.store(true, Ordering::Release);
        self.wake(Duration::ZERO)
    }

    /// It wakes, but is not kept awake. Its timers have run out long ago: one that does not lead gives the leader so
    /// long to show itself.
    pub fn wake(&self, grace: Duration) -> bool {
        let mut state = self.state.lock();
        let was = std::mem::replace(&mut state.phase, Phase::Awake);
        let was_quiet = matches!(was, Phase::Quiet(_));
        if was_quiet {
            state.idle_since = None;
            state.ticks_from = Some(Instant::now() + grace);
            self.unconfirmed.store(true, Ordering::Release);
        }
        was_quiet
    }

    pub fn is_quiet(&self) -> bool {
        matches!(self.state.lock().phase, Phase::Quiet(_))
    }

    /// Whether a write must ask a quorum first.
    pub fn is_unconfirmed(&self) -> bool {
        self.unconfirmed.load(Ordering::Acquire)
    }

    /// It hands over what it leads under this vote.
    pub fn hand_over(&self, vote: Vote) {
        self.state.lock().handed_over = Some(vote);
        self.stir();
    }

    /// Whether it was told to hand over what it leads under this vote.
    pub fn hands_over(&self, vote: &Vote) -> bool {
        self.state.lock().handed_over.as_ref() == Some(vote)
    }

    /// Since when it leads and is awake, as far as was noticed.
    pub fn leads_since(&self, leads: bool) -> Option<Instant> {
        let mut state = self.state.lock();
        match leads && !matches!(state.phase, Phase::Quiet(_)) {
            true => Some(*state.leads_since.get_or_insert_with(Instant::now)),
            false => {
                state.leads_since = None;
                None
            }
        }
    }

    /// Whether it shows itself to nobody just now.
    pub fn holds_back(&self) -> bool {
        self.holds_back.load(Ordering::Acquire)
    }

    /// Whether that has changed.
    pub fn hold_back(&self, on: bool) -> bool {
        self.holds_back.swap(on, Ordering::AcqRel) != on
    }

    /// A quorum has answered.
    pub fn confirmed(&self) {
        self.unconfirmed.store(false, Ordering::Release);
    }

    /// What it relies on, if it is quiet.
    pub fn calm(&self) -> Option<Calm> {
        match &self.state.lock().phase {
            Phase::Quiet(calm) => Some(calm.clone()),
            _ => None,
        }
    }

    /// Has openraft tick again, if it woke since.
    pub fn resume(&self, tick: impl FnOnce(bool)) {
        let mut state = self.state.lock();
        let is_awake = !matches!(state.phase, Phase::Quiet(_));
        if !state.ticks && is_awake && state.ticks_from.is_none_or(|from| Instant::now() >= from) {
            state.ticks = true;
            state.ticks_from = None;
            tick(true);
        }
    }

    /// Whether nothing has happened for so long, and nobody is being asked. The caller asks then.
    pub fn may_ask(&self, now: Instant, after: Duration) -> bool {
        let mut state = self.state.lock();
        if self.stirred.swap(false, Ordering::AcqRel) {
            state.idle_since = Some(now);
        }
        let since = *state.idle_since.get_or_insert(now);
        let may = now >= since + after && matches!(state.phase, Phase::Awake);
        if may {
            state.phase = Phase::Asking;
            // One that is refused is not asked again at once.
            state.idle_since = Some(now);
        }
        may
    }

    /// The leader heard from the others: it is quiet if all agreed and nothing happened meanwhile, its own
    /// heartbeats included.
    pub fn settle(&self, calm: Option<Calm>, tick: impl FnOnce(bool)) {
        let mut state = self.state.lock();
        if !matches!(state.phase, Phase::Asking) {
            return;
        }
        state.phase = match calm.filter(|_| !self.stirred.load(Ordering::Acquire)) {
            Some(calm) => {
                state.ticks = false;
                tick(false);
                Phase::Quiet(calm)
            }
            None => Phase::Awake,
        };
    }

    /// A follower agrees.
    pub fn follow(&self, calm: Calm, tick: impl FnOnce(bool)) {
        let mut state = self.state.lock();
        state.phase = Phase::Quiet(calm);
        state.ticks = false;
        state.ticks_from = None;
        tick(false);
    }
}

/// The pulses of the nodes.
///
/// A pulse says that a node lives, and so that it leads all that is quiet there. What this node does not lead quietly
/// any more, for whatever reason, is named in its pulses until they were answered.
#[derive(Default)]
pub(crate) struct Pulses {
    peers: Mutex<BTreeMap<NodeId, Peer>>,
    /// What this node led quietly when that was last looked at, and who relies on it.
    led: Mutex<BTreeMap<GroupId, Vec<NodeId>>>,
}

#[derive(Default)]
struct Peer {
    heard: Option<(Instant, u64)>,
    answered: Option<Instant>,
    /// What it is yet to hear of: groups that are not quiet here.
    woken: BTreeSet<GroupId>,
}

impl Pulses {
    /// A node's pulse came, or what stands for one.
    pub fn heard(&self, node: NodeId, incarnation: u64) {
        self.peers.lock().entry(node).or_default().heard = Some((Instant::now(), incarnation));
    }

    /// These groups are led quietly here now, and no others. Gives the nodes that are to have a pulse, each with the
    /// groups that it names.
    pub fn lead(&self, led: BTreeMap<GroupId, Vec<NodeId>>) -> Vec<(NodeId, Vec<GroupId>)> {
        let mut before = self.led.lock();
        let mut peers = self.peers.lock();
        for (group, members) in before.iter().filter(|(group, _)| !led.contains_key(*group)) {
            for node in members {
                peers.entry(*node).or_default().woken.insert(*group);
            }
        }
        let mut reach: BTreeSet<NodeId> = BTreeSet::new();
        for (group, members) in &led {
            for node in members {
                peers.entry(*node).or_default().woken.remove(group);
                reach.insert(*node);
            }
        }
        *before = led;
        let due = peers
            .iter()
            .filter(|(node, peer)| !peer.woken.is_empty() || reach.contains(*node));
        due.map(|(node, peer)| (*node, peer.woken.iter().copied().collect()))
            .collect()
    }

    /// A group was to be quiet, and is not: who has agreed must hear of it.
    pub fn not_led(&self, group: GroupId, members: &[NodeId]) {
        let mut peers = self.peers.lock();
        for node in members {
            peers.entry(*node).or_default().woken.insert(group);
        }
    }

    /// A node has heard of these.
    pub fn told(&self, node: NodeId, woken: &[GroupId]) {
        self.answered(node);
        if let Some(peer) = self.peers.lock().get_mut(&node) {
            peer.woken.retain(|group| !woken.contains(group));
        }
    }

    /// A node answered ours.
    pub fn answered(&self, node: NodeId) {
        self.peers.lock().entry(node).or_default().answered = Some(Instant::now());
    }

    /// Whether what a quiet replica on `own` relies on still holds: a follower hears the leader's process, a leader
    /// has the answers of a majority.
    pub fn bear_out(&self, own: NodeId, calm: &Calm, silence_max: Duration) -> bool {
        let peers = self.peers.lock();
        let is_recent = |at: Instant| at.elapsed() < silence_max;
        if calm.leader != own {
            let heard = peers.get(&calm.leader).and_then(|peer| peer.heard);
            return heard.is_some_and(|(at, by)| by == calm.incarnation && is_recent(at));
        }
        let answer = |node: &&NodeId| {
            let answered = peers.get(*node).and_then(|peer| peer.answered);
            answered.is_some_and(is_recent)
        };
        let answers = 1 + calm.voters.iter().filter(answer).count();
        answers > calm.voters.len().div_ceil(2)
    }
}

#[cfg(test)]
mod tests;
