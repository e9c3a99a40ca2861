//! Leases: what lets a leader read without asking anybody, and what voters owe it for that.
//!
//! A leader that shall read by lease asks, in each append, for a promise of a length (`Config::lease`). A voter
//! that takes the append promises to help nobody else to lead for **twice** that length, counted from when the
//! message came; the leader counts only the length itself, from before the message was sent. So while the leader
//! holds acknowledged promises of a quorum, no other can have been elected, as long as no clock runs twice as fast
//! as another.
//!
//! ```text
//! leader    sends ----------length----------|  reads without asking
//!               \
//! voter          came ------------------------length * 2-----------------------|  may vote, may stand
//! ```
//!
//! openraft has a lease of its own, which is longer: it keeps a living leader from being deposed for nothing. It is
//! not what reads rely on, for three reasons. It is let go of when a leader is thought dead, and that may be a
//! mistake; a voter that restarts forgets it; and its leader counts an append as acknowledged by the answer to an
//! earlier one that ended at the same entry. Here each answer belongs to its message, and a promise is kept whatever
//! anybody believes.
//!
//! Invariants, of one replica:
//! - A promise is noted before the append is handed to openraft, and counts for the leader only when that append
//!   succeeded, which says that the leader's vote is on disk here.
//! - No vote is granted and none is asked for while a promise holds. Both are looked at again after openraft has
//!   taken the new vote: appends that it took before are in the promise, later ones it refuses.
//! - A replica that was opened with what it had may have promised the longest length, and keeps that.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use quorate_env::{Clock, switch};
use tokio::time::Instant;

use crate::raft::Vote;
use crate::types::ReplicaId;

/// The longest lease. What a restarted voter may have promised follows from it.
pub const LEASE_MAX: Duration = Duration::from_millis(100);
/// Promises are asked for until so long after a read: a group that nobody reads owes its leader nothing, and may
/// elect another at once.
const WANTED: Duration = Duration::from_secs(1);
/// The two clocks that tell sleep are read one after the other; what is shorter is no sleep.
const SLEEP_MIN: Duration = Duration::from_millis(1);

/// A message on its way: what its answer will prove.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sent {
    at: Instant,
    /// The promise that it asks for; zero asks for none.
    pub asks: Duration,
}

/// A replica's leases, as a leader and as a voter.
pub(crate) struct Lease {
    length: Duration,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// When the newest message was sent that each replica acknowledged.
    acked: BTreeMap<ReplicaId, Instant>,
    /// And the newest that asked for a promise.
    promised: BTreeMap<ReplicaId, Instant>,
    wanted_until: Option<Instant>,
    /// What was sent before counts for nothing: the machine slept, and its clock with it.
    since: Option<Instant>,
    slept: Duration,
    /// Until when this replica has promised to help nobody to lead.
    owes_until: Option<Instant>,
}

/// How long is promised to one that counts on `length`.
fn owed(length: Duration) -> Duration {
    match switch::bug("lease_without_margin") {
        true => length,
        false => length * 2,
    }
}

impl Lease {
    /// The leases of a replica that begins with this vote. With a `length` of zero it never asks for promises.
    pub fn new(
        length: Duration,
        clock: Arc<dyn Clock>,
        replica: ReplicaId,
        stored: Option<Vote>,
    ) -> Lease {
        let slept = clock.slept().unwrap_or_default();
        // One that never voted promised nothing; nor did one that led last, since it was elected.
        let is_free = stored.is_none_or(|vote| vote.committed && vote.leader_id.node_id == replica);
        let is_gated = !is_free && !switch::bug("lease_across_a_restart");
        let state = State {
            slept,
            owes_until: is_gated.then(|| Instant::now() + owed(LEASE_MAX)),
            ..State::default()
        };
        Lease {
            length,
            clock,
            state: Mutex::new(state),
        }
    }

    /// Somebody reads: promises are asked for from now on.
    pub fn want(&self) {
        if !self.length.is_zero() {
            self.state.lock().wanted_until = Some(Instant::now() + WANTED);
        }
    }

    /// A message is about to be sent.
    pub fn sending(&self) -> Sent {
        let at = Instant::now();
        let is_wanted = self.state.lock().wanted_until.is_some_and(|end| at < end);
        Sent {
            at,
            asks: if is_wanted {
                self.length
            } else {
                Duration::ZERO
            },
        }
    }

    /// A replica took that message, and what it took is durable.
    pub fn acked(&self, by: ReplicaId, sent: Sent) {
        let state = &mut *self.state.lock();
        let note = |of: &mut BTreeMap<ReplicaId, Instant>| {
            let newest = of.entry(by).or_insert(sent.at);
            *newest = (*newest).max(sent.at);
        };
        note(&mut state.acked);
        if !sent.asks.is_zero() {
            note(&mut state.promised);
        }
    }

    /// Whether a quorum of every set of voters acknowledged a message that was sent since then. The replica itself
    /// counts if it is among them.
    pub fn is_confirmed(
        &self,
        own: ReplicaId,
        voters: &[BTreeSet<ReplicaId>],
        since: Instant,
    ) -> bool {
        let state = self.state.lock();
        has_quorum(own, voters, &state.acked, |sent| sent >= since)
    }

    /// How long the lease still holds: nobody else has been elected before this was called.
    pub fn left(&self, own: ReplicaId, voters: &[BTreeSet<ReplicaId>]) -> Option<Duration> {
        if self.length.is_zero() {
            return None;
        }
        let slept = self.clock.slept()?;
        let mut state = self.state.lock();
        let now = Instant::now();
        if slept > state.slept + SLEEP_MIN {
            state.since = Some(now);
        }
        state.slept = state.slept.max(slept);
        let (since, length) = (state.since, self.length);
        let holds = |at: Instant| {
            has_quorum(own, voters, &state.promised, |sent| {
                since.is_none_or(|since| sent > since) && at < sent + length
            })
        };
        if !holds(now) {
            return None;
        }
        // To the half of it is all that anybody asks.
        let half = length / 2;
        Some(if holds(now + half) {
            half
        } else {
            Duration::ZERO
        })
    }

    /// An append came that asks for a promise.
    pub fn promise(&self, length: Duration) {
        if length.is_zero() {
            return;
        }
        let until = Instant::now() + owed(length.min(LEASE_MAX));
        let mut state = self.state.lock();
        state.owes_until = state.owes_until.max(Some(until));
    }

    /// Breaks the promise: a simulation plants that.
    pub fn forget(&self) {
        self.state.lock().owes_until = None;
    }

    /// Until when this replica helps nobody to lead, if it has promised so.
    pub fn owes_until(&self) -> Option<Instant> {
        let until = self.state.lock().owes_until;
        until.filter(|until| Instant::now() < *until)
    }

    /// Waits until what is promised by now is over. Whether nothing was promised anew meanwhile.
    pub async fn kept(&self) -> bool {
        if let Some(until) = self.owes_until() {
            tokio::time::sleep_until(until).await;
        }
        self.owes_until().is_none()
    }
}

fn has_quorum(
    own: ReplicaId,
    voters: &[BTreeSet<ReplicaId>],
    sent: &BTreeMap<ReplicaId, Instant>,
    counts: impl Fn(Instant) -> bool,
) -> bool {
    let is_with =
        |voter: &&ReplicaId| **voter == own || sent.get(*voter).is_some_and(|sent| counts(*sent));
    let is_quorum = |set: &BTreeSet<ReplicaId>| set.iter().filter(is_with).count() > set.len() / 2;
    !voters.is_empty() && voters.iter().all(is_quorum)
}

#[cfg(test)]
mod tests;
