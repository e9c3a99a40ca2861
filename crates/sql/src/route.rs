//! Which replica may serve a read: the pure core of routing. No clock, no socket.
//!
//! A replica is known by what was proved of it, never by what it says of its lag: a primary that is idle
//! makes a replica's last transaction old though nothing is missing, and a replica that is cut off believes
//! itself to be current. Two proofs are used:
//!
//! - *position*: it has replayed so much of this system's log, on this timeline;
//! - *fresh as of an instant*: it has replayed at least what the primary's log held at that instant of our
//!   own monotonic clock (see [`Watermarks`]). Its staleness is at most what has passed since.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::token::Position;

/// How a read is routed. A rule that no replica meets is answered by the primary, or not at all, as the
/// session was told ([`Otherwise`](crate::Otherwise)): never by less.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Read {
    /// On the primary.
    Primary,
    /// On the primary until so long after this session's last write; then on a replica whose staleness is
    /// proved to be less than that, which therefore has the write.
    AfterWrite(Duration),
    /// On a replica that has replayed what this session wrote, waiting up to the session's limit.
    Session,
    /// On a replica that has everything that was acknowledged to a synchronous write
    /// ([`Work::synchronous`](crate::Work::synchronous)), of any session.
    Synchronous,
    /// On a replica whose staleness is proved to be at most this.
    Bounded(Duration),
    /// On any replica that serves, however old.
    Any,
}

/// What a replica must have been proved to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Need {
    /// Serving.
    Serving,
    /// Fresh as of an instant at or after this.
    Fresh(Instant),
    /// Replayed to here.
    Reached(Position),
    /// Everything that was acknowledged to synchronous writers.
    Settled,
}

/// What is proved of a replica.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct View {
    /// It answers, and is a replica.
    pub serving: bool,
    /// What it has replayed, if that is proved.
    pub position: Option<Position>,
    /// The instant as of which it is fresh.
    pub fresh: Option<Instant>,
    /// When its present run was first seen.
    pub since: Option<Instant>,
    /// How many leases of it are held.
    pub in_use: usize,
}

impl View {
    /// Whether it meets the need.
    pub fn meets(&self, need: &Need) -> bool {
        self.serving
            && match need {
                Need::Serving => true,
                Need::Fresh(since) => self.fresh.is_some_and(|fresh| fresh >= *since),
                Need::Reached(position) => self.position.is_some_and(|p| p.reaches(position)),
                // What it had shown to synchronous writers in an earlier run is there again once it has all that
                // the primary had when this one was seen.
                Need::Settled => {
                    let both = self.fresh.zip(self.since);
                    both.is_some_and(|(fresh, since)| fresh > since)
                }
            }
    }
}

/// The replica to read from: of those that meet the need the least used, beginning at `turn` among equals.
pub(crate) fn choose(need: &Need, replicas: &[View], turn: usize) -> Option<usize> {
    let count = replicas.len();
    (0..count)
        .map(|step| (turn.wrapping_add(step)) % count)
        .filter(|at| replicas[*at].meets(need))
        .min_by_key(|at| replicas[*at].in_use)
}

const SAMPLES_MAX: usize = 512;

/// What the primary's log held, and when at the latest.
///
/// Invariants: instants rise; positions rise within a timeline; at most 512 samples, of which the older ones
/// are thinned out, so that a replica far behind is still known to be at most so far behind.
#[derive(Debug, Default)]
pub(crate) struct Watermarks {
    samples: VecDeque<(Instant, Position)>,
}

impl Watermarks {
    /// Notes what the primary's log held when it was asked; `asked` is before the question was sent.
    pub fn add(&mut self, asked: Instant, position: Position) {
        if self.samples.back().is_some_and(|(at, _)| *at > asked) {
            return;
        }
        self.samples.push_back((asked, position));
        if self.samples.len() > SAMPLES_MAX {
            let mut at = 0;
            self.samples.retain(|_| {
                at += 1;
                at > SAMPLES_MAX / 2 || at % 2 == 0
            });
        }
    }

    /// The latest instant of which everything is held by who has replayed so far.
    pub fn fresh_as_of(&self, replayed: &Position) -> Option<Instant> {
        let reached = |(_, position): &&(Instant, Position)| replayed.reaches(position);
        self.samples.iter().rev().find(reached).map(|(at, _)| *at)
    }

    /// The newest sample.
    pub fn last(&self) -> Option<(Instant, Position)> {
        self.samples.back().copied()
    }
}
