//! Where large values go while tables are written.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use super::builder::ValueBuilder;
use super::collect::Collect;
use super::format::{Pointer, ValueMeta, value_path};
use super::live::decode;
use super::reader::ValueReader;
use crate::compaction::Failure;
use crate::compress::plain_length;
use crate::key::Kind;
use crate::levels::Shelf;
use crate::options::{Compression, Options};
use crate::planted::{self, Bug};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::table::payload_of;

/// How values are kept apart.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ValueOptions {
    /// From this size on; 0 is never.
    pub(crate) from_bytes: usize,
    pub(crate) file_bytes: u64,
    pub(crate) compression: Compression,
}

impl ValueOptions {
    pub(crate) fn new(options: &Options) -> Self {
        ValueOptions {
            from_bytes: options.large_value_bytes,
            file_bytes: options.value_file_bytes,
            compression: options.compression,
        }
    }
}

/// Writes large values to value files, and moves those that are collected.
pub(crate) struct ValueWriter<'a> {
    shelf: &'a Shelf,
    next_file: &'a AtomicU64,
    options: ValueOptions,
    collect: &'a Collect,
    reader: ValueReader,
    builder: Option<ValueBuilder>,
    done: Vec<ValueMeta>,
    started: Vec<PathBuf>,
    /// Of records that came from other files.
    moved_bytes: u64,
    /// What was returned last.
    pointer: Vec<u8>,
    value: Bytes,
}

impl<'a> ValueWriter<'a> {
    pub(crate) fn new(
        shelf: &'a Shelf,
        next_file: &'a AtomicU64,
        options: ValueOptions,
        collect: &'a Collect,
    ) -> Self {
        ValueWriter {
            shelf,
            next_file,
            options,
            collect,
            reader: ValueReader::new(Arc::clone(&collect.files), false),
            builder: None,
            done: Vec::new(),
            started: Vec::new(),
            moved_bytes: 0,
            pointer: Vec::new(),
            value: Bytes::new(),
        }
    }

    /// What a table gets for an entry of this kind with this value.
    pub(crate) fn place<'v>(
        &'v mut self,
        kind: Kind,
        value: &'v [u8],
    ) -> Result<(Kind, &'v [u8]), Failure> {
        match kind {
            Kind::Put if self.is_large(value.len()) => {
                let added = self.builder().and_then(|builder| builder.add(value));
                self.pointer_to(added.map_err(Failure::Output)?)
            }
            Kind::Pointer => {
                let pointer = decode(value).map_err(Failure::Input)?;
                match self.collect.takes(pointer.file) {
                    true => self.relocate(&pointer),
                    false => Ok((kind, value)),
                }
            }
            _ => Ok((kind, value)),
        }
    }

    /// The value that an encoded pointer of what is compacted points to.
    pub(crate) fn read(&mut self, pointer: &[u8]) -> crate::Result<Bytes> {
        let before = std::mem::take(&mut self.value);
        self.value = self.reader.get(pointer, before)?;
        Ok(self.value.clone())
    }

    fn is_large(&self, length: usize) -> bool {
        self.options.from_bytes > 0 && length >= self.options.from_bytes
    }

    /// Moves a value to the file under way; or to its key, if values no longer lie apart.
    fn relocate(&mut self, pointer: &Pointer) -> Result<(Kind, &[u8]), Failure> {
        let (file, record) = self.reader.record(pointer).map_err(Failure::Input)?;
        let checked = file.checked(pointer, &record).map_err(Failure::Input)?;
        let damaged = |what| Failure::Input(file.damaged(pointer.offset, what));
        let (how, payload) = payload_of(checked).map_err(damaged)?;
        self.moved_bytes += record.len() as u64;
        if self.options.from_bytes > 0
            && [Compression::None, self.options.compression].contains(&how)
        {
            let length = plain_length(how, payload).ok_or("it has no length");
            let length = length.map_err(damaged)?;
            let copied = self.builder().and_then(|b| b.copy(checked, length));
            let mut copied = copied.map_err(Failure::Output)?;
            if planted::is_on(Bug::MovedValuesKeepTheirOffset) {
                copied.offset = pointer.offset;
            }
            return self.pointer_to(copied);
        }
        let value = file
            .value(pointer, &record, Bytes::new())
            .map_err(Failure::Input)?;
        if self.options.from_bytes > 0 {
            let added = self.builder().and_then(|builder| builder.add(&value));
            return self.pointer_to(added.map_err(Failure::Output)?);
        }
        self.value = value;
        Ok((Kind::Put, &self.value))
    }

    fn pointer_to(&mut self, pointer: Pointer) -> Result<(Kind, &[u8]), Failure> {
        self.pointer.clear();
        pointer.encode(&mut self.pointer);
        Ok((Kind::Pointer, &self.pointer))
    }

    /// The file under way, which is not full; begun if there is none.
    fn builder(&mut self) -> crate::Result<&mut ValueBuilder> {
        let full = |builder: &ValueBuilder| builder.size_bytes() >= self.options.file_bytes;
        if self.builder.as_ref().is_some_and(full) {
            self.end_file()?;
        }
        let builder = match &mut self.builder {
            Some(builder) => builder,
            none => {
                let number = self.next_file.fetch_add(1, Ordering::Relaxed);
                let compression = self.options.compression;
                let builder = ValueBuilder::create(self.shelf, number, compression)?;
                self.started.push(value_path(&self.shelf.dir, number));
                none.insert(builder)
            }
        };
        Ok(builder)
    }

    fn end_file(&mut self) -> crate::Result<()> {
        if let Some(builder) = self.builder.take() {
            self.done.push(builder.finish()?);
        }
        Ok(())
    }

    /// Ends the file under way; returns all files and how much of them was moved there.
    pub(crate) fn finish(&mut self) -> crate::Result<(Vec<ValueMeta>, u64)> {
        self.end_file()?;
        Ok((std::mem::take(&mut self.done), self.moved_bytes))
    }

    /// Removes all that was written. What stays, the next opening removes.
    pub(crate) fn abandon(&mut self) {
        self.builder = None;
        for path in &self.started {
            let _ = self.shelf.disk.remove(path);
        }
    }
}
