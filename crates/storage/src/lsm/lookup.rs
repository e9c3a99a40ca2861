//! Looking a key up in one source after the other.

use bytes::{Buf, Bytes};

use super::counters::Filtered;
use crate::engine::{Entry, Sequence};
use crate::error::Result;
use crate::expiry;
use crate::key::{Key, Kind};
use crate::keyspaces::Keyspace;
use crate::levels::TableFile;
use crate::memtable::{Memtable, TOGETHER};
use crate::planted::{self, Bug};
use crate::table::{Found, Near, Table, hash_place};
use crate::tombstones::highest_seen;
use crate::values::ValueFiles;

/// What an entry says of its key.
enum Content {
    Deleted,
    Value(Bytes),
    /// A pointer to the value.
    Apart(Bytes),
}

/// A lookup on its way from the newest source to the oldest.
///
/// Versions of a key normally ascend with time, so the first entry found is the newest. It need
/// not be, after a replay of old writes: an older source is asked as well if it may hold a higher
/// version that the read may see. A range deletion that covers the key counts as a deletion of it.
pub(super) struct Lookup<'a> {
    keyspace: &'a Keyspace,
    pub(super) place: &'a [u8],
    hash: u64,
    version: u64,
    sequence: Sequence,
    /// Version and content of what is newest so far.
    best: Option<(u64, Content)>,
    pub(super) filtered: Filtered,
}

impl<'a> Lookup<'a> {
    pub(super) fn new(
        keyspace: &'a Keyspace,
        place: &'a [u8],
        version: u64,
        sequence: Sequence,
    ) -> Self {
        Lookup {
            keyspace,
            place,
            hash: hash_place(place),
            version,
            sequence,
            best: None,
            filtered: Filtered::default(),
        }
    }

    /// The answer, when all were asked; `values` are those of the levels.
    pub(super) fn entry(self, values: &ValueFiles) -> Result<Option<Entry>> {
        let (version, value) = match self.best {
            None | Some((_, Content::Deleted)) => return Ok(None),
            Some((version, Content::Value(value))) => (version, value),
            Some((version, Content::Apart(pointer))) => (version, values.get_value(&pointer)?),
        };
        Ok(Some(Entry { version, value }))
    }

    /// Whether a source that has no higher version than this has to be asked.
    fn wants(&self, max_version: u64) -> bool {
        match &self.best {
            None => true,
            Some((found, _)) => {
                self.keyspace.versioned && max_version > *found && *found < self.version
            }
        }
    }

    /// What an entry of this kind says, if this is stored with it.
    fn content(&self, kind: Kind, mut stored: Bytes) -> Content {
        let kind = match kind {
            Kind::Expiring => self.keyspace.expiry().kind(kind, &stored),
            kind => kind,
        };
        match kind {
            Kind::Put | Kind::Expiring => {
                stored.advance(expiry::value_at(kind).min(stored.len()));
                Content::Value(stored)
            }
            Kind::Pointer => Content::Apart(stored),
            Kind::Delete | Kind::RangeDelete => Content::Deleted,
        }
    }

    fn offer(&mut self, version: u64, content: impl FnOnce(&Self) -> Content) {
        if self.best.as_ref().is_none_or(|(best, _)| version > *best) {
            self.best = Some((version, content(self)));
        }
    }

    pub(super) fn ask_memtable(&mut self, memtable: &Memtable) {
        if !self.wants(memtable.max_version()) {
            return;
        }
        let found = match memtable.may_hold(self.hash) {
            true => memtable.get(self.place, self.version, self.sequence),
            false => None,
        };
        self.take(memtable, found);
    }

    /// [`Lookup::ask_memtable`] for many. REQUIRES: all read at the same version and sequence.
    pub(super) fn ask_memtable_each(lookups: &mut [(usize, Lookup<'a>)], memtable: &Memtable) {
        let max_version = memtable.max_version();
        let lookups = lookups.iter_mut().map(|(_, lookup)| lookup);
        let wanting = lookups.filter(|lookup| lookup.wants(max_version));
        let (mut held, others): (Vec<_>, Vec<_>) =
            wanting.partition(|lookup| memtable.may_hold(lookup.hash));
        for lookup in others {
            lookup.take(memtable, None);
        }
        for group in held.chunks_mut(TOGETHER) {
            let (version, sequence) = (group[0].version, group[0].sequence);
            let places: Vec<&[u8]> = group.iter().map(|lookup| lookup.place).collect();
            memtable.get_each(&places, version, sequence, |n, found| {
                group[n].take(memtable, found);
            });
        }
    }

    /// Takes what a memtable has of the key, unless a range deletion there hides it.
    fn take(&mut self, memtable: &Memtable, found: Option<(Key<'_>, &[u8])>) {
        let mark = memtable.mark(self.place, self.version, self.sequence);
        match (found, mark) {
            (Some((key, value)), mark)
                if mark.is_none_or(|mark| !mark.hides(key.version, key.sequence)) =>
            {
                self.offer(key.version, |lookup| {
                    lookup.content(key.kind, Bytes::copy_from_slice(value))
                });
            }
            (_, Some(mark)) => self.offer(mark.version, |_| Content::Deleted),
            (_, None) => {}
        }
    }

    /// Asks a table; `near` is from the lookup before, if there is a run of them.
    pub(super) fn ask_table(&mut self, file: &TableFile, near: Option<&mut Near>) -> Result<()> {
        let Some(max_version) = file.meta.properties.max_version(self.keyspace.id) else {
            return Ok(());
        };
        let later = file.meta.ingested.is_some_and(|came| came > self.sequence);
        if !self.wants(max_version) || later {
            return Ok(());
        }
        let table = file.table()?;
        if planted::is_on(Bug::FilterHidesRanges) && !table.may_hold(self.hash) {
            return Ok(());
        }
        let marks = table.tombstones().around(self.place).marks;
        let mark = highest_seen(marks, self.version, self.sequence);
        let found = self.find(table, near)?;
        let hidden = |found: &Found| {
            let sequence = file.meta.ingested.unwrap_or(found.sequence);
            mark.is_some_and(|mark| mark.hides(found.version, sequence))
        };
        match (found, mark) {
            (Some(found), _) if !hidden(&found) => {
                self.offer(found.version, |lookup| {
                    lookup.content(found.kind, found.value)
                });
            }
            (_, Some(mark)) => self.offer(mark.version, |_| Content::Deleted),
            (_, None) => {}
        }
        Ok(())
    }

    /// What a table has of the key, if its filter lets it pass.
    fn find(&mut self, table: &Table, near: Option<&mut Near>) -> Result<Option<Found>> {
        if !table.may_hold(self.hash) {
            self.filtered.stopped += 1;
            return Ok(None);
        }
        let filters = u64::from(table.has_filter());
        self.filtered.passed += filters;
        let found = table.get(self.place, self.version, self.sequence, near)?;
        if found.is_none() {
            self.filtered.in_vain += filters;
        }
        Ok(found)
    }
}
