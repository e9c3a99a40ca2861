//! The engine that stores on disk: a log-structured merge tree.
//!
//! ```text
//! write ─► log (if any) ─► memtable ─► sealed memtables ─► level 0 ─► level 1 ─► … ─► level 6
//!                           (active)       flush              compaction
//! ```
//!
//! Locks, in the order in which they may be taken: `commit`, `manifest`, `work`, `state`. None is held
//! while waiting for other work; `manifest` is held over the write and sync of an edit, the others
//! are short.

mod compact;
mod flush;
mod open;
mod read;
mod remove;
mod size;
mod snapshots;
mod throttle;
mod write;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use quorate_env::{DiskLock, Env, Event};
use quorate_log::Log;

use crate::batch::Batch;
use crate::compaction::Leveled;
use crate::engine::{Engine, Entry, Iter, IterOptions, KeyRange, ReadAt, Sequence, Snapshot};
use crate::error::{Error, ErrorKind, Result};
use crate::keyspaces::Keyspaces;
use crate::levels::{Levels, Manifest, Shelf};
use crate::memtable::Memtable;
use crate::options::{KeyspaceId, KeyspaceOptions, Options, WriteOptions};
use crate::stats::{Debt, LevelStats, Stats};
use compact::Manual;
use snapshots::Snapshots;
use write::{Commit, Publisher};

/// The LSM engine. Dropping it without [`Lsm::close`] is as if the process had ended.
pub struct Lsm {
    inner: Arc<Inner>,
}

/// A memtable that is full.
struct Sealed {
    memtable: Arc<Memtable>,
    /// The last operation in it.
    last: Sequence,
}

/// What reads need, replaced as a whole.
#[derive(Clone)]
struct State {
    active: Arc<Memtable>,
    /// The newest first.
    sealed: Vec<Arc<Sealed>>,
    levels: Arc<Levels>,
}

/// Background work: what runs, and what went wrong.
#[derive(Default)]
struct Work {
    flushing: bool,
    compactions: usize,
    /// Tables that running compactions read.
    busy: BTreeSet<u64>,
    /// A manual compaction runs: none is chosen by the policy.
    manual: bool,
    /// Flushes tried, whatever came of it.
    flushes_tried: u64,
    /// The disk is full. Cleared by the next flush or compaction that succeeds.
    full: Option<Error>,
    /// A compaction can't read its input. No more are chosen.
    unreadable: Option<Error>,
    /// A write or sync failed: nothing more is written.
    poison: Option<Error>,
    closing: bool,
}

#[derive(Default)]
struct Counters {
    batches: AtomicU64,
    stalls: AtomicU64,
    stall_micros: AtomicU64,
    flushes: AtomicU64,
    flush_bytes: AtomicU64,
    compactions: AtomicU64,
    compaction_read_bytes: AtomicU64,
    compaction_write_bytes: AtomicU64,
    moves: AtomicU64,
}

/// What handles and jobs share.
struct Inner {
    env: Env,
    dir: PathBuf,
    options: Options,
    keyspaces: Keyspaces,
    /// All keyspaces as the manifest has them.
    keyspace_list: Vec<KeyspaceOptions>,
    shelf: Arc<Shelf>,
    policy: Leveled,
    wal: OnceLock<Log>,
    commit: Mutex<Commit>,
    publisher: Publisher,
    state: RwLock<Arc<State>>,
    snapshots: Arc<Snapshots>,
    manifest: Mutex<Manifest>,
    work: Mutex<Work>,
    /// Set with `Work::poison`, `full` or `closing`: writes look at `work` only then.
    trouble: AtomicBool,
    /// Set when background work is so far behind that throttled writes must look.
    slow: AtomicBool,
    /// Nanoseconds that throttled writes have yet to wait.
    owed_nanos: AtomicU64,
    /// Rung whenever background work got anywhere.
    progress: Event,
    flushed_event: Arc<Event>,
    flushed: AtomicU64,
    next_file: AtomicU64,
    counters: Counters,
    lock: Mutex<Option<Box<dyn DiskLock>>>,
}

impl Lsm {
    /// Opens the engine in a directory, or makes it there.
    ///
    /// Fails with `AlreadyOpen` if somebody has it open; `Incompatible` if the options' keyspaces
    /// are not those that it has, or a newer engine wrote it; `Corruption` if what must be read
    /// now is damaged.
    pub fn open(env: &Env, dir: &Path, options: Options) -> Result<Lsm> {
        let inner = Inner::open(env, dir, options)?;
        Ok(Lsm { inner })
    }

    /// Writes all memtables out and waits for it; returns the sequence that is on disk.
    ///
    /// This, compaction and removal wait for jobs: REQUIRES that the caller is not itself one of class
    /// `Flush` or `Compaction`. Fails with `DiskFull` if there is no space now.
    pub fn flush(&self) -> Result<Sequence> {
        self.inner.flush_and_wait()
    }

    /// Starts writing all memtables out; returns the sequence that will then be on disk.
    pub fn flush_async(&self) -> Result<Sequence> {
        self.inner.start_flush()
    }

    /// The last operation that is in tables on disk: it and all before it survive a crash.
    pub fn flushed_sequence(&self) -> Sequence {
        self.inner.flushed.load(Ordering::Acquire)
    }

    /// Rung when [`Lsm::flushed_sequence`] grew, or a flush failed.
    pub fn flushed_event(&self) -> Arc<Event> {
        Arc::clone(&self.inner.flushed_event)
    }

    /// Merges all tables that hold keys of a range down to one level, dropping what may go. What is
    /// in memory is flushed first.
    pub fn compact_range(&self, keyspace: KeyspaceId, range: KeyRange<'_>) -> Result<()> {
        self.inner.keyspaces.get(keyspace)?;
        self.inner.flush_and_wait()?;
        self.inner.compact_manually(&Manual::range(keyspace, range))
    }

    /// Merges all tables down to one level, dropping what may go. What is in memory is flushed
    /// first.
    pub fn compact_all(&self) -> Result<()> {
        self.inner.flush_and_wait()?;
        self.inner.compact_manually(&Manual::all())
    }

    /// Removes a range with all its versions, as if it had never been written; durable on return,
    /// and a crash on the way leaves all of it or nothing. What lies before does not come back, nor
    /// do deletions stay, so that lower versions may be written afterwards.
    ///
    /// REQUIRES: nobody writes to the range meanwhile. Snapshots taken before see it gone as well;
    /// iterators made before go on to see it.
    pub fn remove_range(&self, keyspace: KeyspaceId, range: KeyRange<'_>) -> Result<()> {
        self.inner.keyspaces.get(keyspace)?;
        self.inner.remove_range(Manual::range(keyspace, range))
    }

    /// Promises that no read will ask for a version below this one: what such reads alone could see
    /// may be dropped. Never goes back. Reads below it fail with `Dropped` from now on.
    pub fn set_watermark(&self, keyspace: KeyspaceId, version: u64) -> Result<()> {
        let keyspace = self.inner.keyspaces.get(keyspace)?;
        if !keyspace.versioned {
            return Err(Error::invalid(format!(
                "keyspace {} keeps no versions",
                keyspace.id.0
            )));
        }
        keyspace.raise_watermark(version);
        Ok(())
    }

    /// Gauges and counters.
    pub fn stats(&self) -> Stats {
        self.inner.stats()
    }

    /// Has background work try again that a full disk stopped, if any. Refused writes do so by
    /// themselves; for owners that write without being throttled, and so are never refused.
    pub fn retry(&self) {
        self.inner.retry_if_full();
    }

    /// How far background work is behind.
    pub fn debt(&self) -> Debt {
        self.inner.debt()
    }

    /// About how many bytes the tables spend on a range; what is in memory only is not counted.
    pub fn approximate_bytes(&self, keyspace: KeyspaceId, range: KeyRange<'_>) -> Result<u64> {
        self.inner.approximate_bytes(keyspace, range)
    }

    /// A key that splits the tables' content in a range into two of about the same size; `None` if
    /// it holds too little to tell.
    pub fn approximate_middle_key(
        &self,
        keyspace: KeyspaceId,
        range: KeyRange<'_>,
    ) -> Result<Option<Vec<u8>>> {
        self.inner.approximate_middle_key(keyspace, range)
    }

    /// Refuses all later writes, syncs the log or flushes if there is none, waits for background work
    /// and gives the directory free. Reads go on.
    pub fn close(&self) -> Result<()> {
        self.inner.close()
    }
}

impl Engine for Lsm {
    fn write(&self, batch: &Batch, options: WriteOptions) -> Result<Sequence> {
        self.inner.write(batch, options)
    }

    fn get(&self, keyspace: KeyspaceId, key: &[u8], at: &ReadAt) -> Result<Option<Entry>> {
        self.inner.get(keyspace, key, at)
    }

    fn iterate(&self, keyspace: KeyspaceId, options: IterOptions) -> Result<Box<dyn Iter>> {
        self.inner.iterate(keyspace, &options)
    }

    fn snapshot(&self) -> Snapshot {
        self.inner.snapshots.take(|| self.inner.publisher.visible())
    }
}

impl Drop for Lsm {
    fn drop(&mut self) {
        // Jobs that are queued or run end soon, and the last of them frees the directory.
        self.inner.work.lock().closing = true;
        self.inner.trouble.store(true, Ordering::Release);
        self.inner.progress.notify();
    }
}

impl std::fmt::Debug for Lsm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lsm")
            .field("dir", &self.inner.dir)
            .finish_non_exhaustive()
    }
}

impl Inner {
    fn state(&self) -> Arc<State> {
        Arc::clone(&self.state.read())
    }

    /// Fails if nothing may be written. A full disk is not judged here.
    fn check_alive(&self, work: &Work) -> Result<()> {
        if work.closing {
            return Err(Error::new(ErrorKind::Closed, "the engine is closed"));
        }
        match &work.poison {
            Some(error) => Err(error.poisoned()),
            None => Ok(()),
        }
    }

    /// Nothing more is written: what is on disk is in doubt.
    fn poison(&self, error: Error) {
        let mut work = self.work.lock();
        if work.poison.is_none() {
            work.poison = Some(error);
        }
        drop(work);
        self.trouble.store(true, Ordering::Release);
        self.progress.notify();
        self.flushed_event.notify();
    }

    fn close(self: &Arc<Self>) -> Result<()> {
        let flushed = match self.wal.get() {
            Some(log) => log.sync().map_err(|e| write::log_error(&e)),
            None => match self.flush_and_wait() {
                Err(e) if e.kind() == ErrorKind::Closed => Ok(()),
                other => other.map(|_| ()),
            },
        };
        self.work.lock().closing = true;
        self.trouble.store(true, Ordering::Release);
        self.progress.notify();
        let mut idle = || {
            let work = self.work.lock();
            !work.flushing && work.compactions == 0
        };
        self.env.jobs.wait(&self.progress, &mut idle, None);
        self.lock.lock().take();
        flushed
    }

    fn stats(&self) -> Stats {
        let state = self.state();
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let c = &self.counters;
        let last_error = {
            let work = self.work.lock();
            let errors = [&work.poison, &work.full, &work.unreadable];
            errors.into_iter().flatten().next().map(ToString::to_string)
        };
        let level = |tables: &[Arc<crate::levels::TableFile>]| LevelStats {
            files: tables.len() as u64,
            size_bytes: tables.iter().map(|t| t.meta.size_bytes).sum(),
        };
        let tables = || state.levels.iter().flatten();
        Stats {
            levels: state.levels.iter().map(level).collect(),
            memtables: 1 + state.sealed.len() as u64,
            memtable_bytes: state.memtable_bytes(),
            table_memory_bytes: tables().map(|t| t.memory_bytes() as u64).sum(),
            cache_bytes: self.shelf.cache.size_bytes(),
            cache_hits: self.shelf.cache.hits(),
            cache_misses: self.shelf.cache.misses(),
            stalls: get(&c.stalls),
            stall_micros: get(&c.stall_micros),
            batches: get(&c.batches),
            flushes: get(&c.flushes),
            flush_bytes: get(&c.flush_bytes),
            compactions: get(&c.compactions),
            compaction_read_bytes: get(&c.compaction_read_bytes),
            compaction_write_bytes: get(&c.compaction_write_bytes),
            moves: get(&c.moves),
            wal_bytes: self.wal.get().map_or(0, Log::size_bytes),
            sequence: self.publisher.visible(),
            flushed_sequence: self.flushed.load(Ordering::Acquire),
            snapshots: self.snapshots.count() as u64,
            last_error,
        }
    }
}

impl State {
    fn memtable_bytes(&self) -> u64 {
        let sealed = self.sealed.iter().map(|s| s.memtable.size_bytes());
        (self.active.size_bytes() + sealed.sum::<usize>()) as u64
    }
}
