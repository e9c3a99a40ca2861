//! Ours.

use std::path::Path;

use anyhow::{Result, anyhow};
use quorate_env::Env;
use quorate_storage::{
    Batch, Durability, Engine, IterOptions, KeyRange, KeyspaceId, KeyspaceOptions, Lsm, Options,
    ReadAt, WriteOptions,
};

use super::{Found, Setup, Store, look};

pub struct Quorate {
    lsm: Lsm,
}

impl Quorate {
    pub fn open(dir: &Path, setup: &Setup) -> Result<Self> {
        let keyspaces = (0..setup.keyspaces).map(|n| {
            let name = format!("keyspace-{n}");
            match setup.versioned {
                true => KeyspaceOptions::versioned(n, &name),
                false => KeyspaceOptions::plain(n, &name),
            }
        });
        let defaults = Options::default();
        let options = Options {
            large_value_bytes: setup.separate_from.unwrap_or(defaults.large_value_bytes),
            keyspaces: keyspaces.collect(),
            cache_bytes: setup.cache_bytes,
            memtable_bytes: setup.write_buffer_bytes as usize,
            ..defaults
        };
        let lsm = Lsm::open(&Env::real(1), dir, options)?;
        Ok(Quorate { lsm })
    }

    fn write(&self, batch: &Batch, sync: bool) -> Result<()> {
        let durability = match sync {
            true => Durability::Synced,
            false => Durability::Buffered,
        };
        let options = WriteOptions {
            durability,
            throttle: true,
            ..WriteOptions::default()
        };
        self.lsm.write(batch, options)?;
        Ok(())
    }
}

impl Store for Quorate {
    fn put(&self, at: u16, key: &[u8], value: &[u8], sync: bool) -> Result<()> {
        let mut batch = Batch::new();
        batch.put(KeyspaceId(at), key, value);
        self.write(&batch, sync)
    }

    fn delete(&self, at: u16, key: &[u8]) -> Result<()> {
        let mut batch = Batch::new();
        batch.delete(KeyspaceId(at), key);
        self.write(&batch, false)
    }

    fn get(&self, at: u16, key: &[u8]) -> Result<Found> {
        let found = self.lsm.get(KeyspaceId(at), key, &ReadAt::NEWEST)?;
        Ok(found.map(|entry| entry.value.len()))
    }

    fn scan(&self, at: u16, from: &[u8], limit: usize, reverse: bool) -> Result<(usize, usize)> {
        let mut iter = self.lsm.iterate(KeyspaceId(at), IterOptions::default())?;
        match (reverse, from.is_empty()) {
            (false, true) => iter.seek_to_first()?,
            (false, false) => iter.seek(from)?,
            (true, true) => iter.seek_to_last()?,
            (true, false) => iter.seek_for_prev(from)?,
        }
        let (mut count, mut bytes) = (0, 0);
        while iter.valid() && count < limit {
            bytes += iter.key().len() + look(iter.value());
            count += 1;
            if reverse {
                iter.prev()?;
            } else {
                iter.next()?;
            }
        }
        Ok((count, bytes))
    }

    fn multi_get(&self, at: u16, keys: &[Vec<u8>]) -> Result<usize> {
        let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
        let found = self.lsm.multi_get(KeyspaceId(at), &keys, &ReadAt::NEWEST)?;
        Ok(found.iter().flatten().count())
    }

    fn delete_range(&self, at: u16, from: &[u8], to: &[u8]) -> Result<bool> {
        let mut batch = Batch::new();
        batch.delete_range(KeyspaceId(at), KeyRange::new(from, to));
        self.write(&batch, false)?;
        Ok(true)
    }

    fn put_at(&self, key: &[u8], version: u64, value: &[u8]) -> Result<()> {
        let mut batch = Batch::new();
        batch.put_at(KeyspaceId(0), key, version, value);
        self.write(&batch, false)
    }

    fn get_at(&self, key: &[u8], version: u64) -> Result<Found> {
        let found = self
            .lsm
            .get(KeyspaceId(0), key, &ReadAt::version(version))?;
        Ok(found.map(|entry| entry.value.len()))
    }

    fn settle(&self) -> Result<()> {
        Ok(self.lsm.compact_all()?)
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.lsm.close().map_err(|e| anyhow!(e))
    }
}
