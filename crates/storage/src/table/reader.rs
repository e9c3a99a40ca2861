//! Reads tables. Index and filter stay in memory with the reader; data blocks go through the cache.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use quorate_env::{Disk, File};

use super::block::{Block, BlockCursor, Damage, Lookup};
use super::filter::Filter;
use super::format::{Footer, Handle, MAGIC, Properties, open_block};
use super::index::Index;
use crate::cache::BlockCache;
use crate::codec::Reader;
use crate::cursor::Cursor;
use crate::damage::Damages;
use crate::engine::Sequence;
use crate::error::{Error, Result};
use crate::header;
use crate::key::{Key, Kind};
use crate::levels::TableMeta;
use crate::memory::HeldTable;
use crate::planted::{self, Bug};
use crate::tombstones::Tombstones;

/// A table that is open.
pub(crate) struct Table {
    number: u64,
    path: PathBuf,
    file: Arc<dyn File>,
    index: Index,
    filter: Filter,
    tombstones: Tombstones,
    /// Where the data blocks end.
    data_end: u64,
    cache: Arc<BlockCache>,
    damages: Arc<Damages>,
    _held: HeldTable,
}

/// An entry found by a point lookup.
pub(crate) struct Found {
    pub(crate) version: u64,
    pub(crate) sequence: Sequence,
    pub(crate) kind: Kind,
    pub(crate) value: Bytes,
}

/// The data block that the last lookup read, for the next one, which is perhaps near by.
#[derive(Default)]
pub(crate) struct Near {
    /// Its table and offset.
    of: (u64, u64),
    block: Option<Block>,
}

impl Table {
    /// Opens a table that must be what the manifest says of it.
    pub(crate) fn open(
        disk: &dyn Disk,
        path: &Path,
        meta: &TableMeta,
        cache: Arc<BlockCache>,
    ) -> Result<Table> {
        let (number, size) = (meta.number, meta.size_bytes);
        let failed = |e: std::io::Error| Error::disk(path, "can't read", &e);
        let file = disk.open_read(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::corrupt(path, "the file is missing"),
            _ => Error::disk(path, "can't open", &e),
        })?;
        let actual = file.size().map_err(failed)?;
        if actual != size {
            let what = format!("it has {actual} bytes instead of {size}");
            return Err(Error::corrupt(path, what));
        }
        let (footer_at, footer) = header::read_ends(file.as_ref(), path, size, &MAGIC)?;
        let footer = Footer::decode(path, &footer)?;
        let part = |handle: Handle| {
            if handle.end() > footer_at {
                return Err(Error::corrupt(path, "its footer points behind its end"));
            }
            read_block(file.as_ref(), path, handle)
        };
        let damaged = |what| Error::corrupt(path, what);
        let index = Block::new(part(footer.index)?);
        let index = index.and_then(|block| Index::new(block, footer.index.offset));
        let index = index.map_err(damaged)?;
        let filter = Filter::new(part(footer.filter)?).map_err(damaged)?;
        let properties = part(footer.properties)?;
        let properties = Properties::decode(&mut Reader::new(&properties))
            .ok_or_else(|| damaged("its properties are nonsense"))?;
        if properties != meta.properties {
            return Err(damaged("it is not the table that the manifest knows"));
        }
        let tombstones = match footer.tombstones.size {
            0 => Some(Tombstones::default()),
            _ => Tombstones::decode(&part(footer.tombstones)?),
        };
        let counted = |all: &Tombstones| {
            all.iter()
                .map(|(.., marks)| marks.len() as u64)
                .sum::<u64>()
        };
        let tombstones = tombstones
            .filter(|all| counted(all) == properties.range_deletions)
            .ok_or_else(|| damaged("its range deletions are nonsense"))?;
        let memory = index.size_bytes() + filter.size_bytes() + tombstones.size_bytes();
        Ok(Table {
            _held: cache.memory().hold_table(memory),
            number,
            path: path.to_owned(),
            file,
            index,
            filter,
            tombstones,
            data_end: footer.index.offset,
            cache,
            damages: Arc::default(),
        })
    }

    /// Has damage that is found from now on noted there.
    pub(crate) fn noting_damage(self, damages: &Arc<Damages>) -> Table {
        Table {
            damages: Arc::clone(damages),
            ..self
        }
    }

    /// What index, filter and range deletions take in memory.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.index.size_bytes() + self.filter.size_bytes() + self.tombstones.size_bytes()
    }

    /// Whether the filter lets a place with this hash pass.
    pub(crate) fn may_hold(&self, hash: u64) -> bool {
        self.filter.may_hold(hash)
    }

    /// Its range deletions, all within its bounds.
    pub(crate) fn tombstones(&self) -> &Tombstones {
        &self.tombstones
    }

    fn damaged(&self, offset: u64, what: &str) -> Error {
        let error = Error::corrupt(&self.path, format!("block at byte {offset}: {what}"));
        self.damages.note(self.number, Some(offset), &error);
        error
    }

    fn index_damaged(&self, what: &str) -> Error {
        let error = Error::corrupt(&self.path, format!("index: {what}"));
        self.damages.note(self.number, None, &error);
        error
    }

    fn data_block(&self, handle: Handle, fill_cache: bool) -> Result<Block> {
        if let Some(block) = self.cache.get(self.number, handle.offset) {
            return Ok(block);
        }
        let bytes = read_block(self.file.as_ref(), &self.path, handle);
        let note = |error: &Error| self.damages.note(self.number, Some(handle.offset), error);
        let bytes = bytes.inspect_err(note)?;
        let bytes = self.cache.memory().hold_block(bytes);
        let block = Block::new(bytes).map_err(|what| self.damaged(handle.offset, what))?;
        if fill_cache {
            self.cache.insert(self.number, handle.offset, block.clone());
        }
        Ok(block)
    }

    fn data_block_near(&self, handle: Handle, near: &mut Near) -> Result<Block> {
        let of = (self.number, handle.offset);
        match &near.block {
            Some(block) if near.of == of => Ok(block.clone()),
            _ => {
                let block = self.data_block(handle, true)?;
                *near = Near {
                    of,
                    block: Some(block.clone()),
                };
                Ok(block)
            }
        }
    }

    /// The newest entry of a place at `version` or below that `sequence` sees. The caller asks the
    /// filter before; `near` is from the lookup before, if there is a run of them.
    pub(crate) fn get(
        &self,
        place: &[u8],
        version: u64,
        sequence: Sequence,
        mut near: Option<&mut Near>,
    ) -> Result<Option<Found>> {
        let target = Key::seek(place, version);
        let position = self.index.position(&target);
        let mut at = position.map_err(|what| self.index_damaged(what))?;
        // One place may go on in further blocks.
        while let Some(handle) = self.index.handle(at) {
            let block = match &mut near {
                Some(near) => self.data_block_near(handle, near)?,
                None => self.data_block(handle, true)?,
            };
            let looked = block.find(&target, sequence);
            match looked.map_err(|what| self.damaged(handle.offset, what))? {
                Lookup::Absent => return Ok(None),
                Lookup::Found(found) => {
                    return Ok(Some(Found {
                        version: found.version,
                        sequence: found.sequence,
                        kind: found.kind,
                        value: block.into_value(found.value),
                    }));
                }
                Lookup::Behind if planted::is_on(Bug::LookupEndsWithBlock) => return Ok(None),
                Lookup::Behind => at += 1,
            }
        }
        Ok(None)
    }

    /// About where in the file a place would be.
    pub(crate) fn offset_of(&self, place: &[u8]) -> Result<u64> {
        let position = self.index.position(&Key::first_of(place));
        let position = position.map_err(|what| self.index_damaged(what))?;
        let handle = self.index.handle(position);
        Ok(handle.map_or(self.data_end, |h| h.offset))
    }

    /// Calls `each` with the end of each data block, as the index has it, and its size on disk.
    pub(crate) fn for_each_block(&self, mut each: impl FnMut(&[u8], u64)) -> Result<()> {
        self.for_each_handle(|place, handle| each(place, u64::from(handle.size)))
    }

    /// Calls `each` with the end of each data block and where it lies.
    pub(super) fn for_each_handle(&self, each: impl FnMut(&[u8], Handle)) -> Result<()> {
        let done = self.index.for_each(each);
        done.map_err(|what| self.index_damaged(what))
    }

    /// A data block, from the disk and not from the cache; the text says what is wrong with it.
    pub(super) fn read_anew(&self, handle: Handle) -> std::result::Result<Block, String> {
        let mut sealed = vec![0; handle.size as usize];
        let read = self.file.read_exact_at(&mut sealed, handle.offset);
        read.map_err(|e| format!("can't read: {e}"))?;
        let bytes = open_block(sealed, handle.offset)?;
        Ok(Block::new(bytes)?)
    }

    pub(crate) fn has_filter(&self) -> bool {
        self.filter.size_bytes() > 0
    }
}

/// Reads and opens a block, naming file and place when it is damaged.
pub(super) fn read_block(file: &dyn File, path: &Path, handle: Handle) -> Result<Bytes> {
    let mut sealed = vec![0; handle.size as usize];
    let read = file.read_exact_at(&mut sealed, handle.offset);
    read.map_err(|e| Error::disk(path, "can't read", &e))?;
    open_block(sealed, handle.offset)
        .map_err(|what| Error::corrupt(path, format!("block at byte {}: {what}", handle.offset)))
}

/// A place in a table.
pub(crate) struct TableCursor {
    table: Arc<Table>,
    /// The data block it stands in, or stood in last.
    at: usize,
    /// Whether `data` is over that block.
    loaded: bool,
    data: BlockCursor,
    fill_cache: bool,
    /// The sequence of all entries; `None` if each has its own.
    ingested: Option<Sequence>,
    /// Blocks that are read as if they were empty.
    lost: BTreeSet<u64>,
}

impl TableCursor {
    /// `fill_cache` is whether blocks that it reads shall stay: not for compaction. In a table that
    /// was `ingested` all entries have that sequence, whatever the file says.
    pub(crate) fn new(table: Arc<Table>, fill_cache: bool, ingested: Option<Sequence>) -> Self {
        TableCursor {
            ingested,
            at: 0,
            loaded: false,
            data: BlockCursor::new(Block::empty()),
            fill_cache,
            table,
            lost: BTreeSet::new(),
        }
    }

    /// Goes around the blocks at these offsets.
    pub(crate) fn without(self, lost: BTreeSet<u64>) -> Self {
        TableCursor { lost, ..self }
    }

    /// Goes to a data block; false if there is none, and then it is not valid.
    fn load(&mut self, at: usize) -> Result<bool> {
        if self.loaded && self.at == at {
            return Ok(true);
        }
        self.drop_block();
        let Some(handle) = self.table.index.handle(at) else {
            return Ok(false);
        };
        let block = match self.lost.contains(&handle.offset) {
            true => Block::empty(),
            false => self.table.data_block(handle, self.fill_cache)?,
        };
        self.data.set_block(block);
        self.at = at;
        self.loaded = true;
        Ok(true)
    }

    fn drop_block(&mut self) {
        self.loaded = false;
        self.data.invalidate();
    }

    /// Moves within the block; damage leaves the cursor invalid.
    fn step(
        &mut self,
        step: impl FnOnce(&mut BlockCursor) -> std::result::Result<(), Damage>,
    ) -> Result<()> {
        step(&mut self.data).map_err(|what| {
            self.drop_block();
            let handle = self.table.index.handle(self.at).unwrap_or_default();
            self.table.damaged(handle.offset, what)
        })
    }

    fn position(&mut self, target: &Key<'_>) -> Result<usize> {
        let position = self.table.index.position(target);
        position.map_err(|what| {
            self.drop_block();
            self.table.index_damaged(what)
        })
    }

    /// Where to look in the file for what is to be found at `target`. In a table that was ingested
    /// every sequence is 0 there, and stands for one that may be on the other side of the target.
    fn in_file<'a>(&self, target: &Key<'a>, buffer: &'a mut Vec<u8>) -> Key<'a> {
        match self.ingested {
            None => *target,
            Some(sequence) if target.sequence >= sequence => Key {
                sequence: u64::MAX,
                ..*target
            },
            // Behind the entry with this version, if there is one.
            Some(_) => match target.version.checked_sub(1) {
                Some(version) => Key::seek(target.place, version),
                None => {
                    buffer.extend_from_slice(target.place);
                    buffer.push(0);
                    Key::first_of(buffer)
                }
            },
        }
    }

    /// While the data is at its end, goes on to the next block.
    fn skip_forward(&mut self) -> Result<()> {
        while !self.data.valid() {
            if !self.load(self.at + 1)? {
                return Ok(());
            }
            self.step(BlockCursor::seek_to_first)?;
        }
        Ok(())
    }

    fn skip_back(&mut self) -> Result<()> {
        while !self.data.valid() {
            let Some(before) = self.at.checked_sub(1) else {
                self.drop_block();
                return Ok(());
            };
            if !self.load(before)? {
                return Ok(());
            }
            self.step(BlockCursor::seek_to_last)?;
        }
        Ok(())
    }
}

impl Cursor for TableCursor {
    fn seek_to_first(&mut self) -> Result<()> {
        if !self.load(0)? {
            return Ok(());
        }
        self.step(BlockCursor::seek_to_first)?;
        self.skip_forward()
    }

    fn seek_to_last(&mut self) -> Result<()> {
        let last = self.table.index.len().saturating_sub(1);
        if !self.load(last)? {
            return Ok(());
        }
        self.step(BlockCursor::seek_to_last)?;
        self.skip_back()
    }

    fn seek(&mut self, target: &Key<'_>) -> Result<()> {
        let mut buffer = Vec::new();
        let target = &self.in_file(target, &mut buffer);
        let at = self.position(target)?;
        if !self.load(at)? {
            return Ok(());
        }
        self.step(|data| data.seek(target))?;
        self.skip_forward()
    }

    fn seek_before(&mut self, target: &Key<'_>) -> Result<()> {
        let mut buffer = Vec::new();
        let target = &self.in_file(target, &mut buffer);
        let at = self.position(target)?;
        if !self.load(at)? {
            return self.seek_to_last();
        }
        self.step(|data| data.seek_before(target))?;
        self.skip_back()
    }

    fn next(&mut self) -> Result<()> {
        self.step(BlockCursor::next)?;
        self.skip_forward()
    }

    fn prev(&mut self) -> Result<()> {
        self.step(BlockCursor::prev)?;
        self.skip_back()
    }

    fn valid(&self) -> bool {
        self.loaded && self.data.valid()
    }

    fn key(&self) -> Key<'_> {
        let key = self.data.key();
        Key {
            sequence: self.ingested.unwrap_or(key.sequence),
            ..key
        }
    }

    fn value(&self) -> &[u8] {
        self.data.value()
    }

    fn value_bytes(&self) -> Bytes {
        self.data.value_bytes()
    }
}
