//! Reading one value after the other, in the order of keys.
//!
//! Values of a run of keys lie in a few files, in each one behind the other: a flush and a compaction
//! write them in the order of keys. So for each file there is a *window*, read ahead: as long as values
//! are asked for from front to back, it grows.

use std::sync::Arc;

use bytes::Bytes;

use super::file::ValueFile;
use super::format::Pointer;
use super::live::{ValueFiles, decode};
use crate::error::Result;
use crate::memory::Held;
use crate::planted::{self, Bug};

/// The size of the first window that reaches beyond one value.
const FIRST_BYTES: usize = 32 << 10;
/// The largest window of a file.
const MOST_BYTES: usize = 256 << 10;
/// All windows of a reader.
const ALL_BYTES: usize = 4 << 20;

/// What was last read of a file.
struct Window {
    file: Arc<ValueFile>,
    start: u64,
    bytes: Bytes,
    /// Where the last value that was asked for ended.
    next: u64,
    /// How much to read next.
    size: usize,
    /// Counts `bytes`.
    _held: Option<Held>,
}

/// Reads values of some levels.
pub(crate) struct ValueReader {
    files: Arc<ValueFiles>,
    /// By number of the file.
    windows: Vec<Window>,
    fill_cache: bool,
}

impl ValueReader {
    /// `fill_cache` is whether values that it reads shall stay: not for compaction.
    pub(crate) fn new(files: Arc<ValueFiles>, fill_cache: bool) -> Self {
        ValueReader {
            files,
            windows: Vec::new(),
            fill_cache,
        }
    }

    /// The value that an encoded pointer points to. `before` is the one before, to be written over if
    /// nobody else has it.
    pub(crate) fn get(&mut self, pointer: &[u8], before: Bytes) -> Result<Bytes> {
        let pointer = decode(pointer)?;
        let window = self.window(&pointer)?;
        window.file.check_pointer(&pointer)?;
        if let Some(value) = window.file.cached(&pointer) {
            window.next = pointer.end();
            return Ok(value);
        }
        let (file, record) = self.record(&pointer)?;
        match self.fill_cache {
            true => file.value_to_keep(&pointer, &record),
            false => file.value(&pointer, &record, before),
        }
    }

    /// The bytes of a record, with its file.
    pub(super) fn record(&mut self, pointer: &Pointer) -> Result<(Arc<ValueFile>, Bytes)> {
        let most = (ALL_BYTES / self.files.len().max(1)).min(MOST_BYTES);
        let window = self.window(pointer)?;
        let most = window.file.memory().ahead(most);
        let record = window.record(pointer, most)?;
        Ok((Arc::clone(&window.file), record))
    }

    fn window(&mut self, pointer: &Pointer) -> Result<&mut Window> {
        let before = |w: &Window| w.file.meta.number < pointer.file;
        let at = match planted::is_on(Bug::WindowsAreMixedUp) {
            true => 0,
            false => self.windows.partition_point(before),
        };
        let found = self.windows.get(at);
        if found.is_none_or(|w| {
            w.file.meta.number != pointer.file && !planted::is_on(Bug::WindowsAreMixedUp)
        }) {
            let window = Window {
                file: Arc::clone(self.files.file_of(pointer)?),
                start: 0,
                bytes: Bytes::new(),
                next: 0,
                size: 0,
                _held: None,
            };
            self.windows.insert(at, window);
        }
        Ok(&mut self.windows[at])
    }
}

impl Window {
    fn record(&mut self, pointer: &Pointer, most: usize) -> Result<Bytes> {
        self.file.check_pointer(pointer)?;
        let size = pointer.size as usize;
        if let Some(record) = self.within(pointer.offset, size) {
            self.next = pointer.end();
            return Ok(record);
        }
        // Dead records in between are read over, up to as much as is read at once.
        let gap = pointer.offset.checked_sub(self.next);
        let onward =
            self.next > 0 && gap.is_some_and(|gap| gap <= self.size.max(FIRST_BYTES) as u64);
        self.size = match onward {
            true => (2 * self.size).max(FIRST_BYTES).min(most),
            false => 0,
        };
        let rest = self.file.meta.records_end() - pointer.offset;
        let read = self
            .size
            .max(size)
            .min(usize::try_from(rest).unwrap_or(size));
        self.next = pointer.end();
        if read <= size {
            // Nothing beyond it: the window stays what it was.
            return self.file.read(pointer.offset, size, Bytes::new());
        }
        // What stays if this fails is empty.
        let buffer = std::mem::take(&mut self.bytes);
        self._held = None;
        self.bytes = self.file.read(pointer.offset, read, buffer)?;
        self._held = self.file.memory().hold_bytes(read);
        self.start = pointer.offset;
        Ok(self.bytes.slice(..size))
    }

    /// A part of the file, if the window holds it.
    fn within(&self, offset: u64, size: usize) -> Option<Bytes> {
        let from = usize::try_from(offset.checked_sub(self.start)?).ok()?;
        let to = from.checked_add(size)?;
        (to <= self.bytes.len()).then(|| self.bytes.slice(from..to))
    }
}
