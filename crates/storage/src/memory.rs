//! What an engine holds in memory, and how the parts share one budget.
//!
//! ```text
//! memory_bytes ──┬── memtables       a quarter at most, since they are made that small
//!                ├── open tables     indexes and filters: a quarter, then the coldest are closed
//!                ├── pinned blocks   what iterators and values hold that the cache has let go of, and
//!                │                   what iterators read ahead of value files
//!                └── block cache     what is left: it grows and shrinks with the others
//! ```
//!
//! Each part is counted where it is made and where it goes, whoever holds it meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

/// What a block or an entry of the cache costs beside its bytes, about.
pub(crate) const BLOCK_OVERHEAD: u64 = 96;

/// Such a part of the budget is the most that one reader reads ahead.
const AHEAD_SHARE: u64 = 256;

/// The counts of an engine.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// 0 is no limit.
    limit: u64,
    /// How many tables may be open; 0 is any number.
    tables_max: u64,
    memtable_bytes: AtomicU64,
    table_bytes: AtomicU64,
    tables: AtomicU64,
    /// Of all blocks and values that anybody holds, the cache too.
    block_bytes: AtomicU64,
}

impl Memory {
    pub(crate) fn new(limit: u64, tables_max: u64) -> Self {
        Memory {
            limit,
            tables_max,
            ..Memory::default()
        }
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    /// The memtables have room for so much, all together.
    pub(crate) fn set_memtables(&self, bytes: u64) {
        self.memtable_bytes.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn memtable_bytes(&self) -> u64 {
        self.memtable_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn table_bytes(&self) -> u64 {
        self.table_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn tables(&self) -> u64 {
        self.tables.load(Ordering::Relaxed)
    }

    pub(crate) fn block_bytes(&self) -> u64 {
        self.block_bytes.load(Ordering::Relaxed)
    }

    /// Counts an open table for as long as what is returned lives.
    pub(crate) fn hold_table(self: &Arc<Self>, bytes: usize) -> HeldTable {
        self.tables.fetch_add(1, Ordering::Relaxed);
        self.table_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        HeldTable {
            memory: Arc::clone(self),
            bytes: bytes as u64,
        }
    }

    /// The same bytes, counted for as long as anybody holds a part of them; if there is a limit.
    pub(crate) fn hold_block(self: &Arc<Self>, bytes: Bytes) -> Bytes {
        match self.hold_bytes(bytes.len()) {
            Some(held) => Bytes::from_owner(HeldBlock { _held: held, bytes }),
            None => bytes,
        }
    }

    /// Counts bytes for as long as what is returned lives; if there is a limit: else nobody asks, and
    /// every miss of the cache would pay.
    pub(crate) fn hold_bytes(self: &Arc<Self>, bytes: usize) -> Option<Held> {
        if self.limit == 0 {
            return None;
        }
        let bytes = bytes as u64 + BLOCK_OVERHEAD;
        self.block_bytes.fetch_add(bytes, Ordering::Relaxed);
        Some(Held {
            memory: Arc::clone(self),
            bytes,
        })
    }

    /// The most that one reader may read ahead, of this.
    pub(crate) fn ahead(&self, bytes: usize) -> usize {
        match self.limit {
            0 => bytes,
            limit => bytes.min((limit / AHEAD_SHARE) as usize),
        }
    }

    /// How many tables are open too many, and how many bytes they take too much: below a little less
    /// than the limits, so that room for several is made at once. Nothing while the limits hold.
    pub(crate) fn tables_to_close(&self) -> Option<(u64, u64)> {
        let share = self.limit / 4;
        let most = |limit: u64| if limit == 0 { u64::MAX } else { limit };
        let (tables, bytes) = (self.tables(), self.table_bytes());
        if tables <= most(self.tables_max) && bytes <= most(share) {
            return None;
        }
        let over = |held: u64, limit: u64| held.saturating_sub(most(limit) / 8 * 7);
        let too_many = over(tables, self.tables_max).max(u64::from(tables > most(self.tables_max)));
        Some((too_many, over(bytes, share)))
    }
}

/// A table that is open.
#[derive(Debug)]
pub(crate) struct HeldTable {
    memory: Arc<Memory>,
    bytes: u64,
}

impl Drop for HeldTable {
    fn drop(&mut self) {
        self.memory.tables.fetch_sub(1, Ordering::Relaxed);
        let bytes = &self.memory.table_bytes;
        bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Bytes that are counted.
#[derive(Debug)]
pub(crate) struct Held {
    memory: Arc<Memory>,
    bytes: u64,
}

impl Drop for Held {
    fn drop(&mut self) {
        let bytes = &self.memory.block_bytes;
        bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

struct HeldBlock {
    _held: Held,
    bytes: Bytes,
}

impl AsRef<[u8]> for HeldBlock {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}
