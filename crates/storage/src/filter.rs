//! Code of the user's that compaction asks about entries.

use std::fmt::Debug;

use crate::options::KeyspaceId;

/// An entry that compaction is about to write.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Candidate<'a> {
    /// Its keyspace.
    pub keyspace: KeyspaceId,
    /// Its key.
    pub key: &'a [u8],
    /// Its version; 0 in a plain keyspace.
    pub version: u64,
    /// Its value.
    pub value: &'a [u8],
    /// When it was written, in milliseconds since 1970 by the engine's time, if its keyspace had a `ttl`
    /// then.
    pub written_ms: Option<u64>,
}

/// What a [`CompactionFilter`] wants done with an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Nothing.
    Keep,
    /// It becomes a deletion, at its version, and hides what is older as any deletion does.
    Remove,
    /// It gets this value. Version, and the time from which it expires, stay.
    Change(Vec<u8>),
}

/// Decides in compaction what stays: for data that goes by rules of its own.
///
/// # What is promised
///
/// - It is asked only about values, not deletions, of which no live snapshot sees anything that was taken
///   before the compaction began, and, in a versioned keyspace, only at or below the watermark. So such
///   snapshots, and reads at versions above the watermark, see what was written. A snapshot that is taken
///   while a compaction runs may find the decision made.
/// - What it decides is durable and visible when the compaction is, not before; a compaction that fails or
///   is cut off by a crash changed nothing and asks again. It may be asked about one entry any number of
///   times, also after it was overwritten, and an entry that is not compacted is never asked about:
///   `Lsm::compact_all` asks about all that may be.
/// - Expired values are gone before it is asked.
/// - It is called on threads of compaction, several at once if `Options::compactions` says so, and a slow
///   one slows compaction down. If it panics, that is a job that panicked: see `quorate_env::ThreadJobs`.
pub trait CompactionFilter: Send + Sync + Debug {
    /// What is to become of an entry. To be a function of the entry, as far as it matters.
    fn decide(&self, entry: &Candidate<'_>) -> Decision;
}
