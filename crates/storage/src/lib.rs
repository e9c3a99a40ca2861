//! LSM storage engine with versioned keyspaces

mod batch;
mod cache;
mod codec;
mod compaction;
mod cursor;
mod engine;
mod error;
mod header;
mod iter;
mod key;
mod keyspaces;
mod levels;
mod lsm;
mod memtable;
mod merge;
mod model;
mod options;
mod stats;
mod table;
#[cfg(test)]
mod tests;

pub use batch::{Batch, MAX_BATCH_BYTES, MAX_KEY_BYTES};
pub use engine::{Engine, Entry, Iter, IterOptions, KeyRange, ReadAt, Sequence, Snapshot};
pub use error::{Error, ErrorKind, Result};
pub use lsm::Lsm;
pub use model::Model;
pub use options::{Compression, Durability, KeyspaceId, KeyspaceOptions, Options, WriteOptions};
pub use stats::{Debt, LevelStats, Stats};
