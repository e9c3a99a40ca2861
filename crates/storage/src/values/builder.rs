//! Writes value files.

use std::path::PathBuf;
use std::sync::Arc;

use quorate_env::File;

use super::format::{LENGTH_BYTES, MAGIC, Pointer, Share, ValueMeta, seal_of, value_path};
use crate::error::{Error, Result};
use crate::header;
use crate::levels::Shelf;
use crate::options::Compression;
use crate::table::{reseal_block, seal_block};

/// Bytes gathered before they are handed to the file.
const WRITE_BYTES: usize = 1 << 20;

/// A value file that is being written. Dropped before [`ValueBuilder::finish`] it leaves an orphan, which
/// nothing refers to and the next opening removes.
pub(super) struct ValueBuilder {
    path: PathBuf,
    file: Arc<dyn File>,
    /// Not yet handed to the file.
    pending: Vec<u8>,
    written: u64,
    meta: ValueMeta,
}

impl ValueBuilder {
    pub(super) fn create(shelf: &Shelf, number: u64, compression: Compression) -> Result<Self> {
        let path = value_path(&shelf.dir, number);
        let file = shelf.disk.create(&path);
        Ok(ValueBuilder {
            file: file.map_err(|e| Error::disk(&path, "can't create", &e))?,
            path,
            pending: header::encode(&MAGIC).to_vec(),
            written: 0,
            meta: ValueMeta {
                number,
                all: Share::default(),
                value_bytes: 0,
                compression,
            },
        })
    }

    /// The size so far.
    pub(super) fn size_bytes(&self) -> u64 {
        self.meta.size_bytes()
    }

    pub(super) fn add(&mut self, value: &[u8]) -> Result<Pointer> {
        let compression = self.meta.compression;
        self.record(value.len(), |out, seal| {
            seal_block(out, seal, value, compression);
        })
    }

    /// Adds a record that was in another file, by what was checked of it; `length` is that of the plain
    /// value.
    pub(super) fn copy(&mut self, checked: &[u8], length: usize) -> Result<Pointer> {
        self.record(length, |out, seal| reseal_block(out, seal, checked))
    }

    fn record(&mut self, length: usize, seal: impl FnOnce(&mut Vec<u8>, u64)) -> Result<Pointer> {
        let start = self.pending.len();
        let offset = self.written + start as u64;
        self.pending.extend_from_slice(&[0; LENGTH_BYTES]);
        seal(&mut self.pending, seal_of(self.meta.number, offset));
        let size = (self.pending.len() - start) as u32;
        let block = (size - LENGTH_BYTES as u32).to_le_bytes();
        self.pending[start..start + LENGTH_BYTES].copy_from_slice(&block);
        let pointer = Pointer {
            file: self.meta.number,
            offset,
            size,
        };
        self.meta.all.add(&pointer);
        self.meta.value_bytes += length as u64;
        if self.pending.len() >= WRITE_BYTES {
            self.write_pending()?;
        }
        Ok(pointer)
    }

    fn write_pending(&mut self) -> Result<()> {
        let wrote = self.file.write_all_at(&self.pending, self.written);
        wrote.map_err(|e| Error::disk(&self.path, "can't write", &e))?;
        self.written += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }

    /// Writes the rest and syncs the file; its name is durable only after a sync of its directory.
    pub(super) fn finish(mut self) -> Result<ValueMeta> {
        self.pending.extend_from_slice(&self.meta.encode_footer());
        self.write_pending()?;
        let synced = self.file.sync();
        synced.map_err(|e| Error::disk(&self.path, "can't sync", &e))?;
        Ok(self.meta)
    }
}
