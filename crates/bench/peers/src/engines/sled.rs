//! sled 0.34.

use std::path::Path;

use anyhow::{Context, Result};

use super::{Found, Setup, Store, look};

pub struct Sled {
    db: sled::Db,
    trees: Vec<sled::Tree>,
}

impl Sled {
    pub fn open(dir: &Path, setup: &Setup) -> Result<Self> {
        let db = sled::Config::new()
            .path(dir)
            .cache_capacity(setup.cache_bytes + 4 * setup.write_buffer_bytes)
            .open()?;
        let trees = (0..setup.keyspaces).map(|n| db.open_tree(format!("k{n}")));
        let trees = trees.collect::<Result<Vec<_>, _>>()?;
        Ok(Sled { db, trees })
    }

    fn at(&self, at: u16) -> Result<&sled::Tree> {
        self.trees.get(at as usize).context("no such keyspace")
    }
}

impl Store for Sled {
    fn put(&self, at: u16, key: &[u8], value: &[u8], sync: bool) -> Result<()> {
        self.at(at)?.insert(key, value)?;
        if sync {
            self.db.flush()?;
        }
        Ok(())
    }

    fn delete(&self, at: u16, key: &[u8]) -> Result<()> {
        self.at(at)?.remove(key)?;
        Ok(())
    }

    fn get(&self, at: u16, key: &[u8]) -> Result<Found> {
        Ok(self.at(at)?.get(key)?.map(|value| value.len()))
    }

    fn scan(&self, at: u16, from: &[u8], limit: usize, reverse: bool) -> Result<(usize, usize)> {
        let tree = self.at(at)?;
        let (mut count, mut bytes) = (0, 0);
        let mut add = |item: sled::Result<(sled::IVec, sled::IVec)>| -> Result<()> {
            let (key, value) = item?;
            bytes += key.len() + look(&value);
            count += 1;
            Ok(())
        };
        match (reverse, from.is_empty()) {
            (false, _) => {
                for item in tree.range(from..).take(limit) {
                    add(item)?;
                }
            }
            (true, true) => {
                for item in tree.iter().rev().take(limit) {
                    add(item)?;
                }
            }
            (true, false) => {
                for item in tree.range(..=from).rev().take(limit) {
                    add(item)?;
                }
            }
        }
        Ok((count, bytes))
    }

    fn settle(&self) -> Result<()> {
        self.db.flush()?;
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.db.flush()?;
        Ok(())
    }
}
