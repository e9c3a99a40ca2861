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

mod backup;
mod bulk;
pub(crate) mod checkpoint;
mod compact;
mod conditions;
mod counters;
mod damage;
mod flush;
mod ingest;
mod lookup;
pub(crate) mod open;
mod pace;
mod read;
pub(crate) mod read_only;
mod remove;
mod room;
mod size;
mod snapshots;
mod throttle;
mod write;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::OnceLock;

use quorate_env::{DiskLock, Env, Event};
use quorate_log::Log;

use crate::batch::Batch;
use crate::compaction::CompactionPolicy;
use crate::damage::DamagedFile;
use crate::engine::{Engine, Entry, Iter, IterOptions, KeyRange, ReadAt, Sequence, Snapshot};
use crate::error::{Error, ErrorKind, Result};
use crate::filter::CompactionFilter;
use crate::keyspaces::Keyspaces;
use crate::levels::{Levels, Manifest, Shelf};
use crate::memtable::Memtable;
use crate::options::{IngestOptions, KeyspaceId, KeyspaceOptions, Options, WriteOptions};
use crate::stats::{Debt, Stats};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Mutex, RwLock};
use crate::table_writer::TableWriter;
use crate::voids::Voids;
pub use backup::Backup;
pub use bulk::BulkLoad;
use compact::Manual;
use counters::{Counters, FilterCounters};
use pace::Bucket;
pub use read_only::ReadOnly;
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
    /// The last operation that the levels got by an ingest: visible to whoever reads them.
    ingested: Sequence,
    /// One for all states.
    filters: Arc<FilterCounters>,
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

/// What handles and jobs share.
struct Inner {
    env: Env,
    dir: PathBuf,
    options: Options,
    keyspaces: Keyspaces,
    /// All keyspaces as the manifest has them.
    keyspace_list: Vec<KeyspaceOptions>,
    shelf: Arc<Shelf>,
    policy: Box<dyn CompactionPolicy>,
    filter: Option<Arc<dyn CompactionFilter>>,
    wal: OnceLock<Log>,
    commit: Mutex<Commit>,
    publisher: Publisher,
    state: RwLock<Arc<State>>,
    snapshots: Arc<Snapshots>,
    voids: Arc<Voids>,
    manifest: Mutex<Manifest>,
    work: Mutex<Work>,
    /// Set with `Work::poison`, `full` or `closing`: writes look at `work` only then.
    trouble: AtomicBool,
    /// Set while the owner is short of space.
    short_of_space: AtomicBool,
    /// Set when background work is so far behind that throttled writes must look.
    slow: AtomicBool,
    /// What throttled writes have yet to wait.
    bucket: Bucket,
    /// What flushes write in a second.
    flush_rate: AtomicU64,
    /// Rung whenever background work got anywhere.
    progress: Event,
    flushed_event: Arc<Event>,
    flushed: AtomicU64,
    next_file: AtomicU64,
    counters: Counters,
    lock: Mutex<Option<Box<dyn DiskLock>>>,
    /// What closing came to.
    closed: Mutex<Option<Result<()>>>,
}

impl Lsm {
    /// Opens the engine in a directory, or makes it there.
    ///
    /// Fails with `AlreadyOpen` if somebody has it open; `Incompatible` if the options' keyspaces
    /// are not those that it has, or a newer engine wrote it; `Corruption` if what must be read
    /// now is damaged.
    pub fn open(env: &Env, dir: &Path, options: Options) -> Result<Lsm> {
        let inner = Inner::open(env, dir, options, None, false)?;
        Ok(Lsm { inner })
    }

    /// The same, with a filter that compaction asks about entries. Nothing of it is stored: opened
    /// without it, the engine keeps what is there.
    pub fn open_with_filter(
        env: &Env,
        dir: &Path,
        options: Options,
        filter: Arc<dyn CompactionFilter>,
    ) -> Result<Lsm> {
        let inner = Inner::open(env, dir, options, Some(filter), false)?;
        Ok(Lsm { inner })
    }

    /// The same for an owner who looks after damage ([`Lsm::judge_damage`]): tables and value files that are
    /// missing or of a wrong size do not keep it from opening.
    pub fn open_with_damage(env: &Env, dir: &Path, options: Options) -> Result<Lsm> {
        let inner = Inner::open(env, dir, options, None, true)?;
        Ok(Lsm { inner })
    }

    /// Opens a store for reading only, beside whoever writes to it: takes no lock, writes nothing.
    ///
    /// It sees what manifest and log hold at this moment, also what is written and not synced, which a
    /// power cut may take; [`ReadOnly::refresh`] goes on to what is newer. All tables are held open,
    /// so that what the writer removes stays readable. Fails with `InvalidArgument` if there is no
    /// store, and as [`Lsm::open`].
    pub fn open_read_only(env: &Env, dir: &Path) -> Result<ReadOnly> {
        ReadOnly::open(env, dir)
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

    /// Makes a directory that opens as an engine of its own and holds what this one holds now, in all
    /// keyspaces, at the sequence that is returned. Writes go on meanwhile; what is in memory is
    /// flushed first. Tables are hard links, so it costs no space until compaction here lets go of
    /// them. It has no log and opens with or without one. Durable on return.
    ///
    /// `dir` is made if it is not there, and must be empty and on the same file system. A crash on
    /// the way leaves it missing, empty, or marked so that it does not open; an error too, unless it
    /// could be emptied again. Fails with `InvalidArgument` for a directory that can't serve.
    /// REQUIRES: as [`Lsm::flush`].
    pub fn checkpoint(&self, dir: &Path) -> Result<Sequence> {
        self.inner.checkpoint(dir)
    }

    /// Makes a directory that opens as an engine of its own and holds what this one holds now, like
    /// [`Lsm::checkpoint`], but on any file system: files are copied, and every block of a copy is read
    /// back. Of the files that a backup before has, given as `previous`, none is copied again: they get a
    /// second name in `dir`, which must be on its file system. So each backup is whole by itself, costs what
    /// is new, and is removed by removing its directory. To restore one, copy it.
    ///
    /// Fails as [`Lsm::checkpoint`], and with `Corruption` if a file is damaged.
    pub fn backup(&self, dir: &Path, previous: Option<&Path>) -> Result<Backup> {
        self.inner.backup(dir, previous)
    }

    /// Begins a table, outside of the store, that is written as its own are and can be taken in by [`Lsm::ingest`].
    /// Fails if the file is there already.
    pub fn table_writer(&self, path: &Path) -> Result<TableWriter> {
        TableWriter::create(&self.inner.env, path, &self.inner.options)
    }

    /// Takes in tables that a [`TableWriter`](crate::TableWriter) made, as one write: with what is to
    /// be excised gone, all of them and the batch in the options become durable and visible together,
    /// at the sequence that is returned; a crash leaves all of that or nothing. Snapshots taken before
    /// do not see what comes in. What is excised goes as by [`Lsm::remove_range`].
    ///
    /// The tables must not overlap each other. They go as deep into the levels as they fit. Their files
    /// get a second name here, so they must be on this file system, and must not be changed
    /// afterwards. What was written before is flushed first; writes that come meanwhile go on, but
    /// return only when this is done.
    ///
    /// Fails with `InvalidArgument` for what can't be taken in and `Corruption` for a file that is no
    /// sound table; nothing was done then. REQUIRES: as [`Lsm::flush`].
    pub fn ingest(&self, files: &[PathBuf], options: &IngestOptions<'_>) -> Result<Sequence> {
        self.inner.ingest(files, options)
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

    /// Says whether the owner is short of space. While it is, a tenth of a table that is dead is reason enough to
    /// compact it, and one table on level 0 is: what was deleted gives its space back soon, for more work.
    pub fn set_short_of_space(&self, is_short: bool) {
        let was_short = &self.inner.short_of_space;
        if was_short.swap(is_short, Ordering::Relaxed) != is_short {
            self.inner.spawn_compactions();
        }
    }

    /// Whether a file was found damaged that was not judged since.
    pub fn is_damaged(&self) -> bool {
        self.inner.shelf.damages.is_noted()
    }

    /// Reads the files in full that were found damaged since this was last called, and says what of them may
    /// be lost. What was only misread is not damaged. Compactions that need such a file wait until it is given
    /// up. Slow; not to be called by two at once.
    pub fn judge_damage(&self) -> Vec<DamagedFile> {
        self.inner.judge_damage()
    }

    /// Has compaction go on without what is lost of a file, until this engine is closed. The file keeps a
    /// second name, ending in `.damaged`. What is lost no longer hides what lies below it once compaction has
    /// passed: REQUIRES that whatever the damage touches is not read again before its range was removed
    /// ([`Lsm::remove_range`]), not after a crash either.
    pub fn give_up(&self, damaged: &DamagedFile) {
        self.inner.give_up(damaged);
    }

    /// Why nothing is written any more, if a write or a sync failed in a way that does not pass: only opening it again
    /// helps.
    pub fn failure(&self) -> Option<Error> {
        let work = self.inner.work.lock();
        work.poison.as_ref().map(Error::poisoned)
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
    /// and gives the directory free. Reads go on. Again it does nothing, and says what it said first.
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

    fn multi_get(
        &self,
        keyspace: KeyspaceId,
        keys: &[&[u8]],
        at: &ReadAt,
    ) -> Result<Vec<Option<Entry>>> {
        self.inner.multi_get(keyspace, keys, at)
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
            return Err(closed());
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
        let mut closed = self.closed.lock();
        closed.get_or_insert_with(|| self.close_once()).clone()
    }

    fn close_once(self: &Arc<Self>) -> Result<()> {
        // Who has a place in the log by now is waited for; nobody gets one any more.
        self.commit.lock().closed = true;
        let flushed = match self.wal.get() {
            Some(log) => log.close().map_err(|e| write::log_error(&e)),
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
        self.shelf.purge();
        self.lock.lock().take();
        flushed
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the engine is closed")
}

impl State {
    /// The newest first.
    fn memtables(&self) -> impl Iterator<Item = &Arc<Memtable>> {
        let sealed = self.sealed.iter().map(|s| &s.memtable);
        std::iter::once(&self.active).chain(sealed)
    }

    fn memtable_bytes(&self) -> u64 {
        let sealed = self.sealed.iter().map(|s| s.memtable.size_bytes());
        (self.active.size_bytes() + sealed.sum::<usize>()) as u64
    }
}
