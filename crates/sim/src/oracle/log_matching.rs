//! Log matching: entries of one index and leadership are the same entry, and follow the same entry.

use std::collections::BTreeMap;

use super::Leadership;
use crate::history::Violation;

/// A replica of a group.
pub type Of = (u64, u64);

/// The logs of all replicas, as they were appended.
#[derive(Debug, Default)]
pub struct Logs {
    logs: BTreeMap<Of, BTreeMap<u64, Leadership>>,
    /// By group, index and leadership: what the entry says, and what was before it.
    entries: BTreeMap<(u64, u64, Leadership), (u64, Option<Leadership>)>,
    /// How many entries were seen.
    pub count: u64,
}

impl Logs {
    /// A replica appends an entry.
    pub fn append(
        &mut self,
        of: Of,
        index: u64,
        by: Leadership,
        hash: u64,
    ) -> Result<(), Violation> {
        self.count += 1;
        let log = self.logs.entry(of).or_default();
        log.split_off(&index);
        let before = index.checked_sub(1).and_then(|at| log.get(&at).copied());
        log.insert(index, by);
        let known = self.entries.entry((of.0, index, by));
        let (same, known_before) = known.or_insert((hash, before));
        let group = of.0;
        if *same != hash {
            let message = format!("group {group} has two entries {index} of leadership {by:?}");
            return Err(Violation::new("log_matching", message));
        }
        match (before, *known_before) {
            (Some(mine), Some(theirs)) if mine != theirs => {
                let message = format!(
                    "group {group}, replica {}: entry {index} of {by:?} follows {mine:?}, \
                     elsewhere {theirs:?}",
                    of.1
                );
                Err(Violation::new("log_matching", message))
            }
            (Some(_), None) => {
                *known_before = before;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A replica drops its entries from an index on.
    pub fn truncate(&mut self, of: Of, from: u64) {
        if let Some(log) = self.logs.get_mut(&of) {
            log.split_off(&from);
        }
    }

    /// A replica has a snapshot up to an index.
    pub fn install(&mut self, of: Of, index: u64, by: Leadership) {
        let log = self.logs.entry(of).or_default();
        *log = log.split_off(&(index + 1));
        log.insert(index, by);
    }

    /// A replica is opened with a state up to an index: beyond its log, if that is of a snapshot.
    pub fn recover(&mut self, of: Of, index: u64, by: Leadership) {
        let log = self.logs.entry(of).or_default();
        if log.last_key_value().is_none_or(|(last, _)| *last < index) {
            self.install(of, index, by);
        }
    }

    /// What a replica has at an index, if anything; `None` where that is not known.
    pub fn at(&self, of: Of, index: u64) -> Option<Option<Leadership>> {
        let log = self.logs.get(&of)?;
        match log.first_key_value() {
            Some((first, _)) if *first <= index => Some(log.get(&index).copied()),
            _ => None,
        }
    }
}
