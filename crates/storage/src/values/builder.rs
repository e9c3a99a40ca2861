//! Writes value files.

use super::format::{LENGTH_BYTES, MAGIC, Pointer, Share, ValueMeta, seal_of, value_path};
use crate::error::Result;
use crate::header;
use crate::levels::Shelf;
use crate::options::Compression;
use crate::table::{Appender, reseal_block, seal_block};

/// A value file that is being written.
pub(super) struct ValueBuilder {
    file: Appender,
    meta: ValueMeta,
}

impl ValueBuilder {
    pub(super) fn create(shelf: &Shelf, number: u64, compression: Compression) -> Result<Self> {
        let path = value_path(&shelf.dir, number);
        Ok(ValueBuilder {
            file: Appender::create(shelf.disk.as_ref(), &path, &header::encode(&MAGIC))?,
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
        let number = self.meta.number;
        let (offset, size) = self.file.append(|out, offset| {
            let start = out.len();
            out.extend_from_slice(&[0; LENGTH_BYTES]);
            seal(out, seal_of(number, offset));
            let block = (out.len() - start - LENGTH_BYTES) as u32;
            out[start..start + LENGTH_BYTES].copy_from_slice(&block.to_le_bytes());
        })?;
        let pointer = Pointer {
            file: number,
            offset,
            size,
        };
        self.meta.all.add(&pointer);
        self.meta.value_bytes += length as u64;
        Ok(pointer)
    }

    /// Writes the rest and syncs the file; its name is durable only after a sync of its directory.
    pub(super) fn finish(mut self) -> Result<ValueMeta> {
        let footer = self.meta.encode_footer();
        self.file.append(|out, _| out.extend_from_slice(&footer))?;
        self.file.finish(true)?;
        Ok(self.meta)
    }
}
