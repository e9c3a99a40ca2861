//! fjall 3.

use std::path::Path;

use anyhow::{Context, Result};
use fjall::config::{BloomConstructionPolicy, CompressionPolicy, FilterPolicy, FilterPolicyEntry};
use fjall::{
    CompressionType, Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, PersistMode,
    Readable,
};

use super::{Found, Setup, Store, look};

pub struct Fjall {
    db: Database,
    keyspaces: Vec<Keyspace>,
}

impl Fjall {
    pub fn open(dir: &Path, setup: &Setup) -> Result<Self> {
        let db = Database::builder(dir)
            .cache_size(setup.cache_bytes)
            .worker_threads(2)
            .open()?;
        let options = || {
            let bloom = FilterPolicyEntry::Bloom(BloomConstructionPolicy::BitsPerKey(10.0));
            let mut options = KeyspaceCreateOptions::default()
                .max_memtable_size(setup.write_buffer_bytes)
                .filter_policy(FilterPolicy::all(bloom))
                .data_block_compression_policy(CompressionPolicy::new([
                    CompressionType::None,
                    CompressionType::Lz4,
                ]));
            if let Some(bytes) = setup.separate_if_asked() {
                let separation = KvSeparationOptions::default().separation_threshold(bytes as u32);
                options = options.with_kv_separation(Some(separation));
            }
            options
        };
        let keyspaces = (0..setup.keyspaces).map(|n| db.keyspace(&format!("k{n}"), options));
        let keyspaces = keyspaces.collect::<Result<Vec<_>, _>>()?;
        Ok(Fjall { db, keyspaces })
    }

    fn at(&self, at: u16) -> Result<&Keyspace> {
        self.keyspaces.get(at as usize).context("no such keyspace")
    }
}

impl Store for Fjall {
    fn put(&self, at: u16, key: &[u8], value: &[u8], sync: bool) -> Result<()> {
        self.at(at)?.insert(key, value)?;
        if sync {
            self.db.persist(PersistMode::SyncData)?;
        }
        Ok(())
    }

    fn delete(&self, at: u16, key: &[u8]) -> Result<()> {
        Ok(self.at(at)?.remove(key)?)
    }

    fn get(&self, at: u16, key: &[u8]) -> Result<Found> {
        Ok(self.at(at)?.get(key)?.map(|value| value.len()))
    }

    fn scan(&self, at: u16, from: &[u8], limit: usize, reverse: bool) -> Result<(usize, usize)> {
        let snapshot = self.db.snapshot();
        let keyspace = self.at(at)?;
        let (mut count, mut bytes) = (0, 0);
        let mut add = |guard: fjall::Guard| -> Result<()> {
            let (key, value) = guard.into_inner()?;
            bytes += key.len() + look(&value);
            count += 1;
            Ok(())
        };
        match reverse {
            false => {
                for guard in snapshot.range(keyspace, from..).take(limit) {
                    add(guard)?;
                }
            }
            true if from.is_empty() => {
                for guard in snapshot.iter(keyspace).rev().take(limit) {
                    add(guard)?;
                }
            }
            true => {
                for guard in snapshot.range(keyspace, ..=from).rev().take(limit) {
                    add(guard)?;
                }
            }
        }
        Ok((count, bytes))
    }

    fn settle(&self) -> Result<()> {
        for keyspace in &self.keyspaces {
            keyspace.rotate_memtable_and_wait()?;
            keyspace.major_compact()?;
        }
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(self.db.persist(PersistMode::SyncData)?)
    }
}
