//! The seam: what an engine can do, kept narrow enough that a map in memory can do it as well.
//!
//! Two implementations pass one conformance suite: [`Lsm`](crate::Lsm) and [`Model`](crate::Model).

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::batch::Batch;
use crate::error::Result;
use crate::options::{KeyspaceId, WriteOptions};

/// The place of an operation in the order of all operations of one engine. Private to that engine:
/// replicas number theirs differently.
pub type Sequence = u64;

/// A store of keyspaces. All methods may be called from many threads at once.
pub trait Engine: Send + Sync {
    /// Writes all operations of a batch, or none; `ConditionFailed` if it has conditions that don't
    /// hold. On return they are visible to every read, and as
    /// durable as `options` asked. Returns the sequence of the last operation; an empty batch
    /// returns that of the last batch visible.
    fn write(&self, batch: &Batch, options: WriteOptions) -> Result<Sequence>;

    /// The newest entry of a key that is visible at `at`, unless it is a deletion.
    fn get(&self, keyspace: KeyspaceId, key: &[u8], at: &ReadAt) -> Result<Option<Entry>>;

    /// What [`get`](Self::get) answers for each of the keys, all at one moment; in the order of `keys`.
    /// Cheaper than one after the other: blocks that several keys share are looked up once.
    fn multi_get(
        &self,
        keyspace: KeyspaceId,
        keys: &[&[u8]],
        at: &ReadAt,
    ) -> Result<Vec<Option<Entry>>>;

    /// An iterator over a range of keys. It stands nowhere at first: seek. It sees the state of
    /// the moment when it was made, or that of the snapshot in its options.
    fn iterate(&self, keyspace: KeyspaceId, options: IterOptions) -> Result<Box<dyn Iter>>;

    /// The present state, for reads later on. Holds back compaction while it lives.
    fn snapshot(&self) -> Snapshot;
}

/// Where in history a read stands.
#[derive(Debug, Clone)]
pub struct ReadAt {
    /// Sees versions up to this one. `u64::MAX` sees the newest. No meaning in a plain keyspace.
    pub version: u64,
    /// Sees the writes that this snapshot saw; without one, all that are visible now.
    pub snapshot: Option<Snapshot>,
}

impl ReadAt {
    /// The newest of everything.
    pub const NEWEST: ReadAt = ReadAt {
        version: u64::MAX,
        snapshot: None,
    };

    /// What versions up to `version` say now.
    pub fn version(version: u64) -> Self {
        ReadAt {
            version,
            snapshot: None,
        }
    }

    /// The newest that a snapshot saw.
    pub fn snapshot(snapshot: &Snapshot) -> Self {
        ReadAt {
            version: u64::MAX,
            snapshot: Some(snapshot.clone()),
        }
    }

    pub(crate) fn sequence(&self) -> Option<Sequence> {
        self.snapshot.as_ref().map(Snapshot::sequence)
    }
}

impl Default for ReadAt {
    fn default() -> Self {
        ReadAt::NEWEST
    }
}

/// A value and the version it was written at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What the writer gave; 0 in a plain keyspace.
    pub version: u64,
    /// The value. Shares the memory of the block it stands in, and keeps that block alive: copy it
    /// if it is small and stays for long.
    pub value: Bytes,
}

/// A state of the engine. Clones are one snapshot; it ends with the last of them.
#[derive(Clone)]
pub struct Snapshot {
    sequence: Sequence,
    hold: Arc<dyn Any + Send + Sync>,
}

impl Snapshot {
    pub(crate) fn new(sequence: Sequence, hold: Arc<dyn Any + Send + Sync>) -> Self {
        Snapshot { sequence, hold }
    }

    /// The last operation it sees.
    pub fn sequence(&self) -> Sequence {
        self.sequence
    }

    /// What it holds, if it is of this kind.
    pub(crate) fn hold<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        Arc::clone(&self.hold).downcast().ok()
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Snapshot").field(&self.sequence).finish()
    }
}

/// What an iterator covers.
#[derive(Debug, Clone, Default)]
pub struct IterOptions {
    /// The first key of the range.
    pub lower: Vec<u8>,
    /// The end of the range, itself not in it; `None` is the end of the keyspace.
    pub upper: Option<Vec<u8>>,
    /// Where in history it stands.
    pub at: ReadAt,
    /// Yields every version up to `at`, deletions too, newest first within a key; not only the
    /// newest that is not a deletion. Of writes at one version it yields the last. What compaction
    /// may drop may be missing: versions shadowed at the watermark, deletions of a plain keyspace.
    pub all_versions: bool,
    /// Values that lie apart from their keys are not read as it moves, which makes it cheap to look at
    /// keys alone: `value` and `value_bytes` may then be empty, and [`Iter::read_value`] reads.
    pub lazy_values: bool,
}

impl IterOptions {
    /// All keys from `lower` up to but without `upper`.
    pub fn range(lower: &[u8], upper: &[u8]) -> Self {
        IterOptions {
            lower: lower.to_vec(),
            upper: Some(upper.to_vec()),
            ..IterOptions::default()
        }
    }

    /// All keys that begin so.
    pub fn prefix(prefix: &[u8]) -> Self {
        let mut upper = prefix.to_vec();
        while upper.last() == Some(&0xff) {
            upper.pop();
        }
        let upper = upper.last_mut().map(|last| *last += 1).map(|()| upper);
        IterOptions {
            lower: prefix.to_vec(),
            upper,
            ..IterOptions::default()
        }
    }
}

/// A place in a range of keys. After an error it is not valid, and says the error again if moved
/// without a seek.
pub trait Iter: Send {
    /// Goes to the first entry of the range.
    fn seek_to_first(&mut self) -> Result<()>;

    /// Goes to the last entry of the range.
    fn seek_to_last(&mut self) -> Result<()>;

    /// Goes to the first entry whose key is `key` or above.
    fn seek(&mut self, key: &[u8]) -> Result<()>;

    /// Goes to the last entry whose key is `key` or below.
    fn seek_for_prev(&mut self, key: &[u8]) -> Result<()>;

    /// Goes one entry on. REQUIRES: valid.
    fn next(&mut self) -> Result<()>;

    /// Goes one entry back. REQUIRES: valid.
    fn prev(&mut self) -> Result<()>;

    /// Whether it stands on an entry.
    fn valid(&self) -> bool;

    /// The key. REQUIRES: valid.
    fn key(&self) -> &[u8];

    /// The version. REQUIRES: valid.
    fn version(&self) -> u64;

    /// The value; empty for a deletion. REQUIRES: valid.
    fn value(&self) -> &[u8];

    /// The value, to keep. REQUIRES: valid.
    fn value_bytes(&self) -> Bytes {
        Bytes::copy_from_slice(self.value())
    }

    /// The value, to keep; read now if it was not yet, as with [`IterOptions::lazy_values`]. REQUIRES:
    /// valid.
    fn read_value(&mut self) -> Result<Bytes> {
        Ok(self.value_bytes())
    }

    /// Whether it stands on a deletion, which only an iterator over all versions does. REQUIRES:
    /// valid.
    fn is_deletion(&self) -> bool;
}

/// A range of keys of one keyspace, borrowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KeyRange<'a> {
    /// The first key.
    pub lower: &'a [u8],
    /// The end, itself not in it; `None` is the end of the keyspace.
    pub upper: Option<&'a [u8]>,
}

impl<'a> KeyRange<'a> {
    /// The whole keyspace.
    pub const ALL: KeyRange<'static> = KeyRange {
        lower: &[],
        upper: None,
    };

    /// From `lower` up to but without `upper`.
    pub fn new(lower: &'a [u8], upper: &'a [u8]) -> Self {
        KeyRange {
            lower,
            upper: Some(upper),
        }
    }
}
