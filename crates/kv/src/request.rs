//! Requests and answers: plain data. Requests are `#[non_exhaustive]` and made by their `new`.

use std::time::Duration;

use bytes::Bytes;

use crate::{Token, Version};

/// How fresh a read has to be. A level that can't be met waits, goes elsewhere or fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum ReadLevel {
    /// Sees every write that was answered before the read began.
    #[default]
    Linearizable,
    /// Sees at least the write that gave this token.
    AtLeast(Token),
    /// What this replica has, however old; needs no quorum.
    Stale,
}

/// What a write demands of the key's present state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Condition {
    /// Nothing.
    #[default]
    None,
    /// The key must not be there.
    Absent,
    /// The key must be there, at any version.
    Present,
    /// The key must be there at this very version.
    Version(Version),
}

/// A key with its value and versions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
    /// The version of this value.
    pub version: Version,
    /// The version at which the key was created, after its last delete.
    pub create_version: Version,
    /// How often the key was written since it was created, from 1.
    pub write_count: u64,
}

/// Read one key.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Get {
    /// The key.
    pub key: Bytes,
    /// How fresh.
    pub level: ReadLevel,
    /// The most time it may take; `None` leaves it to the store's default.
    pub timeout: Option<Duration>,
}

impl Get {
    /// A linearizable read of `key`.
    pub fn new(key: impl Into<Bytes>) -> Self {
        Get {
            key: key.into(),
            level: ReadLevel::default(),
            timeout: None,
        }
    }

    /// The same at another level.
    pub fn level(mut self, level: ReadLevel) -> Self {
        self.level = level;
        self
    }

    /// The same with a time limit.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }
}

/// Write one key.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Put {
    /// The key.
    pub key: Bytes,
    /// Its new value.
    pub value: Bytes,
    /// What the key's state must be.
    pub condition: Condition,
    /// The most time it may take; `None` leaves it to the store's default.
    pub timeout: Option<Duration>,
}

impl Put {
    /// An unconditional write.
    pub fn new(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Put {
            key: key.into(),
            value: value.into(),
            condition: Condition::None,
            timeout: None,
        }
    }

    /// The same under a condition.
    pub fn when(mut self, condition: Condition) -> Self {
        self.condition = condition;
        self
    }

    /// The same with a time limit.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }
}

/// Delete one key.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Delete {
    /// The key.
    pub key: Bytes,
    /// What the key's state must be.
    pub condition: Condition,
    /// The most time it may take; `None` leaves it to the store's default.
    pub timeout: Option<Duration>,
}

impl Delete {
    /// An unconditional delete; of an absent key it changes nothing.
    pub fn new(key: impl Into<Bytes>) -> Self {
        Delete {
            key: key.into(),
            condition: Condition::None,
            timeout: None,
        }
    }

    /// The same under a condition.
    pub fn when(mut self, condition: Condition) -> Self {
        self.condition = condition;
        self
    }

    /// The same with a time limit.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }
}

/// What a conditional put or delete answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Whether the condition held and the write was done (a delete: also whether a key was there).
    pub applied: bool,
    /// The key's version now: the new one if applied, else the one that is there (0: absent).
    pub version: Version,
    /// What a later read may name to see this.
    pub token: Token,
}

/// One change inside a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mutation {
    /// Write the value.
    Put {
        /// The key.
        key: Bytes,
        /// Its new value.
        value: Bytes,
    },
    /// Remove the key.
    Delete {
        /// The key.
        key: Bytes,
    },
}

impl Mutation {
    /// A write.
    pub fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Mutation::Put {
            key: key.into(),
            value: value.into(),
        }
    }

    /// A delete.
    pub fn delete(key: impl Into<Bytes>) -> Self {
        Mutation::Delete { key: key.into() }
    }

    /// The key it changes.
    pub fn key(&self) -> &Bytes {
        match self {
            Mutation::Put { key, .. } | Mutation::Delete { key } => key,
        }
    }

    /// The bytes of key and value.
    pub fn size_bytes(&self) -> usize {
        match self {
            Mutation::Put { key, value } => key.len() + value.len(),
            Mutation::Delete { key } => key.len(),
        }
    }
}

/// Several changes of one shard, all or none, at one version. Keys of several shards: `CrossShard`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Batch {
    /// The changes; of one key the last one counts.
    pub mutations: Vec<Mutation>,
    /// The most time it may take; `None` leaves it to the store's default.
    pub timeout: Option<Duration>,
}

impl Batch {
    /// A batch of these changes.
    pub fn new(mutations: Vec<Mutation>) -> Self {
        Batch {
            mutations,
            timeout: None,
        }
    }
}

/// What a batch answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchResult {
    /// The version that all its writes got.
    pub version: Version,
    /// What a later read may name to see this.
    pub token: Token,
}

/// One operation inside a branch of a [`Compare`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Op {
    /// Read a key, as it is after the operations before it.
    Get {
        /// The key.
        key: Bytes,
    },
    /// Change a key.
    Mutate(Mutation),
}

impl Op {
    /// The key it touches.
    pub fn key(&self) -> &Bytes {
        match self {
            Op::Get { key } => key,
            Op::Mutate(m) => m.key(),
        }
    }
}

/// If all conditions hold then one list of operations, else the other; atomically, on one shard.
/// `TooLarge` if the gets of the list that counts would answer more bytes than a batch may have:
/// then nothing is changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Compare {
    /// The conditions, each on a key; none at all counts as "all hold".
    pub conditions: Vec<(Bytes, Condition)>,
    /// Done when all hold.
    pub then_ops: Vec<Op>,
    /// Done when one does not.
    pub else_ops: Vec<Op>,
    /// The most time it may take; `None` leaves it to the store's default.
    pub timeout: Option<Duration>,
}

impl Compare {
    /// An empty compare; add to it.
    pub fn new() -> Self {
        Compare::default()
    }

    /// Adds a condition on a key.
    pub fn when(mut self, key: impl Into<Bytes>, condition: Condition) -> Self {
        self.conditions.push((key.into(), condition));
        self
    }

    /// Adds an operation for when all conditions hold.
    pub fn then(mut self, op: Op) -> Self {
        self.then_ops.push(op);
        self
    }

    /// Adds an operation for when a condition does not hold.
    pub fn or_else(mut self, op: Op) -> Self {
        self.else_ops.push(op);
        self
    }
}

/// What one operation of a branch answers.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum OpResult {
    /// Of a get.
    Entry(Option<Entry>),
    /// Of a mutation.
    Done,
}

impl OpResult {
    /// What an entry takes beside its key and value: versions, counts, lengths.
    const ENTRY_BYTES: usize = 32;

    /// What the entry that a get found counts for in the limit of a compare's answer.
    pub fn entry_size_bytes(key: &[u8], value_bytes: usize) -> usize {
        key.len() + value_bytes + OpResult::ENTRY_BYTES
    }

    /// What it counts for in the limit of a compare's answer, which is that of a batch: of an entry
    /// key and value and 32 bytes, else nothing.
    pub fn size_bytes(&self) -> usize {
        match self {
            OpResult::Entry(Some(entry)) => {
                OpResult::entry_size_bytes(&entry.key, entry.value.len())
            }
            OpResult::Entry(None) | OpResult::Done => 0,
        }
    }
}

/// What a compare answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompareResult {
    /// Whether all conditions held.
    pub succeeded: bool,
    /// One result for each operation of the branch that ran.
    pub results: Vec<OpResult>,
    /// The version the branch's writes got; if it wrote nothing, the group's newest version.
    pub version: Version,
    /// What a later read may name to see this.
    pub token: Token,
}

/// In which order a scan gives its entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum ScanOrder {
    /// By key, ascending. A hashed namespace has it only within one routing prefix.
    #[default]
    Key,
    /// By key, descending.
    KeyReverse,
    /// In the store's own order, the cheapest; the only one over a whole hashed namespace.
    Unordered,
}

/// Read a range of keys, a page at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Scan {
    /// The first key, inclusive; empty: from the beginning.
    pub start: Bytes,
    /// The end, exclusive; empty: to the end.
    pub end: Bytes,
    /// At most so many entries in this page.
    pub limit: usize,
    /// In which order.
    pub order: ScanOrder,
    /// How fresh.
    pub level: ReadLevel,
    /// What the page before gave; it continues there.
    pub page: Option<Bytes>,
    /// The most time it may take; `None` leaves it to the store's default.
    pub timeout: Option<Duration>,
}

impl Scan {
    /// The keys from `start` (inclusive) to `end` (exclusive; empty: no end), 1,000 a page.
    pub fn range(start: impl Into<Bytes>, end: impl Into<Bytes>) -> Self {
        Scan {
            start: start.into(),
            end: end.into(),
            limit: 1000,
            order: ScanOrder::Key,
            level: ReadLevel::default(),
            page: None,
            timeout: None,
        }
    }

    /// All keys that begin with `prefix`.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let start: Bytes = prefix.into();
        let end = prefix_end(&start);
        Scan::range(start, end)
    }

    /// The same with another page size.
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }

    /// The same in another order.
    pub fn order(mut self, order: ScanOrder) -> Self {
        self.order = order;
        self
    }

    /// The same at another level.
    pub fn level(mut self, level: ReadLevel) -> Self {
        self.level = level;
        self
    }

    /// The same, continued after a page.
    pub fn page(mut self, page: Option<Bytes>) -> Self {
        self.page = page;
        self
    }
}

/// The smallest key above all keys with this prefix; empty when there is none.
pub(crate) fn prefix_end(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            break;
        }
    }
    Bytes::from(end)
}

/// One page of a scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScanPage {
    /// The entries, in the order asked for.
    pub entries: Vec<Entry>,
    /// Where the next page goes on; `None`: this was the last.
    pub next: Option<Bytes>,
}
