//! [`Untold`]: invalidations that the remote tier could not be told. Until it is, this process takes nothing from
//! it under their keys, nor gives it anything.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::core::Invalidation;
use crate::core::planted::{self, Bug};

/// More than so many keys are all keys.
const KEYS_MAX: usize = 10_000;

/// What is to be repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Repeat {
    /// One key's invalidation.
    Key(Bytes, Invalidation),
    /// There were too many: clear it all.
    All,
}

/// Each note has a number, so that what was told is taken off only if nothing was noted since.
#[derive(Debug, Default)]
pub(super) struct Untold {
    keys: BTreeMap<Bytes, (Invalidation, u64)>,
    all: Option<u64>,
    notes: u64,
    /// Whether somebody repeats them.
    pub is_repeating: bool,
}

impl Untold {
    /// Notes what could not be told.
    pub fn note(&mut self, key: &Bytes, invalidation: Invalidation) {
        self.notes += 1;
        if self.all.is_some() || self.keys.len() >= KEYS_MAX {
            self.keys.clear();
            self.all = Some(self.notes);
            return;
        }
        let merged = match (self.keys.get(key), invalidation) {
            (Some((Invalidation::At(known), _)), Invalidation::At(new)) => {
                Invalidation::At(new.max(*known))
            }
            (Some((Invalidation::Unknown, _)), _) => Invalidation::Unknown,
            (_, new) => new,
        };
        self.keys.insert(key.clone(), (merged, self.notes));
    }

    /// Whether the remote tier may be believed about a key.
    pub fn is_trusted(&self, key: &Bytes) -> bool {
        let is_told = self.all.is_none() && !self.keys.contains_key(key);
        is_told || planted::is_on(Bug::UntoldIsTrusted)
    }

    /// What is to be repeated next, and the number of its note.
    pub fn next(&self) -> Option<(Repeat, u64)> {
        if let Some(note) = self.all {
            return Some((Repeat::All, note));
        }
        let (key, (invalidation, note)) = self.keys.iter().next()?;
        Some((Repeat::Key(key.clone(), *invalidation), *note))
    }

    /// Takes off what was told.
    pub fn told(&mut self, repeat: &Repeat, note: u64) {
        match repeat {
            Repeat::All if self.all == Some(note) => self.all = None,
            Repeat::Key(key, _) if self.keys.get(key).is_some_and(|(_, of)| *of == note) => {
                self.keys.remove(key);
            }
            _ => {}
        }
    }

    /// Takes off all: the tier was cleared after this number of notes.
    pub fn cleared(&mut self, notes: u64) {
        self.keys.retain(|_, (_, note)| *note > notes);
        self.all = self.all.filter(|note| *note > notes);
    }

    /// How many notes there were.
    pub fn notes(&self) -> u64 {
        self.notes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Version;

    fn at(n: u64) -> Invalidation {
        Invalidation::At(Version::new(n))
    }

    #[test]
    fn untold_keeps_the_strongest_and_forgets_only_what_was_told() {
        let mut untold = Untold::default();
        let key = Bytes::from_static(b"a");
        untold.note(&key, at(5));
        untold.note(&key, at(3));
        let (repeat, note) = untold.next().expect("one");
        assert_eq!(repeat, Repeat::Key(key.clone(), at(5)));
        untold.note(&key, Invalidation::Unknown);
        untold.told(&repeat, note);
        assert!(!untold.is_trusted(&key), "noted again while it was told");
        untold.note(&key, at(9));
        let (repeat, note) = untold.next().expect("one");
        assert_eq!(repeat, Repeat::Key(key.clone(), Invalidation::Unknown));
        untold.told(&repeat, note);
        assert!(untold.is_trusted(&key) && untold.next().is_none());
    }

    #[test]
    fn untold_of_too_many_keys_is_of_all() {
        let mut untold = Untold::default();
        for n in 0..=KEYS_MAX {
            untold.note(&n.to_string().into(), Invalidation::Unknown);
        }
        assert!(!untold.is_trusted(&Bytes::from_static(b"never noted")));
        let (repeat, note) = untold.next().expect("all");
        assert_eq!(repeat, Repeat::All);
        untold.told(&repeat, note);
        assert!(untold.is_trusted(&Bytes::from_static(b"0")));
        untold.note(&Bytes::from_static(b"0"), Invalidation::Unknown);
        untold.cleared(untold.notes());
        assert!(untold.next().is_none());
    }
}
