//! Tables made outside of an engine, for [`Lsm::ingest`](crate::Lsm::ingest).
//!
//! A writer takes entries in the order of the table: keyspaces ascending, in each keys ascending, of
//! each key versions descending; nothing twice. So writing is one pass and no memory. The table has no
//! sequences: it gets one, for all its entries, when an engine takes it in.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use quorate_env::{Disk, Env};

use crate::error::{Error, Result};
use crate::expiry::{self, Time};
use crate::key::{Key, Kind, place};
use crate::keyspaces::Keyspaces;
use crate::options::{KeyspaceId, Options};
use crate::table::{TableBuilder, TableOptions};

/// Writes one sorted table of one or several keyspaces. Dropped before [`TableWriter::finish`] it
/// leaves a file that is no table.
pub struct TableWriter {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    keyspaces: Keyspaces,
    builder: TableBuilder,
    /// Place and version of the entry before.
    last: Option<(Vec<u8>, u64)>,
}

impl TableWriter {
    /// Begins a table with the keyspaces, block size, filter and compression of these options. Values
    /// of a keyspace with a `ttl` live from when they are added, by the calendar. Fails if the file is
    /// there already.
    pub fn create(env: &Env, path: &Path, options: &Options) -> Result<TableWriter> {
        options.check()?;
        let time = Time::running(Arc::clone(&env.clock));
        let table = TableOptions::new(options, options.compression, time.now_ms());
        Ok(TableWriter {
            builder: TableBuilder::create(env.disk.as_ref(), path, table)?,
            disk: Arc::clone(&env.disk),
            path: path.to_owned(),
            keyspaces: Keyspaces::new(&options.keyspaces, time),
            last: None,
        })
    }

    /// Adds a key of a plain keyspace.
    pub fn put(&mut self, keyspace: KeyspaceId, key: &[u8], value: &[u8]) -> Result<()> {
        self.add(Kind::Put, keyspace, None, key, value)
    }

    /// Adds the deletion of a key of a plain keyspace.
    pub fn delete(&mut self, keyspace: KeyspaceId, key: &[u8]) -> Result<()> {
        self.add(Kind::Delete, keyspace, None, key, &[])
    }

    /// Adds a key of a versioned keyspace, at a version below that of the entry before, if that is
    /// of the same key.
    pub fn put_at(
        &mut self,
        keyspace: KeyspaceId,
        key: &[u8],
        version: u64,
        value: &[u8],
    ) -> Result<()> {
        self.add(Kind::Put, keyspace, Some(version), key, value)
    }

    /// Adds the deletion of a key of a versioned keyspace, at a version.
    pub fn delete_at(&mut self, keyspace: KeyspaceId, key: &[u8], version: u64) -> Result<()> {
        self.add(Kind::Delete, keyspace, Some(version), key, &[])
    }

    /// The size so far, about.
    pub fn size_bytes(&self) -> u64 {
        self.builder.size_bytes()
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.builder.is_empty()
    }

    /// Completes the table and syncs it; returns its size. Its name is durable only after a sync of
    /// its directory, which an engine that takes it in does not need. Fails if it is empty.
    pub fn finish(self) -> Result<u64> {
        if self.is_empty() {
            let _ = self.disk.remove(&self.path);
            let text = format!("{}: a table holds at least one entry", self.path.display());
            return Err(Error::invalid(text));
        }
        let (size, _) = self.builder.finish()?;
        Ok(size)
    }

    fn add(
        &mut self,
        kind: Kind,
        id: KeyspaceId,
        version: Option<u64>,
        key: &[u8],
        value: &[u8],
    ) -> Result<()> {
        self.keyspaces.check_entry(id, version, key)?;
        let expires = kind == Kind::Put && self.keyspaces.get(id)?.expires();
        let mut stamped = Vec::new();
        if expires {
            expiry::stamp(&mut stamped, self.keyspaces.time().now_ms(), value);
        }
        let key = Key {
            place: &place(id, key),
            version: version.unwrap_or(0),
            sequence: 0,
            kind: if expires { Kind::Expiring } else { kind },
        };
        self.check_order(&key)?;
        self.builder
            .add(&key, if expires { &stamped } else { value })?;
        let (last, last_version) = self.last.get_or_insert_default();
        last.clear();
        last.extend_from_slice(key.place);
        *last_version = key.version;
        Ok(())
    }

    fn check_order(&self, key: &Key<'_>) -> Result<()> {
        let Some((place, version)) = &self.last else {
            return Ok(());
        };
        let last = Key {
            place,
            version: *version,
            sequence: 0,
            kind: Kind::Put,
        };
        match last.order(key).is_lt() {
            true => Ok(()),
            false => Err(Error::invalid(format!(
                "{}: {key} does not come after {last}: keyspaces and keys ascend, versions of a key \
                 descend, and none is there twice",
                self.path.display()
            ))),
        }
    }
}

impl std::fmt::Debug for TableWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TableWriter")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}
