//! [`Records`]: records within a bound of bytes, and what is left of those that were evicted.

use std::hash::BuildHasherDefault;

use bytes::Bytes;
use quick_cache::unsync::Cache as Evicting;
use quick_cache::{Lifecycle, Weighter};
use xxhash_rust::xxh3::Xxh3Default;

use super::planted::{self, Bug};
use super::{Cached, Invalidation, Looked, Mark, Put, Record};
use crate::{Need, Version};

/// What a record takes besides its key and value: itself, its place in the table and in the queue.
const OVERHEAD_BYTES: u64 = 160;

/// The bytes of a value.
pub trait Weigh {
    /// How many they are.
    fn size_bytes(&self) -> usize;
}

impl Weigh for Bytes {
    fn size_bytes(&self) -> usize {
        self.len()
    }
}

struct Weights;

impl<V: Weigh + Clone> Weighter<Bytes, Record<V>> for Weights {
    fn weight(&self, key: &Bytes, record: &Record<V>) -> u64 {
        let value = record.cached().and_then(|cached| cached.value.as_ref());
        (key.len() + value.map_or(0, Weigh::size_bytes)) as u64 + OVERHEAD_BYTES
    }
}

/// Gathers the floors of what is evicted.
struct Floors;

/// What an insertion evicted.
#[derive(Default)]
struct Evicted {
    /// The key whose record gives way to its new one, which the library calls an eviction too.
    replaced: Option<Bytes>,
    floors: Need,
}

impl<V: Clone> Lifecycle<Bytes, Record<V>> for Floors {
    type RequestState = Evicted;

    fn on_evict(&self, evicted: &mut Evicted, key: Bytes, record: Record<V>) {
        if evicted
            .replaced
            .take_if(|replaced| *replaced == key)
            .is_none()
        {
            evicted.floors = evicted.floors.and(record.floor());
        }
    }
}

type Hasher = BuildHasherDefault<Xxh3Default>;

/// What is left of records that are gone, for those that come after them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Left {
    /// What a key needs that has no record.
    pub absent: Need,
    /// What all keys need.
    pub base: Version,
    /// The last mark that was given.
    pub marks: u64,
}

impl Left {
    /// What is left of both.
    pub fn and(self, other: Left) -> Left {
        Left {
            absent: self.absent.and(other.absent),
            base: self.base.max(other.base),
            marks: self.marks.max(other.marks),
        }
    }
}

/// Records of some keys, for one thread at a time. Thread safety is the caller's.
pub struct Records<V: Weigh + Clone> {
    records: Evicting<Bytes, Record<V>, Weights, Hasher, Floors>,
    /// What a key needs that has no record.
    absent: Need,
    /// What all keys need.
    base: Version,
    marks: u64,
}

impl<V: Weigh + Clone> Records<V> {
    /// None, of at most `size_bytes`. `absent` is what a key needs that was never seen.
    pub fn new(size_bytes: u64, absent: Need) -> Self {
        let items = (size_bytes / (2 * OVERHEAD_BYTES)).clamp(4, 1 << 20) as usize;
        Records {
            records: Evicting::with(items, size_bytes, Weights, Hasher::default(), Floors),
            absent,
            base: Version::ZERO,
            marks: 0,
        }
    }

    /// None, of at most `size_bytes`, in the place of those of which this is left: fills that were registered there
    /// are refused here.
    pub fn after(size_bytes: u64, left: Left) -> Self {
        Records {
            base: left.base,
            marks: left.marks,
            ..Records::new(size_bytes, left.absent)
        }
    }

    /// Evicts all. What is left is for all records that come after, of whatever key.
    pub fn end(mut self) -> Left {
        let floors = self.records.drain().map(|(_, record)| record.floor());
        let floors = floors.fold(Need::NOTHING, Need::and);
        if !planted::is_on(Bug::TenantFloorsAreForgotten) {
            self.absent = self.absent.and(floors);
        }
        if planted::is_on(Bug::TenantMarksAreReused) {
            self.marks = 0;
        }
        Left {
            absent: self.absent,
            base: self.base,
            marks: self.marks,
        }
    }

    /// The bytes that its records take, of which keys and values are counted exactly.
    pub fn size_bytes(&self) -> u64 {
        self.records.weight()
    }

    /// What is there, expired or not. Registers nothing.
    pub fn peek(&self, key: &[u8]) -> Option<&Cached<V>> {
        let cached = self.records.get(key)?.cached()?;
        let holds = cached.seen >= self.base || planted::is_on(Bug::LookIgnoresTheBase);
        holds.then_some(cached)
    }

    /// What a reader would be answered, if there is a record; registers nothing. For tags.
    pub fn peek_record(&self, key: &[u8]) -> Option<Looked<V>> {
        self.records
            .get(key)
            .map(|record| record.look(self.base, 0))
    }

    /// Answers and registers a reader at a time.
    pub fn look(&mut self, key: &Bytes, at: u64) -> Looked<V> {
        if let Some(record) = self.records.get(key) {
            return record.look(self.base, at);
        }
        let record = self.fresh();
        let looked = record.look(self.base, at);
        self.insert(key, record);
        looked
    }

    /// Installs what a fill loaded that was registered under `mark`.
    pub fn put(&mut self, key: &Bytes, mark: Mark, cached: Cached<V>) -> Put {
        let found = self.records.peek(key).cloned();
        let mut record = match found {
            Some(record) => record,
            None if planted::is_on(Bug::PutMakesARecord) => Record::new(mark, self.absent),
            None => return Put::Overtaken,
        };
        let put = record.put(mark, self.base, cached);
        if put == Put::Stored {
            self.insert(key, record);
        }
        put
    }

    /// Notes that a key was written.
    pub fn invalidate(&mut self, key: &Bytes, invalidation: Invalidation) {
        let found = self.records.peek(key).cloned();
        let mut record = found.unwrap_or_else(|| self.fresh());
        let mark = self.mark();
        record.invalidate(invalidation, mark);
        self.insert(key, record);
    }

    /// Notes that nothing below `version` counts, of any key: a failover, or a gap whose end is known.
    pub fn raise(&mut self, version: Version) {
        self.base = self.base.max(version);
    }

    /// Drops all values and all fills under way: what was missed is not known. Fills that are registered from
    /// now on need the newest state.
    pub fn clear(&mut self) {
        if !planted::is_on(Bug::GapLeavesValues) {
            self.records.clear();
        }
        self.absent.latest |= !planted::is_on(Bug::GapForgetsLatest);
    }

    /// Evicts one key's record, as a lack of room does.
    #[cfg(test)]
    pub(crate) fn evict(&mut self, key: &Bytes) {
        if let Some((_, record)) = self.records.remove(key) {
            self.forget(record.floor());
        }
    }

    fn fresh(&mut self) -> Record<V> {
        Record::new(self.mark(), self.absent)
    }

    fn mark(&mut self) -> Mark {
        if !planted::is_on(Bug::MarksAreReused) {
            self.marks += 1;
        }
        Mark(self.marks)
    }

    fn insert(&mut self, key: &Bytes, record: Record<V>) {
        let mut evicted = Evicted {
            replaced: self.records.contains_key(key).then(|| key.clone()),
            floors: Need::NOTHING,
        };
        self.records
            .insert_with_lifecycle(key.clone(), record, &mut evicted);
        self.forget(evicted.floors);
    }

    /// Keeps what evicted records needed, for every key without a record: their greatest floor.
    fn forget(&mut self, mut floors: Need) {
        floors.latest &= !planted::is_on(Bug::EvictionForgetsLatest);
        if planted::is_on(Bug::EvictionForgetsTheFloor) {
            floors.at_least = Version::ZERO;
        }
        self.absent = self.absent.and(floors);
    }
}
