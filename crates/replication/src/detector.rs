//! Finding out that a node is silent, from the answers to this node's pulses.
//!
//! A process that dies is found by its connections. One that stands still, or whose network is cut, says nothing: only
//! its silence tells. Each node asks each of its peers a few times within [`Timing::silence_min`]. An answer shows that
//! both directions work, so both sides of a link that is broken in one of them see silence.
//!
//! How long a silence must be is measured: more than three times as long as the silences between its answers usually are, which
//! is what all but one in 200 are shorter than. So a busy machine or a restless network is given more time, and a far peer
//! no more than a near one. No silence shorter than `silence_min` counts, and none has to be longer than the longest
//! election time-out, as a node that is silent for so long is voted out anyway. One long silence changes little: taking a
//! living leader for gone costs an election, some tens of milliseconds, and waiting for a dead one costs the whole wait.
//!
//! Silence proves nothing. Whoever hears of it asks by pre-vote, and a quorum has to agree. A process that stood still
//! itself heard nobody: what it was late by is taken off.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::types::{NodeId, Timing};

/// How often a peer is asked within the shortest silence that counts.
const ASKED: u32 = 4;
/// A peer is not judged before it answered for so many times that silence.
const KNOWN_AFTER: u32 = 20;
/// A silence that counts is so many times as long as what is usual.
const TIMES: u32 = 3;
/// One silence in so many may be longer than what is usual.
const LONGER: u32 = 200;

pub(crate) struct Detector {
    timing: Timing,
    peers: Mutex<BTreeMap<NodeId, Peer>>,
    silent: AtomicUsize,
}

#[derive(Default)]
struct Peer {
    /// What it answered, if it ever did.
    answers: Option<Answers>,
    is_silent: bool,
}

struct Answers {
    first: Instant,
    last: Instant,
    /// The length that few silences between two answers exceed.
    usual: Duration,
    round_trip: Duration,
}

impl Detector {
    pub fn new(timing: Timing) -> Detector {
        Detector {
            timing,
            peers: Mutex::default(),
            silent: AtomicUsize::new(0),
        }
    }

    /// How often each peer is asked. None: never, silence is left to the timers of elections.
    pub fn interval(&self) -> Option<Duration> {
        let interval = self.timing.silence_min / ASKED;
        (!interval.is_zero()).then_some(interval)
    }

    /// These are the peers now, and no others.
    pub fn watch(&self, nodes: &BTreeSet<NodeId>) {
        let mut peers = self.peers.lock();
        peers.retain(|node, _| nodes.contains(node));
        for node in nodes {
            peers.entry(*node).or_default();
        }
        self.count(&peers);
    }

    pub fn peers(&self) -> Vec<NodeId> {
        self.peers.lock().keys().copied().collect()
    }

    /// A peer answered, so long after it was asked.
    pub fn answered(&self, node: NodeId, now: Instant, round_trip: Duration) {
        let mut peers = self.peers.lock();
        let Some(peer) = peers.get_mut(&node) else {
            return;
        };
        peer.is_silent = false;
        match &mut peer.answers {
            Some(answers) => answers.add(now, round_trip, self.timing.silence_min / ASKED),
            first => *first = Some(Answers::new(now, round_trip)),
        }
        self.count(&peers);
    }

    /// Those who are silent from now on. Who asks is late by so much: if that is much, it stood still for so long and
    /// heard nobody.
    pub fn fell_silent(&self, now: Instant, late: Duration) -> Vec<NodeId> {
        let Some(interval) = self.interval() else {
            return Vec::new();
        };
        let stood_still = if late > interval {
            late
        } else {
            Duration::ZERO
        };
        let mut peers = self.peers.lock();
        let mut fell = Vec::new();
        for (node, peer) in peers.iter_mut().filter(|(_, peer)| !peer.is_silent) {
            let Some(answers) = &mut peer.answers else {
                continue;
            };
            answers.last = now.min(answers.last + stood_still);
            if now >= self.bears_until(answers) {
                peer.is_silent = true;
                fell.push(*node);
            }
        }
        self.count(&peers);
        fell
    }

    /// When to look again, if nobody answers until then.
    pub fn next_look(&self) -> Option<Instant> {
        let peers = self.peers.lock();
        let speaking = peers.values().filter(|peer| !peer.is_silent);
        let answers = speaking.filter_map(|peer| peer.answers.as_ref());
        answers.map(|answers| self.bears_until(answers)).min()
    }

    /// Until when its silence is borne.
    fn bears_until(&self, answers: &Answers) -> Instant {
        let shortest = self.timing.silence_min;
        let measured = answers.usual * TIMES + shortest / ASKED;
        let known = answers.first + shortest * KNOWN_AFTER;
        known.max(answers.last + measured.clamp(shortest, self.timing.election_max))
    }

    pub fn is_any_silent(&self) -> bool {
        self.silent.load(Ordering::Relaxed) > 0
    }

    pub fn is_silent(&self, node: NodeId) -> bool {
        self.is_any_silent() && self.peers.lock().get(&node).is_some_and(|p| p.is_silent)
    }

    /// The longest time, of all peers that answer, that an answer takes, smoothed.
    pub fn round_trip(&self) -> Duration {
        let peers = self.peers.lock();
        let answering = peers.values().filter(|peer| !peer.is_silent);
        let trips = answering.filter_map(|peer| Some(peer.answers.as_ref()?.round_trip));
        trips.max().unwrap_or_default()
    }

    fn count(&self, peers: &BTreeMap<NodeId, Peer>) {
        let silent = peers.values().filter(|peer| peer.is_silent).count();
        self.silent.store(silent, Ordering::Relaxed);
    }
}

impl Answers {
    fn new(now: Instant, round_trip: Duration) -> Answers {
        Answers {
            first: now,
            last: now,
            usual: Duration::ZERO,
            round_trip,
        }
    }

    /// Up a step for each silence that was longer, down by a 200th of it for each that was not: so it stays where one
    /// in 200 is.
    fn add(&mut self, now: Instant, round_trip: Duration, interval: Duration) {
        let step = interval / 2;
        self.usual = match now - self.last > self.usual {
            true => self.usual + step,
            false => self.usual.saturating_sub(step / LONGER),
        };
        self.last = now;
        self.round_trip = (self.round_trip * 7 + round_trip) / 8;
    }
}

#[cfg(test)]
mod tests;
