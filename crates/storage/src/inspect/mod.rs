//! A look at a store that nobody has open: what is in it, whether it is sound, and what can be saved.
//!
//! Everything here takes the store's lock and fails with `AlreadyOpen` while a process has it.
//! [`Inspection`] changes nothing; [`repair`] does, and only when something is wrong.

mod repair;
mod salvage;
mod verify;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use quorate_env::{DiskLock, Env};

use crate::cache::BlockCache;
use crate::error::{Error, Result};
use crate::key::{KEYSPACE_BYTES, keyspace_of};
use crate::levels::{Manifest, Shelf, TableMeta};
use crate::lsm::ReadOnly;
use crate::lsm::checkpoint::refuse_incomplete;
use crate::lsm::open::{Recovered, is_live, list, number_of, read_manifest, take_lock};
use crate::options::{Compression, KeyspaceId, KeyspaceOptions};
use crate::values::Held;

pub use repair::{Lost, Repair, repair};
pub use verify::{Damage, Verification};

/// A key and its keyspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedKey {
    /// The keyspace.
    pub keyspace: KeyspaceId,
    /// The key in it.
    pub key: Vec<u8>,
}

/// What a table holds of one keyspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyspaceContent {
    /// The keyspace.
    pub id: KeyspaceId,
    /// Entries, deletions among them.
    pub entries: u64,
    /// Deletions.
    pub deletions: u64,
    /// The lowest version; 0 in a plain keyspace.
    pub min_version: u64,
    /// The highest version.
    pub max_version: u64,
}

/// A table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableContent {
    /// Its file's name.
    pub file: String,
    /// The level it lies in.
    pub level: usize,
    /// Its file's size.
    pub size_bytes: u64,
    /// Entries, deletions among them.
    pub entries: u64,
    /// Deletions.
    pub deletions: u64,
    /// Deletions of ranges, in pieces; not entries.
    pub range_deletions: u64,
    /// Values that lie in value files.
    pub values_apart: u64,
    /// Their size there.
    pub values_apart_bytes: u64,
    /// The first key.
    pub smallest: PlacedKey,
    /// The last key, or where a range deletion ends that reaches further.
    pub largest: PlacedKey,
    /// The lowest and the highest sequence in it; 0 is that of what everybody sees.
    pub sequences: (u64, u64),
    /// How its blocks were to be compressed.
    pub compression: Compression,
    /// By keyspace, ascending.
    pub keyspaces: Vec<KeyspaceContent>,
}

/// A value file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValueContent {
    /// Its file's name.
    pub file: String,
    /// Its file's size.
    pub size_bytes: u64,
    /// Values in it.
    pub values: u64,
    /// Their size, plain.
    pub value_bytes: u64,
    /// How many of them tables need.
    pub live_values: u64,
    /// What no table needs, as it lies in the file.
    pub dead_bytes: u64,
    /// How values were to be compressed.
    pub compression: Compression,
}

/// What is in a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// The engine's own directory.
    pub dir: PathBuf,
    /// The manifest that counts.
    pub manifest: String,
    /// The keyspaces, with the watermark of each: below that version, history may be missing.
    pub keyspaces: Vec<(KeyspaceOptions, u64)>,
    /// All operations up to this one are in tables.
    pub flushed_sequence: u64,
    /// All tables, by level, in a level by key; in level 0 the newest first.
    pub tables: Vec<TableContent>,
    /// All value files, the oldest first.
    pub values: Vec<ValueContent>,
    /// Whether there is a write-ahead log.
    pub logged: bool,
    /// Files that nothing refers to: the next opening removes them.
    pub left_overs: Vec<String>,
}

/// A store, locked, to be looked at.
pub struct Inspection {
    env: Env,
    shelf: Arc<Shelf>,
    manifest: u64,
    recovered: Recovered,
    names: Vec<String>,
    _lock: Box<dyn DiskLock>,
}

/// Where the engine is: `dir` itself, or `dir/engine` in the data directory of a node.
pub fn find(env: &Env, dir: &Path) -> Result<PathBuf> {
    let holds_store = |dir: &Path| -> Result<bool> {
        let disk = env.disk.as_ref();
        let exists = disk.exists(dir);
        if !exists.map_err(|e| Error::disk(dir, "can't look for", &e))? {
            return Ok(false);
        }
        let names = list(env, dir)?;
        Ok(names
            .iter()
            .any(|n| n == "CURRENT" || number_of(n).is_some()))
    };
    for dir in [dir.to_owned(), dir.join("engine")] {
        if holds_store(&dir)? {
            return Ok(dir);
        }
    }
    let text = format!(
        "{} holds no store, nor a folder engine with one",
        dir.display()
    );
    Err(Error::invalid(text))
}

impl Inspection {
    /// Opens the store in a directory, or in the folder `engine` of it.
    ///
    /// Fails with `AlreadyOpen` while a process has it open, with `Corruption` if the manifest does
    /// not say what the store is: [`repair`] may help.
    pub fn open(env: &Env, dir: &Path) -> Result<Inspection> {
        let dir = find(env, dir)?;
        let lock = take_lock(env, &dir)?;
        refuse_incomplete(env.disk.as_ref(), &dir)?;
        let Some(manifest) = Manifest::current(env.disk.as_ref(), &dir)? else {
            return Err(Error::corrupt(&dir, "CURRENT is missing"));
        };
        let shelf = shelf(env, &dir);
        Ok(Inspection {
            recovered: read_manifest(&shelf, manifest)?,
            names: list(env, &dir)?,
            env: env.clone(),
            shelf,
            manifest,
            _lock: lock,
        })
    }

    /// What is in it, by its manifest.
    pub fn summary(&self) -> Summary {
        let recovered = &self.recovered;
        let watermark = |id: KeyspaceId| {
            let found = recovered.watermarks.iter().find(|(of, _)| *of == id);
            found.map_or(0, |(_, version)| *version)
        };
        let keyspaces = recovered.keyspaces_or_guess().into_iter();
        let mut tables = Vec::new();
        for (level, of) in recovered.levels.iter().enumerate() {
            tables.extend(of.iter().map(|t| TableContent::new(level, &t.meta)));
        }
        Summary {
            dir: self.shelf.dir.clone(),
            manifest: file_name(self.manifest, "manifest"),
            keyspaces: keyspaces.map(|k| (k.clone(), watermark(k.id))).collect(),
            flushed_sequence: recovered.flushed,
            left_overs: self.left_overs(),
            logged: self.names.iter().any(|name| name == "wal"),
            tables,
            values: recovered
                .levels
                .values()
                .iter()
                .map(ValueContent::new)
                .collect(),
        }
    }

    /// The content, its log included, to be read. The store stays locked by this inspection.
    pub fn read(&self) -> Result<ReadOnly> {
        ReadOnly::open(&self.env, &self.shelf.dir)
    }

    fn left_overs(&self) -> Vec<String> {
        let live = |name: &&String| {
            let levels = &self.recovered.levels;
            number_of(name).is_none_or(|number| is_live(name, number, levels, self.manifest))
        };
        self.names.iter().filter(|n| !live(n)).cloned().collect()
    }
}

impl std::fmt::Debug for Inspection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inspection")
            .field("dir", &self.shelf.dir)
            .finish_non_exhaustive()
    }
}

fn shelf(env: &Env, dir: &Path) -> Arc<Shelf> {
    let cache = Arc::new(BlockCache::new(0, 4096));
    Arc::new(Shelf::new(Arc::clone(&env.disk), dir, cache))
}

fn file_name(number: u64, kind: &str) -> String {
    format!("{number:016x}.{kind}")
}

impl PlacedKey {
    fn new(place: &[u8]) -> Self {
        PlacedKey {
            keyspace: keyspace_of(place),
            key: place.get(KEYSPACE_BYTES..).unwrap_or_default().to_vec(),
        }
    }

    /// The last one below the end of a table, if that tells.
    fn last_below(end: &[u8]) -> Self {
        PlacedKey::new(end.strip_suffix(&[0]).unwrap_or(end))
    }
}

impl ValueContent {
    fn new(held: &Held) -> Self {
        let meta = &held.file.meta;
        ValueContent {
            file: file_name(meta.number, "values"),
            size_bytes: meta.size_bytes(),
            values: meta.all.records,
            value_bytes: meta.value_bytes,
            live_values: held.live.records,
            dead_bytes: held.dead_bytes(),
            compression: meta.compression,
        }
    }
}

impl TableContent {
    fn new(level: usize, meta: &TableMeta) -> Self {
        let p = &meta.properties;
        let keyspaces = p.keyspaces.iter().map(|k| KeyspaceContent {
            id: k.id,
            entries: k.entries,
            deletions: k.deletions,
            min_version: k.min_version,
            max_version: k.max_version,
        });
        TableContent {
            file: file_name(meta.number, "table"),
            level,
            size_bytes: meta.size_bytes,
            entries: p.entries,
            deletions: p.deletions,
            range_deletions: p.range_deletions,
            values_apart: p.apart().records,
            values_apart_bytes: p.apart().bytes,
            smallest: PlacedKey::new(&p.smallest),
            largest: PlacedKey::last_below(&p.end),
            sequences: meta.sequences(),
            compression: p.compression,
            keyspaces: keyspaces.collect(),
        }
    }
}
