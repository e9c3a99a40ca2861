//! The value files of levels, and what of each is alive.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::file::ValueFile;
use super::format::{Pointer, Share, ValueMeta};
use crate::error::{Error, ErrorKind, Result};
use crate::levels::{Shelf, TableMeta};

/// A value file and what of it tables need.
#[derive(Clone)]
pub(crate) struct Held {
    pub(crate) file: Arc<ValueFile>,
    pub(crate) live: Share,
}

impl Held {
    /// The bytes of records that no table needs.
    pub(crate) fn dead_bytes(&self) -> u64 {
        self.file.meta.all.bytes.saturating_sub(self.live.bytes)
    }
}

/// All value files of some levels, by their numbers. Invariant: of each something is alive, and no more
/// than it holds.
#[derive(Clone, Default)]
pub(crate) struct ValueFiles {
    files: BTreeMap<u64, Held>,
}

impl ValueFiles {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Held> {
        self.files.values()
    }

    pub(crate) fn len(&self) -> usize {
        self.files.len()
    }

    pub(crate) fn get(&self, number: u64) -> Option<&Arc<ValueFile>> {
        self.files.get(&number).map(|held| &held.file)
    }

    /// The file of a pointer.
    pub(super) fn file_of(&self, pointer: &Pointer) -> Result<&Arc<ValueFile>> {
        let file = self.get(pointer.file).ok_or_else(|| {
            let what = format!(
                "a pointer names value file {:x}, which is gone",
                pointer.file
            );
            Error::new(ErrorKind::Corruption, what)
        })?;
        file.check_pointer(pointer)?;
        Ok(file)
    }

    /// The value that an encoded pointer points to.
    pub(crate) fn get_value(&self, pointer: &[u8]) -> Result<bytes::Bytes> {
        let pointer = decode(pointer)?;
        self.file_of(&pointer)?.get(&pointer)
    }

    /// Keeps files whose numbers are wanted.
    pub(crate) fn retain(&mut self, wanted: impl Fn(u64) -> bool) {
        self.files.retain(|number, _| wanted(*number));
    }

    /// Adds files of which nothing is alive yet.
    pub(crate) fn add(&mut self, files: &[ValueMeta], shelf: &Arc<Shelf>) {
        for meta in files {
            let held = Held {
                file: ValueFile::new(*meta, shelf),
                live: Share::default(),
            };
            self.files.insert(meta.number, held);
        }
    }

    /// What a table needs is alive; the text says why it can't be.
    pub(crate) fn need(&mut self, table: &TableMeta) -> std::result::Result<(), String> {
        for (number, share) in &table.properties.shares {
            let live = self.share(*number, table.number)?;
            live.records = live.records.saturating_add(share.records);
            live.bytes = live.bytes.saturating_add(share.bytes);
        }
        Ok(())
    }

    /// What a table needed, it no longer does.
    pub(crate) fn release(&mut self, table: &TableMeta) -> std::result::Result<(), String> {
        for (number, share) in &table.properties.shares {
            let live = self.share(*number, table.number)?;
            let records = live.records.checked_sub(share.records);
            let bytes = live.bytes.checked_sub(share.bytes);
            let (Some(records), Some(bytes)) = (records, bytes) else {
                return Err(format!("value file {number:x} has less than nothing alive"));
            };
            *live = Share { records, bytes };
        }
        Ok(())
    }

    fn share(&mut self, number: u64, table: u64) -> std::result::Result<&mut Share, String> {
        let held = self.files.get_mut(&number);
        let held = held.ok_or_else(|| {
            format!("table {table} needs value file {number:x}, which is not there")
        })?;
        Ok(&mut held.live)
    }

    /// Lets go of files that no table needs, and returns them.
    pub(crate) fn sweep(&mut self) -> std::result::Result<Vec<Arc<ValueFile>>, String> {
        let mut gone = Vec::new();
        for held in self.files.values() {
            let all = &held.file.meta.all;
            if held.live.records > all.records || held.live.bytes > all.bytes {
                let number = held.file.meta.number;
                return Err(format!(
                    "tables need more of value file {number:x} than it holds"
                ));
            }
            if held.live.records == 0 {
                gone.push(Arc::clone(&held.file));
            }
        }
        self.files.retain(|_, held| held.live.records > 0);
        Ok(gone)
    }
}

/// Decodes what stands in a table.
pub(super) fn decode(pointer: &[u8]) -> Result<Pointer> {
    Pointer::decode(pointer)
        .ok_or_else(|| Error::new(ErrorKind::Corruption, "a pointer to a value is nonsense"))
}
