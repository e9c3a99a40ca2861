//! Loading much at once: in any order, within bounded memory, and seen as one write.
//!
//! What comes goes to a scratch engine in a folder of the store: no log, no filters, few large sorted runs. At
//! the end its sorted view is written to tables once more, and the store takes these in by one edit. So each
//! entry is written about three times, whatever the store holds, and until then nobody notices but the disk.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use quorate_env::DiskLock;

use super::open::{list, take_lock};
use super::{Inner, Lsm};
use crate::batch::{Batch, MAX_BATCH_BYTES, MAX_KEY_BYTES};
use crate::engine::{Engine, IterOptions, Sequence};
use crate::error::{Error, Result};
use crate::options::{
    Compaction, IngestOptions, KeyspaceId, KeyspaceOptions, Options, TieredOptions, WriteOptions,
};
use crate::prefix::Prefix;
use crate::stats::Stats;
use crate::table_writer::TableWriter;

/// Where it lies in the directory of a store.
const FOLDER: &str = "bulk";
const RUNS: &str = "runs";
const LOCK: &str = "LOCK";
/// Entries are handed on in batches of at most about this size, and of this part of the memory.
const BATCH_BYTES: u64 = 64 << 10;
const BATCH_PART: u64 = 64;

/// A load that is under way; see [`Lsm::bulk_load`].
pub struct BulkLoad<'a> {
    target: &'a Arc<Inner>,
    folder: PathBuf,
    runs: Lsm,
    batch: Batch,
    batch_bytes: usize,
    /// Given free last: the next load removes what it finds.
    _lock: Box<dyn DiskLock>,
}

impl Lsm {
    /// Begins to load entries in any order, as many as the disk holds, within about so many bytes of memory
    /// (64 KiB at least) beside what one table takes that is being written.
    ///
    /// Nothing of it is in the store before [`BulkLoad::finish`]. Meanwhile it takes up to three times its own
    /// size in the store's directory. Dropped, or by a crash, it leaves nothing but files that the next load
    /// removes. Fails with `AlreadyOpen` while another one is under way. REQUIRES: as [`Lsm::flush`].
    pub fn bulk_load(&self, memory_bytes: u64) -> Result<BulkLoad<'_>> {
        let target = &self.inner;
        let env = &target.env;
        let folder = target.dir.join(FOLDER);
        let made = env.disk.create_dir_all(&folder.join(RUNS));
        made.map_err(|e| Error::disk(&folder, "can't make", &e))?;
        let lock = take_lock(env, &folder)?;
        clear(target, &folder)?;
        let runs = Lsm::open(env, &folder.join(RUNS), scratch(target, memory_bytes))?;
        Ok(BulkLoad {
            target,
            folder,
            runs,
            batch: Batch::new(),
            batch_bytes: (memory_bytes / BATCH_PART).min(BATCH_BYTES) as usize,
            _lock: lock,
        })
    }
}

/// The settings of the scratch engine.
fn scratch(target: &Inner, memory_bytes: u64) -> Options {
    // Values get their age when they come in.
    let bare = |keyspace: &KeyspaceOptions| KeyspaceOptions {
        ttl: None,
        prefix: Prefix::None,
        ..keyspace.clone()
    };
    Options {
        keyspaces: target.keyspace_list.iter().map(bare).collect(),
        wal: false,
        memory_bytes,
        memtables_waiting: 1,
        compaction: Compaction::Tiered(TieredOptions::default()),
        dead_percent: 0,
        filter_bits_per_key: 0,
        level_compression: Vec::new(),
        bottom_compression: None,
        large_value_bytes: 0,
        compactions: 1,
        auto_compact: true,
        ..target.options.clone()
    }
}

/// Removes what an earlier load left. REQUIRES: the folder is locked.
fn clear(target: &Inner, folder: &Path) -> Result<()> {
    for dir in [&folder.join(RUNS), folder] {
        for name in list(&target.env, dir)? {
            if name != LOCK && name != RUNS {
                let path = dir.join(name);
                let removed = target.env.disk.remove(&path);
                removed.map_err(|e| Error::disk(&path, "can't remove", &e))?;
            }
        }
    }
    Ok(())
}

impl BulkLoad<'_> {
    /// Adds a key of a plain keyspace. Added twice, the later value counts.
    pub fn put(&mut self, keyspace: KeyspaceId, key: &[u8], value: &[u8]) -> Result<()> {
        self.target.keyspaces.check_entry(keyspace, None, key)?;
        self.make_room(value)?;
        self.batch.put(keyspace, key, value);
        Ok(())
    }

    /// Adds a key of a versioned keyspace, at a version. Added twice, the later value counts. Of what the
    /// store has already, all versions of the key must be lower.
    pub fn put_at(
        &mut self,
        keyspace: KeyspaceId,
        key: &[u8],
        version: u64,
        value: &[u8],
    ) -> Result<()> {
        let keyspaces = &self.target.keyspaces;
        keyspaces.check_entry(keyspace, Some(version), key)?;
        self.make_room(value)?;
        self.batch.put_at(keyspace, key, version, value);
        Ok(())
    }

    /// What it takes and does, as an engine of its own.
    pub fn stats(&self) -> Stats {
        self.runs.stats()
    }

    /// Takes all of it into the store, over what that holds, as one write: durable and visible together at
    /// the sequence that is returned; a crash leaves all or nothing of it. Fails as [`Lsm::ingest`].
    pub fn finish(mut self) -> Result<Sequence> {
        self.write_gathered()?;
        let files = self.write_tables()?;
        let options = IngestOptions {
            move_files: true,
            ..IngestOptions::default()
        };
        self.target.ingest(&files, &options)
    }

    /// Hands on what has gathered, if that and a value are much.
    fn make_room(&mut self, value: &[u8]) -> Result<()> {
        let most = MAX_BATCH_BYTES - 2 * MAX_KEY_BYTES;
        if value.len() > most {
            let length = value.len();
            let text = format!("a value of {length} bytes: the most in a load is {most}");
            return Err(Error::invalid(text));
        }
        match self.batch.size_bytes() + value.len() > self.batch_bytes {
            true => self.write_gathered(),
            false => Ok(()),
        }
    }

    fn write_gathered(&mut self) -> Result<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let batch = std::mem::take(&mut self.batch);
        let options = WriteOptions {
            throttle: true,
            ..WriteOptions::APPLY
        };
        self.runs.write(&batch, options).map(drop)
    }

    /// Writes the sorted view of all keyspaces to tables.
    fn write_tables(&self) -> Result<Vec<PathBuf>> {
        let mut tables = Tables {
            load: self,
            writer: None,
            done: Vec::new(),
        };
        let mut ids: Vec<KeyspaceId> = self.target.keyspace_list.iter().map(|k| k.id).collect();
        ids.sort_unstable();
        for id in ids {
            tables.add_keyspace(id)?;
        }
        tables.end()?;
        Ok(tables.done)
    }
}

impl Drop for BulkLoad<'_> {
    fn drop(&mut self) {
        let _ = self.runs.close();
        // What can't be removed now, the next load removes.
        let _ = clear(self.target, &self.folder);
    }
}

/// The tables of a load, one after the other.
struct Tables<'a> {
    load: &'a BulkLoad<'a>,
    writer: Option<TableWriter>,
    done: Vec<PathBuf>,
}

impl Tables<'_> {
    fn add_keyspace(&mut self, id: KeyspaceId) -> Result<()> {
        let target = self.load.target;
        let versioned = target.keyspaces.get(id)?.versioned;
        let options = IterOptions {
            all_versions: versioned,
            ..IterOptions::default()
        };
        let mut iter = self.load.runs.iterate(id, options)?;
        let mut key = Vec::new();
        iter.seek_to_first()?;
        while iter.valid() {
            // All versions of a key are in one table.
            if iter.key() != key {
                let full = |writer: &TableWriter| writer.size_bytes() >= target.options.table_bytes;
                if self.writer.as_ref().is_some_and(full) {
                    self.end()?;
                }
                key.clear();
                key.extend_from_slice(iter.key());
            }
            let writer = self.writer()?;
            match versioned {
                true => writer.put_at(id, &key, iter.version(), iter.value())?,
                false => writer.put(id, &key, iter.value())?,
            }
            iter.next()?;
        }
        Ok(())
    }

    /// The table under way, begun if there is none.
    fn writer(&mut self) -> Result<&mut TableWriter> {
        match &mut self.writer {
            Some(writer) => Ok(writer),
            none => {
                let path = self
                    .load
                    .folder
                    .join(format!("{:08}.table", self.done.len()));
                let target = self.load.target;
                let writer = TableWriter::create(&target.env, &path, &target.options)?;
                self.done.push(path);
                Ok(none.insert(writer))
            }
        }
    }

    fn end(&mut self) -> Result<()> {
        match self.writer.take() {
            Some(writer) => writer.finish().map(drop),
            None => Ok(()),
        }
    }
}
