//! The engines, each behind the few operations that the workloads need, and set up alike: 10-bit
//! filters, LZ4, the same cache and write buffers, `fdatasync` where it has the choice.

mod fjall;
mod quorate;
mod redb;
mod rocksdb;
mod sled;

use std::path::Path;

use anyhow::{Result, bail};

/// How much an engine may take, and what it keeps.
#[derive(Debug, Clone)]
pub struct Setup {
    pub cache_bytes: u64,
    pub write_buffer_bytes: u64,
    /// Independent key ranges, each a column family, keyspace, partition or table.
    pub keyspaces: u16,
    /// Values from this size on lie apart from their keys, where the engine can do that; none do if it is
    /// 0. `None`: what the engine does by itself.
    pub separate_from: Option<usize>,
    /// Values are large: an engine that keeps none apart by itself does so from 1 KiB on.
    pub large_values: bool,
    /// Every write has a version, and reads may ask for one.
    pub versioned: bool,
}

impl Setup {
    /// The size from which an engine lays values apart that does not do so by itself.
    pub fn separate_if_asked(&self) -> Option<usize> {
        let large = self.large_values.then_some(1024);
        self.separate_from.or(large).filter(|bytes| *bytes > 0)
    }
}

/// What reads count: so that no value is left unread.
pub type Found = Option<usize>;

/// Reads all of a value, a byte of each cache line; returns its length.
fn look(value: &[u8]) -> usize {
    let sum: u64 = value.iter().step_by(64).map(|byte| u64::from(*byte)).sum();
    std::hint::black_box(sum);
    value.len()
}

/// One engine under test. `at` is a keyspace.
pub trait Store: Send + Sync {
    fn put(&self, at: u16, key: &[u8], value: &[u8], sync: bool) -> Result<()>;
    fn delete(&self, at: u16, key: &[u8]) -> Result<()>;
    /// The length of the value.
    fn get(&self, at: u16, key: &[u8]) -> Result<Found>;
    /// Looks many keys up; how many were there.
    fn multi_get(&self, at: u16, keys: &[Vec<u8>]) -> Result<usize> {
        let mut found = 0;
        for key in keys {
            found += usize::from(self.get(at, key)?.is_some());
        }
        Ok(found)
    }
    /// Reads up to `limit` entries on from `from`; the number, and the bytes of keys and values.
    fn scan(&self, at: u16, from: &[u8], limit: usize, reverse: bool) -> Result<(usize, usize)>;
    /// Removes all keys in a range; false if the engine has no such operation.
    fn delete_range(&self, _at: u16, _from: &[u8], _to: &[u8]) -> Result<bool> {
        Ok(false)
    }
    /// Writes at a version. Only with [`Setup::versioned`].
    fn put_at(&self, _key: &[u8], _version: u64, _value: &[u8]) -> Result<()> {
        bail!("this engine keeps no versions")
    }
    /// Reads at a version. Only with [`Setup::versioned`].
    fn get_at(&self, _key: &[u8], _version: u64) -> Result<Found> {
        bail!("this engine keeps no versions")
    }
    /// Writes memory out and merges all there is; waits for it.
    fn settle(&self) -> Result<()>;
    /// Ends it as its documentation asks for.
    fn close(self: Box<Self>) -> Result<()>;
}

/// The engines' names, ours first.
pub const NAMES: [&str; 5] = ["quorate", "rocksdb", "fjall", "redb", "sled"];

/// Opens an engine in a directory.
pub fn open(name: &str, dir: &Path, setup: &Setup) -> Result<Box<dyn Store>> {
    let inline = || Setup {
        separate_from: Some(0),
        ..setup.clone()
    };
    Ok(match name {
        "quorate" => Box::new(quorate::Quorate::open(dir, setup)?),
        "quorate-inline" => Box::new(quorate::Quorate::open(dir, &inline())?),
        "rocksdb" => Box::new(rocksdb::RocksDb::open(dir, setup)?),
        "rocksdb-inline" => Box::new(rocksdb::RocksDb::open(dir, &inline())?),
        "fjall" => Box::new(fjall::Fjall::open(dir, setup)?),
        "redb" => Box::new(redb::Redb::open(dir, setup)?),
        "sled" => Box::new(sled::Sled::open(dir, setup)?),
        _ => bail!("`{name}` is none of {NAMES:?}"),
    })
}
