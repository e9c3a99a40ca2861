//! Places in sorted entries: what memtables, blocks, tables, levels and their merge have in common.

use bytes::Bytes;

use crate::error::Result;
use crate::key::Key;

/// A place in entries that are sorted by internal key. After an error it is not valid.
pub(crate) trait Cursor: Send {
    /// Goes to the first entry.
    fn seek_to_first(&mut self) -> Result<()>;

    /// Goes to the last entry.
    fn seek_to_last(&mut self) -> Result<()>;

    /// Goes to the first entry at or after `target`.
    fn seek(&mut self, target: &Key<'_>) -> Result<()>;

    /// Goes to the last entry before `target`.
    fn seek_before(&mut self, target: &Key<'_>) -> Result<()>;

    /// Goes one entry on. REQUIRES: valid.
    fn next(&mut self) -> Result<()>;

    /// Goes one entry back. REQUIRES: valid.
    fn prev(&mut self) -> Result<()>;

    /// Whether it stands on an entry.
    fn valid(&self) -> bool;

    /// The entry's key. REQUIRES: valid.
    fn key(&self) -> Key<'_>;

    /// The entry's value. REQUIRES: valid.
    fn value(&self) -> &[u8];

    /// The entry's value, to keep. REQUIRES: valid.
    fn value_bytes(&self) -> Bytes;
}
