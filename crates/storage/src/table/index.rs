//! The index of a table, in memory: which data block may hold a key.
//!
//! An index is a block where every entry is a restart point. For speed the first eight bytes of
//! each place, behind what all places have in common, are held in an array of numbers: a lookup
//! bisects that, and looks into the block only where numbers are equal.

use super::block::{Block, BlockCursor, Damage};
use crate::key::Key;

/// An index.
pub(crate) struct Index {
    block: Block,
    /// The bytes that all places begin with.
    common: Vec<u8>,
    /// For each entry the eight bytes behind those, big-endian. Ascending.
    heads: Vec<u64>,
}

/// Eight bytes as a number of the same order; missing ones are zeros.
fn head(bytes: &[u8]) -> u64 {
    let mut eight = [0; 8];
    let count = bytes.len().min(8);
    eight[..count].copy_from_slice(&bytes[..count]);
    u64::from_be_bytes(eight)
}

impl Index {
    pub(crate) fn new(block: Block) -> Result<Index, Damage> {
        let mut cursor = BlockCursor::new(block.clone());
        cursor.seek_to_first()?;
        let first = cursor.key().place.to_vec();
        cursor.seek_to_last()?;
        let last = cursor.key().place;
        let common = first.iter().zip(last).take_while(|(a, b)| a == b).count();
        let common = first.get(..common).unwrap_or_default().to_vec();
        let mut heads = Vec::with_capacity(block.restarts());
        cursor.seek_to_first()?;
        while cursor.valid() {
            let place = cursor.key().place;
            let rest = place.strip_prefix(common.as_slice());
            heads.push(head(rest.ok_or("the index is not in order")?));
            cursor.next()?;
        }
        if heads.len() != block.restarts() || !heads.is_sorted() {
            return Err("the index is not in order");
        }
        Ok(Index {
            block,
            common,
            heads,
        })
    }

    /// What it takes in memory.
    pub(crate) fn size_bytes(&self) -> usize {
        self.block.size_bytes() + 8 * self.heads.len()
    }

    /// A cursor over its entries, standing nowhere.
    pub(crate) fn cursor(&self) -> BlockCursor {
        BlockCursor::new(self.block.clone())
    }

    /// Puts a cursor over this index on the first entry at or after `target`.
    pub(crate) fn seek(&self, cursor: &mut BlockCursor, target: &Key<'_>) -> Result<(), Damage> {
        let Some(rest) = target.place.strip_prefix(self.common.as_slice()) else {
            // Before all or after all.
            return match target.place < self.common.as_slice() {
                true => cursor.seek_to_first(),
                false => cursor.go_nowhere(),
            };
        };
        let wanted = head(rest);
        let from = self.heads.partition_point(|head| *head < wanted);
        // Mostly one entry or none; many when places differ only further on.
        let equal = self.heads[from..]
            .iter()
            .take(9)
            .take_while(|head| **head == wanted);
        if equal.count() > 8 {
            return cursor.seek(target);
        }
        cursor.load_restart_or_end(from)?;
        while cursor.valid() && cursor.key().order(target).is_lt() {
            cursor.next()?;
        }
        Ok(())
    }
}
