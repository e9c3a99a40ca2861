//! The index of a table, in memory: which data block may hold a key, and where it lies.
//!
//! On disk an index is a block where every entry is a restart point: a key at or behind the last of a data
//! block and before the first of the next, with the data block's handle. For speed the handles are held
//! decoded, and the first eight bytes of each place, behind what all places have in common, as numbers: a
//! lookup bisects those, and looks into the block only where numbers are equal.

use super::block::{Block, BlockCursor, Damage};
use super::format::Handle;
use crate::key::Key;

/// An index. Data blocks are counted from 0.
pub(crate) struct Index {
    block: Block,
    /// The bytes that all places begin with.
    common: Vec<u8>,
    /// For each data block the eight bytes behind those, big-endian. Ascending.
    heads: Vec<u64>,
    /// Where the data blocks lie. As many as heads, all before the end that was given.
    handles: Vec<Handle>,
}

/// Eight bytes as a number of the same order; missing ones are zeros.
fn head(bytes: &[u8]) -> u64 {
    if let Some(eight) = bytes.first_chunk() {
        return u64::from_be_bytes(*eight);
    }
    let mut eight = [0; 8];
    eight[..bytes.len()].copy_from_slice(bytes);
    u64::from_be_bytes(eight)
}

impl Index {
    /// Reads an index, whose data blocks all lie before `data_end`.
    pub(crate) fn new(block: Block, data_end: u64) -> Result<Index, Damage> {
        let mut cursor = BlockCursor::new(block.clone());
        cursor.seek_to_first()?;
        let first = cursor.key().place.to_vec();
        cursor.seek_to_last()?;
        let last = cursor.key().place;
        let common = first.iter().zip(last).take_while(|(a, b)| a == b).count();
        let common = first.get(..common).unwrap_or_default().to_vec();
        let mut heads = Vec::with_capacity(block.restarts());
        let mut handles = Vec::with_capacity(block.restarts());
        cursor.seek_to_first()?;
        while cursor.valid() {
            let place = cursor.key().place;
            let rest = place.strip_prefix(common.as_slice());
            heads.push(head(rest.ok_or("the index is not in order")?));
            let handle = Handle::decode(cursor.value()).filter(|h| h.end() <= data_end);
            handles.push(handle.ok_or("the index points nowhere")?);
            cursor.next()?;
        }
        if heads.len() != block.restarts() || !heads.is_sorted() {
            return Err("the index is not in order");
        }
        Ok(Index {
            block,
            common,
            heads,
            handles,
        })
    }

    /// What it takes in memory.
    pub(crate) fn size_bytes(&self) -> usize {
        self.block.size_bytes() + (8 + size_of::<Handle>()) * self.heads.len()
    }

    /// How many data blocks there are.
    pub(crate) fn len(&self) -> usize {
        self.handles.len()
    }

    /// Where a data block lies; `None` behind the last.
    pub(crate) fn handle(&self, n: usize) -> Option<Handle> {
        self.handles.get(n).copied()
    }

    /// The first data block that may hold an entry at or after `target`; their number if none may.
    pub(crate) fn position(&self, target: &Key<'_>) -> Result<usize, Damage> {
        let Some(rest) = target.place.strip_prefix(self.common.as_slice()) else {
            let before_all = target.place < self.common.as_slice();
            return Ok(if before_all { 0 } else { self.len() });
        };
        let wanted = head(rest);
        let mut n = self.heads.partition_point(|head| *head < wanted);
        if self.heads.get(n) != Some(&wanted) {
            return Ok(n);
        }
        // Places that differ further on, if at all.
        let mut end = n + self.heads[n..].partition_point(|head| *head == wanted);
        let mut cursor = BlockCursor::new(self.block.clone());
        while n < end {
            let middle = n + (end - n) / 2;
            cursor.load_restart_or_end(middle)?;
            match cursor.valid() && cursor.key().order(target).is_lt() {
                true => n = middle + 1,
                false => end = middle,
            }
        }
        Ok(n)
    }

    /// Calls `each` with the end of each data block, a place, and its handle.
    pub(crate) fn for_each(&self, mut each: impl FnMut(&[u8], Handle)) -> Result<(), Damage> {
        let mut cursor = BlockCursor::new(self.block.clone());
        cursor.seek_to_first()?;
        for handle in &self.handles {
            each(cursor.key().place, *handle);
            cursor.next()?;
        }
        Ok(())
    }
}
