//! placeholder while the tree grows

use std::path::Path;
use std::sync::Arc;

use quorate_env::{Env, Event};

use crate::batch::Batch;
use crate::engine::{Engine, Entry, Iter, IterOptions, KeyRange, ReadAt, Sequence, Snapshot};
use crate::error::Result;
use crate::model::Model;
use crate::options::{KeyspaceId, Options, WriteOptions};
use crate::stats::{Debt, Stats};

/// The LSM engine.
pub struct Lsm {
    model: Model,
    flushed: Arc<Event>,
}

impl Lsm {
    /// Opens the engine in a directory, or makes it there.
    pub fn open(_env: &Env, _dir: &Path, options: Options) -> Result<Lsm> {
        options.check()?;
        Ok(Lsm {
            model: Model::new(&options.keyspaces),
            flushed: Arc::new(Event::new()),
        })
    }

    /// Writes all memtables out and waits for it; returns the sequence that is on disk.
    pub fn flush(&self) -> Result<Sequence> {
        Ok(self.flushed_sequence())
    }

    /// Starts writing all memtables out; returns the sequence that will then be on disk.
    pub fn flush_async(&self) -> Result<Sequence> {
        Ok(self.flushed_sequence())
    }

    /// The last operation that is in tables on disk: it and all before it survive a crash.
    pub fn flushed_sequence(&self) -> Sequence {
        self.model.snapshot().sequence()
    }

    /// Rung when [`Lsm::flushed_sequence`] grew, or will not grow because of an error.
    pub fn flushed_event(&self) -> Arc<Event> {
        Arc::clone(&self.flushed)
    }

    /// Merges all tables that hold keys of a range down to one level.
    pub fn compact_range(&self, _keyspace: KeyspaceId, _range: KeyRange<'_>) -> Result<()> {
        Ok(())
    }

    /// Flushes, and merges all tables down to one level.
    pub fn compact_all(&self) -> Result<()> {
        Ok(())
    }

    /// Promises that no read will ask for a version below this one.
    pub fn set_watermark(&self, _keyspace: KeyspaceId, _version: u64) -> Result<()> {
        Ok(())
    }

    /// Gauges and counters.
    pub fn stats(&self) -> Stats {
        Stats::default()
    }

    /// How far background work is behind.
    pub fn debt(&self) -> Debt {
        Debt::default()
    }

    /// About how many bytes the tables spend on a range.
    pub fn approximate_bytes(&self, _keyspace: KeyspaceId, _range: KeyRange<'_>) -> Result<u64> {
        Ok(0)
    }

    /// A key that splits a range into two of about the same size; `None` if it holds too little.
    pub fn approximate_middle_key(
        &self,
        _keyspace: KeyspaceId,
        _range: KeyRange<'_>,
    ) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }

    /// Flushes if there is no write-ahead log, waits for background work and refuses all later writes.
    pub fn close(&self) -> Result<()> {
        Ok(())
    }
}

impl Engine for Lsm {
    fn write(&self, batch: &Batch, options: WriteOptions) -> Result<Sequence> {
        self.model.write(batch, options)
    }

    fn get(&self, keyspace: KeyspaceId, key: &[u8], at: &ReadAt) -> Result<Option<Entry>> {
        self.model.get(keyspace, key, at)
    }

    fn iterate(&self, keyspace: KeyspaceId, options: IterOptions) -> Result<Box<dyn Iter>> {
        self.model.iterate(keyspace, options)
    }

    fn snapshot(&self) -> Snapshot {
        self.model.snapshot()
    }
}
