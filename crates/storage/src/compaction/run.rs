//! Carries a compaction or flush out: merges, drops, writes tables.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::PathBuf;
use std::sync::Arc;

use super::garbage::{Garbage, Keep, Verdict};
use super::policy::Choice;
use super::revise::{Revise, Revised};
use crate::cursor::Cursor;
use crate::error::{Error, ErrorKind, Result};
use crate::filter::CompactionFilter;
use crate::key::{Key, Kind, keyspace_of};
use crate::keyspaces::Keyspaces;
use crate::levels::{Edit, LevelCursor, Levels, Run, Shelf, TableFile, TableMeta, table_path};
use crate::merge::MergeCursor;
use crate::planted::{self, Bug};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::table::{TableBuilder, TableOptions};
use crate::tombstones::Tombstones;
use crate::values::{Collect, Pointer, ValueMeta, ValueOptions, ValueWriter};

/// Which side failed: what was read, or what was to be written.
pub(crate) enum Failure {
    Input(Error),
    Output(Error),
}

impl Failure {
    pub(crate) fn error(&self) -> &Error {
        match self {
            Failure::Input(error) | Failure::Output(error) => error,
        }
    }
}

/// What is written to tables.
pub(crate) struct Input<'a> {
    pub(crate) cursor: &'a mut dyn Cursor,
    pub(crate) tombstones: Tombstones,
    /// What lies below the tables: these levels, from this one down. `None` if it is not known.
    pub(crate) below: Option<(&'a Levels, usize)>,
    /// Asked about what is written.
    pub(crate) filter: Option<&'a dyn CompactionFilter>,
}

impl Input<'_> {
    fn at_bottom(&self, place: &[u8]) -> bool {
        let below = self.below;
        below.is_some_and(|(levels, from)| levels.nothing_from(from, place))
    }
}

/// Where tables go.
pub(crate) struct Outputs<'a> {
    pub(crate) shelf: &'a Shelf,
    pub(crate) next_file: &'a AtomicU64,
    pub(crate) options: TableOptions,
    /// The size at which a table ends; place by place, so that none is in two.
    pub(crate) table_bytes: u64,
    /// For the tables below the output: an output that overlaps too many of them ends early, so
    /// that its own compaction is not a large one.
    pub(crate) below: Option<(&'a Levels, usize)>,
    /// Places from the first of each to below the second are left out.
    pub(crate) without: &'a [(Vec<u8>, Option<Vec<u8>>)],
    pub(crate) values: ValueOptions,
    /// The value files to move values out of.
    pub(crate) collect: &'a Collect,
}

/// What was written.
#[derive(Default)]
pub(crate) struct Written {
    pub(crate) tables: Vec<Arc<TableMeta>>,
    pub(crate) values: Vec<ValueMeta>,
    /// Of the bytes in value files, those that came from others.
    pub(crate) moved_bytes: u64,
    /// What was left out because its value can't be read, by value file.
    pub(crate) lost: BTreeMap<u64, LostValues>,
}

/// Entries without their values.
pub(crate) struct LostValues {
    pub(crate) entries: u64,
    /// The first and the last place.
    pub(crate) first: Vec<u8>,
    pub(crate) last: Vec<u8>,
}

impl LostValues {
    /// Adds those of another table.
    pub(crate) fn add(&mut self, other: LostValues) {
        self.entries += other.entries;
        self.first = std::mem::take(&mut self.first).min(other.first);
        self.last = std::mem::take(&mut self.last).max(other.last);
    }
}

impl Written {
    /// The size of the tables.
    pub(crate) fn table_bytes(&self) -> u64 {
        self.tables.iter().map(|meta| meta.size_bytes).sum()
    }

    /// The size of the value files.
    pub(crate) fn value_bytes(&self) -> u64 {
        self.values.iter().map(ValueMeta::size_bytes).sum()
    }

    /// Adds it to an edit, the tables to a level.
    pub(crate) fn add_to(self, edit: &mut Edit, level: usize) {
        let tables = self.tables.into_iter();
        edit.added.extend(tables.map(|meta| (level, meta)));
        edit.values.extend(self.values);
    }
}

/// The tables under way.
struct Writer<'a> {
    outputs: &'a Outputs<'a>,
    builder: Option<(u64, TableBuilder)>,
    /// Those that no table has yet.
    tombstones: Tombstones,
    done: Vec<Arc<TableMeta>>,
    started: Vec<PathBuf>,
    values: ValueWriter<'a>,
    lost: BTreeMap<u64, LostValues>,
}

impl Writer<'_> {
    fn add(&mut self, key: &Key<'_>, value: &[u8]) -> std::result::Result<(), Failure> {
        let (kind, value) = match self.values.place(key.kind, value) {
            Err(Failure::Input(error))
                if self.outputs.collect.salvage && error.kind() == ErrorKind::Corruption =>
            {
                note_lost(&mut self.lost, key, value);
                return Ok(());
            }
            placed => placed?,
        };
        let builder = begun(&mut self.builder, &mut self.started, self.outputs);
        let key = Key { kind, ..*key };
        let added = builder.and_then(|builder| builder.add(&key, value));
        added.map_err(Failure::Output)
    }

    /// At the beginning of a place: ends the table if it is large enough.
    fn at_new_place(&mut self, place: &[u8]) -> Result<()> {
        let Some((_, builder)) = &self.builder else {
            return Ok(());
        };
        let size = builder.size_bytes();
        let full = size >= self.outputs.table_bytes;
        // From half its size on, a table ends where one of the level below ends.
        let aligned = size >= self.outputs.table_bytes / 2
            && self.outputs.below.is_some_and(|(levels, level)| {
                is_boundary(levels, level, builder.last_place(), place)
            });
        if full || aligned {
            self.end_table(Some(place))?;
        }
        Ok(())
    }

    /// Ends the table under way before a place, where range deletions that go on are cut: so tables
    /// don't overlap.
    fn end_table(&mut self, before: Option<&[u8]>) -> Result<()> {
        let cut = match planted::is_on(Bug::RangesAreNotCut) {
            true => None,
            false => before,
        };
        let tombstones = self.tombstones.take_before(cut);
        if !tombstones.is_empty() {
            let builder = begun(&mut self.builder, &mut self.started, self.outputs)?;
            builder.set_tombstones(tombstones);
        }
        let Some((number, builder)) = self.builder.take() else {
            return Ok(());
        };
        let (size_bytes, properties) = builder.finish()?;
        self.done.push(Arc::new(TableMeta {
            number,
            size_bytes,
            properties,
            ingested: None,
        }));
        Ok(())
    }

    /// Removes all that was written. What stays, the next opening removes.
    fn abandon(&mut self) {
        self.builder = None;
        self.values.abandon();
        for path in &self.started {
            let _ = self.outputs.shelf.disk.remove(path);
        }
    }
}

/// Notes that the value of a pointer is lost.
fn note_lost(lost: &mut BTreeMap<u64, LostValues>, key: &Key<'_>, pointer: &[u8]) {
    let file = Pointer::decode(pointer).map_or(0, |pointer| pointer.file);
    let place = key.place.to_vec();
    let one = LostValues {
        entries: 1,
        first: place.clone(),
        last: place,
    };
    match lost.entry(file) {
        Entry::Vacant(vacant) => drop(vacant.insert(one)),
        Entry::Occupied(mut there) => there.get_mut().add(one),
    }
}

/// The table under way, begun if there is none.
fn begun<'b>(
    builder: &'b mut Option<(u64, TableBuilder)>,
    started: &mut Vec<PathBuf>,
    outputs: &Outputs<'_>,
) -> Result<&'b mut TableBuilder> {
    match builder {
        Some((_, builder)) => Ok(builder),
        none => {
            let number = outputs.next_file.fetch_add(1, Ordering::Relaxed);
            let shelf = outputs.shelf;
            let number = reused_number(shelf).unwrap_or(number);
            let path = table_path(&shelf.dir, number);
            let options = outputs.options.clone();
            let begun = TableBuilder::create(shelf.disk.as_ref(), &path, options)?;
            started.push(path);
            Ok(&mut none.insert((number, begun)).1)
        }
    }
}

/// Whether two places that follow each other have different tables of a level under them.
pub(super) fn is_boundary(levels: &Levels, level: usize, last: &[u8], next: &[u8]) -> bool {
    let holding = |place| levels.holding(level, place).map(|t| t.meta.number);
    holding(last) != holding(next)
}

/// Merges entries into tables. The files are durable on return, their names too. `stop` tells whether
/// to give up.
pub(crate) fn write_table(
    input: Input<'_>,
    keyspaces: &Keyspaces,
    keep: Keep,
    outputs: &Outputs<'_>,
    stop: &dyn Fn() -> bool,
) -> std::result::Result<Written, Failure> {
    let mut writer = Writer {
        outputs,
        builder: None,
        tombstones: Tombstones::default(),
        done: Vec::new(),
        started: Vec::new(),
        values: ValueWriter::new(
            outputs.shelf,
            outputs.next_file,
            outputs.values,
            outputs.collect,
        ),
        lost: BTreeMap::new(),
    };
    let written = merge(input, keyspaces, keep, &mut writer, stop);
    let written = written.and_then(|()| {
        let (values, moved_bytes) = writer.values.finish().map_err(Failure::Output)?;
        if !writer.done.is_empty() && !planted::is_on(Bug::NamesUnsynced) {
            let dir = &outputs.shelf.dir;
            let synced = outputs.shelf.disk.sync_dir(dir);
            synced.map_err(|e| Failure::Output(Error::disk(dir, "can't sync", &e).not_full()))?;
        }
        Ok(Written {
            tables: std::mem::take(&mut writer.done),
            values,
            moved_bytes,
            lost: std::mem::take(&mut writer.lost),
        })
    });
    match written {
        Ok(written) => Ok(written),
        Err(failure) => {
            writer.abandon();
            Err(failure)
        }
    }
}

/// The number of a file that is gone, if that bug is planted.
fn reused_number(shelf: &Shelf) -> Option<u64> {
    if !planted::is_on(Bug::FileNumbersAreReused) {
        return None;
    }
    let is_free = |n: &u64| {
        let path = table_path(&shelf.dir, *n);
        !shelf.disk.exists(&path).unwrap_or(true)
    };
    (1..).find(is_free)
}

/// The watermark of the keyspace of a place.
fn watermark(keyspaces: &Keyspaces, place: &[u8]) -> u64 {
    let keyspace = keyspaces.find(keyspace_of(place));
    keyspace.map_or(0, |k| k.watermark())
}

/// Takes away the range deletions that nobody sees any more. Returns those that hide something in the
/// input, and gives the writer those that must stay.
fn sift(
    input: &mut Input<'_>,
    keyspaces: &Keyspaces,
    keep: &Keep,
    writer: &mut Writer<'_>,
) -> Tombstones {
    let mut hiding = std::mem::take(&mut input.tombstones);
    if !planted::is_on(Bug::RemovalForgetsRanges) {
        for (from, to) in writer.outputs.without {
            hiding.remove(from, to.as_deref());
        }
    }
    hiding.reduce(|start, _, marks| keep.reduce(marks, watermark(keyspaces, start)));
    writer.tombstones = hiding.clone();
    writer.tombstones.reduce(|start, end, marks| {
        let below = input.below;
        let bottom = below.is_some_and(|(levels, from)| levels.nothing_within(from, start, end));
        if bottom || planted::is_on(Bug::RangesAreLostAboveTheBottom) {
            let watermark = watermark(keyspaces, start);
            marks.retain(|mark| !keep.is_spent(*mark, watermark));
        }
    });
    hiding
}

/// What stays of the entries of a place, one after the other.
struct Sieve<'a> {
    garbage: Garbage,
    revise: Revise<'a>,
    /// A deletion that waits for what follows: its place, version and sequence.
    held: Option<(Vec<u8>, u64, u64)>,
}

impl Sieve<'_> {
    /// Writes an entry, or what becomes of it.
    fn pass(
        &mut self,
        key: &Key<'_>,
        value: &[u8],
        writer: &mut Writer<'_>,
    ) -> std::result::Result<(), Failure> {
        let kind = self.revise.kind(key, value);
        let mut key = Key { kind, ..*key };
        let mut verdict = self.garbage.judge(&key);
        let mut revised = Revised::Same;
        if verdict == Verdict::Write {
            let watermark = self.garbage.watermark();
            let values = &mut writer.values;
            let decided = self.revise.filter(&key, value, watermark, values);
            revised = decided.map_err(Failure::Input)?;
            match revised {
                Revised::Same => {}
                Revised::Deletion => {
                    key.kind = Kind::Delete;
                    verdict = self.garbage.judge_deletion(&key);
                }
                // It lies apart again if it is large.
                Revised::Value(_) if key.kind == Kind::Pointer => key.kind = Kind::Put,
                Revised::Value(_) => {}
            }
        }
        if verdict != Verdict::Drop
            && let Some((place, version, sequence)) = self.held.take()
        {
            let deletion = Key {
                place: &place,
                version,
                sequence: self.garbage.sequence(sequence),
                kind: Kind::Delete,
            };
            writer.add(&deletion, &[])?;
        }
        match verdict {
            Verdict::Drop => {}
            Verdict::Hold => self.held = Some((key.place.to_vec(), key.version, key.sequence)),
            Verdict::Write => {
                key.sequence = self.garbage.sequence(key.sequence);
                let value = match &revised {
                    _ if key.kind == Kind::Delete => &[],
                    Revised::Value(value) => value.as_slice(),
                    _ => value,
                };
                writer.add(&key, value)?;
            }
        }
        Ok(())
    }
}

fn merge(
    mut input: Input<'_>,
    keyspaces: &Keyspaces,
    keep: Keep,
    writer: &mut Writer<'_>,
    stop: &dyn Fn() -> bool,
) -> std::result::Result<(), Failure> {
    let hiding = sift(&mut input, keyspaces, &keep, writer);
    let mut sieve = Sieve {
        revise: Revise::new(keyspaces, input.filter, &keep.snapshots),
        garbage: Garbage::new(keep),
        held: None,
    };
    input.cursor.seek_to_first().map_err(Failure::Input)?;
    while input.cursor.valid() {
        let key = input.cursor.key();
        let inside = |(from, to): &&(Vec<u8>, Option<Vec<u8>>)| {
            key.place >= from.as_slice() && to.as_deref().is_none_or(|to| key.place < to)
        };
        if let Some((_, to)) = writer.outputs.without.iter().find(inside) {
            match to {
                Some(to) => {
                    let sought = input.cursor.seek(&Key::first_of(to));
                    sought.map_err(Failure::Input)?;
                }
                None => break,
            }
            continue;
        }
        if planted::is_on(Bug::TablesEndInsideKeys) {
            writer.at_new_place(key.place).map_err(Failure::Output)?;
        }
        if sieve.garbage.is_new_place(&key) {
            if stop() {
                let closed = Error::new(ErrorKind::Closed, "the engine is closing");
                return Err(Failure::Input(closed));
            }
            writer.at_new_place(key.place).map_err(Failure::Output)?;
            let watermark = watermark(keyspaces, key.place);
            let marks = hiding.around(key.place).marks;
            let at_bottom = input.at_bottom(key.place);
            sieve.held = None;
            sieve.garbage.begin(key.place, at_bottom, watermark, marks);
        }
        sieve.pass(&key, input.cursor.value(), writer)?;
        input.cursor.next().map_err(Failure::Input)?;
    }
    writer.end_table(None).map_err(Failure::Output)
}

/// Merges the tables of a choice. `levels` are those that the choice was made from.
pub(crate) fn compact(
    choice: &Choice,
    levels: &Levels,
    keyspaces: &Keyspaces,
    filter: Option<&dyn CompactionFilter>,
    keep: Keep,
    outputs: &Outputs<'_>,
    stop: &dyn Fn() -> bool,
) -> std::result::Result<Written, Failure> {
    let mut tombstones = Tombstones::default();
    let with_ranges = |t: &TableFile| t.meta.properties.range_deletions > 0;
    let whole = |t: &TableFile| with_ranges(t) && !t.is_lost();
    for (_, table) in choice.tables().filter(|(_, t)| whole(t)) {
        tombstones.add(table.table().map_err(Failure::Input)?.tombstones());
    }
    let mut sources: Vec<Box<dyn Cursor>> = Vec::new();
    for (level, tables) in &choice.inputs {
        // What is hidden as a whole is not even read.
        let hidden = |t: &&Arc<TableFile>| is_hidden(&t.meta, &tombstones, keyspaces, &keep);
        let wanted = tables.iter().filter(|t| !hidden(t) && !t.is_lost());
        let wanted: Vec<_> = wanted.cloned().collect();
        if *level == 0 {
            for table in &wanted {
                let cursor = table.salvaging_cursor().map_err(Failure::Input)?;
                sources.push(Box::new(cursor));
            }
        } else {
            sources.push(Box::new(LevelCursor::salvaging(Run::Picked(wanted))));
        }
    }
    let input = Input {
        cursor: &mut MergeCursor::new(sources),
        tombstones,
        // Tables of the output level that overlap take part themselves.
        below: Some((levels, choice.output + 1)),
        filter,
    };
    write_table(input, keyspaces, keep, outputs, stop)
}

/// Whether range deletions hide all entries of a table from every read, so that it may go unread.
pub(super) fn is_hidden(
    table: &TableMeta,
    tombstones: &Tombstones,
    keyspaces: &Keyspaces,
    keep: &Keep,
) -> bool {
    let p = &table.properties;
    let [keyspace] = p.keyspaces.as_slice() else {
        return false;
    };
    if tombstones.is_empty() || p.entries == 0 {
        return false;
    }
    let watermark = keyspaces.find(keyspace.id).map_or(0, |k| k.watermark());
    let (oldest, newest) = table.sequences();
    // What is between the lowest and the highest sequence is between each and the mark's as well.
    tombstones.covers(&p.smallest, &p.end, |mark| {
        keep.shadows(*mark, keyspace.max_version, newest, watermark)
            && keep.shadows(*mark, keyspace.min_version, oldest, watermark)
    })
}
