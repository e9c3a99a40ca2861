//! Opening: the lock, the manifest, the log, and what a crash left behind.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::OnceLock;

use quorate_env::{DiskLock, Env, Event};
use quorate_log::{Log, LogOptions, Position};

use super::checkpoint::refuse_incomplete;
use super::conditions::LastWrites;
use super::pace::Bucket;
use super::snapshots::Snapshots;
use super::write::{Commit, Publisher, log_error};
use super::{Counters, Inner, State, Work};
use crate::batch::Batch;
use crate::cache::BlockCache;
use crate::compaction::policy;
use crate::damage::Damages;
use crate::error::{Error, ErrorKind, Result};
use crate::expiry::{self, Time};
use crate::filter::CompactionFilter;
use crate::key::Kind;
use crate::keyspaces::Keyspaces;
use crate::levels::{Edit, Levels, Manifest, Shelf, bad_edit, table_path};
use crate::memtable::{Memtable, bytes_needed};
use crate::options::{KeyspaceId, KeyspaceOptions, Options};
use crate::planted::{self, Bug};
use crate::prefix::Prefix;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Mutex, RwLock};
use crate::values::value_path;
use crate::voids::Voids;

/// What a manifest says, all edits together.
#[derive(Default)]
pub(crate) struct Recovered {
    pub(crate) levels: Levels,
    pub(crate) keyspaces: Vec<KeyspaceOptions>,
    pub(crate) flushed: u64,
    pub(crate) next_file: u64,
    pub(crate) watermarks: Vec<(KeyspaceId, u64)>,
    /// See [`Edit::time_ms`].
    pub(crate) time_ms: u64,
}

impl Recovered {
    /// Takes over one more edit; the text says why it can't be.
    pub(crate) fn apply(
        &mut self,
        edit: Edit,
        shelf: &Arc<Shelf>,
    ) -> std::result::Result<(), String> {
        (self.levels, _) = self.levels.apply(&edit, shelf)?;
        self.keyspaces.extend(edit.keyspaces);
        self.flushed = edit.flushed_sequence.unwrap_or(self.flushed);
        self.next_file = edit.next_file.unwrap_or(self.next_file);
        self.time_ms = self.time_ms.max(edit.time_ms.unwrap_or(0));
        self.watermarks.extend(edit.watermarks);
        // Only the highest of each counts.
        self.watermarks.sort();
        self.watermarks.reverse();
        self.watermarks.dedup_by_key(|(id, _)| *id);
        Ok(())
    }

    /// The edit that makes all of it from nothing.
    pub(crate) fn as_edit(&self) -> Edit {
        Edit {
            keyspaces: self.keyspaces.clone(),
            flushed_sequence: Some(self.flushed),
            next_file: Some(self.next_file),
            watermarks: self.watermarks.clone(),
            time_ms: Some(self.time_ms),
            ..self.levels.as_edit()
        }
    }

    /// The keyspaces; of a store whose manifest was made anew from tables, what these show of them.
    pub(crate) fn keyspaces_or_guess(&self) -> Vec<KeyspaceOptions> {
        if !self.keyspaces.is_empty() {
            return self.keyspaces.clone();
        }
        let tables = self.levels.iter().flatten();
        let mut found = BTreeMap::new();
        for of in tables.flat_map(|t| &t.meta.properties.keyspaces) {
            *found.entry(of.id).or_insert(false) |= of.max_version > 0;
        }
        let keyspace = |(id, versioned): (KeyspaceId, bool)| KeyspaceOptions {
            id,
            name: id.0.to_string(),
            versioned,
            ttl: None,
            prefix: Prefix::None,
        };
        found.into_iter().map(keyspace).collect()
    }
}

impl Inner {
    pub(super) fn open(
        env: &Env,
        dir: &Path,
        options: Options,
        filter: Option<Arc<dyn CompactionFilter>>,
        with_damage: bool,
    ) -> Result<Arc<Inner>> {
        options.check()?;
        let made = env.disk.create_dir_all(dir);
        made.map_err(|e| Error::disk(dir, "can't make", &e))?;
        let lock = take_lock(env, dir)?;
        refuse_incomplete(env.disk.as_ref(), dir)?;
        let cache = Arc::new(BlockCache::of(&options));
        let shelf = Arc::new(Shelf::new(Arc::clone(&env.disk), dir, cache));
        let current = Manifest::current(env.disk.as_ref(), dir)?;
        let mut recovered = match current {
            Some(number) => read_manifest(&shelf, number)?,
            None => Recovered::default(),
        };
        let names = list(env, dir)?;
        if current.is_none() && names.iter().any(|name| name.ends_with(".table")) {
            let what = "there are tables, but no CURRENT that says which count";
            return Err(Error::corrupt(dir, what));
        }
        recovered.next_file = first_free(&names, recovered.next_file);
        recovered.keyspaces = match_keyspaces(dir, &recovered.keyspaces, &options.keyspaces)?;
        check_files(
            env,
            dir,
            &recovered.levels,
            with_damage.then_some(&shelf.damages),
        )?;

        let number = recovered.next_file;
        recovered.next_file = number + 1;
        let manifest = Manifest::begin(&env.disk, dir, number, &recovered.as_edit())?;
        remove_orphans(env, dir, &recovered.levels, number)?;

        let inner = Inner::with(env, dir, options, recovered, shelf, manifest);
        let inner = Arc::new(Inner { filter, ..inner });
        inner.close_tables_when_crowded();
        *inner.lock.lock() = Some(lock);
        inner.open_log()?;
        inner.drop_dead();
        inner.judge_speed();
        inner.spawn_flush();
        inner.spawn_compactions();
        Ok(inner)
    }

    fn with(
        env: &Env,
        dir: &Path,
        options: Options,
        recovered: Recovered,
        shelf: Arc<Shelf>,
        manifest: Manifest,
    ) -> Inner {
        let time = Time::running(Arc::clone(&env.clock));
        time.not_before(recovered.time_ms);
        let keyspaces = Keyspaces::new(&recovered.keyspaces, time);
        for (id, version) in &recovered.watermarks {
            if let Some(keyspace) = keyspaces.find(*id) {
                keyspace.raise_watermark(*version);
            }
        }
        let memtable = Arc::new(Memtable::new(options.memtable_size(), shelf.cache.memory()));
        let state = State {
            active: Arc::clone(&memtable),
            sealed: Vec::new(),
            levels: Arc::new(recovered.levels),
            ingested: 0,
            filters: Arc::default(),
        };
        Inner {
            env: env.clone(),
            dir: dir.to_owned(),
            keyspaces,
            keyspace_list: recovered.keyspaces,
            shelf,
            policy: policy(&options),
            filter: None,
            wal: OnceLock::new(),
            commit: Mutex::new(Commit {
                last: match planted::is_on(Bug::SequencesAreReused) {
                    true => recovered.flushed / 2,
                    false => recovered.flushed,
                },
                memtable,
                reserved: 0,
                last_writes: LastWrites::default(),
                closed: false,
            }),
            publisher: Publisher::new(recovered.flushed),
            state: RwLock::new(Arc::new(state)),
            snapshots: Arc::new(Snapshots::default()),
            voids: Arc::new(Voids::default()),
            manifest: Mutex::new(manifest),
            work: Mutex::new(Work::default()),
            trouble: AtomicBool::new(false),
            short_of_space: AtomicBool::new(false),
            slow: AtomicBool::new(false),
            bucket: Bucket::default(),
            // Until one was seen.
            flush_rate: AtomicU64::new(64_000_000),
            progress: Event::new(),
            flushed_event: Arc::new(Event::new()),
            flushed: AtomicU64::new(recovered.flushed),
            next_file: AtomicU64::new(recovered.next_file),
            counters: Counters::default(),
            lock: Mutex::new(None),
            closed: Mutex::new(None),
            options,
        }
    }

    /// Opens the log and takes over what it holds. An engine that has no log any more writes what
    /// the log holds to tables.
    fn open_log(self: &Arc<Self>) -> Result<()> {
        let dir = self.dir.join("wal");
        let exists = self.env.disk.exists(&dir);
        let exists = exists.map_err(|e| Error::disk(&dir, "can't look for", &e))?;
        if !self.options.wal && !exists {
            return Ok(());
        }
        let log_options = LogOptions {
            segment_bytes: self.options.wal_segment_bytes,
            ..LogOptions::default()
        };
        let mut failed = None;
        let mut replay = |at: Position, record: &[u8]| match self.replay(at.segment, record) {
            Ok(()) => Ok(()),
            Err(Replay::Nonsense(what)) => Err(what),
            Err(Replay::Failed(error)) => {
                let what = error.to_string();
                failed = Some(error);
                Err(what)
            }
        };
        let log = Log::open(&self.env, &dir, log_options, &mut replay);
        let log = log.map_err(|e| failed.take().unwrap_or_else(|| log_error(&e)))?;
        if self.options.wal {
            let _ = self.wal.set(log);
            return Ok(());
        }
        let mut commit = self.commit.lock();
        if commit.reserved > 0 {
            self.seal_for_replay(&mut commit, 0);
        }
        drop(commit);
        while self.flush_oldest()? {}
        // The last segment stays, and is skipped at the next opening.
        log.release(log.end().segment).map_err(|e| log_error(&e))
    }

    /// Applies a record of the log, unless tables hold it.
    fn replay(self: &Arc<Self>, segment: u64, record: &[u8]) -> std::result::Result<(), Replay> {
        let (first, batch) = Batch::decode(record).map_err(Replay::Nonsense)?;
        let last = first + (batch.len() as u64).saturating_sub(1);
        let flushed = self.flushed.load(Ordering::Acquire);
        if last <= flushed {
            return Ok(());
        }
        self.keyspaces
            .check(&batch)
            .map_err(|e| Replay::Nonsense(e.to_string()))?;
        let mut commit = self.commit.lock();
        if first <= commit.last {
            let last = commit.last;
            let what =
                format!("a batch begins at sequence {first}, after one that ended at {last}");
            return Err(Replay::Nonsense(what));
        }
        let need = bytes_needed(batch.payload_bytes(), first, batch.len());
        let memtable = &commit.memtable;
        if commit.reserved + need > memtable.capacity() || memtable.has_many_ranges() {
            self.seal_for_replay(&mut commit, need);
            // Bounded memory: out with it before more comes in.
            while self.flush_oldest().map_err(Replay::Failed)? {}
        }
        commit.memtable.note_segment(segment);
        commit.memtable.apply(&batch, first);
        if self.keyspaces.expire() {
            // It was that late already when the batch was written.
            let stamped = batch.iter().filter(|op| op.kind == Kind::Expiring);
            let newest = stamped.map(|op| expiry::written_ms(op.value)).max();
            self.keyspaces.time().not_before(newest.unwrap_or(0));
        }
        commit.reserved += need;
        commit.last = last;
        self.publisher.start_at(last);
        Ok(())
    }

    fn seal_for_replay(self: &Arc<Self>, commit: &mut Commit, need: usize) {
        // No job: the opening flushes by itself.
        self.work.lock().flushing = true;
        self.rotate(commit, need);
        self.work.lock().flushing = false;
    }
}

/// Why a record was not taken over.
enum Replay {
    Nonsense(String),
    Failed(Error),
}

pub(crate) fn take_lock(env: &Env, dir: &Path) -> Result<Box<dyn DiskLock>> {
    let path = dir.join("LOCK");
    env.disk.lock(&path).map_err(|e| match e.kind() {
        std::io::ErrorKind::WouldBlock => Error::new(
            ErrorKind::AlreadyOpen,
            format!(
                "{} is already open, here or in another process",
                dir.display()
            ),
        ),
        _ => Error::disk(&path, "can't lock", &e),
    })
}

pub(crate) fn list(env: &Env, dir: &Path) -> Result<Vec<String>> {
    let names = env.disk.list(dir);
    names.map_err(|e| Error::disk(dir, "can't list", &e))
}

/// What a manifest says; all of it must be sound.
pub(crate) fn read_manifest(shelf: &Arc<Shelf>, number: u64) -> Result<Recovered> {
    let edits = Manifest::read(shelf.disk.as_ref(), &shelf.dir, number)?;
    let mut recovered = Recovered::default();
    for edit in edits {
        let applied = recovered.apply(edit, shelf);
        applied.map_err(|what| bad_edit(&shelf.dir, number, &what))?;
    }
    check_compression(shelf, &recovered.levels)?;
    Ok(recovered)
}

/// The number of a file of this engine.
pub(crate) fn number_of(name: &str) -> Option<u64> {
    let (number, kind) = name.split_once('.')?;
    match kind {
        "table" | "values" | "manifest" => u64::from_str_radix(number, 16).ok(),
        _ => None,
    }
}

/// A number above all that were ever used.
pub(crate) fn first_free(names: &[String], next_file: u64) -> u64 {
    let used = names.iter().filter_map(|name| number_of(name));
    used.map(|n| n + 1).chain([next_file, 1]).max().unwrap_or(1)
}

/// The keyspaces that the store has and those that are new; fails if the two lists don't agree.
fn match_keyspaces(
    dir: &Path,
    stored: &[KeyspaceOptions],
    wanted: &[KeyspaceOptions],
) -> Result<Vec<KeyspaceOptions>> {
    let kind = |k: &KeyspaceOptions| {
        let versions = if k.versioned { "versioned" } else { "plain" };
        format!("{} ({}, {versions})", k.name, k.id.0)
    };
    let mismatch = |what: String| {
        let text = format!("{}: {what}", dir.display());
        Err(Error::new(ErrorKind::Incompatible, text))
    };
    for has in stored {
        match wanted.iter().find(|k| k.id == has.id || k.name == has.name) {
            None => return mismatch(format!("keyspace {} is not in the options", kind(has))),
            Some(other) if !other.is_same(has) => {
                let what = format!("keyspace {} is {} in the options", kind(has), kind(other));
                return mismatch(what);
            }
            Some(_) => {}
        }
    }
    Ok(wanted.to_vec())
}

/// All tables and value files of the manifest must be there, of the right size.
/// Where damage is looked after it is noted.
fn check_files(env: &Env, dir: &Path, levels: &Levels, damages: Option<&Damages>) -> Result<()> {
    let check = |number: u64, path: &Path, size: u64| match (check_size(env, path, size), damages) {
        (Err(error), Some(damages)) if error.kind() == ErrorKind::Corruption => {
            damages.note(number, None, &error);
            Ok(())
        }
        (checked, _) => checked,
    };
    for table in levels.iter().flatten() {
        let number = table.meta.number;
        check(number, &table_path(dir, number), table.meta.size_bytes)?;
    }
    for held in levels.values().iter() {
        let file = &held.file;
        check(file.meta.number, &file.path(), file.meta.size_bytes())?;
    }
    Ok(())
}

fn check_size(env: &Env, path: &Path, wanted: u64) -> Result<()> {
    let size = env.disk.open_read(path).and_then(|file| file.size());
    match size {
        Ok(size) if size == wanted => Ok(()),
        Ok(size) => {
            let what = format!("it has {size} bytes instead of {wanted}");
            Err(Error::corrupt(path, what))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            Err(Error::corrupt(path, "the file is missing"))
        }
        Err(e) => Err(Error::disk(path, "can't open", &e)),
    }
}

/// All that the manifest knows must be compressed in ways that this build can read.
fn check_compression(shelf: &Shelf, levels: &Levels) -> Result<()> {
    for table in levels.iter().flatten() {
        let compression = table.meta.properties.compression;
        compression.check_readable(&table_path(&shelf.dir, table.meta.number))?;
    }
    for held in levels.values().iter() {
        let meta = &held.file.meta;
        meta.compression
            .check_readable(&value_path(&shelf.dir, meta.number))?;
    }
    Ok(())
}

/// Whether levels or manifest say that a file with this name and number counts.
pub(crate) fn is_live(name: &str, number: u64, levels: &Levels, manifest: u64) -> bool {
    match name.rsplit_once('.') {
        Some((_, "manifest")) => number == manifest,
        Some((_, "values")) => levels.values().get(number).is_some(),
        _ => levels.find(number).is_some(),
    }
}

/// Removes tables, value files and manifests that nothing refers to.
fn remove_orphans(env: &Env, dir: &Path, levels: &Levels, manifest: u64) -> Result<()> {
    for name in list(env, dir)? {
        let Some(number) = number_of(&name) else {
            continue;
        };
        if !is_live(&name, number, levels, manifest) {
            let path = dir.join(&name);
            match env.disk.remove(&path) {
                // By a reader of an engine that was closed here just now.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                removed => removed.map_err(|e| Error::disk(&path, "can't remove", &e))?,
            }
        }
    }
    Ok(())
}
