//! A storage engine: a log-structured merge tree whose keys have versions.
//!
//! # What it keeps
//!
//! An engine has a few *keyspaces*. In a *plain* one a write replaces what was there. In a *versioned* one the
//! caller gives every write a version, old versions stay, and a read may ask for the newest up to a version:
//!
//! ```text
//! put_at(k, 5, "five")   put_at(k, 9, "nine")   delete_at(k, 12)
//!
//! get(k) at version  4: nothing      at 5 … 8: "five"      at 9 … 11: "nine"      from 12: nothing
//! ```
//!
//! Such a read is one lookup with a filter, and compaction drops versions shadowed at the *watermark*.
//!
//! Operations come in *batches*, across keyspaces, all or nothing: puts, deletions, deletions of whole
//! ranges ([`Batch::delete_range`]). A batch may have [`Condition`]s on keys and is then written only if
//! they hold, which makes a compare-and-set out of a get and a batch. Each operation also gets a *sequence*,
//! private to the engine: by it batches become visible in order, and of two writes at one version the later wins.
//!
//! # How it lives
//!
//! A batch goes to the write-ahead log, if the engine has one, and into the *memtable*, a skip list. A full
//! memtable is sealed and *flushed* to a *table*, a sorted file, in level 0. *Compaction* merges tables, down
//! the levels, as the policy of the engine says. The *manifest* says which files count. A read asks the
//! memtables, then the levels from the top, helped by a filter in each table and a cache of blocks.
//! Large values lie in *value files*, which compaction does not rewrite; tables hold pointers. A deleted range
//! is one record: scans go around what it covers, and compaction drops that, whole tables unread. Values may
//! expire ([`KeyspaceOptions::ttl`]). Keyspaces share memtables and tables, so a flush takes all to disk at one
//! sequence; without a log a crash leaves all up to [`Lsm::flushed_sequence`] at least.
//!
//! # From outside
//!
//! [`Lsm::checkpoint`] makes an engine of its own by hard links, [`Lsm::backup`] by copying what is new.
//! [`Lsm::ingest`] takes in tables of a [`TableWriter`], [`Lsm::bulk_load`] entries in any order.
//! [`Lsm::open_read_only`] reads beside a writer, [`inspect`] what is closed. A [`CompactionFilter`] judges.
//!
//! # What it does when things go wrong
//!
//! A crash leaves a prefix with all that was acknowledged as durable. A failed sync ends writing for good; reads
//! go on. A full disk refuses writes until there is space. Damage is named ([`Lsm::judge_damage`]).
//!
//! No transactions, no network, nothing asynchronous; files, threads and time come from [`quorate_env::Env`]
//! alone. `docs/formats.md` has the bytes on disk, `docs/tuning.md` the settings.

mod batch;
mod cache;
mod codec;
mod compaction;
mod compress;
mod condition;
mod cursor;
mod damage;
#[cfg(any(test, feature = "fuzzing"))]
pub mod decoders;
mod engine;
mod error;
mod expiry;
mod filter;
mod header;
pub mod inspect;
mod iter;
mod key;
mod keyspaces;
mod levels;
mod lsm;
mod memory;
mod memtable;
mod merge;
mod model;
mod options;
mod planted;
mod prefix;
mod shroud;
mod sources;
mod stats;
mod sync;
mod table;
mod table_writer;
#[cfg(test)]
mod tests;
mod tombstones;
mod values;
mod voids;

pub use batch::{Batch, MAX_BATCH_BYTES, MAX_KEY_BYTES};
pub use condition::Condition;
pub use damage::DamagedFile;
pub use engine::{Engine, Entry, Iter, IterOptions, KeyRange, ReadAt, Sequence, Snapshot};
pub use error::{Error, ErrorKind, Result};
pub use filter::{Candidate, CompactionFilter, Decision};
pub use lsm::{Backup, BulkLoad, Lsm, ReadOnly};
pub use model::Model;
pub use options::{
    Compaction, Compression, Durability, FifoOptions, IngestOptions, KeyspaceId, KeyspaceOptions,
    Options, TieredOptions, WriteOptions,
};
pub use prefix::Prefix;
pub use stats::{Debt, LevelStats, STALL_BOUNDS_MICROS, Stats};
pub use table_writer::TableWriter;
