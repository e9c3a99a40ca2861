//! What an iterator reads: entries of many sources merged, and the range deletions over them.

use std::sync::Arc;

use crate::cursor::Cursor;
use crate::engine::{ReadAt, Sequence};
use crate::error::Result;
use crate::expiry::Expiry;
use crate::key::{self, Key};
use crate::keyspaces::Keyspace;
use crate::levels::{LevelCursor, Run, TableFile};
use crate::memtable::Memtable;
use crate::merge::MergeCursor;
use crate::options::KeyspaceId;
use crate::planted::{self, Bug};
use crate::shroud::{Layer, Shroud};
use crate::values::ValueFiles;

/// The sources of an iterator, added from the newest to the oldest.
pub(crate) struct Sources {
    pub(crate) keyspace: KeyspaceId,
    pub(crate) sequence: Sequence,
    /// Those of the levels.
    pub(crate) values: Arc<ValueFiles>,
    pub(crate) expiry: Expiry,
    versioned: bool,
    cursors: Vec<Box<dyn Cursor>>,
    /// The highest version of the keyspace in each.
    max_versions: Vec<u64>,
    shroud: Shroud,
}

impl Sources {
    /// None yet, for a read at `sequence`.
    pub(crate) fn new(keyspace: &Keyspace, at: &ReadAt, sequence: Sequence) -> Self {
        Sources {
            keyspace: keyspace.id,
            sequence,
            values: Arc::default(),
            expiry: keyspace.expiry(),
            versioned: keyspace.versioned,
            cursors: Vec::new(),
            max_versions: Vec::new(),
            shroud: Shroud::new(at.version, sequence),
        }
    }

    pub(crate) fn add_memtable(&mut self, memtable: &Arc<Memtable>) {
        if memtable.has_ranges() {
            let layer = Layer::Memtable(Arc::clone(memtable));
            self.shroud.add(self.cursors.len(), layer);
        }
        self.max_versions.push(memtable.max_version());
        self.cursors.push(Box::new(memtable.cursor()));
    }

    pub(crate) fn add_table(&mut self, table: &Arc<TableFile>) -> Result<()> {
        self.max_versions.push(self.max_version(table));
        if has_ranges(table) {
            let layer = Layer::Level(vec![Arc::clone(table)]);
            self.shroud.add(self.cursors.len(), layer);
        }
        self.cursors.push(Box::new(table.cursor(true)?));
        Ok(())
    }

    /// Adds tables of a level below 0, if there are any.
    pub(crate) fn add_level(&mut self, run: Run) {
        if run.tables().is_empty() {
            return;
        }
        self.max_versions.push(run.max_version(self.keyspace));
        let covering = run.with_ranges();
        if !covering.is_empty() {
            self.shroud.add(self.cursors.len(), Layer::Level(covering));
        }
        self.cursors.push(Box::new(LevelCursor::new(run, true)));
    }

    fn max_version(&self, table: &TableFile) -> u64 {
        let highest = table.meta.properties.max_version(self.keyspace);
        highest.unwrap_or(0)
    }

    pub(crate) fn merge(self) -> Covered {
        Covered {
            cursor: MergeCursor::new(self.cursors),
            shroud: self.shroud,
            versioned: self.versioned,
            max_versions: self.max_versions,
        }
    }
}

fn has_ranges(table: &TableFile) -> bool {
    table.meta.properties.range_deletions > 0
}

/// Merged entries, and whether range deletions hide them.
pub(crate) struct Covered {
    pub(crate) cursor: MergeCursor,
    shroud: Shroud,
    versioned: bool,
    max_versions: Vec<u64>,
}

impl Covered {
    /// Whether the read sees a range deletion and so not the current entry, which it would see
    /// otherwise. With `exactly`, only one of the entry's own version counts. REQUIRES: valid.
    pub(crate) fn hides_current(&mut self, exactly: bool) -> Result<bool> {
        if self.shroud.is_empty() {
            return Ok(false);
        }
        let key = self.cursor.key();
        self.shroud.look_at(key.place)?;
        Ok(match exactly {
            true => self.shroud.hides_exactly(key.version, key.sequence),
            false => self.shroud.hides(key.version, key.sequence),
        })
    }

    /// Goes on from an entry that is hidden; past the whole range where nothing in it can be seen.
    ///
    /// In sources older than that of the range deletion all in the range was written before it, so it
    /// is hidden unless its version is higher: such a source need not be walked. REQUIRES: valid;
    /// [`hides_current`](Self::hides_current) was the last to look, with the same `exactly`.
    pub(crate) fn leave(&mut self, forward: bool, exactly: bool) -> Result<()> {
        let source = self.cursor.source();
        let skips = self.shroud.highest().is_some_and(|(mark, from)| {
            let all = !exactly && self.max_versions[source] <= mark.version
                || planted::is_on(Bug::SkipIgnoresVersions);
            source > from && (all || !self.versioned)
        });
        match (skips, forward, self.shroud.end()) {
            (true, true, Some(end)) => self.cursor.skip_to(&Key::first_of(end)),
            (true, false, _) => {
                let start = self.shroud.start();
                debug_assert!(
                    start.len() >= key::KEYSPACE_BYTES,
                    "a range begins at a place"
                );
                self.cursor.skip_to(&Key::first_of(start))
            }
            (_, true, _) => self.cursor.next(),
            (_, false, _) => self.cursor.prev(),
        }
    }
}
