//! [`Record`]: what a tier knows of one key, and the four things that happen to it.

use xxhash_rust::xxh3::Xxh3Default;

use super::planted::{self, Bug};
use crate::{Need, Version};

/// Names the time since a record was made, or since its last invalidation without a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mark(pub u64);

/// The marks of all tags of a key, as one number: other marks have another one, up to the chance that marks themselves
/// may be equal by, 1 in 2^64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TagMarks(pub u64);

impl TagMarks {
    /// Those of tags, in their order; `None` of none.
    fn of(marks: impl Iterator<Item = Mark>) -> Option<Self> {
        let mut digest = None;
        for mark in marks {
            let digest = digest.get_or_insert_with(Xxh3Default::new);
            digest.update(&mark.0.to_le_bytes());
        }
        digest.map(|digest| TagMarks(digest.digest()))
    }
}

/// A value, or that there is none, as a tier has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cached<V> {
    /// The value; `None` when the source has none.
    pub value: Option<V>,
    /// The version at which the source got it.
    pub version: Version,
    /// A version at which it was still the newest, from `version` up.
    pub seen: Version,
    /// A time at which it was the newest, in microseconds of the tier's clock; `None` when that is not known.
    pub as_of: Option<u64>,
    /// From when on it is to be loaded anew, in microseconds of the tier's clock.
    pub expires: u64,
    /// The marks that its tags had in this tier when the fill was registered; `None`: it has none.
    pub tags: Option<TagMarks>,
}

/// What an invalidation says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Invalidation {
    /// The key was written at this version.
    At(Version),
    /// The key was written, or may have been; nobody knows at which version.
    Unknown,
}

/// What became of a fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// It is installed.
    Stored,
    /// It is not: the key was invalidated since, or its record is gone.
    Overtaken,
    /// It is not: something newer is there.
    Older,
}

/// What a tier answers a reader, who is registered by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Looked<V> {
    /// To be given with the fill.
    pub mark: Mark,
    /// The least that the source has to give a fill.
    pub need: Need,
    /// When it was looked, in microseconds of the tier's clock.
    pub at: u64,
    /// What is there, expired or not.
    pub cached: Option<Cached<V>>,
    /// The marks of the key's tags, to be given with the fill.
    pub tags: Option<TagMarks>,
}

impl<V> Looked<V> {
    /// What is left of it under the tags of its key, whose records were looked at in the same tier. A fill needs what
    /// each of them needs. What is there counts only if it was registered under the marks that they have now, and was seen
    /// at their floors or above.
    pub fn under(mut self, tags: &[Looked<V>]) -> Self {
        let need = tags
            .iter()
            .fold(Need::NOTHING, |sum, tag| sum.and(tag.need));
        self.tags = TagMarks::of(tags.iter().map(|tag| tag.mark));
        let is_known = |cached: &Cached<V>| {
            tags.is_empty() || cached.tags == self.tags || planted::is_on(Bug::TagMarksAreIgnored)
        };
        let is_above = |cached: &Cached<V>| {
            cached.seen >= need.at_least || planted::is_on(Bug::TagFloorsAreIgnored)
        };
        let holds = |cached: &Cached<V>| is_known(cached) && is_above(cached);
        self.cached = self.cached.filter(holds);
        if !planted::is_on(Bug::TagNeedsAreIgnored) {
            self.need = self.need.and(need);
        }
        self
    }
}

/// One key's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record<V> {
    mark: Mark,
    floor: Need,
    cached: Option<Cached<V>>,
}

impl<V: Clone> Record<V> {
    /// A record without a value.
    pub fn new(mark: Mark, floor: Need) -> Self {
        Record {
            mark,
            floor,
            cached: None,
        }
    }

    /// The least that a fill must have.
    pub fn floor(&self) -> Need {
        self.floor
    }

    /// What is there.
    pub fn cached(&self) -> Option<&Cached<V>> {
        self.cached.as_ref()
    }

    /// Answers a reader. `base` is the floor of all keys.
    pub fn look(&self, base: Version, at: u64) -> Looked<V> {
        let holds =
            |cached: &&Cached<V>| cached.seen >= base || planted::is_on(Bug::LookIgnoresTheBase);
        Looked {
            mark: self.mark,
            need: self.floor.and(Need::at_least(base)),
            at,
            cached: self.cached.as_ref().filter(holds).cloned(),
            tags: None,
        }
    }

    /// Installs what a fill loaded that was registered under `mark`.
    pub fn put(&mut self, mark: Mark, base: Version, cached: Cached<V>) -> Put {
        if mark != self.mark && !planted::is_on(Bug::PutIgnoresTheMark) {
            return Put::Overtaken;
        }
        if cached.seen < self.floor.at_least && !planted::is_on(Bug::PutIgnoresTheFloor) {
            return Put::Overtaken;
        }
        if cached.seen < base && !planted::is_on(Bug::PutIgnoresTheBase) {
            return Put::Overtaken;
        }
        let newer = self.cached.as_ref().is_some_and(|c| c.seen > cached.seen);
        if newer && !planted::is_on(Bug::PutIgnoresWhatIsNewer) {
            return Put::Older;
        }
        // The floor stays as it is, `latest` too: what expires may be loaded again only at such a state, and
        // `seen` need not be above the write that the invalidation told of.
        self.cached = Some(cached);
        self.floor.latest &= !planted::is_on(Bug::LatestIsForgottenOnceFilled);
        Put::Stored
    }

    /// Notes that the key was written. `fresh` is a mark that no record had.
    pub fn invalidate(&mut self, invalidation: Invalidation, fresh: Mark) {
        match invalidation {
            Invalidation::At(version) => {
                let below = |cached: &Cached<V>| cached.seen < version;
                if self.cached.as_ref().is_some_and(below)
                    && !planted::is_on(Bug::InvalidationLeavesTheValue)
                {
                    self.cached = None;
                }
                if !planted::is_on(Bug::InvalidationLeavesTheFloor) {
                    self.floor = self.floor.and(Need::at_least(version));
                }
            }
            Invalidation::Unknown => {
                self.mark = fresh;
                self.cached = None;
                self.floor.latest = !planted::is_on(Bug::InvalidationForgetsLatest);
            }
        }
    }
}
