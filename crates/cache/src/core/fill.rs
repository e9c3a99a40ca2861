//! [`Fill`]: one load on its way through two tiers, step by step.
//!
//! ```text
//! look local ─► look remote ─► (answer) or load ─► put remote ─► put local
//! ```
//!
//! The local tier is looked at first, so that an invalidation which comes anywhere after is noticed there; the
//! remote tier is filled first, since its refusal tells of invalidations by other processes. An invalidation
//! goes the other way about ([`invalidation_order`]): local, remote, local. The first is for its own process
//! at once, the last for what was taken from the remote tier in between.
//!
//! A write-through is a fill whose load is the write.

use super::planted::{self, Bug};
use super::{Cached, Looked, Mark, Put, TagMarks, Want};
use crate::{Need, Version};

/// A tier, by how far away it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// In this process.
    Local,
    /// Shared by processes.
    Remote,
}

/// In which order an invalidation goes through the tiers. Only after the last is it acknowledged.
pub fn invalidation_order() -> &'static [Place] {
    if planted::is_on(Bug::RemoteIsInvalidatedLast) {
        return &[Place::Local, Place::Remote];
    }
    &[Place::Local, Place::Remote, Place::Local]
}

/// What a fill is to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Look at the local tier; then [`Fill::looked_local`].
    LookLocal,
    /// Look at the remote tier; then [`Fill::looked_remote`].
    LookRemote,
    /// Ask the source for this; then [`Fill::loaded`].
    Load(Need),
    /// Put it into the remote tier, as of this time there; then [`Fill::put_remote`].
    PutRemote {
        /// Under which mark.
        mark: Mark,
        /// When the tier was looked at, by its clock, in microseconds.
        at: u64,
        /// A time at which it was the newest, by the tier's clock, in microseconds.
        as_of: Option<u64>,
        /// The marks of its tags there.
        tags: Option<TagMarks>,
    },
    /// Put it into the local tier; then [`Fill::put_local`].
    PutLocal {
        /// Under which mark.
        mark: Mark,
        /// When the tier was looked at, by its clock, in microseconds.
        at: u64,
        /// A time at which it was the newest, by the tier's clock, in microseconds.
        as_of: Option<u64>,
        /// The marks of its tags there.
        tags: Option<TagMarks>,
    },
    /// Nothing more.
    Done,
}

/// Why a source's answer does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// What the source had.
    pub seen: Version,
    /// What it has to have.
    pub at_least: Version,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    LookLocal,
    LookRemote,
    Load,
    PutRemote,
    PutLocal,
    Done,
}

/// A fill under way.
#[derive(Debug, Clone)]
pub struct Fill {
    stage: Stage,
    want: Want,
    need: Need,
    has_local: bool,
    has_remote: bool,
    /// The mark in the local tier, and the time of looking there, else the time at which the fill began.
    local: Option<Mark>,
    begun: u64,
    /// The mark in the remote tier, and the time of looking, by the clock there.
    remote: Option<(Mark, u64)>,
    local_tags: Option<TagMarks>,
    remote_tags: Option<TagMarks>,
    /// How old what was found was when it was found, in microseconds; `None`: not known.
    age: Option<u64>,
    is_answered: bool,
    is_installed_remotely: bool,
    overtaken: bool,
}

impl Fill {
    /// Begins one at a time of the local clock. `base` is the floor of all keys.
    pub fn new(want: Want, base: Version, begun: u64, has_local: bool, has_remote: bool) -> Self {
        let mut fill = Fill {
            stage: Stage::Load,
            want,
            need: want.need().and(Need::at_least(base)),
            has_local,
            has_remote,
            local: None,
            begun,
            remote: None,
            local_tags: None,
            remote_tags: None,
            age: None,
            is_answered: false,
            is_installed_remotely: false,
            overtaken: false,
        };
        fill.stage = fill.look_after(None);
        fill
    }

    fn look_after(&self, looked: Option<Place>) -> Stage {
        let mut order = [
            (Place::Local, self.has_local, Stage::LookLocal),
            (Place::Remote, self.has_remote, Stage::LookRemote),
        ];
        if planted::is_on(Bug::LocalIsRegisteredLate) {
            order.reverse();
        }
        let done = looked.and_then(|place| order.iter().position(|(p, _, _)| *p == place));
        let rest = order.iter().skip(done.map_or(0, |at| at + 1));
        let mut next = rest.filter(|(_, has, _)| *has).map(|(_, _, stage)| *stage);
        let rest = match self.is_answered {
            true => Stage::PutLocal,
            false => Stage::Load,
        };
        next.next().unwrap_or(rest)
    }

    /// What to do next.
    pub fn step(&self) -> Step {
        match self.stage {
            Stage::LookLocal => Step::LookLocal,
            Stage::LookRemote => Step::LookRemote,
            Stage::Load => Step::Load(self.need()),
            Stage::PutRemote => match self.remote {
                Some((mark, at)) => Step::PutRemote {
                    mark,
                    at,
                    as_of: self.as_of(at),
                    tags: self.remote_tags,
                },
                None => Step::Done,
            },
            Stage::PutLocal => match self.local.filter(|_| !self.overtaken) {
                Some(mark) => Step::PutLocal {
                    mark,
                    at: self.begun,
                    as_of: self.as_of(self.begun),
                    tags: self.local_tags,
                },
                None => Step::Done,
            },
            Stage::Done => Step::Done,
        }
    }

    /// Takes in what the local tier says, under the tags of the key.
    pub fn looked_local<V>(&mut self, looked: &Looked<V>) {
        self.local = Some(looked.mark);
        self.local_tags = looked.tags;
        self.begun = looked.at;
        self.need = self.need.and(looked.need);
        self.stage = self.look_after(Some(Place::Local));
    }

    /// Takes in what the remote tier says, under the tags of the key, or that it does not answer. Answers what is
    /// there, by the local clock, if it is new enough; then the source is not asked.
    pub fn looked_remote<V: Clone>(&mut self, looked: Option<&Looked<V>>) -> Option<Cached<V>> {
        self.stage = self.look_after(Some(Place::Remote));
        let Some(looked) = looked else {
            // What its floor is, nobody knows.
            self.need.latest |= !planted::is_on(Bug::SilenceNeedsNothing);
            return None;
        };
        self.remote = Some((looked.mark, looked.at));
        self.remote_tags = looked.tags;
        let found = self.want.fresh_in(looked).filter(|cached| {
            cached.seen >= self.need.at_least || planted::is_on(Bug::RemoteIsTakenBelowTheFloor)
        });
        self.need = self.need.and(looked.need);
        let mut found = found?;
        self.age = found.as_of.map(|as_of| looked.at.saturating_sub(as_of));
        found.as_of = self.as_of(self.begun);
        let left = found.expires.saturating_sub(looked.at);
        found.expires = self.begun.saturating_add(left);
        self.is_answered = true;
        self.stage = self.look_after(Some(Place::Remote));
        Some(found)
    }

    /// What the remote tier has, though it expired less than `window` microseconds before it was looked at, if it is new
    /// enough in all else; by the local clock. For when nothing can be loaded. Leaves the fill as it is.
    pub fn expired_in<V: Clone>(&self, looked: &Looked<V>, window: u64) -> Option<Cached<V>> {
        let cached = looked.cached.as_ref()?;
        let is_above = cached.seen >= self.need.at_least;
        let is_within = looked.at.saturating_sub(cached.expires) < window;
        let will_do = is_above && is_within && self.want.is_met(cached, looked.at);
        let here = |there: u64| self.begun.saturating_add(there).saturating_sub(looked.at);
        will_do.then(|| Cached {
            as_of: cached.as_of.map(here),
            expires: here(cached.expires),
            ..cached.clone()
        })
    }

    /// The mark in the remote tier, if there is something to be loaded and put there.
    pub fn remote_mark(&self) -> Option<Mark> {
        let remote = self.remote.filter(|_| self.stage == Stage::Load);
        remote.map(|(mark, _)| mark)
    }

    /// Looks at the remote tier once more instead of loading: another process may have put what is needed. Times are
    /// still counted from the beginning.
    pub fn look_again(&mut self) {
        if self.remote_mark().is_some() {
            self.stage = Stage::LookRemote;
        }
    }

    fn need(&self) -> Need {
        if planted::is_on(Bug::NeedIsNotHeldAgainstTheAnswer) {
            return Need::NOTHING;
        }
        self.need
    }

    /// Holds the source's answer against what it was asked for. `lag` is by how much it may have been behind
    /// when it was asked, in microseconds; `None` if that is not known. What is refused is to be loaded once
    /// more, from the newest state; there it is refused for good.
    pub fn loaded(&mut self, seen: Version, lag: Option<u64>) -> Result<(), Refused> {
        let at_least = self.need().at_least;
        if seen < at_least {
            if self.need.latest {
                self.stage = Stage::Done;
            }
            self.need.latest = true;
            return Err(Refused { seen, at_least });
        }
        self.age = match planted::is_on(Bug::LagIsIgnored) {
            true => Some(0),
            // What has all that was committed before it was asked is not behind.
            false => lag.or(self.need.latest.then_some(0)),
        };
        self.stage = match self.remote {
            Some(_) => Stage::PutRemote,
            None => Stage::PutLocal,
        };
        Ok(())
    }

    /// A time before the load by which what was found was the newest.
    fn as_of(&self, looked_at: u64) -> Option<u64> {
        Some(looked_at.saturating_sub(self.age?))
    }

    /// When what was found was the newest, by the local clock, in microseconds; `None`: not known.
    pub fn local_as_of(&self) -> Option<u64> {
        self.as_of(self.begun)
    }

    /// Takes in what the remote tier made of the fill, or that it does not answer.
    pub fn put_remote(&mut self, put: Option<Put>) {
        let refused = put.is_some_and(|put| put != Put::Stored);
        self.is_installed_remotely = put == Some(Put::Stored);
        self.overtaken |= refused && !planted::is_on(Bug::RefusalIsIgnored);
        self.stage = Stage::PutLocal;
    }

    /// Takes in what the local tier made of the fill.
    pub fn put_local(&mut self, put: Put) {
        self.overtaken |= put == Put::Overtaken;
        self.stage = Stage::Done;
    }

    /// Whether the remote tier took it: it had not been invalidated there until then.
    pub fn is_installed_remotely(&self) -> bool {
        self.is_installed_remotely
    }

    /// Whether the key has tags in the remote tier.
    pub fn has_remote_tags(&self) -> bool {
        self.remote_tags.is_some()
    }

    /// Whether the key was invalidated while the fill was under way: who came later needs another one.
    pub fn is_overtaken(&self) -> bool {
        self.overtaken
    }
}
