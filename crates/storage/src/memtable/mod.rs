//! Memtables: what was written and is not yet in a table.
//!
//! All keyspaces of an engine share one memtable, so that writing it out takes all of them to disk
//! at one sequence. A memtable is sealed when it is full, and then only read.

mod arena;
mod filter;
mod skiplist;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::batch::{Batch, Operation};
use crate::engine::Sequence;
use crate::key::{Key, Kind, PlaceBuf};
use crate::memory::Memory;
use crate::sync::RwLock;
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use crate::table::hash_place;
use crate::tombstones::{Mark, Tombstones, highest_seen};

use filter::PlaceFilter;
pub(crate) use skiplist::{ListCursor, SkipList, TOGETHER, bytes_needed, can_hold};

/// So many pieces of range deletions, each time one of them covers one, are enough for one memtable:
/// where ranges overlap these grow with the square of their number.
const MANY_RANGES: usize = 16 << 10;

/// A memtable.
pub(crate) struct Memtable {
    list: Arc<SkipList>,
    filter: PlaceFilter,
    tombstones: RwLock<Tombstones>,
    /// How many pieces all range deletions were put into, one after the other. While it is 0, nobody
    /// looks further.
    ranges: AtomicUsize,
    /// How many bytes may be reserved.
    capacity: usize,
    /// The highest version in it.
    max_version: AtomicU64,
    /// The segment of its first record in the log; the highest number if it has none.
    first_segment: AtomicU64,
}

impl Memtable {
    /// An empty one, whose room is counted for as long as anybody holds it.
    pub(crate) fn new(capacity: usize, memory: &Arc<Memory>) -> Self {
        let held = memory.hold_memtable(capacity);
        Memtable {
            list: Arc::new(SkipList::counted(capacity, Some(held))),
            filter: PlaceFilter::new(capacity),
            tombstones: RwLock::default(),
            ranges: AtomicUsize::new(0),
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
        self.list.used() + self.filter.size_bytes()
    }

    /// Inserts a batch whose first operation has the sequence `first`. Others may insert meanwhile.
    /// REQUIRES: the batch was checked, and its bytes were reserved.
    pub(crate) fn apply(&self, batch: &Batch, first: Sequence) {
        let mut highest = 0;
        let is_one = batch.len() == 1;
        let mut group = Vec::with_capacity(if is_one { 0 } else { TOGETHER });
        for (sequence, op) in (first..).zip(batch.iter()) {
            let place = PlaceBuf::new(op.keyspace, op.key);
            let key = key_of(&op, &place, sequence);
            highest = highest.max(key.version);
            if op.kind == Kind::RangeDelete {
                self.delete_range(&key, &op.end_place());
                continue;
            }
            self.filter.add(hash_place(key.place));
            if is_one {
                self.list.insert(&key, op.value);
                continue;
            }
            group.push((place, sequence, op));
            if group.len() == TOGETHER {
                self.insert_each(&group);
                group.clear();
            }
        }
        self.insert_each(&group);
        if highest > self.max_version.load(Ordering::Relaxed) {
            self.max_version.fetch_max(highest, Ordering::Release);
        }
    }

    fn insert_each(&self, group: &[(PlaceBuf, Sequence, Operation<'_>)]) {
        let entries = group
            .iter()
            .map(|(place, sequence, op)| (key_of(op, place, *sequence), op.value));
        self.list.insert_each(&entries.collect::<Vec<_>>());
    }

    fn delete_range(&self, start: &Key<'_>, end: &[u8]) {
        let mark = Mark {
            version: start.version,
            sequence: start.sequence,
        };
        let mut tombstones = self.tombstones.write();
        let pieces = tombstones.insert(start.place, end, mark);
        self.ranges.fetch_add(pieces, Ordering::Release);
    }

    /// Whether it holds range deletions. Known to whoever sees their sequences as visible.
    pub(crate) fn has_ranges(&self) -> bool {
        self.ranges.load(Ordering::Acquire) > 0
    }

    /// Whether it holds so many range deletions that another memtable should begin.
    pub(crate) fn has_many_ranges(&self) -> bool {
        self.ranges.load(Ordering::Relaxed) >= MANY_RANGES
    }

    /// Looks into the range deletions. More may come while nobody looks, with higher sequences than
    /// are visible now.
    pub(crate) fn with_tombstones<T>(&self, look: impl FnOnce(&Tombstones) -> T) -> T {
        look(&self.tombstones.read())
    }

    /// The highest mark at a place that a read at this version and sequence sees.
    pub(crate) fn mark(&self, place: &[u8], version: u64, sequence: Sequence) -> Option<Mark> {
        if !self.has_ranges() {
            return None;
        }
        self.with_tombstones(|all| highest_seen(all.around(place).marks, version, sequence))
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

    /// Whether it may hold an entry whose place has this hash.
    pub(crate) fn may_hold(&self, hash: u64) -> bool {
        self.filter.may_hold(hash)
    }

    /// The newest entry of a place at `version` or below that `sequence` sees.
    pub(crate) fn get(
        &self,
        place: &[u8],
        version: u64,
        seq: Sequence,
    ) -> Option<(Key<'_>, &[u8])> {
        self.list.get(place, version, seq)
    }

    /// [`Memtable::get`] for several places. REQUIRES: at most `TOGETHER` of them.
    pub(crate) fn get_each<'m>(
        &'m self,
        places: &[&[u8]],
        version: u64,
        seq: Sequence,
        found: impl FnMut(usize, Option<(Key<'m>, &'m [u8])>),
    ) {
        self.list.get_each(places, version, seq, found);
    }

    pub(crate) fn cursor(&self) -> ListCursor {
        ListCursor::new(Arc::clone(&self.list))
    }
}

fn key_of<'a>(op: &Operation<'_>, place: &'a PlaceBuf, sequence: Sequence) -> Key<'a> {
    Key {
        place: place.as_slice(),
        version: op.version.unwrap_or(0),
        sequence,
        kind: op.kind,
    }
}
