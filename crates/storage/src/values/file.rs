//! A value file that levels refer to.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use quorate_env::{Disk, File};

use super::format::{LENGTH_BYTES, MAGIC, Pointer, ValueMeta, seal_of, value_path};
use crate::compress::decompress;
use crate::error::{Error, Result};
use crate::header::{self, HEADER_BYTES};
use crate::levels::Shelf;
use crate::memory::Memory;
use crate::options::Compression;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::table::{checked_block, payload_of};

/// What a value file of this size says of itself.
pub(super) fn read_meta(file: &dyn File, path: &Path, size: u64) -> Result<ValueMeta> {
    let (_, footer) = header::read_ends(file, path, size, &MAGIC)?;
    ValueMeta::decode_footer(path, &footer)
}

/// A value file; opened when it is first read.
pub(crate) struct ValueFile {
    pub(crate) meta: ValueMeta,
    shelf: Arc<Shelf>,
    open: OnceLock<Arc<dyn File>>,
    obsolete: AtomicBool,
}

impl ValueFile {
    pub(crate) fn new(meta: ValueMeta, shelf: &Arc<Shelf>) -> Arc<Self> {
        Arc::new(ValueFile {
            meta,
            shelf: Arc::clone(shelf),
            open: OnceLock::new(),
            obsolete: AtomicBool::new(false),
        })
    }

    /// Its file may go when nobody reads it any more: the manifest no longer has it.
    pub(crate) fn retire(&self) {
        self.obsolete.store(true, Ordering::Release);
    }

    /// Where its file is.
    pub(crate) fn path(&self) -> PathBuf {
        value_path(&self.shelf.dir, self.meta.number)
    }

    /// The disk with its file.
    pub(crate) fn disk(&self) -> &dyn Disk {
        self.shelf.disk.as_ref()
    }

    /// What readers of it count in.
    pub(super) fn memory(&self) -> &Arc<Memory> {
        self.shelf.cache.memory()
    }

    /// Takes the open file of another handle of the same value file.
    pub(crate) fn share(&self, other: &ValueFile) {
        if let Some(file) = other.open.get() {
            let _ = self.open.set(Arc::clone(file));
        }
    }

    /// The file, opened; it is what the manifest says of it.
    pub(crate) fn file(&self) -> Result<&Arc<dyn File>> {
        match self.open.get() {
            Some(file) => Ok(file),
            None => self.open_file().inspect_err(|error| self.note(None, error)),
        }
    }

    fn open_file(&self) -> Result<&Arc<dyn File>> {
        let path = self.path();
        let failed = |e: std::io::Error| Error::disk(&path, "can't read", &e);
        let file = self.disk().open_read(&path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::corrupt(&path, "the file is missing"),
            _ => Error::disk(&path, "can't open", &e),
        })?;
        let (size, wanted) = (file.size().map_err(failed)?, self.meta.size_bytes());
        if size != wanted {
            let what = format!("it has {size} bytes instead of {wanted}");
            return Err(Error::corrupt(&path, what));
        }
        if read_meta(file.as_ref(), &path, size)? != self.meta {
            let what = "it is not the value file that the manifest knows";
            return Err(Error::corrupt(&path, what));
        }
        Ok(self.open.get_or_init(|| file))
    }

    /// Reads some of the file, into `buffer` if it is nobody else's. REQUIRES: it is within the records.
    pub(super) fn read(&self, offset: u64, size: usize, buffer: Bytes) -> Result<Bytes> {
        let mut bytes = buffer.try_into_mut().unwrap_or_default();
        bytes.resize(size, 0);
        let read = self.file()?.read_exact_at(&mut bytes, offset);
        read.map_err(|e| Error::disk(&self.path(), "can't read", &e))
            .inspect_err(|error| self.note(Some(offset), error))?;
        Ok(bytes.freeze())
    }

    /// Fails unless a pointer is within the records.
    pub(super) fn check_pointer(&self, pointer: &Pointer) -> Result<()> {
        let inside = pointer.offset >= HEADER_BYTES as u64
            && pointer.end() <= self.meta.records_end()
            && pointer.size as usize > LENGTH_BYTES;
        match inside {
            true => Ok(()),
            false => Err(self.damaged(pointer.offset, "a pointer points behind the records")),
        }
    }

    pub(super) fn damaged(&self, offset: u64, what: &str) -> Error {
        let error = Error::corrupt(&self.path(), format!("value at byte {offset}: {what}"));
        self.note(Some(offset), &error);
        error
    }

    fn note(&self, offset: Option<u64>, error: &Error) {
        self.shelf.damages.note(self.meta.number, offset, error);
    }

    /// What was checked of the record that a pointer points to, given its bytes.
    pub(super) fn checked<'a>(&self, pointer: &Pointer, record: &'a [u8]) -> Result<&'a [u8]> {
        let damaged = |what| self.damaged(pointer.offset, what);
        let (length, block) = record
            .split_first_chunk::<LENGTH_BYTES>()
            .ok_or_else(|| damaged("it is shorter than its length"))?;
        if u32::from_le_bytes(*length) as usize != block.len() {
            return Err(damaged("it has another length than its pointer says"));
        }
        let seal = seal_of(self.meta.number, pointer.offset);
        checked_block(block, seal).map_err(damaged)
    }

    /// The value in a record: a part of it, or in `buffer` if that is nobody else's.
    pub(super) fn value(&self, pointer: &Pointer, record: &Bytes, buffer: Bytes) -> Result<Bytes> {
        let checked = self.checked(pointer, record)?;
        let opened = payload_of(checked).and_then(|(how, payload)| {
            if how == Compression::None {
                return Ok(record.slice_ref(payload));
            }
            let mut plain = buffer.try_into_mut().unwrap_or_default();
            decompress(how, payload, &mut plain)?;
            Ok(plain.freeze())
        });
        opened.map_err(|what| self.damaged(pointer.offset, what))
    }

    /// The value that a pointer points to, by way of the cache.
    pub(crate) fn get(&self, pointer: &Pointer) -> Result<Bytes> {
        self.check_pointer(pointer)?;
        if let Some(value) = self.cached(pointer) {
            return Ok(value);
        }
        self.value_to_keep(pointer, &self.record(pointer)?)
    }

    /// The value that a pointer points to, from the disk and not from the cache.
    pub(crate) fn read_anew(&self, pointer: &Pointer) -> Result<Bytes> {
        self.check_pointer(pointer)?;
        self.value(pointer, &self.record(pointer)?, Bytes::new())
    }

    fn record(&self, pointer: &Pointer) -> Result<Bytes> {
        self.read(pointer.offset, pointer.size as usize, Bytes::new())
    }

    /// The value that a pointer points to, if it is in the cache.
    pub(super) fn cached(&self, pointer: &Pointer) -> Option<Bytes> {
        self.shelf.cache.get_value(self.meta.number, pointer.offset)
    }

    /// The value in a record, which goes to the cache as well if that takes it.
    pub(super) fn value_to_keep(&self, pointer: &Pointer, record: &Bytes) -> Result<Bytes> {
        let value = self.value(pointer, record, Bytes::new())?;
        let cache = &self.shelf.cache;
        if !cache.takes_value(value.len()) {
            return Ok(value);
        }
        let of_record = record.as_ptr_range().contains(&value.as_ptr());
        let value = match of_record {
            true => Bytes::copy_from_slice(&value),
            false => value,
        };
        let value = cache.memory().hold_block(value);
        cache.insert_value(self.meta.number, pointer.offset, value.clone());
        Ok(value)
    }
}

impl Drop for ValueFile {
    fn drop(&mut self) {
        if self.obsolete.load(Ordering::Acquire) {
            self.shelf.discard(self.path());
        }
    }
}
