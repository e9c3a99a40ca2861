//! Reading: point lookups and iterators.
//!
//! A read first takes the state (memtables and levels), then the sequence it stands at. In this order
//! all that is visible at the sequence and not in the state is newer than the state: what is seen is
//! a prefix of the writes, and holds all that was visible when the read began. The other way around,
//! a compaction in between could have dropped what only this read would see.

use std::sync::Arc;

use super::counters::Filtered;
use super::lookup::Lookup;
use super::{Inner, State};
use crate::engine::{Entry, Iter, IterOptions, ReadAt, Sequence};
use crate::error::Result;
use crate::iter::{UserIter, bounds};
use crate::key::PlaceBuf;
use crate::keyspaces::Keyspace;
use crate::levels::{LEVELS, Run, TableFile};
use crate::options::KeyspaceId;
use crate::planted::{self, Bug};
use crate::prefix::{Prefix, hash_prefix};
use crate::sources::Sources;
use crate::table::Near;
use crate::voids::{Passage, Voids};

/// Of so many tables in a range each is asked by its filter whether it holds something there.
const FEW_TABLES: usize = 4;

impl Inner {
    /// Where a read of a state stands that asks for the newest.
    fn visible_in(&self, state: &State) -> Sequence {
        self.publisher.visible().max(state.ingested)
    }

    /// A state, and where a read of many keys stands in it: there is no ingest between the two.
    fn state_and_sequence(&self) -> (Arc<State>, Sequence) {
        if planted::is_on(Bug::SequenceBeforeState) {
            let sequence = self.publisher.visible();
            return (self.state(), sequence);
        }
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

    pub(super) fn multi_get(
        &self,
        id: KeyspaceId,
        keys: &[&[u8]],
        at: &ReadAt,
    ) -> Result<Vec<Option<Entry>>> {
        let (state, sequence) = self.state_and_sequence();
        let keyspace = self.keyspaces.check_version(id, at.version)?;
        let sequence = at.sequence().unwrap_or(sequence);
        state.multi_get(keyspace, keys, at.version, sequence)
    }

    pub(super) fn iterate(&self, id: KeyspaceId, options: &IterOptions) -> Result<Box<dyn Iter>> {
        // The state holds all up to this; of what is visible at `sequence` it may lack what is newer than it.
        let held = self.publisher.visible();
        let (state, sequence) = self.state_and_sequence();
        let keyspace = self.keyspaces.check_version(id, options.at.version)?;
        let held = options.at.sequence().unwrap_or(held);
        let sequence = options.at.sequence().unwrap_or(sequence);
        let newest = options.at.version == u64::MAX && !options.all_versions;
        let voids = newest.then(|| (Arc::clone(&self.voids), held));
        state.iterate(keyspace, options, sequence, voids)
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
        let mut lookup = Lookup::new(keyspace, place.as_slice(), version, sequence);
        let asked = self.ask_all(&mut lookup);
        self.filters.count(&lookup.filtered);
        asked.and_then(|()| lookup.entry(self.levels.values()))
    }

    fn ask_all(&self, lookup: &mut Lookup<'_>) -> Result<()> {
        for memtable in self.memtables() {
            lookup.ask_memtable(memtable);
        }
        for file in self.levels.level(0) {
            if file.meta.properties.may_hold(lookup.place) {
                lookup.ask_table(file, None)?;
            }
        }
        for level in 1..LEVELS {
            if let Some(file) = self.levels.holding(level, lookup.place) {
                lookup.ask_table(file, None)?;
            }
        }
        Ok(())
    }

    /// Source by source, each in the order of keys: what is near by is still at hand.
    pub(super) fn multi_get(
        &self,
        keyspace: &Keyspace,
        keys: &[&[u8]],
        version: u64,
        sequence: Sequence,
    ) -> Result<Vec<Option<Entry>>> {
        let places: Vec<PlaceBuf> = keys
            .iter()
            .map(|key| PlaceBuf::new(keyspace.id, key))
            .collect();
        let mut lookups = Vec::with_capacity(keys.len());
        for (n, place) in places.iter().enumerate() {
            let lookup = Lookup::new(keyspace, place.as_slice(), version, sequence);
            lookups.push((n, lookup));
        }
        lookups.sort_unstable_by_key(|(_, lookup)| lookup.place);
        for memtable in self.memtables() {
            Lookup::ask_memtable_each(&mut lookups, memtable);
        }
        let mut near = Near::default();
        for file in self.levels.level(0) {
            for (_, lookup) in &mut lookups {
                if file.meta.properties.may_hold(lookup.place) {
                    lookup.ask_table(file, Some(&mut near))?;
                }
            }
        }
        for level in 1..LEVELS {
            for (_, lookup) in &mut lookups {
                if let Some(file) = self.levels.holding(level, lookup.place) {
                    lookup.ask_table(file, Some(&mut near))?;
                }
            }
        }
        let mut answers = vec![None; keys.len()];
        for (n, lookup) in lookups {
            self.filters.count(&lookup.filtered);
            answers[n] = lookup.entry(self.levels.values())?;
        }
        Ok(answers)
    }

    /// An iterator over what a read at this sequence sees. `voids` are for one that reads the newest, with
    /// the sequence up to which this state holds everything.
    pub(super) fn iterate(
        &self,
        keyspace: &Keyspace,
        options: &IterOptions,
        sequence: Sequence,
        voids: Option<(Arc<Voids>, Sequence)>,
    ) -> Result<Box<dyn Iter>> {
        let (lower, upper) = bounds(keyspace.id, &options.lower, options.upper.as_deref());
        let mut sources = Sources::new(keyspace, &options.at, sequence);
        sources.values = Arc::clone(self.levels.values());
        for memtable in self.memtables() {
            sources.add_memtable(memtable);
        }
        let upper = upper.as_deref();
        let concerns = |t: &&Arc<TableFile>| t.meta.properties.overlaps(&lower, upper);
        let mut filtered = Filtered::default();
        for table in self.levels.level(0).iter().filter(concerns) {
            if may_hold_range(keyspace.id, table, &lower, upper, &mut filtered)? {
                sources.add_table(table)?;
            }
        }
        for level in 1..LEVELS {
            let mut run = self.levels.run(level, &lower, upper);
            // Of a range with one prefix those in its middle hold nothing else.
            if run.tables().len() <= FEW_TABLES {
                let mut picked = Vec::new();
                for table in run.tables() {
                    if may_hold_range(keyspace.id, table, &lower, upper, &mut filtered)? {
                        picked.push(Arc::clone(table));
                    }
                }
                run = Run::Picked(picked);
            }
            sources.add_level(run);
        }
        self.filters.count(&filtered);
        let held = voids.as_ref().map_or(sequence, |(_, held)| *held);
        let passage = Passage::new(voids.map(|(voids, _)| voids), held);
        Ok(Box::new(UserIter::new(sources, options, passage)))
    }
}

/// Whether a table that reaches into a range may hold something there, as far as its filter knows: it can only
/// deny what has one prefix, by the extractor that the table was made with.
fn may_hold_range(
    id: KeyspaceId,
    file: &TableFile,
    lower: &[u8],
    upper: Option<&[u8]>,
    filtered: &mut Filtered,
) -> Result<bool> {
    let properties = &file.meta.properties;
    let extractor = match planted::is_on(Bug::PrefixOfTheWrongExtractor) {
        true => Prefix::Fixed(2),
        false => properties.prefix(id),
    };
    // The filter knows nothing of range deletions, and these hide what other tables hold.
    if extractor == Prefix::None || properties.range_deletions > 0 {
        return Ok(true);
    }
    let Some(prefix) = extractor.of_range(lower, upper) else {
        return Ok(true);
    };
    let may = file.table()?.may_hold(hash_prefix(prefix));
    filtered.prefix_stopped += u64::from(!may);
    Ok(may)
}
