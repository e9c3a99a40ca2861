//! Reading: point lookups and iterators.
//!
//! A read first takes the state (memtables and levels), then the sequence it stands at. In this order
//! all that is visible at the sequence and not in the state is newer than the state: what is seen is
//! a prefix of the writes, and holds all that was visible when the read began. The other way around,
//! a compaction in between could have dropped what only this read would see.

use std::sync::Arc;

use super::Inner;
use super::lookup::Lookup;
use crate::engine::{Entry, Iter, IterOptions, ReadAt};
use crate::error::{Error, ErrorKind, Result};
use crate::iter::{UserIter, bounds};
use crate::key::PlaceBuf;
use crate::keyspaces::Keyspace;
use crate::levels::{LEVELS, TableFile};
use crate::options::KeyspaceId;
use crate::sources::Sources;
use crate::table::Near;
use crate::voids::Passage;

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
        let mut lookup = Lookup::new(keyspace, place.as_slice(), at.version, sequence);
        for memtable in state.memtables() {
            lookup.ask_memtable(memtable);
        }
        for file in state.levels.level(0) {
            if file.meta.properties.may_hold(lookup.place) {
                lookup.ask_table(file, None)?;
            }
        }
        for level in 1..LEVELS {
            if let Some(file) = state.levels.holding(level, lookup.place) {
                lookup.ask_table(file, None)?;
            }
        }
        Ok(lookup.entry())
    }

    /// Source by source, each in the order of keys: what is near by is still at hand.
    pub(super) fn multi_get(
        &self,
        id: KeyspaceId,
        keys: &[&[u8]],
        at: &ReadAt,
    ) -> Result<Vec<Option<Entry>>> {
        let state = self.state();
        let keyspace = self.check_version(id, at.version)?;
        let sequence = at.sequence().unwrap_or_else(|| self.publisher.visible());
        let places: Vec<PlaceBuf> = keys.iter().map(|key| PlaceBuf::new(id, key)).collect();
        let mut lookups = Vec::with_capacity(keys.len());
        for (n, place) in places.iter().enumerate() {
            let lookup = Lookup::new(keyspace, place.as_slice(), at.version, sequence);
            lookups.push((n, lookup));
        }
        lookups.sort_unstable_by_key(|(_, lookup)| lookup.place);
        for memtable in state.memtables() {
            lookups
                .iter_mut()
                .for_each(|(_, lookup)| lookup.ask_memtable(memtable));
        }
        let mut near = Near::default();
        for file in state.levels.level(0) {
            for (_, lookup) in &mut lookups {
                if file.meta.properties.may_hold(lookup.place) {
                    lookup.ask_table(file, Some(&mut near))?;
                }
            }
        }
        for level in 1..LEVELS {
            for (_, lookup) in &mut lookups {
                if let Some(file) = state.levels.holding(level, lookup.place) {
                    lookup.ask_table(file, Some(&mut near))?;
                }
            }
        }
        let mut answers = vec![None; keys.len()];
        for (n, lookup) in lookups {
            answers[n] = lookup.entry();
        }
        Ok(answers)
    }

    pub(super) fn iterate(&self, id: KeyspaceId, options: &IterOptions) -> Result<Box<dyn Iter>> {
        let state = self.state();
        let keyspace = self.check_version(id, options.at.version)?;
        let sequence = options.at.sequence();
        let sequence = sequence.unwrap_or_else(|| self.publisher.visible());
        let (lower, upper) = bounds(id, &options.lower, options.upper.as_deref());
        let mut sources = Sources::new(keyspace, &options.at, sequence);
        for memtable in state.memtables() {
            sources.add_memtable(memtable);
        }
        let concerns = |t: &&Arc<TableFile>| t.meta.properties.overlaps(&lower, upper.as_deref());
        for table in state.levels.level(0).iter().filter(concerns) {
            sources.add_table(table)?;
        }
        for level in 1..LEVELS {
            let tables = state.levels.level(level).iter();
            sources.add_level(tables.filter(concerns).cloned().collect());
        }
        let newest = options.at.version == u64::MAX && !options.all_versions;
        let voids = newest.then(|| Arc::clone(&self.voids));
        let passage = Passage::new(voids, sequence);
        Ok(Box::new(UserIter::new(sources, options, passage)))
    }
}
