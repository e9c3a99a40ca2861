//! Reading: point lookups and iterators.
//!
//! A read first takes the state (memtables and levels), then the sequence it stands at. In this order
//! all that is visible at the sequence and not in the state is newer than the state: what is seen is
//! a prefix of the writes, and holds all that was visible when the read began. The other way around,
//! a compaction in between could have dropped what only this read would see.

use std::sync::Arc;

use bytes::Bytes;

use super::{Inner, State};
use crate::engine::{Entry, Iter, IterOptions, ReadAt, Sequence};
use crate::error::{Error, ErrorKind, Result};
use crate::iter::{UserIter, bounds};
use crate::key::{Kind, PlaceBuf};
use crate::keyspaces::Keyspace;
use crate::levels::{LEVELS, TableFile};
use crate::memtable::Memtable;
use crate::options::KeyspaceId;
use crate::sources::Sources;
use crate::table::hash_place;
use crate::tombstones::highest_seen;

/// A lookup on its way from the newest source to the oldest.
///
/// Versions of a key normally ascend with time, so the first entry found is the newest. It need
/// not be, after a replay of old writes: an older source is asked as well if it may hold a higher
/// version that the read may see. A range deletion that covers the key counts as a deletion of it.
struct Lookup<'a> {
    keyspace: &'a Keyspace,
    place: &'a [u8],
    hash: u64,
    version: u64,
    sequence: Sequence,
    /// Version and value of what is newest so far; without a value it is a deletion.
    best: Option<(u64, Option<Bytes>)>,
}

impl Lookup<'_> {
    /// Whether a source that has no higher version than this has to be asked.
    fn wants(&self, max_version: u64) -> bool {
        match &self.best {
            None => true,
            Some((found, _)) => {
                self.keyspace.versioned && max_version > *found && *found < self.version
            }
        }
    }

    fn offer(&mut self, version: u64, value: impl FnOnce() -> Option<Bytes>) {
        if self.best.as_ref().is_none_or(|(best, _)| version > *best) {
            self.best = Some((version, value()));
        }
    }

    fn ask_memtable(&mut self, memtable: &Memtable) {
        if !self.wants(memtable.max_version()) {
            return;
        }
        let mark = memtable.mark(self.place, self.version, self.sequence);
        let found = memtable.get(self.place, self.version, self.sequence);
        match (found, mark) {
            (Some((key, value)), mark)
                if mark.is_none_or(|mark| !mark.hides(key.version, key.sequence)) =>
            {
                let put = key.kind == Kind::Put;
                self.offer(key.version, || put.then(|| Bytes::copy_from_slice(value)));
            }
            (_, Some(mark)) => self.offer(mark.version, || None),
            (_, None) => {}
        }
    }

    fn ask_table(&mut self, file: &TableFile) -> Result<()> {
        let Some(max_version) = file.meta.properties.max_version(self.keyspace.id) else {
            return Ok(());
        };
        if !self.wants(max_version) {
            return Ok(());
        }
        let table = file.table()?;
        let marks = table.tombstones().around(self.place).marks;
        let mark = highest_seen(marks, self.version, self.sequence);
        let found = table.get(self.place, self.hash, self.version, self.sequence)?;
        match (found, mark) {
            (Some(found), mark)
                if mark.is_none_or(|mark| !mark.hides(found.version, found.sequence)) =>
            {
                let put = found.kind == Kind::Put;
                self.offer(found.version, || put.then_some(found.value));
            }
            (_, Some(mark)) => self.offer(mark.version, || None),
            (_, None) => {}
        }
        Ok(())
    }
}

impl Inner {
    /// Fails if compaction may have dropped what a read at this version would see. To be called
    /// when the read has its state: what is dropped from it was below the watermark before.
    fn check_version(&self, keyspace: KeyspaceId, version: u64) -> Result<&Keyspace> {
        let keyspace = self.keyspaces.get(keyspace)?;
        let watermark = keyspace.watermark();
        if keyspace.versioned && version < watermark {
            return Err(Error::new(
                ErrorKind::Dropped,
                format!("version {version} is below the watermark {watermark}"),
            ));
        }
        Ok(keyspace)
    }

    pub(super) fn get(&self, id: KeyspaceId, key: &[u8], at: &ReadAt) -> Result<Option<Entry>> {
        let state = self.state();
        let keyspace = self.check_version(id, at.version)?;
        let sequence = at.sequence().unwrap_or_else(|| self.publisher.visible());
        let place = PlaceBuf::new(id, key);
        let mut lookup = Lookup {
            keyspace,
            place: place.as_slice(),
            hash: hash_place(place.as_slice()),
            version: at.version,
            sequence,
            best: None,
        };
        lookup.ask_all(&state)?;
        Ok(match lookup.best {
            Some((version, Some(value))) => Some(Entry { version, value }),
            _ => None,
        })
    }

    pub(super) fn iterate(&self, id: KeyspaceId, options: &IterOptions) -> Result<Box<dyn Iter>> {
        let state = self.state();
        let keyspace = self.check_version(id, options.at.version)?;
        let sequence = options.at.sequence();
        let sequence = sequence.unwrap_or_else(|| self.publisher.visible());
        let (lower, upper) = bounds(id, &options.lower, options.upper.as_deref());
        let mut sources = Sources::new(keyspace, &options.at, sequence);
        sources.add_memtable(&state.active);
        for sealed in &state.sealed {
            sources.add_memtable(&sealed.memtable);
        }
        let concerns = |t: &&Arc<TableFile>| t.meta.properties.overlaps(&lower, upper.as_deref());
        for table in state.levels.level(0).iter().filter(concerns) {
            sources.add_table(table)?;
        }
        for level in 1..LEVELS {
            let tables = state.levels.level(level).iter();
            sources.add_level(tables.filter(concerns).cloned().collect());
        }
        Ok(Box::new(UserIter::new(sources, options)))
    }
}

impl Lookup<'_> {
    fn ask_all(&mut self, state: &State) -> Result<()> {
        let sealed = state.sealed.iter().map(|s| &s.memtable);
        for memtable in std::iter::once(&state.active).chain(sealed) {
            self.ask_memtable(memtable);
        }
        for file in state.levels.level(0) {
            if file.meta.properties.may_hold(self.place) {
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
