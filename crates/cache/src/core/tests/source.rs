//! The source of the model: a history of commits, replicas that lag, failovers that take commits back.

use super::schedules::Chance;
use crate::{Need, Version};

/// One commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    pub key: usize,
    pub version: Version,
    /// `None` deletes.
    pub value: Option<u64>,
    pub time: u64,
}

/// What a load gave.
#[derive(Debug, Clone, Copy)]
pub struct Loaded {
    pub value: Option<u64>,
    pub version: Version,
    pub seen: Version,
    pub lag: Option<u64>,
}

#[derive(Default)]
pub struct Source {
    pub commits: Vec<Commit>,
    pub now: Version,
    values: u64,
}

impl Source {
    pub fn commit(&mut self, key: usize, deletes: bool, time: u64) -> Version {
        self.now.n += 1;
        self.values += 1;
        self.commits.push(Commit {
            key,
            version: self.now,
            value: (!deletes).then_some(self.values),
            time,
        });
        self.now
    }

    /// The last commits are lost; a new epoch begins, and gives their numbers out again.
    pub fn fail_over(&mut self, lost: usize) {
        let left = self.commits.len().saturating_sub(lost);
        self.commits.truncate(left);
        let last = self.commits.last().map_or(0, |commit| commit.version.n);
        self.now = Version {
            epoch: self.now.epoch + 1,
            n: last,
        };
    }

    /// The version and value of a key, as they were at a version.
    pub fn newest(&self, key: usize, at: Version) -> (Version, Option<u64>) {
        let before = |c: &&Commit| c.key == key && c.version <= at;
        let found = self.commits.iter().rev().find(before);
        found.map_or((Version::ZERO, None), |c| (c.version, c.value))
    }

    /// The version of a key, as it was at a time.
    pub fn newest_by(&self, key: usize, time: u64) -> Version {
        let before = |c: &&Commit| c.key == key && c.time <= time;
        let found = self.commits.iter().rev().find(before);
        found.map_or(Version::ZERO, |c| c.version)
    }

    /// Whether a key had this value at this version, and still did after all failovers.
    pub fn has(&self, key: usize, version: Version, value: Option<u64>) -> bool {
        let is_it = |c: &Commit| c.key == key && c.version == version && c.value == value;
        version == Version::ZERO && value.is_none() || self.commits.iter().any(is_it)
    }

    /// Answers from a replica that may lag, and may not care for `at_least`, but is honest about it.
    pub fn load(&self, key: usize, need: Need, time: u64, chance: &mut Chance) -> Loaded {
        let mut lowest = 0;
        if need.at_least.epoch == self.now.epoch && !chance.one_in(4) {
            lowest = need.at_least.n.min(self.now.n);
        }
        let n = match need.latest {
            true => self.now.n,
            false => lowest + chance.below(self.now.n - lowest + 1),
        };
        let at = Version { n, ..self.now };
        let (version, value) = self.newest(key, at);
        let next = self.commits.iter().find(|c| c.version > at);
        let behind = next.map_or(0, |next| time - next.time);
        // Some sources say at which version they read; some know only that of the row, and what they were told.
        let honest = version.max(need.at_least.min(at));
        Loaded {
            value,
            version,
            seen: if chance.one_in(2) { at } else { honest },
            lag: (behind == 0 || chance.one_in(2)).then_some(behind),
        }
    }
}
