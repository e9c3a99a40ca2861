//! Is a concurrent history of a few keys linearizable?
//!
//! A history is what clients saw: operations with the time before each was sent and the time after
//! its answer came. It is linearizable if every operation can be given one moment between the two so
//! that, one after the other in the order of these moments, they answer what was seen. Keys are
//! independent, so each key's history is judged alone.
//!
//! The search is that of Wing and Gong ("Testing and verifying concurrent objects", 1993) with the
//! memory of Lowe ("Testing for linearizability", 2017), as in Porcupine: of the operations that may
//! come next, because none that ended before they began is still left, one is tried, and taken back
//! when it leads nowhere. Sets of operations with the state after them are not tried twice.
//!
//! An operation whose outcome is *unknown* may take effect at any time after it began, or never: it
//! has no end, and the search is done when all others have their place.
//!
//! The state of a key is its value and what is known of versions: an answer that names a version
//! must fit, and the versions of one key only grow: a history in which time turns them back is
//! rejected without a search. Three rules keep the search small, and leave out nothing that would be
//! found:
//!
//! - No operation that names a version comes before one that names a smaller one.
//! - A write of unknown outcome whose version nobody knows is followed by an operation that sees it:
//!   where it is overwritten unseen, the same order without it does as well.
//! - Of such writes that demand the same, the first that began is tried first: one is as good as another.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// Names the write that a value came from; no two writes of a history write the same.
pub type Value = u64;
/// A version of a key.
pub type Version = u64;

/// What a write demanded of the key's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Demand {
    /// Nothing.
    None,
    /// That the key was not there.
    Absent,
    /// That it was at this version.
    Version(Version),
}

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// A read.
    Get,
    /// A write.
    Put(Value, Demand),
    /// A delete.
    Delete(Demand),
}

/// What was seen of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// A read's answer: the value and its version, if the key was there.
    Found(Option<(Value, Version)>),
    /// A write's answer: whether it was done, and the key's version then; 0: it is not there.
    Written(bool, Version),
    /// Nothing: it may take effect at any time, or never.
    Unknown,
}

impl Seen {
    /// The version that the answer names.
    fn version(self) -> Option<Version> {
        match self {
            Seen::Found(Some((_, version))) => Some(version),
            Seen::Written(_, version) => (version > 0).then_some(version),
            Seen::Found(None) | Seen::Unknown => None,
        }
    }
}

/// One operation of one client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// The key.
    pub key: u64,
    /// What was asked for.
    pub op: Op,
    /// What was seen.
    pub seen: Seen,
    /// Before it was sent.
    pub start: u64,
    /// After the answer came; of an unknown outcome it means nothing.
    pub end: u64,
}

/// Why a history was not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// No order explains what was seen.
    NotLinearizable {
        /// The key.
        key: u64,
        /// The operations around the point past which no order led, by their start.
        around: Vec<Event>,
    },
    /// The search grew past its bound.
    Undecided {
        /// The key.
        key: u64,
    },
}

/// So many steps are tried for one key.
const STEPS_MAX: usize = 4_000_000;
/// So many operations before and behind the furthest point are shown.
const SHOWN: usize = 12;

/// Judges a history; the order of events does not matter.
pub fn check(history: &[Event]) -> Result<(), Verdict> {
    let mut by_key: BTreeMap<u64, Vec<Event>> = BTreeMap::new();
    for event in history {
        // A read without an answer says nothing and does nothing.
        if (event.op, event.seen) != (Op::Get, Seen::Unknown) {
            by_key.entry(event.key).or_default().push(*event);
        }
    }
    by_key.into_iter().try_for_each(|(key, mut events)| {
        events.sort_by_key(|event| event.start);
        let search = Search::new(key, &events);
        match search.version_that_went_back() {
            Some(around) => Err(search.failed(around)),
            None => search.run(),
        }
    })
}

/// A key after some operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct State {
    /// Its value, if it is there.
    value: Option<Value>,
    /// Its value's version, if it is there and this was seen.
    version: Option<Version>,
    /// The largest version seen so far.
    floor: Version,
    /// It comes of a write of unknown outcome that nothing after it saw.
    unseen: bool,
}

impl State {
    /// After `event`, if what was seen of it fits.
    fn after(self, event: &Event, versions: &HashMap<Value, Version>) -> Option<State> {
        if self.unseen && matches!(event.op, Op::Put(_, Demand::None)) {
            return None;
        }
        let next = State {
            unseen: false,
            ..self
        };
        let next = next.take(event, versions)?;
        let unseen = event.seen == Seen::Unknown && next.version.is_none();
        Some(State { unseen, ..next })
    }

    fn take(self, event: &Event, versions: &HashMap<Value, Version>) -> Option<State> {
        match (event.op, event.seen) {
            (Op::Get, Seen::Found(None)) => self.value.is_none().then_some(self),
            (Op::Get, Seen::Found(Some((value, version)))) if self.value == Some(value) => {
                self.known(version)
            }
            (Op::Put(value, demand), Seen::Written(true, version)) => {
                self.meet(demand)?.write(value, Some(version))
            }
            (Op::Delete(demand), Seen::Written(true, version)) if self.value.is_some() => {
                self.meet(demand)?.remove(Some(version))
            }
            (Op::Put(_, demand) | Op::Delete(demand), Seen::Written(false, version)) => {
                self.refuse(event.op, demand, version)
            }
            (Op::Put(value, demand), Seen::Unknown) => self
                .meet(demand)?
                .write(value, versions.get(&value).copied()),
            (Op::Delete(demand), Seen::Unknown) if self.value.is_some() => {
                self.meet(demand)?.remove(None)
            }
            _ => None,
        }
    }

    /// The same, knowing that the key is at this version.
    fn known(self, version: Version) -> Option<State> {
        match self.version {
            Some(known) => (known == version).then_some(self),
            // The write of unknown outcome got a version of its own.
            None => (version > self.floor).then_some(State {
                version: Some(version),
                floor: version,
                ..self
            }),
        }
    }

    /// The same, if it is what a write demanded.
    fn meet(self, demand: Demand) -> Option<State> {
        match demand {
            Demand::None => Some(self),
            Demand::Absent => self.value.is_none().then_some(self),
            Demand::Version(version) => self.value.and_then(|_| self.known(version)),
        }
    }

    fn write(self, value: Value, version: Option<Version>) -> Option<State> {
        version.is_none_or(|v| v > self.floor).then_some(State {
            value: Some(value),
            version,
            floor: version.unwrap_or(self.floor),
            unseen: false,
        })
    }

    fn remove(self, version: Option<Version>) -> Option<State> {
        version.is_none_or(|v| v > self.floor).then_some(State {
            value: None,
            version: None,
            floor: version.unwrap_or(self.floor),
            unseen: false,
        })
    }

    /// The same, if a write was rightly not done because the key was at `version` (0: not there).
    fn refuse(self, op: Op, demand: Demand, version: Version) -> Option<State> {
        if version == 0 {
            let right = matches!(op, Op::Delete(_)) || matches!(demand, Demand::Version(_));
            return (right && self.value.is_none()).then_some(self);
        }
        let right = match demand {
            Demand::None => false,
            Demand::Absent => true,
            Demand::Version(wanted) => wanted != version,
        };
        (right && self.value.is_some())
            .then_some(self)?
            .known(version)
    }
}

/// A point on the line of time: an operation begins or ends. They form a doubly linked list, from
/// which operations that have their place are taken out.
#[derive(Debug, Clone, Copy)]
struct Point {
    event: usize,
    is_end: bool,
    before: usize,
    after: usize,
}

struct Search<'a> {
    key: u64,
    events: &'a [Event],
    /// The first and the last are only borders.
    points: Vec<Point>,
    /// Where each event begins, and where it ends if it does.
    begins: Vec<usize>,
    ends: Vec<Option<usize>>,
    /// The versions that reads saw of values.
    versions: HashMap<Value, Version>,
    /// The versions that answers name which have no place yet.
    named: BTreeSet<(Version, usize)>,
}

impl<'a> Search<'a> {
    fn new(key: u64, events: &'a [Event]) -> Search<'a> {
        let mut moments = Vec::new();
        for (n, event) in events.iter().enumerate() {
            moments.push((event.start, false, n));
            if event.seen != Seen::Unknown {
                moments.push((event.end, true, n));
            }
        }
        // At one time: beginnings before ends, which allows more.
        moments.sort_unstable();
        let mut begins = vec![0; events.len()];
        let mut ends = vec![None; events.len()];
        let border = |before, after| Point {
            event: usize::MAX,
            is_end: false,
            before,
            after,
        };
        let mut points = vec![border(0, 1)];
        for (_, is_end, event) in moments {
            let at = points.len();
            if is_end {
                ends[event] = Some(at);
            } else {
                begins[event] = at;
            }
            points.push(Point {
                event,
                is_end,
                before: at - 1,
                after: at + 1,
            });
        }
        let last = points.len();
        points.push(border(last - 1, last));
        let seen = events.iter().filter_map(|event| match event.seen {
            Seen::Found(found) => found,
            _ => None,
        });
        let named = events.iter().enumerate();
        let named = named.filter_map(|(n, event)| Some((event.seen.version()?, n)));
        Search {
            key,
            events,
            points,
            begins,
            ends,
            versions: seen.collect(),
            named: named.collect(),
        }
    }

    /// The version at which the key is after this event, as far as anybody saw.
    fn version_of(&self, event: usize) -> Option<Version> {
        let Event { op, seen, .. } = self.events[event];
        match (op, seen) {
            (Op::Put(value, _), Seen::Unknown) => self.versions.get(&value).copied(),
            _ => seen.version(),
        }
    }

    /// An event that began after the end of one with a larger version.
    fn version_that_went_back(&self) -> Option<usize> {
        let mut largest = 0;
        let inner = &self.points[1..self.points.len() - 1];
        inner.iter().find_map(|point| {
            let version = self.version_of(point.event)?;
            if point.is_end {
                largest = largest.max(version);
                return None;
            }
            (version < largest).then_some(point.event)
        })
    }

    /// Whether an answer without a place names a smaller version than this event.
    fn is_early(&self, event: usize) -> bool {
        let version = self.version_of(event);
        let smallest = self.named.first().map(|(version, _)| *version);
        version.is_some_and(|version| smallest.is_some_and(|smallest| smallest < version))
    }

    fn run(mut self) -> Result<(), Verdict> {
        let mut left = self.ends.iter().flatten().count();
        let mut state = State::default();
        let mut done = Done::new(self.events.len());
        let mut tried: HashSet<(Done, State)> = HashSet::new();
        let mut path: Vec<(usize, State, usize)> = Vec::new();
        let (mut from, mut furthest, mut around) = (0, usize::MAX, 0);
        let mut steps = 0;
        while left > 0 {
            steps += 1;
            if steps > STEPS_MAX {
                return Err(Verdict::Undecided { key: self.key });
            }
            if left < furthest {
                (furthest, around) = (left, self.first_left());
            }
            let candidates = self.candidates();
            let next = candidates
                .iter()
                .enumerate()
                .skip(from)
                .find_map(|(n, &event)| {
                    let after = state.after(&self.events[event], &self.versions)?;
                    done.set(event, true);
                    let new = tried.insert((done.clone(), after));
                    done.set(event, false);
                    new.then_some((n, event, after))
                });
            if let Some((n, event, after)) = next {
                path.push((event, state, n + 1));
                done.set(event, true);
                self.take_out(event);
                left -= usize::from(self.ends[event].is_some());
                (state, from) = (after, 0);
            } else if let Some((event, before, again_from)) = path.pop() {
                done.set(event, false);
                self.put_back(event);
                left += usize::from(self.ends[event].is_some());
                (state, from) = (before, again_from);
            } else {
                return Err(self.failed(around));
            }
        }
        Ok(())
    }

    /// The operations that may come next: those that begin before any that is left ends. Those with
    /// an answer come first: they say the most.
    fn candidates(&self) -> Vec<usize> {
        let (mut answered, mut unknown) = (Vec::new(), Vec::new());
        let mut at = self.points[0].after;
        let last = self.points.len() - 1;
        while at != last && !self.points[at].is_end {
            let event = self.points[at].event;
            match self.ends[event] {
                _ if self.is_early(event) => {}
                Some(_) => answered.push(event),
                None if self.has_twin(event, &unknown) => {}
                None => unknown.push(event),
            }
            at = self.points[at].after;
        }
        answered.append(&mut unknown);
        answered
    }

    /// Whether one of `others` does the same as this event of unknown outcome, as far as anybody saw.
    fn has_twin(&self, event: usize, others: &[usize]) -> bool {
        let what = |event: usize| match self.events[event].op {
            Op::Put(value, _) if self.versions.contains_key(&value) => None,
            Op::Put(_, demand) => Some((true, demand)),
            Op::Delete(demand) => Some((false, demand)),
            Op::Get => None,
        };
        let own = what(event);
        own.is_some() && others.iter().any(|other| what(*other) == own)
    }

    /// The operation that ends first of those without a place.
    fn first_left(&self) -> usize {
        let mut at = self.points[0].after;
        while at != self.points.len() - 1 && !self.points[at].is_end {
            at = self.points[at].after;
        }
        self.points[at].event
    }

    fn take_out(&mut self, event: usize) {
        if let Some(version) = self.events[event].seen.version() {
            self.named.remove(&(version, event));
        }
        for at in [Some(self.begins[event]), self.ends[event]]
            .into_iter()
            .flatten()
        {
            let Point { before, after, .. } = self.points[at];
            self.points[before].after = after;
            self.points[after].before = before;
        }
    }

    /// REQUIRES: `event` was taken out last of those that are out.
    fn put_back(&mut self, event: usize) {
        if let Some(version) = self.events[event].seen.version() {
            self.named.insert((version, event));
        }
        for at in [self.ends[event], Some(self.begins[event])]
            .into_iter()
            .flatten()
        {
            let Point { before, after, .. } = self.points[at];
            self.points[before].after = at;
            self.points[after].before = at;
        }
    }

    fn failed(&self, around: usize) -> Verdict {
        let from = around.saturating_sub(SHOWN);
        let upto = (around + SHOWN).min(self.events.len());
        Verdict::NotLinearizable {
            key: self.key,
            around: self.events[from..upto].to_vec(),
        }
    }
}

/// A set of events.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Done(Vec<u64>);

impl Done {
    fn new(events: usize) -> Done {
        Done(vec![0; events.div_ceil(64)])
    }

    fn set(&mut self, event: usize, is_in: bool) {
        let bit = 1 << (event % 64);
        if is_in {
            self.0[event / 64] |= bit;
        } else {
            self.0[event / 64] &= !bit;
        }
    }
}

#[cfg(test)]
mod tests;
