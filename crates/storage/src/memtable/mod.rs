//! Memtables: what was written and is not yet in a table.
//!
//! All keyspaces of an engine share one memtable, so that writing it out takes all of them to disk
//! at one sequence. A memtable is sealed when it is full, and then only read.

mod arena;
mod skiplist;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::batch::Batch;
use crate::engine::Sequence;
use crate::key::{Key, PlaceBuf};

pub(crate) use skiplist::{ListCursor, SkipList, bytes_needed};

/// A memtable.
pub(crate) struct Memtable {
    list: Arc<SkipList>,
    /// How many bytes may be reserved.
    capacity: usize,
    /// The highest version in it.
    max_version: AtomicU64,
    /// The segment of its first record in the log; the highest number if it has none.
    first_segment: AtomicU64,
}

impl Memtable {
    pub(crate) fn new(capacity: usize) -> Self {
        Memtable {
            list: Arc::new(SkipList::new(capacity)),
            capacity,
            max_version: AtomicU64::new(0),
            first_segment: AtomicU64::new(u64::MAX),
        }
    }

    /// The bytes it has room for.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// The bytes it uses.
    pub(crate) fn size_bytes(&self) -> usize {
        self.list.used()
    }

    /// Inserts a batch whose first operation has the sequence `first`. Others may insert meanwhile.
    /// REQUIRES: the batch was checked, and its bytes were reserved.
    pub(crate) fn apply(&self, batch: &Batch, first: Sequence) {
        let mut highest = 0;
        for (sequence, op) in (first..).zip(batch.iter()) {
            let place = PlaceBuf::new(op.keyspace, op.key);
            let key = Key {
                place: place.as_slice(),
                version: op.version.unwrap_or(0),
                sequence,
                kind: op.kind,
            };
            highest = highest.max(key.version);
            self.list.insert(&key, op.value);
        }
        if highest > self.max_version.load(Ordering::Relaxed) {
            self.max_version.fetch_max(highest, Ordering::Release);
        }
    }

    /// A record in this segment of the log is for this memtable.
    pub(crate) fn note_segment(&self, segment: u64) {
        if segment < self.first_segment.load(Ordering::Relaxed) {
            self.first_segment.fetch_min(segment, Ordering::Relaxed);
        }
    }

    /// No record of this memtable is in an earlier segment of the log than this.
    pub(crate) fn first_segment(&self) -> u64 {
        self.first_segment.load(Ordering::Relaxed)
    }

    /// No entry has a version above this. Known to whoever sees a batch's sequence as visible.
    pub(crate) fn max_version(&self) -> u64 {
        self.max_version.load(Ordering::Acquire)
    }

    pub(crate) fn get(
        &self,
        place: &[u8],
        version: u64,
        seq: Sequence,
    ) -> Option<(Key<'_>, &[u8])> {
        self.list.get(place, version, seq)
    }

    pub(crate) fn cursor(&self) -> ListCursor {
        ListCursor::new(Arc::clone(&self.list))
    }
}
