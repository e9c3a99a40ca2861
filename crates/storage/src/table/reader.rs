//! Reads tables. Index and filter stay in memory with the reader; data blocks go through the cache.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use quorate_env::{Disk, File};

use super::block::{Block, BlockCursor};
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
        let index = Block::new(part(footer.index)?).and_then(Index::new);
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

    /// A data block, by its handle in the index.
    fn data_block(&self, handle: &[u8], fill_cache: bool) -> Result<(Block, u64)> {
        let handle = Handle::decode(handle).filter(|h| h.end() <= self.data_end);
        let handle =
            handle.ok_or_else(|| Error::corrupt(&self.path, "its index points nowhere"))?;
        if let Some(block) = self.cache.get(self.number, handle.offset) {
            return Ok((block, handle.offset));
        }
        let bytes = read_block(self.file.as_ref(), &self.path, handle)?;
        let block = Block::new(bytes).map_err(|what| self.damaged(handle.offset, what))?;
        if fill_cache {
            self.cache.insert(self.number, handle.offset, block.clone());
        }
        Ok((block, handle.offset))
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
        let in_index = |what| Error::corrupt(&self.path, what);
        let mut index = self.index.cursor();
        self.index.seek(&mut index, &target).map_err(in_index)?;
        let mut cursor: Option<BlockCursor> = None;
        while index.valid() {
            let (block, offset) = self.data_block(index.value(), true)?;
            let in_block = |what| self.damaged(offset, what);
            let cursor = match &mut cursor {
                Some(cursor) => {
                    cursor.set_block(block);
                    cursor.seek_to_first().map_err(in_block)?;
                    cursor
                }
                none => {
                    let cursor = none.insert(BlockCursor::new(block));
                    cursor.seek(&target).map_err(in_block)?;
                    cursor
                }
            };
            while cursor.valid() {
                let key = cursor.key();
                if key.place != place {
                    return Ok(None);
                }
                if key.sequence <= sequence {
                    return Ok(Some(Found {
                        version: key.version,
                        kind: key.kind,
                        value: cursor.value_bytes(),
                    }));
                }
                cursor.next().map_err(in_block)?;
            }
            index.next().map_err(in_index)?;
        }
        Ok(None)
    }

    /// About where in the file a place would be.
    pub(crate) fn offset_of(&self, place: &[u8]) -> Result<u64> {
        let in_index = |what| Error::corrupt(&self.path, what);
        let mut index = self.index.cursor();
        let sought = self.index.seek(&mut index, &Key::first_of(place));
        sought.map_err(in_index)?;
        if !index.valid() {
            return Ok(self.data_end);
        }
        let handle = Handle::decode(index.value());
        Ok(handle.map_or(self.data_end, |h| h.offset))
    }

    /// Calls `each` with the end of each data block, as the index has it, and its size on disk.
    pub(crate) fn for_each_block(&self, mut each: impl FnMut(&[u8], u64)) -> Result<()> {
        let in_index = |what| Error::corrupt(&self.path, what);
        let mut index = self.index.cursor();
        index.seek_to_first().map_err(in_index)?;
        while index.valid() {
            let size = Handle::decode(index.value()).map_or(0, |h| h.size);
            each(index.key().place, u64::from(size));
            index.next().map_err(in_index)?;
        }
        Ok(())
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
    index: BlockCursor,
    /// Valid exactly when the cursor is; the block that `index` stands on.
    data: BlockCursor,
    /// Where that block lies.
    data_at: Option<u64>,
    fill_cache: bool,
}

impl TableCursor {
    /// `fill_cache` is whether blocks that it reads shall stay: not for compaction.
    pub(crate) fn new(table: Arc<Table>, fill_cache: bool) -> Self {
        let index = table.index.cursor();
        // An empty stand-in until a block is loaded: the index itself, invalid.
        let data = table.index.cursor();
        TableCursor {
            table,
            index,
            data,
            data_at: None,
            fill_cache,
        }
    }

    /// Loads the block that the index stands on; false if it stands on none.
    fn load(&mut self) -> Result<bool> {
        if !self.index.valid() {
            self.drop_block();
            return Ok(false);
        }
        let handle = Handle::decode(self.index.value());
        if handle.is_some() && handle.map(|h| h.offset) == self.data_at {
            return Ok(true);
        }
        self.drop_block();
        let (block, offset) = self.table.data_block(self.index.value(), self.fill_cache)?;
        self.data.set_block(block);
        self.data_at = Some(offset);
        Ok(true)
    }

    fn drop_block(&mut self) {
        self.data_at = None;
        self.data.invalidate();
    }

    /// Runs a step of the index or the data; damage leaves the cursor invalid.
    fn step(
        &mut self,
        on_index: bool,
        step: impl FnOnce(&mut BlockCursor) -> std::result::Result<(), super::block::Damage>,
    ) -> Result<()> {
        let cursor = if on_index {
            &mut self.index
        } else {
            &mut self.data
        };
        if let Err(what) = step(cursor) {
            let at = if on_index { None } else { self.data_at };
            self.drop_block();
            return Err(match at {
                Some(at) => self.table.damaged(at, what),
                None => Error::corrupt(&self.table.path, format!("index: {what}")),
            });
        }
        Ok(())
    }

    fn seek_index(&mut self, target: &Key<'_>) -> Result<()> {
        let table = Arc::clone(&self.table);
        self.step(true, |index| table.index.seek(index, target))
    }

    /// While the data is at its end, goes on to the next block.
    fn skip_forward(&mut self) -> Result<()> {
        while !self.data.valid() {
            self.step(true, BlockCursor::next)?;
            if !self.load()? {
                return Ok(());
            }
            self.step(false, BlockCursor::seek_to_first)?;
        }
        Ok(())
    }

    fn skip_back(&mut self) -> Result<()> {
        while !self.data.valid() {
            self.step(true, BlockCursor::prev)?;
            if !self.load()? {
                return Ok(());
            }
            self.step(false, BlockCursor::seek_to_last)?;
        }
        Ok(())
    }
}

impl Cursor for TableCursor {
    fn seek_to_first(&mut self) -> Result<()> {
        self.step(true, BlockCursor::seek_to_first)?;
        if !self.load()? {
            return Ok(());
        }
        self.step(false, BlockCursor::seek_to_first)?;
        self.skip_forward()
    }

    fn seek_to_last(&mut self) -> Result<()> {
        self.step(true, BlockCursor::seek_to_last)?;
        if !self.load()? {
            return Ok(());
        }
        self.step(false, BlockCursor::seek_to_last)?;
        self.skip_back()
    }

    fn seek(&mut self, target: &Key<'_>) -> Result<()> {
        self.seek_index(target)?;
        if !self.load()? {
            return Ok(());
        }
        self.step(false, |data| data.seek(target))?;
        self.skip_forward()
    }

    fn seek_before(&mut self, target: &Key<'_>) -> Result<()> {
        self.seek_index(target)?;
        if !self.load()? {
            return self.seek_to_last();
        }
        self.step(false, |data| data.seek_before(target))?;
        self.skip_back()
    }

    fn next(&mut self) -> Result<()> {
        self.step(false, BlockCursor::next)?;
        self.skip_forward()
    }

    fn prev(&mut self) -> Result<()> {
        self.step(false, BlockCursor::prev)?;
        self.skip_back()
    }

    fn valid(&self) -> bool {
        self.data_at.is_some() && self.data.valid()
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
