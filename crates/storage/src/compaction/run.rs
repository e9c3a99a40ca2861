//! Carries a compaction or flush out: merges, drops, writes tables.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::garbage::{Garbage, Keep, Verdict};
use super::policy::Choice;
use crate::cursor::Cursor;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Key, Kind, keyspace_of};
use crate::keyspaces::Keyspaces;
use crate::levels::{LevelCursor, Levels, Shelf, TableMeta, table_path};
use crate::merge::MergeCursor;
use crate::table::{TableBuilder, TableOptions};

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
}

/// The tables under way.
struct Writer<'a> {
    outputs: &'a Outputs<'a>,
    builder: Option<(u64, TableBuilder)>,
    done: Vec<Arc<TableMeta>>,
    started: Vec<PathBuf>,
}

impl Writer<'_> {
    fn add(&mut self, key: &Key<'_>, value: &[u8]) -> Result<()> {
        let builder = match &mut self.builder {
            Some((_, builder)) => builder,
            none => {
                let number = self.outputs.next_file.fetch_add(1, Ordering::Relaxed);
                let shelf = self.outputs.shelf;
                let path = table_path(&shelf.dir, number);
                let options = self.outputs.options;
                let builder = TableBuilder::create(shelf.disk.as_ref(), &path, options)?;
                self.started.push(path);
                &mut none.insert((number, builder)).1
            }
        };
        builder.add(key, value)
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
                let holding = |p| levels.holding(level, p).map(|t| t.meta.number);
                holding(builder.last_place()) != holding(place)
            });
        if full || aligned {
            self.end_table()?;
        }
        Ok(())
    }

    fn end_table(&mut self) -> Result<()> {
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
        for path in &self.started {
            let _ = self.outputs.shelf.disk.remove(path);
        }
    }
}

/// Merges entries into tables. The files are durable on return, their names too. `at_bottom` tells
/// whether nothing lies below a place; `stop` whether to give up.
pub(crate) fn write_table(
    cursor: &mut dyn Cursor,
    keyspaces: &Keyspaces,
    keep: Keep,
    at_bottom: &dyn Fn(&[u8]) -> bool,
    outputs: &Outputs<'_>,
    stop: &dyn Fn() -> bool,
) -> std::result::Result<Vec<Arc<TableMeta>>, Failure> {
    let mut writer = Writer {
        outputs,
        builder: None,
        done: Vec::new(),
        started: Vec::new(),
    };
    let written = merge(cursor, keyspaces, keep, at_bottom, &mut writer, stop);
    let written = written.and_then(|()| {
        if !writer.done.is_empty() {
            let dir = &outputs.shelf.dir;
            let synced = outputs.shelf.disk.sync_dir(dir);
            synced.map_err(|e| Failure::Output(Error::disk(dir, "can't sync", &e).not_full()))?;
        }
        Ok(())
    });
    match written {
        Ok(()) => Ok(writer.done),
        Err(failure) => {
            writer.abandon();
            Err(failure)
        }
    }
}

fn merge(
    cursor: &mut dyn Cursor,
    keyspaces: &Keyspaces,
    keep: Keep,
    at_bottom: &dyn Fn(&[u8]) -> bool,
    writer: &mut Writer<'_>,
    stop: &dyn Fn() -> bool,
) -> std::result::Result<(), Failure> {
    let mut garbage = Garbage::new(keep);
    // A deletion that waits for what follows: its version and sequence.
    let mut held: Option<(Vec<u8>, u64, u64)> = None;
    cursor.seek_to_first().map_err(Failure::Input)?;
    while cursor.valid() {
        let key = cursor.key();
        let inside = |(from, to): &&(Vec<u8>, Option<Vec<u8>>)| {
            key.place >= from.as_slice() && to.as_deref().is_none_or(|to| key.place < to)
        };
        if let Some((_, to)) = writer.outputs.without.iter().find(inside) {
            match to {
                Some(to) => cursor.seek(&Key::first_of(to)).map_err(Failure::Input)?,
                None => break,
            }
            continue;
        }
        if garbage.is_new_place(&key) {
            if stop() {
                let closed = Error::new(ErrorKind::Closed, "the engine is closing");
                return Err(Failure::Input(closed));
            }
            held = None;
            writer.at_new_place(key.place).map_err(Failure::Output)?;
            let keyspace = keyspaces.find(keyspace_of(key.place));
            let watermark = keyspace.map_or(0, |k| k.watermark());
            garbage.begin(key.place, at_bottom(key.place), watermark);
        }
        let verdict = garbage.judge(&key);
        if verdict != Verdict::Drop
            && let Some((place, version, sequence)) = held.take()
        {
            let deletion = Key {
                place: &place,
                version,
                sequence: garbage.sequence(sequence),
                kind: Kind::Delete,
            };
            writer.add(&deletion, &[]).map_err(Failure::Output)?;
        }
        match verdict {
            Verdict::Drop => {}
            Verdict::Hold => held = Some((key.place.to_vec(), key.version, key.sequence)),
            Verdict::Write => {
                let key = Key {
                    sequence: garbage.sequence(key.sequence),
                    ..key
                };
                writer.add(&key, cursor.value()).map_err(Failure::Output)?;
            }
        }
        cursor.next().map_err(Failure::Input)?;
    }
    writer.end_table().map_err(Failure::Output)
}

/// Merges the tables of a choice. `levels` are those that the choice was made from.
pub(crate) fn compact(
    choice: &Choice,
    levels: &Levels,
    keyspaces: &Keyspaces,
    keep: Keep,
    outputs: &Outputs<'_>,
    stop: &dyn Fn() -> bool,
) -> std::result::Result<Vec<Arc<TableMeta>>, Failure> {
    let mut sources: Vec<Box<dyn Cursor>> = Vec::new();
    if choice.level == 0 {
        for table in &choice.upper {
            let cursor = table.cursor(false).map_err(Failure::Input)?;
            sources.push(Box::new(cursor));
        }
    } else {
        sources.push(Box::new(LevelCursor::new(choice.upper.clone(), false)));
    }
    sources.push(Box::new(LevelCursor::new(choice.lower.clone(), false)));
    let mut cursor = MergeCursor::new(sources);
    // Tables of the output level that overlap take part themselves.
    let at_bottom = |place: &[u8]| levels.nothing_from(choice.output + 1, place);
    write_table(&mut cursor, keyspaces, keep, &at_bottom, outputs, stop)
}
