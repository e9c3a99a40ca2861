//! Writes a file from its front to its end, in large pieces.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use quorate_env::{Disk, File};

use crate::error::{Error, Result};

/// Bytes gathered before they are handed to the file.
const WRITE_BYTES: usize = 1 << 20;

/// A file that is being written. Dropped before [`Appender::finish`] it leaves an orphan, which nothing
/// refers to and the next opening of a store removes.
pub(crate) struct Appender {
    path: PathBuf,
    file: Arc<dyn File>,
    /// Not yet handed to the file.
    pending: Vec<u8>,
    written: u64,
}

impl Appender {
    /// Begins a new file with these bytes.
    pub(crate) fn create(disk: &dyn Disk, path: &Path, head: &[u8]) -> Result<Self> {
        let file = disk.create(path);
        Ok(Appender {
            file: file.map_err(|e| Error::disk(path, "can't create", &e))?,
            path: path.to_owned(),
            pending: head.to_vec(),
            written: 0,
        })
    }

    /// The file's size, with what is gathered.
    pub(crate) fn offset(&self) -> u64 {
        self.written + self.pending.len() as u64
    }

    /// Adds what `write` appends to the bytes it is given; returns where it begins, and its size.
    pub(crate) fn append(&mut self, write: impl FnOnce(&mut Vec<u8>, u64)) -> Result<(u64, u32)> {
        let (start, offset) = (self.pending.len(), self.offset());
        write(&mut self.pending, offset);
        let size = (self.pending.len() - start) as u32;
        if self.pending.len() >= WRITE_BYTES {
            self.write_pending()?;
        }
        Ok((offset, size))
    }

    fn write_pending(&mut self) -> Result<()> {
        let wrote = self.file.write_all_at(&self.pending, self.written);
        wrote.map_err(|e| Error::disk(&self.path, "can't write", &e))?;
        self.written += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }

    /// Writes the rest and, if asked, syncs the file; its name is durable only after a sync of its
    /// directory. Returns the file's size.
    pub(crate) fn finish(mut self, sync: bool) -> Result<u64> {
        self.write_pending()?;
        if sync {
            let synced = self.file.sync();
            synced.map_err(|e| Error::disk(&self.path, "can't sync", &e))?;
        }
        Ok(self.written)
    }
}
