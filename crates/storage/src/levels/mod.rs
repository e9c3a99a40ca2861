//! Levels: which tables there are, and how they lie above each other.
//!
//! Level 0 holds what was flushed, the newest first; its tables overlap. In each deeper level tables
//! are disjoint and ascend. A `Levels` never changes: an edit makes a new one, and whoever reads
//! keeps the one he began with, and by it its files.
//!
//! Invariants:
//! - From level 1 on, no place is in two tables of a level, by an entry or by a range deletion.
//! - For one place, what a level holds was written after what deeper ones hold. In level 0 the same
//!   holds from newer tables to older ones. (A sequence that was set to 0 counts as what it was.)

mod cursor;
mod edit;
mod level;
mod manifest;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use quorate_env::Disk;

use crate::cache::BlockCache;
use crate::damage::{Damages, Lost};
use crate::error::{Error, Result};
use crate::planted::{self, Bug};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::table::{Table, TableCursor};
use crate::values::{ValueFile, ValueFiles};

pub(crate) use cursor::LevelCursor;
pub(crate) use edit::{Edit, TableMeta};
pub(crate) use level::{Level, Run};
pub(crate) use manifest::{Manifest, manifest_path};

/// How many levels there are.
pub(crate) const LEVELS: usize = 7;

/// Where tables are and what they are read through.
pub(crate) struct Shelf {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) dir: PathBuf,
    pub(crate) cache: Arc<BlockCache>,
    /// Files of which something is not what was written.
    pub(crate) damages: Arc<Damages>,
    /// Files that nothing refers to any more.
    garbage: Mutex<Vec<PathBuf>>,
    /// Called when too many tables are open.
    crowded: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

pub(crate) fn table_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016x}.table"))
}

impl Shelf {
    pub(crate) fn new(disk: Arc<dyn Disk>, dir: &Path, cache: Arc<BlockCache>) -> Self {
        Shelf {
            disk,
            dir: dir.to_owned(),
            cache,
            damages: Arc::default(),
            garbage: Mutex::default(),
            crowded: OnceLock::new(),
        }
    }

    /// Has this called, on whatever thread opened a table, when too many are open. Once.
    pub(crate) fn on_crowded(&self, call: impl Fn() + Send + Sync + 'static) {
        let _ = self.crowded.set(Box::new(call));
    }

    /// Nothing refers to a file any more.
    pub(crate) fn discard(&self, path: PathBuf) {
        self.garbage.lock().push(path);
    }

    /// Removes the files that nothing refers to. What can't be removed now, the next
    /// opening removes.
    pub(crate) fn purge(&self) {
        let garbage = std::mem::take(&mut *self.garbage.lock());
        for path in garbage {
            let _ = self.disk.remove(&path);
        }
    }
}

/// A handle of a table of a level; the file is opened when it is first read.
pub(crate) struct TableFile {
    pub(crate) meta: Arc<TableMeta>,
    /// What all handles of the table share.
    on_disk: Arc<OnDisk>,
    open: OnceLock<Arc<Table>>,
    /// Whether it was read since somebody looked.
    used: AtomicBool,
}

/// The file of a table: an obsolete one goes with its last handle.
struct OnDisk {
    number: u64,
    shelf: Arc<Shelf>,
    obsolete: AtomicBool,
}

impl TableFile {
    pub(crate) fn new(meta: Arc<TableMeta>, shelf: &Arc<Shelf>) -> Arc<Self> {
        let on_disk = Arc::new(OnDisk {
            number: meta.number,
            shelf: Arc::clone(shelf),
            obsolete: AtomicBool::new(false),
        });
        TableFile::handle(meta, on_disk)
    }

    fn handle(meta: Arc<TableMeta>, on_disk: Arc<OnDisk>) -> Arc<Self> {
        Arc::new(TableFile {
            meta,
            on_disk,
            open: OnceLock::new(),
            used: AtomicBool::new(false),
        })
    }

    /// Another handle, not open, of the same file.
    fn closed(&self) -> Arc<Self> {
        TableFile::handle(Arc::clone(&self.meta), Arc::clone(&self.on_disk))
    }

    /// Its file may go when nobody reads it any more: the manifest no longer has it.
    pub(crate) fn retire(&self) {
        self.on_disk.obsolete.store(true, Ordering::Release);
    }

    /// The table, opened.
    pub(crate) fn table(&self) -> Result<&Arc<Table>> {
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
        if let Some(table) = self.open.get() {
            return Ok(table);
        }
        self.open_table()
    }

    #[cold]
    fn open_table(&self) -> Result<&Arc<Table>> {
        let shelf = &self.on_disk.shelf;
        let table = Table::open(
            shelf.disk.as_ref(),
            &self.path(),
            &self.meta,
            Arc::clone(&shelf.cache),
        );
        let table = table.inspect_err(|error| shelf.damages.note(self.meta.number, None, error))?;
        let table = table.noting_damage(&shelf.damages);
        let table = self.open.get_or_init(|| Arc::new(table));
        if let Some(call) = shelf.crowded.get()
            && shelf.cache.memory().tables_to_close().is_some()
        {
            call();
        }
        Ok(table)
    }

    /// Where its file is.
    pub(crate) fn path(&self) -> PathBuf {
        table_path(&self.on_disk.shelf.dir, self.meta.number)
    }

    /// The disk with its file.
    pub(crate) fn disk(&self) -> &dyn Disk {
        self.on_disk.shelf.disk.as_ref()
    }

    /// Takes the open file of another handle of the same table.
    pub(crate) fn share(&self, other: &TableFile) {
        if let Some(table) = other.open.get() {
            let _ = self.open.set(Arc::clone(table));
        }
    }

    /// What it takes in memory, blocks in the cache not counted.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.open.get().map_or(0, |table| table.memory_bytes())
    }

    pub(crate) fn cursor(&self, fill_cache: bool) -> Result<TableCursor> {
        let table = Arc::clone(self.table()?);
        Ok(TableCursor::new(table, fill_cache, self.meta.ingested))
    }

    /// For compaction: a cursor that goes around what was given up. REQUIRES: not all was.
    pub(crate) fn salvaging_cursor(&self) -> Result<TableCursor> {
        let cursor = self.cursor(false)?;
        Ok(match self.on_disk.shelf.damages.lost_of(self.meta.number) {
            Some(Lost::At(offsets)) => cursor.without(offsets),
            Some(Lost::Table) | None => cursor,
        })
    }

    /// Whether all of it was given up.
    pub(crate) fn is_lost(&self) -> bool {
        self.on_disk.shelf.damages.is_lost(self.meta.number)
    }

    /// Reads it without what was given up.
    pub(crate) fn salvage(&self, read: impl FnOnce(&mut TableCursor) -> Result<()>) -> Result<()> {
        match self.is_lost() {
            true => Ok(()),
            false => read(&mut self.salvaging_cursor()?),
        }
    }
}

impl TableMeta {
    /// Whether all it holds is before a place.
    fn is_before(&self, place: &[u8]) -> bool {
        self.properties.end.as_slice() <= place
    }
}

impl Drop for OnDisk {
    fn drop(&mut self) {
        if self.obsolete.load(Ordering::Acquire) {
            self.shelf.discard(table_path(&self.shelf.dir, self.number));
        }
    }
}

/// The tables of all levels, and the value files that they need.
#[derive(Clone, Default)]
pub(crate) struct Levels {
    levels: [Arc<Level>; LEVELS],
    values: Arc<ValueFiles>,
}

/// What an edit took out of the levels.
#[derive(Default)]
pub(crate) struct Gone {
    tables: Vec<Arc<TableFile>>,
    values: Vec<Arc<ValueFile>>,
}

impl Gone {
    /// The manifest no longer has them: their files go with the last reader.
    pub(crate) fn retire(self) {
        self.tables.iter().for_each(|table| table.retire());
        for file in &self.values {
            file.retire();
            if planted::is_on(Bug::ValueFilesGoAtOnce) {
                let _ = file.disk().remove(&file.path());
            }
        }
    }
}

impl Levels {
    /// The tables of a level.
    pub(crate) fn level(&self, level: usize) -> &[Arc<TableFile>] {
        self.levels.get(level).map_or(&[], |level| level.tables())
    }

    /// The value files that the tables need.
    pub(crate) fn values(&self) -> &Arc<ValueFiles> {
        &self.values
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &[Arc<TableFile>]> {
        self.levels.iter().map(|level| level.tables())
    }

    /// A table by its number.
    pub(crate) fn find(&self, number: u64) -> Option<&Arc<TableFile>> {
        self.iter().flatten().find(|t| t.meta.number == number)
    }

    /// The size of a level.
    pub(crate) fn bytes(&self, level: usize) -> u64 {
        self.level(level).iter().map(|t| t.meta.size_bytes).sum()
    }

    /// The tables of a level that may hold something from one place to below another.
    pub(crate) fn overlapping(
        &self,
        level: usize,
        lower: &[u8],
        upper: &[u8],
    ) -> &[Arc<TableFile>] {
        debug_assert!(level > 0, "tables of level 0 are not in order");
        let within = self.within(level, lower, Some(upper));
        self.level(level).get(within).unwrap_or_default()
    }

    /// The places of those tables in their level.
    fn within(&self, level: usize, lower: &[u8], upper: Option<&[u8]>) -> Range<usize> {
        let all = self.level(level);
        let from = all.partition_point(|t| t.meta.is_before(lower));
        let before = |t: &Arc<TableFile>| upper.is_none_or(|u| *t.meta.properties.smallest < *u);
        from..all.partition_point(before).max(from)
    }

    /// The tables of a level, not of the highest, that may hold something from one place to below another.
    /// REQUIRES: `level` is one of them.
    pub(crate) fn run(&self, level: usize, lower: &[u8], upper: Option<&[u8]>) -> Run {
        let within = self.within(level, lower, upper);
        Run::Part(Arc::clone(&self.levels[level]), within)
    }

    /// The one table of a level that may hold a place.
    pub(crate) fn holding(&self, level: usize, place: &[u8]) -> Option<&Arc<TableFile>> {
        let all = self.level(level);
        let table = all.get(all.partition_point(|t| t.meta.is_before(place)))?;
        table.meta.properties.may_hold(place).then_some(table)
    }

    /// Whether no level from `level` down holds the place.
    pub(crate) fn nothing_from(&self, level: usize, place: &[u8]) -> bool {
        (level..LEVELS).all(|level| match level {
            0 => !self
                .level(0)
                .iter()
                .any(|t| t.meta.properties.may_hold(place)),
            _ => self.holding(level, place).is_none(),
        })
    }

    /// Whether no level from `level` down holds anything from one place to below another.
    pub(crate) fn nothing_within(&self, level: usize, lower: &[u8], upper: &[u8]) -> bool {
        let overlaps = |t: &Arc<TableFile>| t.meta.properties.overlaps(lower, Some(upper));
        (level..LEVELS).all(|level| match level {
            0 => !self.level(0).iter().any(overlaps),
            _ => self.overlapping(level, lower, upper).is_empty(),
        })
    }

    /// The levels after an edit, and what it takes out of them; the text says why it can't be.
    pub(crate) fn apply(
        &self,
        edit: &Edit,
        shelf: &Arc<Shelf>,
    ) -> std::result::Result<(Levels, Gone), String> {
        let mut next = self.clone();
        let values = next.apply_values(edit, shelf)?;
        let mut carried: Vec<Arc<TableFile>> = Vec::new();
        for (level, number) in &edit.removed {
            let tables = next.change(*level)?;
            let at = tables.iter().position(|t| t.meta.number == *number);
            let at = at.ok_or_else(|| format!("table {number} is not in level {level}"))?;
            carried.push(tables.remove(at));
        }
        for (level, meta) in &edit.added {
            let tables = next.change(*level)?;
            // A table that only moves keeps its open file.
            let file = match carried.iter().position(|t| t.meta.number == meta.number) {
                Some(at) => carried.swap_remove(at),
                None => TableFile::new(Arc::clone(meta), shelf),
            };
            let at = match level {
                0 if planted::is_on(Bug::LevelZeroReversed) => tables.len(),
                0 => tables.partition_point(|t| t.meta.number > meta.number),
                _ => tables
                    .partition_point(|t| t.meta.properties.smallest < meta.properties.smallest),
            };
            tables.insert(at, file);
        }
        next.check()?;
        let gone = Gone {
            tables: carried,
            values,
        };
        Ok((next, gone))
    }

    /// The tables of a level, to be changed.
    fn change(&mut self, level: usize) -> std::result::Result<&mut Vec<Arc<TableFile>>, String> {
        let level = self.levels.get_mut(level).ok_or("a level is not there")?;
        Ok(Arc::make_mut(level).change())
    }

    /// Does the part of an edit that is about value files, before its tables go; returns the files that
    /// go.
    fn apply_values(
        &mut self,
        edit: &Edit,
        shelf: &Arc<Shelf>,
    ) -> std::result::Result<Vec<Arc<ValueFile>>, String> {
        let removed = edit.removed.iter().filter_map(|(level, number)| {
            let tables = self.level(*level).iter();
            tables.map(|t| &t.meta).find(|meta| meta.number == *number)
        });
        let removed: Vec<&Arc<TableMeta>> = removed.collect();
        let added = || edit.added.iter().map(|(_, meta)| meta);
        let needy = |meta: &&Arc<TableMeta>| !meta.properties.shares.is_empty();
        let idle = !removed.iter().any(needy) && !added().any(|meta| needy(&meta));
        if idle && edit.values.is_empty() {
            return Ok(Vec::new());
        }
        let mut values = ValueFiles::clone(&self.values);
        values.add(&edit.values, shelf);
        // First what comes: what moves keeps its files.
        added().try_for_each(|meta| values.need(meta))?;
        removed
            .into_iter()
            .try_for_each(|meta| values.release(meta))?;
        let gone = values.sweep()?;
        self.values = Arc::new(values);
        Ok(gone)
    }

    /// From level 1 on tables are disjoint and ascend.
    fn check(&self) -> std::result::Result<(), String> {
        for (level, tables) in self.iter().enumerate().skip(1) {
            for pair in tables.windows(2) {
                if let [a, b] = pair
                    && a.meta.properties.end > b.meta.properties.smallest
                {
                    return Err(format!(
                        "tables {} and {} of level {level} overlap",
                        a.meta.number, b.meta.number
                    ));
                }
            }
        }
        Ok(())
    }

    /// The same levels, in which some of the open tables, those not read lately before others, have
    /// handles that are not open: at least so many, and as many as take so many bytes. The files are closed
    /// when the last reader of the handles before lets go.
    pub(crate) fn with_closed(&self, tables: u64, bytes: u64) -> Levels {
        let mut next = self.clone();
        let (mut closed, mut freed) = (0, 0);
        for look in 0..2 {
            for level in &mut next.levels {
                for file in Arc::make_mut(level).change() {
                    if closed >= tables && freed >= bytes {
                        return next;
                    }
                    let used = look == 0 && file.used.swap(false, Ordering::Relaxed);
                    let Some(table) = file.open.get().filter(|_| !used) else {
                        continue;
                    };
                    closed += 1;
                    freed += table.memory_bytes() as u64;
                    *file = file.closed();
                }
            }
        }
        next
    }

    /// The edit that makes these levels from nothing.
    pub(crate) fn as_edit(&self) -> Edit {
        let mut edit = Edit::default();
        for (level, tables) in self.iter().enumerate() {
            let added = tables.iter().map(|t| (level, Arc::clone(&t.meta)));
            edit.added.extend(added);
        }
        edit.values = self.values.iter().map(|held| held.file.meta).collect();
        edit
    }
}

/// What is wrong with a manifest whose edits don't fit.
pub(crate) fn bad_edit(dir: &Path, number: u64, what: &str) -> Error {
    Error::corrupt(&manifest_path(dir, number), what)
}
