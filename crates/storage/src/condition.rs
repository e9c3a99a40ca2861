//! Conditions on keys, by which a batch is written or refused as a whole.

use bytes::Bytes;

use crate::engine::Entry;
use crate::error::{Error, ErrorKind};
use crate::options::KeyspaceId;

/// What must hold of the newest entry of a key for a batch to be written.
///
/// To change a value that was read without losing what others write meanwhile:
///
/// ```
/// # use quorate_storage::{Batch, Condition, Engine, ErrorKind, KeyspaceId, ReadAt, Result, WriteOptions};
/// # fn add_one(store: &dyn Engine, keyspace: KeyspaceId) -> Result<()> {
/// loop {
///     let old = store.get(keyspace, b"counter", &ReadAt::NEWEST)?;
///     let count = old.as_ref().map_or(0, |entry| entry.value[0]);
///     let mut batch = Batch::new();
///     batch.require(keyspace, b"counter", match old {
///         Some(entry) => Condition::ValueIs(entry.value),
///         None => Condition::Absent,
///     });
///     batch.put(keyspace, b"counter", &[count + 1]);
///     match store.write(&batch, WriteOptions::default()) {
///         Err(error) if error.kind() == ErrorKind::ConditionFailed => continue,
///         written => return written.map(|_| ()),
///     }
/// }
/// # }
/// ```
///
/// In a versioned keyspace [`VersionIs`](Self::VersionIs) does the same and compares no values.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Condition {
    /// There is none, or it is a deletion.
    Absent,
    /// There is one that is not a deletion.
    Present,
    /// It has this version, and is not a deletion. For versioned keyspaces only.
    VersionIs(u64),
    /// It has this value.
    ValueIs(Bytes),
}

impl Condition {
    fn holds(&self, found: Option<&Entry>) -> bool {
        match self {
            Condition::Absent => found.is_none(),
            Condition::Present => found.is_some(),
            Condition::VersionIs(version) => found.is_some_and(|e| e.version == *version),
            Condition::ValueIs(value) => found.is_some_and(|e| e.value == *value),
        }
    }
}

/// A condition and the key that it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Requirement {
    pub(crate) keyspace: KeyspaceId,
    pub(crate) key: Vec<u8>,
    pub(crate) condition: Condition,
}

impl Requirement {
    /// Fails if the newest entry of the key is not as required.
    pub(crate) fn check(&self, found: Option<&Entry>) -> Result<(), Error> {
        if self.condition.holds(found) {
            return Ok(());
        }
        let wanted = match &self.condition {
            Condition::Absent => "not to be there".to_owned(),
            Condition::Present => "to be there".to_owned(),
            Condition::VersionIs(version) => format!("to have version {version}"),
            Condition::ValueIs(_) => "to have a certain value".to_owned(),
        };
        let is = match (found, &self.condition) {
            (None, _) => "is not there".to_owned(),
            (Some(_), Condition::ValueIs(_)) => "has another".to_owned(),
            (Some(found), _) => format!("has version {}", found.version),
        };
        let key = self.key.escape_ascii();
        let text = format!(
            "key {key} of keyspace {} was {wanted}, but {is}",
            self.keyspace.0
        );
        Err(Error::new(ErrorKind::ConditionFailed, text))
    }
}
