//! Looking at a table without believing anybody: what it says of itself, and whether every block of
//! it is as it was written.

use std::path::Path;
use std::sync::Arc;

use quorate_env::{Disk, File};

use super::block::{Block, BlockCursor, Damage};
use super::filter::hash_place;
use super::format::{Footer, Handle, MAGIC, Properties};
use super::reader::{Table, read_block};
use crate::codec::Reader;
use crate::error::{Error, Result};
use crate::expiry::STAMP_BYTES;
use crate::header;
use crate::key::{Key, Kind, keyspace_of};
use crate::prefix::hash_prefix;
use crate::values::Pointer;

/// What is wrong with a table, and where in the file; `None` if it is no matter of one block.
pub(crate) type Problem = (Option<u64>, String);

/// The file, its size and its properties, by what it says itself.
pub(crate) fn describe(disk: &dyn Disk, path: &Path) -> Result<(Arc<dyn File>, u64, Properties)> {
    let failed = |e: std::io::Error| Error::disk(path, "can't read", &e);
    let file = disk.open_read(path).map_err(failed)?;
    let size = file.size().map_err(failed)?;
    let (footer_at, footer) = header::read_ends(file.as_ref(), path, size, &MAGIC)?;
    let footer = Footer::decode(path, &footer)?;
    if footer.properties.end() > footer_at {
        return Err(Error::corrupt(path, "its footer points behind its end"));
    }
    let bytes = read_block(file.as_ref(), path, footer.properties)?;
    let properties = Properties::decode(&mut Reader::new(&bytes))
        .ok_or_else(|| Error::corrupt(path, "its properties are nonsense"))?;
    Ok((file, size, properties))
}

/// What a walk over all entries keeps in mind.
struct Walk<'a> {
    table: &'a Table,
    properties: &'a Properties,
    counted: Properties,
    /// Place, version and sequence of the entry before.
    last: Option<(Vec<u8>, u64, u64)>,
    /// The place under which the index has the block before.
    floor: Vec<u8>,
    pointed: &'a PointerCheck<'a>,
    problems: Vec<Problem>,
}

/// Whether a value is where a pointer says; the text says why not.
pub(crate) type PointerCheck<'a> = dyn Fn(&Pointer) -> std::result::Result<(), String> + 'a;

/// Reads every data block from the disk and every entry in it; returns all that is wrong. `each`
/// hears the size of every block that is done, `pointed` judges pointers.
pub(crate) fn check_blocks(
    table: &Table,
    properties: &Properties,
    pointed: &PointerCheck<'_>,
    each: &mut dyn FnMut(u64),
) -> Vec<Problem> {
    let mut walk = Walk {
        table,
        properties,
        counted: Properties {
            compression: properties.compression,
            ..Properties::default()
        },
        last: None,
        floor: Vec::new(),
        pointed,
        problems: Vec::new(),
    };
    let blocks = table.for_each_handle(|end, handle| {
        walk.block(end, handle);
        each(u64::from(handle.size));
    });
    if let Err(error) = blocks {
        walk.problems.push((None, error.message().to_owned()));
    }
    if let Some((place, ..)) = walk.last.take() {
        walk.counted.ended_with(&place);
    }
    walk.counted.count_tombstones(table.tombstones());
    // What no entry says.
    walk.counted.written_ms = properties.written_ms;
    for of in &mut walk.counted.keyspaces {
        of.prefix = properties.prefix(of.id);
    }
    if walk.problems.is_empty() && walk.counted != *properties {
        let what = format!(
            "its properties say {} entries, it holds {}, or other bounds or versions",
            properties.entries, walk.counted.entries
        );
        walk.problems.push((None, what));
    }
    walk.problems
}

impl Walk<'_> {
    /// Checks one block; `end` is the place that the index has for it.
    fn block(&mut self, end: &[u8], handle: Handle) {
        let block = self.table.read_anew(handle);
        let walked = block.and_then(|block| self.entries(block, end));
        if let Err(what) = walked {
            self.problems.push((Some(handle.offset), what));
            // What it held is not known: nothing can be said of the order here.
            self.last = None;
        }
        self.floor.clear();
        self.floor.extend_from_slice(end);
    }

    fn entries(&mut self, block: Block, end: &[u8]) -> std::result::Result<(), String> {
        let mut cursor = BlockCursor::new(block);
        cursor.seek_to_first()?;
        if !cursor.valid() {
            return Err("the block is empty".to_owned());
        }
        while cursor.valid() {
            let key = cursor.key();
            self.entry(&key, cursor.value(), end)?;
            cursor.next()?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        key: &Key<'_>,
        value: &[u8],
        end: &[u8],
    ) -> std::result::Result<(), String> {
        if let Some((place, version, sequence)) = &self.last {
            let before = Key {
                place,
                version: *version,
                sequence: *sequence,
                kind: Kind::Put,
            };
            if before.order(key).is_ge() {
                return Err("entries are not in order".to_owned());
            }
        }
        if key.place > end || key.place < self.floor.as_slice() {
            return Err("an entry is not where the index looks for it".to_owned());
        }
        if !self.table.may_hold(hash_place(key.place)) {
            return Err("the filter denies an entry".to_owned());
        }
        let prefix = self
            .properties
            .prefix(keyspace_of(key.place))
            .of_place(key.place);
        if prefix.is_some_and(|prefix| !self.table.may_hold(hash_prefix(prefix))) {
            return Err("the filter denies a prefix".to_owned());
        }
        if key.kind == Kind::Expiring && value.len() < STAMP_BYTES {
            return Err("a value that expires has no time".to_owned());
        }
        if key.kind == Kind::Pointer {
            let pointer = Pointer::decode(value).ok_or("a pointer to a value is nonsense")?;
            (self.pointed)(&pointer)?;
        }
        self.counted.count(key, value);
        self.last = Some((key.place.to_vec(), key.version, key.sequence));
        Ok(())
    }
}

/// From one place to below another.
pub(crate) type Places = (Vec<u8>, Vec<u8>);

/// The data blocks that can't be read, by where they lie, each with the places that it may have held: from one to
/// below another. Read from the disk.
pub(crate) fn lost_blocks(table: &Table, properties: &Properties) -> Vec<(u64, Places)> {
    let mut lost = Vec::new();
    let mut from = properties.smallest.clone();
    let walked = table.for_each_handle(|end, handle| {
        let read = table.read_anew(handle);
        if read
            .and_then(|block| walk(block).map_err(str::to_owned))
            .is_err()
        {
            let mut behind = end.to_vec();
            behind.push(0);
            lost.push((handle.offset, (from.clone(), behind)));
        }
        // Further versions of one place may be in the next block.
        from.clear();
        from.extend_from_slice(end);
    });
    // It was read in whole when the table was opened.
    debug_assert!(walked.is_ok(), "the index changed");
    lost
}

fn walk(block: Block) -> std::result::Result<(), Damage> {
    let mut cursor = BlockCursor::new(block);
    cursor.seek_to_first()?;
    while cursor.valid() {
        cursor.next()?;
    }
    Ok(())
}
