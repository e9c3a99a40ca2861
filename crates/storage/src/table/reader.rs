//! Reads tables. Index and filter stay in memory with the reader; data blocks go through the cache.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use quorate_env::{Disk, File};

use super::block::{Block, BlockCursor, Damage, Lookup};
use super::filter::Filter;
use super::format::{FOOTER_BYTES, Footer, Handle, MAGIC, Properties, open_block};
use super::index::Index;
use crate::cache::BlockCache;
use crate::codec::Reader;
use crate::cursor::Cursor;
use crate::engine::Sequence;
use crate::error::{Error, Result};
use crate::header::{self, HEADER_BYTES};
use crate::key::{Key, Kind};
use crate::levels::TableMeta;

/// A table that is open.
pub(crate) struct Table {
    number: u64,
    path: PathBuf,
    file: Arc<dyn File>,
    index: Index,
    filter: Filter,
    /// Where the data blocks end.
    data_end: u64,
    cache: Arc<BlockCache>,
}

/// An entry found by a point lookup.
pub(crate) struct Found {
    pub(crate) version: u64,
    pub(crate) kind: Kind,
    pub(crate) value: Bytes,
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
        let footer_at = size.checked_sub(FOOTER_BYTES as u64);
        let Some(footer_at) = footer_at.filter(|at| actual == size && *at >= HEADER_BYTES as u64)
        else {
            let what = format!("it has {actual} bytes instead of {size}");
            return Err(Error::corrupt(path, what));
        };
        let mut head = [0; HEADER_BYTES];
        file.read_exact_at(&mut head, 0).map_err(failed)?;
        header::check(path, &MAGIC, &head)?;
        let mut footer = [0; FOOTER_BYTES];
        file.read_exact_at(&mut footer, footer_at).map_err(failed)?;
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
        Ok(Table {
            number,
            path: path.to_owned(),
            file,
            index,
            filter,
            data_end: footer.index.offset,
            cache,
        })
    }

    /// What index and filter take in memory.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.index.size_bytes() + self.filter.size_bytes()
    }

    fn damaged(&self, offset: u64, what: &str) -> Error {
        Error::corrupt(&self.path, format!("block at byte {offset}: {what}"))
    }

    fn index_damaged(&self, what: &str) -> Error {
        Error::corrupt(&self.path, format!("index: {what}"))
    }

    fn data_block(&self, handle: Handle, fill_cache: bool) -> Result<Block> {
        if let Some(block) = self.cache.get(self.number, handle.offset) {
            return Ok(block);
        }
        let bytes = read_block(self.file.as_ref(), &self.path, handle)?;
        let block = Block::new(bytes).map_err(|what| self.damaged(handle.offset, what))?;
        if fill_cache {
            self.cache.insert(self.number, handle.offset, block.clone());
        }
        Ok(block)
    }

    /// The newest entry of a place at `version` or below that `sequence` sees. `hash` is that of
    /// the place.
    pub(crate) fn get(
        &self,
        place: &[u8],
        hash: u64,
        version: u64,
        sequence: Sequence,
    ) -> Result<Option<Found>> {
        if !self.filter.may_hold(hash) {
            return Ok(None);
        }
        let target = Key::seek(place, version);
        let position = self.index.position(&target);
        let mut at = position.map_err(|what| self.index_damaged(what))?;
        // One place may go on in further blocks.
        while let Some(handle) = self.index.handle(at) {
            let block = self.data_block(handle, true)?;
            let looked = block.find(&target, sequence);
            match looked.map_err(|what| self.damaged(handle.offset, what))? {
                Lookup::Absent => return Ok(None),
                Lookup::Found(found) => {
                    return Ok(Some(Found {
                        version: found.version,
                        kind: found.kind,
                        value: block.into_value(found.value),
                    }));
                }
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
        let each = |place: &[u8], handle: Handle| each(place, u64::from(handle.size));
        let done = self.index.for_each(each);
        done.map_err(|what| self.index_damaged(what))
    }
}

/// Reads and opens a block, naming file and place when it is damaged.
fn read_block(file: &dyn File, path: &Path, handle: Handle) -> Result<Bytes> {
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
}

impl TableCursor {
    /// `fill_cache` is whether blocks that it reads shall stay: not for compaction.
    pub(crate) fn new(table: Arc<Table>, fill_cache: bool) -> Self {
        TableCursor {
            at: 0,
            loaded: false,
            data: BlockCursor::new(Block::empty()),
            fill_cache,
            table,
        }
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
        let block = self.table.data_block(handle, self.fill_cache)?;
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
        let at = self.position(target)?;
        if !self.load(at)? {
            return Ok(());
        }
        self.step(|data| data.seek(target))?;
        self.skip_forward()
    }

    fn seek_before(&mut self, target: &Key<'_>) -> Result<()> {
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
        self.data.key()
    }

    fn value(&self) -> &[u8] {
        self.data.value()
    }

    fn value_bytes(&self) -> Bytes {
        self.data.value_bytes()
    }
}
