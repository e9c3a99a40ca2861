//! The committed prefix never changes: what one replica applies at an index, all do.

use std::collections::BTreeMap;

use super::Leadership;
use crate::history::Violation;

/// What an entry is: term, leader, and the hash of what it says.
pub type Entry = (u64, u64, u64);

/// All entries that were applied anywhere.
#[derive(Debug, Default)]
pub struct Committed {
    groups: BTreeMap<u64, BTreeMap<u64, (Entry, Leadership)>>,
    /// How many applications were seen.
    pub count: u64,
}

impl Committed {
    /// A replica applies an entry, while `newest` is the greatest leadership that there was in the group.
    pub fn applied(
        &mut self,
        group: u64,
        replica: u64,
        index: u64,
        entry: Entry,
        newest: Leadership,
    ) -> Result<(), Violation> {
        self.count += 1;
        let entries = self.groups.entry(group).or_default();
        match entries.get(&index) {
            None => {
                entries.insert(index, (entry, newest));
                Ok(())
            }
            Some((known, _)) if *known == entry => Ok(()),
            Some((known, _)) => {
                let message = format!(
                    "group {group}: replica {replica} applies {entry:?} at {index}, where another \
                     applied {known:?}"
                );
                Err(Violation::new("committed_prefix", message))
            }
        }
    }

    /// The entries of a group that were committed under leaders before this one, newest first.
    pub fn before(
        &self,
        group: u64,
        leadership: Leadership,
    ) -> impl Iterator<Item = (u64, Leadership)> {
        let entries = self.groups.get(&group).into_iter().flatten().rev();
        entries
            .filter(move |(_, (_, newest))| *newest < leadership)
            .map(|(index, ((term, leader, _), _))| (*index, (*term, *leader)))
    }
}
