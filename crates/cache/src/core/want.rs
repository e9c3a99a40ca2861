//! [`Want`]: a read's level as the core sees it, and whether what is there meets it.

use super::planted::{self, Bug};
use super::{Cached, Looked};
use crate::{Need, Version};

/// How new a read wants its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Want {
    /// At least this version.
    pub at_least: Version,
    /// At most so old, in microseconds.
    pub age_max: Option<u64>,
    /// All that was committed before the read began.
    pub latest: bool,
}

impl Want {
    /// Whether something cached may be served at a time, leaving aside whether it has expired.
    pub fn is_met<V>(&self, cached: &Cached<V>, now: u64) -> bool {
        if self.latest && !planted::is_on(Bug::LinearizableIsServed) {
            return false;
        }
        if cached.seen < self.at_least && !planted::is_on(Bug::TokenIsNotLookedAt) {
            return false;
        }
        let Some(age_max) = self.age_max else {
            return true;
        };
        match cached.as_of {
            _ if planted::is_on(Bug::BoundIsNotLookedAt) => true,
            None => planted::is_on(Bug::UnknownAgeIsNew),
            Some(as_of) => now.saturating_sub(as_of) <= age_max,
        }
    }

    /// Whether something cached may be served at a time.
    pub fn is_met_fresh<V>(&self, cached: &Cached<V>, now: u64) -> bool {
        let is_fresh = now < cached.expires || planted::is_on(Bug::ExpiredIsServed);
        is_fresh && self.is_met(cached, now)
    }

    /// The answer in what a tier has, if there is one.
    pub fn fresh_in<V: Clone>(&self, looked: &Looked<V>) -> Option<Cached<V>> {
        let cached = looked.cached.as_ref()?;
        self.is_met_fresh(cached, looked.at).then(|| cached.clone())
    }

    /// What satisfies both.
    pub fn and(self, other: Want) -> Want {
        Want {
            at_least: self.at_least.max(other.at_least),
            age_max: match (self.age_max, other.age_max) {
                (Some(one), Some(another)) => Some(one.min(another)),
                (one, another) => one.or(another),
            },
            latest: self.latest || other.latest,
        }
    }

    /// What the source has to give.
    pub fn need(&self) -> Need {
        Need {
            at_least: self.at_least,
            latest: self.latest || self.age_max.is_some(),
        }
    }
}
