//! redb 4: a B-tree. Writes that need not be synced are gathered into transactions of a thousand, since
//! it has no other way to write fast; each synced write is a transaction.

use std::path::Path;
use std::sync::Mutex;

use anyhow::{Context, Result, anyhow};
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};

use super::{Found, Setup, Store, look};

const GATHERED: usize = 1000;

type Write = (u16, Vec<u8>, Option<Vec<u8>>);

pub struct Redb {
    db: Database,
    names: Vec<String>,
    gathered: Mutex<Vec<Write>>,
}

impl Redb {
    pub fn open(dir: &Path, setup: &Setup) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let cache = setup.cache_bytes + 4 * setup.write_buffer_bytes;
        let mut builder = Database::builder();
        let db = builder
            .set_cache_size(cache as usize)
            .create(dir.join("redb"))?;
        let names: Vec<String> = (0..setup.keyspaces).map(|n| format!("k{n}")).collect();
        let redb = Redb {
            db,
            names,
            gathered: Mutex::default(),
        };
        let tx = redb.db.begin_write()?;
        for at in 0..setup.keyspaces {
            tx.open_table(redb.table(at)?)?;
        }
        tx.commit()?;
        Ok(redb)
    }

    fn table(&self, at: u16) -> Result<TableDefinition<'_, &'static [u8], &'static [u8]>> {
        let name = self.names.get(at as usize).context("no such keyspace")?;
        Ok(TableDefinition::new(name))
    }

    fn commit(&self, writes: &[Write], durability: Durability) -> Result<()> {
        let mut tx = self.db.begin_write()?;
        tx.set_durability(durability).map_err(|e| anyhow!(e))?;
        for (at, key, value) in writes {
            let mut table = tx.open_table(self.table(*at)?)?;
            match value {
                Some(value) => table.insert(&key[..], &value[..]).map(drop)?,
                None => table.remove(&key[..]).map(drop)?,
            }
        }
        Ok(tx.commit()?)
    }

    fn gather(&self, write: Write) -> Result<()> {
        let mut gathered = self.gathered.lock().map_err(|_| anyhow!("poisoned"))?;
        gathered.push(write);
        if gathered.len() < GATHERED {
            return Ok(());
        }
        let writes = std::mem::take(&mut *gathered);
        self.commit(&writes, Durability::None)
    }

    fn flush(&self) -> Result<()> {
        let mut gathered = self.gathered.lock().map_err(|_| anyhow!("poisoned"))?;
        let writes = std::mem::take(&mut *gathered);
        self.commit(&writes, Durability::Immediate)
    }
}

/// A key and its value, as a range yields them.
type Item<'a> = std::result::Result<
    (
        redb::AccessGuard<'a, &'static [u8]>,
        redb::AccessGuard<'a, &'static [u8]>,
    ),
    redb::StorageError,
>;

impl Store for Redb {
    fn put(&self, at: u16, key: &[u8], value: &[u8], sync: bool) -> Result<()> {
        let write = (at, key.to_vec(), Some(value.to_vec()));
        match sync {
            true => self.commit(&[write], Durability::Immediate),
            false => self.gather(write),
        }
    }

    fn delete(&self, at: u16, key: &[u8]) -> Result<()> {
        self.gather((at, key.to_vec(), None))
    }

    fn get(&self, at: u16, key: &[u8]) -> Result<Found> {
        let table = self.db.begin_read()?.open_table(self.table(at)?)?;
        Ok(table.get(key)?.map(|value| value.value().len()))
    }

    fn scan(&self, at: u16, from: &[u8], limit: usize, reverse: bool) -> Result<(usize, usize)> {
        let table = self.db.begin_read()?.open_table(self.table(at)?)?;
        let (mut count, mut bytes) = (0, 0);
        let mut add = |item: Item<'_>| -> Result<()> {
            let (key, value) = item?;
            bytes += key.value().len() + look(value.value());
            count += 1;
            Ok(())
        };
        match (reverse, from.is_empty()) {
            (false, _) => {
                for item in table.range(from..)?.take(limit) {
                    add(item)?;
                }
            }
            (true, true) => {
                for item in table.iter()?.rev().take(limit) {
                    add(item)?;
                }
            }
            (true, false) => {
                for item in table.range(..=from)?.rev().take(limit) {
                    add(item)?;
                }
            }
        }
        Ok((count, bytes))
    }

    fn settle(&self) -> Result<()> {
        self.flush()
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.flush()
    }
}
