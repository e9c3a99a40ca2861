//! Reading: point lookups and iterators.
//!
//! A read first takes the state (memtables and levels), then the sequence it stands at. In this order
//! all that is visible at the sequence and not in the state is newer than the state: what is seen is
//! a prefix of the writes, and holds all that was visible when the read began. The other way around,
//! a compaction in between could have dropped what only this read would see.

use std::sync::Arc;

use bytes::Bytes;

use super::counters::Filtered;
use super::{Inner, State};
use crate::cursor::Cursor;
use crate::engine::{Entry, Iter, IterOptions, ReadAt, Sequence};
use crate::error::Result;
use crate::iter::{UserIter, bounds};
use crate::key::{Kind, PlaceBuf};
use crate::keyspaces::Keyspace;
use crate::levels::{LEVELS, LevelCursor, TableFile};
use crate::merge::MergeCursor;
use crate::options::KeyspaceId;
use crate::table::hash_place;

/// A lookup on its way from the newest source to the oldest.
///
/// Versions of a key normally ascend with time, so the first entry found is the newest. It need
/// not be, after a replay of old writes: an older source is asked as well if it may hold a higher
/// version that the read may see.
struct Lookup<'a> {
    keyspace: &'a Keyspace,
    place: &'a [u8],
    hash: u64,
    version: u64,
    sequence: Sequence,
    best: Option<(u64, Kind, Bytes)>,
    filtered: Filtered,
}

impl Lookup<'_> {
    /// Whether a source that has no higher version than this has to be asked.
    fn wants(&self, max_version: u64) -> bool {
        match &self.best {
            None => true,
            Some((found, ..)) => {
                self.keyspace.versioned && max_version > *found && *found < self.version
            }
        }
    }

    fn offer(&mut self, version: u64, kind: Kind, value: impl FnOnce() -> Bytes) {
        if self.best.as_ref().is_none_or(|(best, ..)| version > *best) {
            self.best = Some((version, kind, value()));
        }
    }

    fn ask_table(&mut self, file: &TableFile) -> Result<()> {
        let Some(max_version) = file.meta.properties.max_version(self.keyspace.id) else {
            return Ok(());
        };
        let later = file.meta.ingested.is_some_and(|came| came > self.sequence);
        if !self.wants(max_version) || later {
            return Ok(());
        }
        let table = file.table()?;
        if !table.may_hold(self.hash) {
            self.filtered.stopped += 1;
            return Ok(());
        }
        self.filtered.passed += u64::from(table.has_filter());
        match table.get(self.place, self.version, self.sequence)? {
            Some(found) => self.offer(found.version, found.kind, || found.value),
            None => self.filtered.in_vain += u64::from(table.has_filter()),
        }
        Ok(())
    }
}

impl Inner {
    /// Where a read of a state stands that asks for the newest.
    fn visible_in(&self, state: &State) -> Sequence {
        self.publisher.visible().max(state.ingested)
    }

    /// A state, and where a read of many keys stands in it: there is no ingest between the two.
    fn state_and_sequence(&self) -> (Arc<State>, Sequence) {
        loop {
            let state = self.state();
            let sequence = self.visible_in(&state);
            if self.state().ingested == state.ingested {
                return (state, sequence);
            }
        }
    }

    pub(super) fn get(&self, id: KeyspaceId, key: &[u8], at: &ReadAt) -> Result<Option<Entry>> {
        let state = self.state();
        let keyspace = self.keyspaces.check_version(id, at.version)?;
        let sequence = at.sequence().unwrap_or_else(|| self.visible_in(&state));
        state.get(keyspace, key, at.version, sequence)
    }

    pub(super) fn iterate(&self, id: KeyspaceId, options: &IterOptions) -> Result<Box<dyn Iter>> {
        let (state, sequence) = self.state_and_sequence();
        self.keyspaces.check_version(id, options.at.version)?;
        let sequence = options.at.sequence().unwrap_or(sequence);
        state.iterate(id, options, sequence)
    }
}

impl State {
    /// The newest entry of a key at a version and sequence.
    pub(super) fn get(
        &self,
        keyspace: &Keyspace,
        key: &[u8],
        version: u64,
        sequence: Sequence,
    ) -> Result<Option<Entry>> {
        let place = PlaceBuf::new(keyspace.id, key);
        let mut lookup = Lookup {
            keyspace,
            place: place.as_slice(),
            hash: hash_place(place.as_slice()),
            version,
            sequence,
            best: None,
            filtered: Filtered::default(),
        };
        let asked = lookup.ask_all(self);
        self.filters.count(&lookup.filtered);
        asked?;
        Ok(match lookup.best {
            Some((version, Kind::Put, value)) => Some(Entry { version, value }),
            _ => None,
        })
    }

    /// An iterator over what a read at this sequence sees.
    pub(super) fn iterate(
        &self,
        id: KeyspaceId,
        options: &IterOptions,
        sequence: Sequence,
    ) -> Result<Box<dyn Iter>> {
        let (lower, upper) = bounds(id, &options.lower, options.upper.as_deref());
        let mut sources: Vec<Box<dyn Cursor>> = vec![Box::new(self.active.cursor())];
        for sealed in &self.sealed {
            sources.push(Box::new(sealed.memtable.cursor()));
        }
        let concerns = |t: &&Arc<TableFile>| {
            let p = &t.meta.properties;
            p.largest >= lower && upper.as_ref().is_none_or(|upper| p.smallest < *upper)
        };
        for table in self.levels.level(0).iter().filter(concerns) {
            sources.push(Box::new(table.cursor(true)?));
        }
        for level in 1..LEVELS {
            let tables = self.levels.level(level).iter().filter(concerns);
            let tables: Vec<_> = tables.cloned().collect();
            if !tables.is_empty() {
                sources.push(Box::new(LevelCursor::new(tables, true)));
            }
        }
        let merged = MergeCursor::new(sources);
        Ok(Box::new(UserIter::new(merged, id, options, sequence)))
    }
}

impl Lookup<'_> {
    fn ask_all(&mut self, state: &State) -> Result<()> {
        let sealed = state.sealed.iter().map(|s| &s.memtable);
        for memtable in std::iter::once(&state.active).chain(sealed) {
            if !self.wants(memtable.max_version()) {
                continue;
            }
            if let Some((key, value)) = memtable.get(self.place, self.version, self.sequence) {
                let (version, kind) = (key.version, key.kind);
                self.offer(version, kind, || Bytes::copy_from_slice(value));
            }
        }
        for file in state.levels.level(0) {
            if file.meta.overlaps(self.place, self.place) {
                self.ask_table(file)?;
            }
        }
        for level in 1..LEVELS {
            if let Some(file) = state.levels.holding(level, self.place) {
                self.ask_table(file)?;
            }
        }
        Ok(())
    }
}
