//! Reading a store that somebody else may be writing to.
//!
//! What is read is put together without a lock, in an order that makes it sound: first the log, then
//! the manifest. The log forgets only what tables hold, so what the later manifest does not call
//! flushed is in the earlier log. Then all tables are opened: a file that is open stays readable when
//! its name goes. A table may be gone before that: then the manifest has changed too, and is read again,
//! and only what is new has to be opened.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use quorate_env::{Disk, Env};
use quorate_log::Position;

use super::checkpoint::refuse_incomplete;
use super::open::{Recovered, read_manifest};
use super::write::log_error;
use super::{Sealed, State};
use crate::batch::Batch;
use crate::cache::BlockCache;
use crate::engine::{Engine, Entry, Iter, IterOptions, ReadAt, Sequence, Snapshot};
use crate::error::{Error, ErrorKind, Result};
use crate::expiry::Time;
use crate::keyspaces::Keyspaces;
use crate::levels::{Levels, Manifest, Shelf, TableFile};
use crate::memtable::{Memtable, bytes_needed};
use crate::options::{KeyspaceId, KeyspaceOptions, Options, WriteOptions};
use crate::sync::{Mutex, RwLock};
use crate::values::ValueFile;

/// How often it is tried to read what changes meanwhile.
const TRIES: usize = 100;
/// The same of the log, which is long and where it is rare.
const LOG_TRIES: usize = 5;
/// The most that one memtable takes of the log.
const MEMTABLE_BYTES: usize = 64 << 20;

/// A store as it was at one moment, to be read; see [`Lsm::open_read_only`](crate::Lsm::open_read_only).
///
/// As an [`Engine`] it refuses writes. A snapshot of it stays readable when it is refreshed.
pub struct ReadOnly {
    env: Env,
    dir: PathBuf,
    cache: Arc<BlockCache>,
    view: RwLock<Arc<View>>,
    /// Held while a newer view is put together.
    refreshing: Mutex<()>,
}

/// What the store was at a moment.
struct View {
    state: State,
    keyspaces: Keyspaces,
    list: Vec<KeyspaceOptions>,
    sequence: Sequence,
}

impl ReadOnly {
    pub(crate) fn open(env: &Env, dir: &Path) -> Result<ReadOnly> {
        let options = Options::default();
        let cache = Arc::new(BlockCache::new(options.cache_bytes, options.block_bytes));
        let view = View::read(env, dir, &cache, None)?;
        Ok(ReadOnly {
            env: env.clone(),
            dir: dir.to_owned(),
            cache,
            view: RwLock::new(Arc::new(view)),
            refreshing: Mutex::new(()),
        })
    }

    /// Goes on to what the store is now; returns the sequence. Iterators and snapshots made before
    /// stay where they are. On failure nothing changes; `Io` also says that the writer replaced tables
    /// faster than they could be opened, and to refresh again.
    pub fn refresh(&self) -> Result<Sequence> {
        let _alone = self.refreshing.lock();
        let before = self.view();
        let view = View::read(
            &self.env,
            &self.dir,
            &self.cache,
            Some(&before.state.levels),
        )?;
        let sequence = view.sequence;
        *self.view.write() = Arc::new(view);
        Ok(sequence)
    }

    /// The last operation that it sees.
    pub fn sequence(&self) -> Sequence {
        self.view().sequence
    }

    /// The keyspaces of the store.
    pub fn keyspaces(&self) -> Vec<KeyspaceOptions> {
        self.view().list.clone()
    }

    fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.read())
    }

    /// What a read looks at, and where it stands.
    fn view_at(&self, at: &ReadAt) -> Result<(Arc<View>, Sequence)> {
        let view = match &at.snapshot {
            None => self.view(),
            Some(snapshot) => snapshot
                .hold::<View>()
                .ok_or_else(|| Error::invalid("the snapshot is of another engine"))?,
        };
        let sequence = at.sequence().unwrap_or(view.sequence);
        Ok((view, sequence))
    }
}

impl Engine for ReadOnly {
    fn write(&self, _: &Batch, _: WriteOptions) -> Result<Sequence> {
        let text = format!("{} is open for reading only", self.dir.display());
        Err(Error::invalid(text))
    }

    fn get(&self, keyspace: KeyspaceId, key: &[u8], at: &ReadAt) -> Result<Option<Entry>> {
        let (view, sequence) = self.view_at(at)?;
        let keyspace = view.keyspaces.check_version(keyspace, at.version)?;
        view.state.get(keyspace, key, at.version, sequence)
    }

    fn multi_get(
        &self,
        keyspace: KeyspaceId,
        keys: &[&[u8]],
        at: &ReadAt,
    ) -> Result<Vec<Option<Entry>>> {
        let (view, sequence) = self.view_at(at)?;
        let keyspace = view.keyspaces.check_version(keyspace, at.version)?;
        view.state.multi_get(keyspace, keys, at.version, sequence)
    }

    fn iterate(&self, keyspace: KeyspaceId, options: IterOptions) -> Result<Box<dyn Iter>> {
        let (view, sequence) = self.view_at(&options.at)?;
        let keyspace = view.keyspaces.check_version(keyspace, options.at.version)?;
        view.state.iterate(keyspace, &options, sequence, None)
    }

    fn snapshot(&self) -> Snapshot {
        let view = self.view();
        Snapshot::new(view.sequence, view)
    }
}

impl std::fmt::Debug for ReadOnly {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReadOnly")
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

impl View {
    /// Reads the store; tables that `open` has open already are shared with it.
    fn read(env: &Env, dir: &Path, cache: &Arc<BlockCache>, open: Option<&Levels>) -> Result<View> {
        refuse_incomplete(env.disk.as_ref(), dir)?;
        let batches = again_if_it_may_pass(LOG_TRIES, || read_log(env, &dir.join("wal")))?;
        let shelf = Arc::new(Shelf::new(Arc::clone(&env.disk), dir, Arc::clone(cache)));
        // What is open stays readable, so that each try has less to open than the one before.
        let mut open_files = OpenFiles::default();
        if let Some(levels) = open {
            open_files.take(levels);
        }
        let mut before = None;
        for _ in 0..TRIES {
            let recovered = again_if_it_may_pass(TRIES, || current(&shelf))?;
            match open_files.hold(&recovered.levels)? {
                None => return View::new(env, recovered, batches),
                // The writer removes a table only when the manifest no longer has it.
                Some(missing) if before == Some(recovered.as_edit()) => return Err(missing),
                Some(_) => before = Some(recovered.as_edit()),
            }
        }
        Err(Error::new(
            ErrorKind::Io,
            format!(
                "{}: its tables are replaced faster than they can be opened; refresh again",
                dir.display()
            ),
        ))
    }

    fn new(env: &Env, recovered: Recovered, batches: Vec<(Sequence, Batch)>) -> Result<View> {
        let time = Time::running(Arc::clone(&env.clock));
        time.not_before(recovered.time_ms);
        let list = recovered.keyspaces_or_guess();
        let keyspaces = Keyspaces::new(&list, time);
        for (id, version) in &recovered.watermarks {
            if let Some(keyspace) = keyspaces.find(*id) {
                keyspace.raise_watermark(*version);
            }
        }
        let mut state = State {
            active: Arc::new(Memtable::new(0)),
            sealed: Vec::new(),
            levels: Arc::new(recovered.levels),
            ingested: 0,
            filters: Arc::default(),
        };
        let mut sequence = recovered.flushed;
        let last_of = |(first, batch): &(Sequence, Batch)| first + batch.len() as u64 - 1;
        let unflushed = |b: &(Sequence, Batch)| !b.1.is_empty() && last_of(b) > recovered.flushed;
        let batches: Vec<_> = batches.into_iter().filter(unflushed).collect();
        let mut rest = batches.as_slice();
        while !rest.is_empty() {
            let mut need = 0;
            let fits = |(first, batch): &&(Sequence, Batch)| {
                let fits = need < MEMTABLE_BYTES;
                need += bytes_needed(batch.payload_bytes(), *first, batch.len());
                fits
            };
            let (now, later) = rest.split_at(rest.iter().take_while(fits).count());
            let memtable = Memtable::new(need);
            for (first, batch) in now {
                keyspaces.check(batch)?;
                memtable.apply(batch, *first);
            }
            sequence = now.last().map_or(sequence, last_of);
            let sealed = Sealed {
                memtable: Arc::new(memtable),
                last: sequence,
            };
            state.sealed.insert(0, Arc::new(sealed));
            rest = later;
        }
        Ok(View {
            state,
            keyspaces,
            list,
            sequence,
        })
    }
}

/// Tries again what may have failed because somebody writes.
fn again_if_it_may_pass<T>(tries: usize, mut read: impl FnMut() -> Result<T>) -> Result<T> {
    let may_pass = |e: &Error| matches!(e.kind(), ErrorKind::Corruption | ErrorKind::Io);
    for _ in 1..tries {
        match read() {
            Err(error) if may_pass(&error) => {}
            done => return done,
        }
    }
    read()
}

/// What the manifest that counts says now.
fn current(shelf: &Arc<Shelf>) -> Result<Recovered> {
    match Manifest::current(shelf.disk.as_ref(), &shelf.dir)? {
        Some(number) => read_manifest(shelf, number),
        None => {
            let text = format!("{} holds no store", shelf.dir.display());
            Err(Error::invalid(text))
        }
    }
}

/// Files that are open, by their numbers.
#[derive(Default)]
struct OpenFiles {
    tables: BTreeMap<u64, Arc<TableFile>>,
    values: BTreeMap<u64, Arc<ValueFile>>,
}

impl OpenFiles {
    fn take(&mut self, levels: &Levels) {
        let tables = levels.iter().flatten();
        self.tables
            .extend(tables.map(|t| (t.meta.number, Arc::clone(t))));
        let values = levels.values().iter().map(|held| &held.file);
        self.values
            .extend(values.map(|file| (file.meta.number, Arc::clone(file))));
    }

    /// Opens all files of levels, or takes them from those that are held, and holds them. Returns the
    /// error of one that is no longer there, if any is not.
    fn hold(&mut self, levels: &Levels) -> Result<Option<Error>> {
        let mut missing = None;
        for table in levels.iter().flatten() {
            if let Some(there) = self.tables.get(&table.meta.number) {
                table.share(there);
            }
            match table.table() {
                Ok(_) => drop(self.tables.insert(table.meta.number, Arc::clone(table))),
                Err(error) if is_gone(table.disk(), &table.path()) => missing = Some(error),
                Err(error) => return Err(error),
            }
        }
        for file in levels.values().iter().map(|held| &held.file) {
            if let Some(there) = self.values.get(&file.meta.number) {
                file.share(there);
            }
            match file.file() {
                Ok(_) => drop(self.values.insert(file.meta.number, Arc::clone(file))),
                Err(error) if is_gone(file.disk(), &file.path()) => missing = Some(error),
                Err(error) => return Err(error),
            }
        }
        Ok(missing)
    }
}

fn is_gone(disk: &dyn Disk, path: &Path) -> bool {
    matches!(disk.exists(path), Ok(false))
}

/// All batches of a log, each with its first sequence.
pub(crate) fn read_log(env: &Env, dir: &Path) -> Result<Vec<(Sequence, Batch)>> {
    let mut batches = Vec::new();
    let mut replay = |_: Position, record: &[u8]| {
        batches.push(Batch::decode(record)?);
        Ok(())
    };
    quorate_log::scan(env, dir, &mut replay).map_err(|e| log_error(&e))?;
    Ok(batches)
}
